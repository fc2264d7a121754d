"""The pickle of a checkpoint, read instruction by instruction: what ``torch.save`` writes for plain data, and no more.

Nothing is imported and nothing is called that the bytes name: three names of functions and those of the storages stand
for code that is written here. So what is checked is what is read, and a value takes memory for each byte that asks for
it, never for a number that claims a size.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from recipes.checkpoints.tensors import STORAGES, Storage, is_size, parameter_of, tensor_of

MAX_KEY = 2**31  # of whole numbers as keys: larger ones can be made to collide, and a dict of them takes forever
_DTYPES = {f"torch {name}Storage": dtype for dtype, name in STORAGES.items()}
_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda: OrderedDict(),
    "torch._utils _rebuild_tensor_v2": tensor_of,
    "torch._utils _rebuild_parameter": parameter_of,
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
ReadStorage = Callable[[str, int], torch.UntypedStorage]


class _Mark:
    """Where a sequence begins on the stack."""


class _Name:
    """A name in the pickle; no value of a checkpoint."""

    def __init__(self, name: str) -> None:
        self.name = name


class PickleReader:
    """One reading of one pickle.

    Args:
        data: its bytes.
        read_storage: ``(key, bytes) -> memory`` of the record of that key; called once for each.

    Attributes:
        keys: of the storages that were named.
    """

    def __init__(self, data: bytes, read_storage: ReadStorage) -> None:
        self._data, self._read_storage = data, read_storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._memory: dict[str, torch.UntypedStorage] = {}

    @property
    def keys(self) -> set[str]:
        return set(self._memory)

    def read(self) -> Any:
        """The content.

        Raises:
            ValueError: an instruction, a name or an operand that ``torch.save`` does not write for plain data.
        """
        end = 0
        for code, value, place in pickletools.genops(self._data):
            try:
                self._do(code.name, value)
            except (IndexError, KeyError, AttributeError, TypeError, RuntimeError) as error:  # operands of another kind
                raise ValueError(f"{code.name} at byte {place} of its pickle has no operands that fit") from error
            end = (place or 0) + 1
        if end != len(self._data) or len(self._stack) != 1:
            raise ValueError("its pickle goes on behind its end, or leaves something over")
        return self._stack[0]

    def _do(self, name: str, value: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(value)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[value])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            stack.append(_Mark)
        elif name in _TUPLES:
            stack.append(tuple(self._popped(_TUPLES[name])))
        elif (action := _ACTIONS.get(name)) is not None:
            action(self)
        elif name == "GLOBAL":
            stack.append(_known(value))
        elif (name, value) not in (("PROTO", 2), ("STOP", None)):
            raise ValueError(f"it holds the instruction {name}, which torch.save does not write; nothing of it was run")

    def _popped(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count or any(item is _Mark for item in items):
            raise IndexError
        del self._stack[-count:]
        return items

    def _marked(self) -> list[Any]:
        """What lies above the last mark, which is taken away with it."""
        items = []
        while (item := self._stack.pop()) is not _Mark:
            items.append(item)
        return items[::-1]

    def _tuple(self) -> None:
        self._stack.append(tuple(self._marked()))

    def _append(self) -> None:
        self._extend(self._popped(1))

    def _appends(self) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError
        self._stack[-1].extend(items)

    def _set_item(self) -> None:
        self._set(self._popped(2))

    def _set_items(self) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and (type(key) is not int or abs(key) >= MAX_KEY):
                raise ValueError(f"it has a key of type {type(key).__name__}; keys are text or small integers")
            if key in target:
                raise ValueError(f"it gives the key {key!r:.80} twice")
            target[key] = value

    def _build(self) -> None:
        """The attributes of a state dict: the versions of its modules."""
        state = self._popped(1)[0]
        target = self._stack[-1]
        if type(target) is not OrderedDict or type(state) is not dict or set(state) != {"_metadata"}:
            raise TypeError
        vars(target).update(state)

    def _reduce(self) -> None:
        function, arguments = self._popped(2)
        if type(function) is not _Name or type(arguments) is not tuple:
            raise TypeError
        self._stack.append(_CALLS[function.name](*arguments))

    def _storage(self) -> None:
        what, kind, key, location, numel = self._popped(1)[0]
        dtype = _DTYPES[kind.name]
        if what != "storage" or type(key) is not str or type(location) is not str or not is_size(numel):
            raise TypeError
        memory, nbytes = self._memory.get(key), numel * dtype.itemsize
        if memory is None:
            memory = self._memory[key] = self._read_storage(key, nbytes)
        if memory.nbytes() != nbytes:
            raise ValueError(f"it declares two sizes for the record data/{key[:80]}")
        self._stack.append(Storage(memory, dtype))


_ACTIONS: dict[str, Callable[[PickleReader], None]] = {
    "TUPLE": PickleReader._tuple,
    "APPEND": PickleReader._append,
    "APPENDS": PickleReader._appends,
    "SETITEM": PickleReader._set_item,
    "SETITEMS": PickleReader._set_items,
    "BUILD": PickleReader._build,
    "REDUCE": PickleReader._reduce,
    "BINPERSID": PickleReader._storage,
}


def _known(name: str) -> _Name:
    if name not in _DTYPES and name not in _CALLS:
        dotted = name.replace(" ", ".")
        raise ValueError(f"it names {dotted:.80}, which no checkpoint of this library does; nothing of it was run")
    return _Name(name)
