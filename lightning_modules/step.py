"""One training step, always in the same order, for every task.

batch -> draws of the update -> input mixing -> attack -> one forward for each view -> mixing of pairs -> loss ->
coefficients -> named scalars and regularizers -> gradient. The caller checks, clips, updates and commits (see
``task.py``); a plain loop can do the same in ten lines (see docs/saf.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kernels.batch import Batch, Output, Step, Update
from lightning_modules.coefficients import coefficients_of, reduce_terms
from lightning_modules.gradients.base import Pass, Seat, Terms
from lightning_modules.norm_statistics import BufferCopy, norm_buffers, norm_statistics_kept
from lightning_modules.parts import Parts
from lightning_modules.surgery.weights import computed_once
from lightning_modules.views import forward_views


@dataclass(slots=True)
class StepResult:
    """What one update saw, detached: the (mixed, attacked) micro-batches, their outputs, losses and coefficients, and
    the terms of the whole."""

    batches: list[Batch] = field(default_factory=list)
    outputs: list[dict[str, Output]] = field(default_factory=list)
    losses: list[Terms] = field(default_factory=list)
    coefficients: list[Terms] = field(default_factory=list)
    terms: Terms = field(default_factory=dict)

    def whole(self) -> Update:
        """The whole update (concatenated where there were several micro-batches)."""
        if len(self.batches) == 1:
            return Update(self.outputs[0], self.batches[0], self.losses[0], self.coefficients[0])
        views = {view: Output.join([outputs[view] for outputs in self.outputs]) for view in self.outputs[0]}
        return Update(views, Batch.join(self.batches), _joined(self.losses), _joined(self.coefficients))


def run_step(
    parts: Parts,
    batch: Batch,
    step: Step,
    *,
    micro_batches: int = 1,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> StepResult:
    """Leave the gradient of one update batch in ``parameter.grad``.

    Args:
        parts: the composed parts.
        batch: the whole update batch of this process.
        step: where training stands; ``step.batch_size`` is the global update batch.
        micro_batches: number of equal pieces the batch is run in; the gradient is that of the whole batch.
        backward: accumulates gradients of a scalar.
        parameters: all that is trained, by name; None for those of the network and the parts that require a gradient.

    Returns:
        Detached outputs, losses, coefficients and terms of the first pass over the batch.
    """
    step.networks = dict(parts.networks.items())
    with computed_once(step.network, *parts.trained) as renew_weights:
        parts.begin(step)
        if parts.mixing is not None and parts.mixing.at == "input":
            batch = parts.mixing.mix_batch(batch, step)
        micros = [_prepare(parts, micro, step) for micro in batch.split(micro_batches)]
        result = StepResult(batches=micros)
        # Those of the first pass hold for every further one: they belong to the update, not to perturbed weights.
        known = _coefficients_of_all(parts, micros, step)
        start = _Start(batch, step.network, parts) if parts.gradient.several_passes else None

        def passes() -> Iterator[Pass]:
            # Weights may have been moved since the last pass, and autocast would reuse their cast copies.
            torch.clear_autocast_cache()
            first = not result.outputs
            step.pass_number = 0 if first else step.pass_number + 1
            with start.again() if start and not first else nullcontext():
                for position, micro in enumerate(micros):
                    if not first or position:  # before the first backward the graph of the weights is still whole
                        renew_weights()
                    if parts.gradient.derives_by_image:
                        micro = micro.replace(image=micro.image.detach().requires_grad_(True))
                    outputs = forward_views(parts, micro, step)
                    if parts.mixing is not None and parts.mixing.at == "embedding":
                        micro = parts.mixing.mix_pairs(outputs, micro, step)
                    losses = parts.loss(outputs, micro, step)
                    if position == len(known):
                        known.append(coefficients_of(parts, losses, outputs, micro, step))
                    terms = reduce_terms(parts, losses, known[position], outputs, micro, step)
                    if first:
                        _record(result, outputs, losses, known[position], terms)
                    yield Pass(terms, outputs, step.pass_number, micro)

        given = _trained_parameters(step.network, parts) if parameters is None else dict(parameters)
        parts.gradient(Seat(passes, backward, given, step, parts.attack, frozenset(parts.regularizers)))
    return result


class _Start:
    """What the first pass begins with: further ones draw the same dropout masks, by the same norm statistics."""

    def __init__(self, batch: Batch, *owners: nn.Module) -> None:
        buffers = norm_buffers(*owners)
        self._before, self._after = BufferCopy(buffers), BufferCopy(buffers)
        self._before.save()
        self._device = batch.image.device if batch.image.is_cuda else None
        self._host = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._device is not None else None

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, all is as the first pass found it; afterwards, as the first pass left it."""
        self._after.save()
        self._before.restore()
        with torch.random.fork_rng([] if self._device is None else [self._device]):
            torch.set_rng_state(self._host)
            if self._cuda is not None and self._device is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield
        self._after.restore()


def _prepare(parts: Parts, batch: Batch, step: Step) -> Batch:
    """Draw the partners of a mixing behind the backbone, then attack."""
    if parts.mixing is not None and parts.mixing.at == "feature_map":
        batch = parts.mixing.mix_batch(batch, step)
    return batch if parts.attack is None else parts.attack(batch, step)


def _trained_parameters(network: nn.Module, parts: Parts) -> dict[str, nn.Parameter]:
    both = nn.ModuleDict({"network": network, "parts": parts})
    return {name: p for name, p in both.named_parameters() if p.requires_grad}


@torch.no_grad()
def _coefficients_of_all(parts: Parts, micros: list[Batch], step: Step) -> list[Terms]:
    """Coefficients that need every loss of the update: a pass without gradient, then one call on the whole batch.

    Costs one more forward of the update batch; with a single micro-batch nothing, the update's own forward tells them.
    It leaves no trace: norm statistics are put back, and the random state too, so that the pass that follows draws the
    same dropout masks.
    """
    if not parts.reweighting.needs_all_losses or len(micros) == 1:
        return []
    seen = StepResult(batches=micros)
    with norm_statistics_kept(step.network, *parts.trained), torch.random.fork_rng(_cuda_devices(micros[0])):
        for micro in micros:
            outputs = forward_views(parts, micro, step)
            _record(seen, outputs, parts.loss(outputs, micro, step), {}, {})
    whole = seen.whole()
    found = coefficients_of(parts, whole.losses, whole.outputs, whole.batch, step)
    pieces = {name: value.split([len(micro) for micro in micros]) for name, value in found.items()}
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(len(micros))]


def _cuda_devices(batch: Batch) -> list[torch.device]:
    return [batch.image.device] if batch.image.is_cuda else []


def _record(result: StepResult, outputs: dict[str, Output], losses: Terms, coefficients: Terms, terms: Terms) -> None:
    result.outputs.append({view: output.detach() for view, output in outputs.items()})
    result.losses.append({name: loss.detach() for name, loss in losses.items()})
    result.coefficients.append(coefficients)
    for name, value in terms.items():
        value = value.detach()
        result.terms[name] = result.terms[name] + value if name in result.terms else value


def _joined(pieces: list[Terms]) -> Terms:
    """Per-sample values of the whole update; scalars, which are shares of it, are added."""
    return {
        name: torch.cat([piece[name] for piece in pieces])
        if value.ndim
        else torch.stack([p[name] for p in pieces]).sum()
        for name, value in pieces[0].items()
    }
