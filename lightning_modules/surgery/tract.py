"""TrAct: the first layer learns as if its outputs were trained.

Petersen, Borgelt, Ermon. "TrAct: Making First-layer Pre-Activations Trainable". NeurIPS 2024, arXiv 2410.23970.
Official code: Felix-Petersen/tract. Departures, with their reasons, are listed in docs/tract.md.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from kernels.tract import tract_conv2d, tract_linear
from lightning_modules.distributed import total_over_processes
from lightning_modules.names import unknown_name
from lightning_modules.surgery.anatomy import Anatomy, Layer
from lightning_modules.surgery.base import Surgery
from lightning_modules.surgery.changes import Changes


class TrActLinear(nn.Linear):
    """A linear layer in which only the gradient of the weight differs."""

    owns_weight_gradient: ClassVar[bool] = True
    tract: dict[str, Any]  # lam and total of the kernel

    def forward(self, input: Tensor) -> Tensor:
        return tract_linear(input, self.weight, self.bias, **self.tract)


class TrActConv2d(nn.Conv2d):
    """A convolution in which only the gradient of the weight differs, with any padding mode."""

    owns_weight_gradient: ClassVar[bool] = True
    tract: dict[str, Any]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        stride: Any = self.stride
        dilation: Any = self.dilation
        return tract_conv2d(input, weight, bias, stride, padding, dilation, **self.tract)


class TrActConv2dSame(Conv2dSame):
    """timm's convolution with TensorFlow's "same" padding, which depends on the image size."""

    owns_weight_gradient: ClassVar[bool] = True
    tract: dict[str, Any]

    def forward(self, x: Tensor) -> Tensor:
        stride: Any = self.stride
        dilation: Any = self.dilation
        padded = pad_same(x, list(self.kernel_size), stride, dilation)
        return tract_conv2d(padded, self.weight, self.bias, stride, 0, dilation, **self.tract)


#: What a layer of exactly this class becomes; any other class may use its weight in its own way.
OPERATIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: TrActLinear,
    nn.Conv2d: TrActConv2d,
    Conv2dSame: TrActConv2dSame,
}


class TrAct(Surgery):
    """The weight gradient of the first layer is multiplied by ``(X^T X / R + lam I)^-1``.

    X are the R rows of that layer's input in this call (windows of a convolution, tokens of a patch embedding). The
    class of the layer changes in place; names, keys of the state_dict, outputs and every other gradient stay. The
    gradient is handed to the optimizer as the plain one would be. Stateless.

    Args:
        lam: lambda; 0.1 in the paper, 0.2 for long training (800 epochs), 0.05 is more aggressive.
        gram: whose rows make X: ``local`` those of one process, as in the official code; ``global`` those of all, so
            that the update does not depend on their number (one all-reduce of n^2 floats in each backward).

    Raises:
        ValueError: lam not positive and finite; an unknown gram.
    """

    phase = "operation"

    def __init__(self, *, lam: Annotated[float, "x > 0"] = 0.1, gram: Literal["local", "global"] = "local") -> None:
        super().__init__()
        if gram not in ("local", "global"):
            raise ValueError(unknown_name("gram", gram, ("local", "global")))
        self.lam, self.gram = lam, gram

    def apply(self, backbone: nn.Module, anatomy: Anatomy) -> Changes:
        """Change the class of the first layer, or of each of several (RepVGG).

        Raises:
            ValueError: a second application; a first layer that is standardized, grouped or of another class.
        """
        if before := [name for name, module in backbone.named_modules() if _is_changed(module)]:
            raise ValueError(f"TrAct was applied to {', '.join(before)} before; a second time would divide twice")
        changes = Changes()
        stem = [layer for layer in (*anatomy.convs, *anatomy.linears) if layer.name in anatomy.stem]
        for layer in self.chosen(stem, changes, _why_not):
            module = layer.module
            _change_class(module, OPERATIONS[_plain_class(module)])
            settings: Any = {"lam": self.lam, "total": total_over_processes if self.gram == "global" else None}
            module.tract = settings
            changes.changed[layer.name] = f"{type(module).__name__}, lam {self.lam}, {self.gram} second moment"
            changes.notes += _notes(layer)
        return changes

    def fold(self, backbone: nn.Module) -> list[str]:
        """Give every changed layer its class back."""
        plain = {changed: original for original, changed in OPERATIONS.items()}
        for module in backbone.modules():
            if _is_changed(module):
                _change_class(module, plain[_plain_class(module)])
                del module.tract
        return []


def _is_changed(module: nn.Module) -> bool:
    return isinstance(module, tuple(OPERATIONS.values()))


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """The class below the one that a parametrization makes for each of its modules."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _change_class(module: nn.Module, to: type[nn.Module]) -> None:
    """Replace the class; of a parametrized module the one below, so that the parametrization can still be removed."""
    if parametrize.is_parametrized(module):
        kept = {key: value for key, value in vars(type(module)).items() if key not in ("__dict__", "__weakref__")}
        to = type(f"Parametrized{to.__name__}", (to,), kept)
    module.__class__ = to


def _why_not(layer: Layer) -> str | None:
    """Why the first layer cannot be changed."""
    kind = _plain_class(layer.module)
    if layer.standardized:
        return (
            f"{kind.__name__} standardizes its weight in each forward, which mixes the columns that TrAct has rescaled "
            "one against the other, so the update no longer realizes the step on the outputs"
        )
    if kind not in OPERATIONS:
        allowed = ", ".join(sorted(known.__name__ for known in OPERATIONS))
        return f"TrAct knows the gradient of {allowed}, and the first layer is a {kind.__name__}"
    if (groups := getattr(layer.module, "groups", 1)) > 1:
        return f"the convolution has {groups} groups: TrAct has one second moment for all channels"
    return None


def _notes(layer: Layer) -> list[str]:
    """What is to be known about this layer."""
    notes, weight = [], layer.module.weight
    assert isinstance(weight, Tensor)
    if not weight.requires_grad:
        notes.append(f"warning: {layer.name} is frozen, so TrAct has no effect while it is")
    if parametrize.is_parametrized(layer.module, "weight"):
        notes.append(f"{layer.name} is parametrized: TrAct acts on the gradient of its effective weight")
    if layer.calls > 1:
        notes.append(f"{layer.name} is called {layer.calls} times in a forward; each call has its own second moment")
    return notes
