"""What the file of a checkpoint may hold, checked before it is written and before anything in a stranger's is used."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.checkpoints.archive import Archive
from recipes.checkpoints.form import Form
from recipes.checkpoints.pickle_reader import MAX_KEY, PickleReader
from recipes.checkpoints.tensors import MAX_DIMS, STORAGES

FORMAT_VERSION = 1
MAX_DEPTH = 64
MAX_BITS = 2000  # of a whole number
_PLAIN = {str, float, bool, type(None)}


def check_content(value: Any) -> None:
    """Refuse what a checkpoint does not hold: only tensors and plain values can be read again.

    What several places share is looked at once.

    Args:
        value: dicts with text or whole numbers as keys, lists, tuples, text, numbers, booleans, None, dense tensors.

    Raises:
        TypeError: anything else, with its dotted path.
    """
    _height(value, (), {})


def _height(value: Any, path: tuple[Any, ...], known: dict[int, int]) -> int:
    """Levels below ``value``, which is all right; ``known`` has those of the containers that were looked at before."""
    kind = type(value)
    if kind in _PLAIN or (kind is int and value.bit_length() <= MAX_BITS):
        return 0
    if kind is torch.Tensor or kind is nn.Parameter:
        if (problem := _problem_of_tensor(value)) is not None:
            raise TypeError(f"{_dotted(path)} is {problem}")
        return 0
    if kind not in (list, tuple, dict, OrderedDict):
        raise TypeError(
            f"{_dotted(path)} is a {kind.__module__}.{kind.__qualname__}"
            f"{f' of more than {MAX_BITS} bits' if kind is int else ''}; a checkpoint holds tensors and plain values "
            "only (dict, list, tuple, str, int, float, bool, None); store it as these"
        )
    levels = known.get(id(value), 0)
    if len(path) + levels > MAX_DEPTH:
        raise TypeError(f"{_dotted(path[:4])} is nested more than {MAX_DEPTH} levels deep, or in itself")
    if levels or not value:
        return levels
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        if type(key) is not str and (type(key) is not int or abs(key) >= MAX_KEY):
            raise TypeError(f"{_dotted(path)} has the key {key!r:.80}; keys of a checkpoint are text or integers")
        levels = max(levels, 1 + _height(item, (*path, key), known))
    known[id(value)] = levels
    return levels


def _problem_of_tensor(value: torch.Tensor) -> str | None:
    if value.layout is not torch.strided or value.dtype not in STORAGES or value.device.type == "meta":
        return (
            f"a tensor of {value.dtype}, {value.layout}, on {value.device}; a checkpoint holds dense tensors with data "
            f"of {', '.join(str(dtype).removeprefix('torch.') for dtype in STORAGES)}"
        )
    if vars(value):
        return f"a tensor with the attributes {', '.join(vars(value))}; they cannot be stored: pass tensor.detach()"
    if value.ndim > MAX_DIMS:
        return f"a tensor of {value.ndim} dimensions; at most {MAX_DIMS} are stored"
    if value.is_conj() or value.is_neg():
        return "a lazily conjugated tensor; pass tensor.resolve_conj().resolve_neg()"
    if _overlaps(value):
        return "an expanded tensor: it shows more elements than it has; pass tensor.contiguous()"
    return None


def _overlaps(value: torch.Tensor) -> bool:
    """Whether one element of the memory stands at two places."""
    reach = 0
    for step, length in sorted(zip(value.stride(), value.shape, strict=True)):
        if length > 1 and value.numel():
            if step <= reach:
                return True
            reach += (length - 1) * step
    return False


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)) or "the content"


def tensor_bytes(value: Any) -> int:
    """Bytes of the tensors in a content that was checked; what several share counts once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            stack += item.values() if isinstance(item, dict) else item
    return sum(storages.values())


def read_checkpoint(path: Path, form: Form | None = None) -> dict[str, Any]:
    """Read one file; nothing in it is executed, and it cannot ask for more memory than its own size.

    The bytes are read by ``Archive`` and ``PickleReader``, which know what ``torch.save`` writes for a checkpoint and
    nothing else, and not by torch: what is checked is what is read. The content is read, not mapped: what is loaded may
    live as long as the training, the file need not.

    Args:
        path: the file.
        form: refuses a content that lacks what is needed; None where any will do.

    Raises:
        ValueError: not one of our checkpoints, damaged, of a newer format, or of another form.
    """
    try:
        with open(path, "rb") as file:
            archive = Archive(file)
            reader = PickleReader(archive.read("data.pkl"), archive.storage)
            content = reader.read()
            if unread := archive.keys() - reader.keys:
                raise ValueError(f"nothing in it uses its record data/{min(unread)}")
        check_content(content)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of this library ({reason})") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise ValueError(f"{path} is no checkpoint of this library; weights of others go to backbone.pretrained=FILE")
    version = content["format_version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        reads = f"this one reads up to {FORMAT_VERSION}; update the library"
        raise ValueError(f"{path} has format {version!r:.80}, {reads}")
    if form is not None:
        form(content, path)
    return content
