"""Tensors of a checkpoint: what ``torch.save`` states of them, checked before a view is made of their memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

STORAGES = {
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
MAX_DIMS = 8


class Storage:
    """The memory of tensors, and as what its bytes are read."""

    def __init__(self, memory: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.memory, self.dtype = memory, dtype


def tensor_of(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> torch.Tensor:
    """What ``torch._utils._rebuild_tensor_v2`` makes: a view of a storage, which must lie inside of it."""
    sizes = all(is_size(value) for value in (offset, *size, *stride))
    if type(storage) is not Storage or not sizes or len(size) != len(stride) or len(size) > MAX_DIMS:
        raise TypeError
    _check_flags(requires_grad, hooks)
    elements = storage.memory.nbytes() // storage.dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if offset > elements or (0 not in size and last >= elements):
        raise ValueError(f"a tensor of shape {list(size)[:8]} does not lie inside of its record")
    tensor = torch.empty(0, dtype=storage.dtype, device="cpu").set_(storage.memory, offset, size, stride)
    return tensor.requires_grad_(requires_grad)


def parameter_of(data: Any, requires_grad: Any, hooks: Any) -> nn.Parameter:
    """What ``torch._utils._rebuild_parameter`` makes, from these operands alone."""
    if type(data) is not torch.Tensor:
        raise TypeError
    _check_flags(requires_grad, hooks)
    return nn.Parameter(data, requires_grad)


def _check_flags(requires_grad: Any, hooks: Any) -> None:
    if type(requires_grad) is not bool or type(hooks) is not OrderedDict or hooks:
        raise TypeError


def is_size(value: Any) -> bool:
    """Whether a value can be a number of elements."""
    return type(value) is int and 0 <= value < 2**63
