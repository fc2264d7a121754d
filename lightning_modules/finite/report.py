"""Who is to blame for an update that is not finite. Runs only after the failure, so it may take its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Step
from lightning_modules.gradients.base import Terms
from lightning_modules.norm_statistics import norm_statistics_kept
from lightning_modules.parts import Parts
from lightning_modules.step import StepResult
from lightning_modules.views import forward_views


def describe(result: StepResult, step: Step, parts: Parts, rank: int | None = None) -> str:
    """Sentences that name the term, the step, the samples, and where the first non-finite number came up.

    Args:
        result: of the step.
        step: where training stands.
        parts: the composed parts.
        rank: first process whose own terms are not finite, where there are several.
    """
    names = [name for name, value in result.terms.items() if not _finite(value)]
    # Both in every process, because forwards may talk to the others.
    origin, losses = _origin(result, step, parts, names), _every_loss(result, step, parts)
    what = f"the term {', '.join(names)}" if names else "the gradient norm"
    if rank is not None and not names:
        what = f"a term of process {rank} (its own message names it)"
        origin = "The terms of this process are finite."
    start = f"{what} is not finite in epoch {step.epoch}, update {step.update}; this update was not made."
    return " ".join(filter(None, [start, _samples(losses, result.batches), origin]))


def _samples(losses: list[Terms], batches: list[Batch]) -> str:
    """Indices (positions in the training set) of samples with a non-finite loss of their own."""
    found: list[int] = []
    for batch, values in zip(batches, losses, strict=True):
        for value in values.values():
            if value.ndim == 1:
                found += batch.index[~torch.isfinite(value)].tolist()
    return f"Samples with such a loss: {_listed(found)}." if found else ""


@torch.no_grad()
def _every_loss(result: StepResult, step: Step, parts: Parts) -> list[Terms]:
    """The losses of each micro-batch, with the terms of the regularizers, which a step does not keep by sample."""
    every = [dict(losses) for losses in result.losses]
    for losses, outputs, batch in zip(every, result.outputs, result.batches, strict=True):
        for name, part in parts.regularizers.items():
            with suppress(Exception):  # one that needs a graph stays without samples
                if (value := part(outputs, batch, step)) is not None:
                    losses[name] = value
    return every


def _listed(indices: list[int]) -> str:
    indices = list(dict.fromkeys(indices))
    return f"{', '.join(map(str, indices[:8]))}{', ...' if len(indices) > 8 else ''} ({len(indices)} in all)"


def _origin(result: StepResult, step: Step, parts: Parts, names: list[str]) -> str:
    """Where the first non-finite number came up: image, layer, term or backward."""
    try:
        layer = first_bad_layer(result.batches, step, parts)
    except Exception as error:  # the failure itself must be told, whatever happens to the search
        return f"The search for the first non-finite layer failed: {error}."
    images = _bad_images(result.batches)
    if images:
        return f"The images themselves are not finite for samples {_listed(images)}: look at the data."
    if layer is not None:
        return f"First non-finite layer: {layer}."
    if not names:
        return _bad_gradient(step, parts)
    if all(_finite(outputs) for outputs in result.outputs):
        return "The outputs of the network are finite: the term itself is at fault."
    return "A second forward of the same batch was finite: what failed depends on random draws such as dropout."


def _bad_images(batches: list[Batch]) -> list[int]:
    """Indices of samples with an image that is not finite."""
    found: list[int] = []
    for batch in batches:
        for image in (batch.image, batch.clean_image, batch.second_image):
            if image is not None:
                found += batch.index[~image.flatten(1).isfinite().all(1)].tolist()
    return found


def first_bad_layer(batches: list[Batch], step: Step, parts: Parts) -> str | None:
    """The first module, in order of completion, that turned finite inputs into an output that is not.

    The micro-batches run forward once more in the network's present mode, without gradient; norm statistics and random
    state are left as they are. All of them run, so that several processes stay together.

    Returns:
        Its name, with those of its own parameters that are not finite; None where every output was finite, or the
        images are not.
    """
    networks = {"network": step.network, **{f"networks.{name}": module for name, module in parts.networks.items()}}
    names = {
        module: ".".join(filter(None, (owner, name)))
        for owner, network in networks.items()
        for name, module in network.named_modules()
    }
    clean: dict[nn.Module, bool] = {}
    found: list[str] = []

    def before(module: nn.Module, args: Any, keys: Any) -> None:
        clean[module] = not found and _finite((args, keys))

    def after(module: nn.Module, args: Any, keys: Any, output: Any) -> None:
        if clean.pop(module, False) and not found and not _finite(output):
            found.append(names[module] + _own_fault(module))

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(after, with_kwargs=True) for module in names]
    devices = [batches[0].image.device] if batches[0].image.is_cuda else []
    try:
        with torch.no_grad(), norm_statistics_kept(*networks.values()), torch.random.fork_rng(devices):
            for batch in batches:
                forward_views(parts, batch, replace(step, forward=step.network))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _own_fault(module: nn.Module) -> str:
    """Names of tensors of this very module that are not finite; buffers only where the forward does not write them."""
    own: list[tuple[str, Tensor]] = list(module.named_parameters(recurse=False))
    if not module.training:
        own += module.named_buffers(recurse=False)
    bad = [name for name, value in own if not _finite(value)]
    return f", whose {' and '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite" if bad else ""


def _bad_gradient(step: Step, parts: Parts) -> str:
    """The parameter closest to the output whose gradient is not finite: the backward reaches it first."""
    named = [(f"network.{name}", p) for name, p in step.network.named_parameters()]
    named += [(f"parts.{name}", p) for name, p in parts.named_parameters()]
    graded = [(name, p.grad) for name, p in named if p.grad is not None]
    bad = [name for name, grad in graded if not _finite(grad)]
    if bad:
        closest = next((name for name in reversed(bad) if name.startswith("network.")), bad[-1])
        return (
            f"The forward is finite, the backward is not: {closest} is the parameter closest to the output with a "
            f"non-finite gradient ({len(bad)} of {len(graded)} have one)."
        )
    name, largest = max(((name, grad.abs().max().item()) for name, grad in graded), key=lambda pair: pair[1])
    return f"Every gradient is finite, and their norm overflows: the largest is {largest:.1e}, in {name}."


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dicts and records."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))
