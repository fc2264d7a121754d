"""What the file of a checkpoint may hold, checked before it is written and before anything in a stranger's is used."""

from __future__ import annotations

import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT_VERSION = 1

_STORAGES = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
}
#: Narrower than torch's own list for ``weights_only``, which lets a file of a few bytes ask for any amount of memory.
GLOBALS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{name}Storage" for name in _STORAGES.values()),
}
_PLAIN = {str, int, float, bool, type(None)}


def check_content(value: Any, path: tuple[Any, ...] = ()) -> None:
    """Refuse what a checkpoint does not hold: only tensors and plain values can be read in safe mode.

    Args:
        value: dicts with text or whole numbers as keys, lists, tuples, text, numbers, booleans, None, dense tensors.
        path: keys that lead to it.

    Raises:
        TypeError: anything else, with its dotted path.
    """
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is torch.Tensor or kind is nn.Parameter:
        if (problem := _problem_of_tensor(value)) is not None:
            raise TypeError(f"{_dotted(path)} is {problem}")
    elif kind is list or kind is tuple:
        for index, item in enumerate(value):
            if type(item) not in _PLAIN:
                check_content(item, (*path, index))
    elif kind is dict or kind is OrderedDict:
        for key, item in value.items():
            if type(key) is not str and type(key) is not int:
                raise TypeError(f"{_dotted(path)} has the key {key!r:.80}; keys of a checkpoint are text or integers")
            check_content(item, (*path, key))
    else:
        raise TypeError(
            f"{_dotted(path)} is a {kind.__module__}.{kind.__qualname__}; a checkpoint holds tensors and plain values "
            "only (dict, list, tuple, str, int, float, bool, None); store it as these"
        )


def _problem_of_tensor(value: torch.Tensor) -> str | None:
    if value.layout is not torch.strided or value.dtype not in _STORAGES or value.device.type == "meta":
        return (
            f"a tensor of {value.dtype}, {value.layout}, on {value.device}; a checkpoint holds dense tensors with data "
            f"of {', '.join(str(dtype).removeprefix('torch.') for dtype in _STORAGES)}"
        )
    if vars(value):
        return f"a tensor with the attributes {', '.join(vars(value))}; they cannot be stored: pass tensor.detach()"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "an expanded tensor: it shows more elements than it has; pass tensor.contiguous()"
    return None


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)) or "the content"


def tensor_bytes(value: Any) -> int:
    """Bytes of the tensors in a content that was checked; what several share counts once."""
    storages: dict[int, int] = {}
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list | tuple):
            stack += item
    return sum(storages.values())


def read_checkpoint(path: Path, check_sums: bool = False) -> dict[str, Any]:
    """Read one file; nothing in it is executed, and it cannot ask for more memory than its own size.

    The content is read, not mapped: what is loaded may live as long as the training, the file need not.

    Args:
        path: the file.
        check_sums: also compare the check sums inside of it, for a file with no sha256 beside it.

    Raises:
        ValueError: not one of our checkpoints, damaged, or of a newer format.
    """
    try:
        _check_archive(path, check_sums)
        content = torch.load(path, map_location="cpu", weights_only=True)
        check_content(content)
    except Exception as error:  # damaged bytes make the safe reader raise nearly anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of this library ({reason})") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise ValueError(f"{path} is no checkpoint of this library; weights of others go to backbone.pretrained=FILE")
    version = content["format_version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f"{path} has format {version!r}, this one reads up to {FORMAT_VERSION}; update the library")
    return content


def _check_archive(path: Path, check_sums: bool) -> None:
    """Sizes, and names of what would be called, from the table of the zip file and from its pickle, disassembled."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it is compressed, which no checkpoint is")
        total, size = sum(record.file_size for record in records), path.stat().st_size
        if total > size:
            raise ValueError(f"its table declares {total:,} bytes, the file has {size:,}")
        for record in records:
            if record.filename.endswith("data.pkl"):
                _check_globals(archive.read(record))
        if check_sums and (damaged := archive.testzip()) is not None:
            raise ValueError(f"damaged: the check sum of {damaged} inside of it differs")


def _check_globals(data: bytes) -> None:
    for code, value, _ in pickletools.genops(data):
        if code.name == "GLOBAL" and (name := str(value).replace(" ", ".")) not in GLOBALS:
            raise ValueError(f"it names {name}, which no checkpoint of this library does; nothing of it was run")
