"""One forward of the data's image size and channels before anything is written: does the network take them?"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call

from kernels.raise_site import raised_here
from lightning_modules.network import Network
from recipes.configuration.boundary import first_line, ran_out_of_memory


def check_takes(
    network: Network, channels: int, image_size: int, want_maps: Collection[str] = (), key: str = "backbone"
) -> None:
    """Refuse a network that cannot run on such images.

    First without numbers, on torch's meta device: that knows shapes and costs next to nothing. Only where it fails,
    which may be for want of a kernel there, is the forward computed. Weights, buffers, modes and random state stay as
    they are in either case.

    Args:
        network: on the CPU.
        channels: of the images.
        image_size: their side, in pixels.
        want_maps: what the parts of the run will ask for.
        key: that names the network.

    Raises:
        ValueError: naming the key to set.
    """
    if channels != network.in_channels and key != "backbone":
        raise ValueError(
            f"{key}: {network.backbone_name} takes images of {network.in_channels} channel(s), and those of this data "
            f"have {channels}; choose another {key}"
        )
    if channels != network.in_channels:
        raise ValueError(
            f"backbone.in_channels={network.in_channels}, and the images of this data have {channels} channel(s); set "
            f"backbone.in_channels={channels}"
        )
    keys = {"want_maps": want_maps} if want_maps else {}
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    shape = (1, channels, image_size, image_size)
    with _untouched(network):
        try:
            stand_ins = {name: tensor.to("meta") for name, tensor in tensors.items()}
            functional_call(network, stand_ins, (torch.empty(shape, dtype=dtype, device="meta"),), keys)
            return
        except Exception:  # noqa: S110  # the computed one decides
            pass
        try:
            network(torch.zeros(shape, dtype=dtype), **keys)
        except Exception as error:
            if raised_here(error) or ran_out_of_memory(error):
                raise
            raise ValueError(_advice(network, image_size, first_line(error), key)) from error


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Eval mode, no gradient, a random state of its own; afterwards each module has the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _advice(network: Network, image_size: int, reason: str, key: str) -> str:
    takes_size = "img_size" in inspect.signature(type(network.backbone).__init__).parameters
    given = network.backbone_kwargs.get("img_size")
    if key == "backbone" and takes_size and given != image_size:
        way_out = f"set backbone.kwargs.img_size={image_size}"
        if given is not None:
            way_out += f" instead of {given}"
    else:
        way_out = f"choose another {key}, or images of another size (data.image_size, where the data have that key)"
    return (
        f"{key} {network.backbone_name} cannot run on this data's images of {image_size}x{image_size} pixels "
        f"({reason.rstrip('.')}); {way_out}"
    )
