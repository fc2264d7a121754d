"""One training step, always in the same order, for every task.

batch -> input mixing -> attack -> teacher -> one forward for each view -> mixing of pairs -> loss -> coefficients ->
named scalars and regularizers -> gradient. The caller checks, clips, updates and commits (see ``task.py``); a plain
loop can do the same in ten lines (see docs/saf.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step
from lightning_modules.gradients.base import Terms
from lightning_modules.names import unknown_name
from lightning_modules.norm_statistics import norm_statistics_kept
from lightning_modules.parts import Parts
from lightning_modules.reweightings.uniform import Uniform
from lightning_modules.surgery.weights import computed_once


@dataclass(slots=True)
class StepResult:
    """What one update saw, detached: the (mixed, attacked) micro-batches, their outputs and their terms."""

    batches: list[Batch] = field(default_factory=list)
    outputs: list[dict[str, Output]] = field(default_factory=list)
    losses: list[Terms] = field(default_factory=list)
    terms: Terms = field(default_factory=dict)

    def whole(self) -> tuple[dict[str, Output], Batch]:
        """Outputs and batch of the whole update (concatenated where there were several micro-batches)."""
        if len(self.batches) == 1:
            return self.outputs[0], self.batches[0]
        views = {view: Output.join([outputs[view] for outputs in self.outputs]) for view in self.outputs[0]}
        return views, Batch.join(self.batches)


def run_step(
    parts: Parts,
    batch: Batch,
    step: Step,
    *,
    micro_batches: int = 1,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> StepResult:
    """Leave the gradient of one update batch in ``parameter.grad``.

    Args:
        parts: the composed parts.
        batch: the whole update batch of this process.
        step: where training stands; ``step.batch_size`` is the global update batch.
        micro_batches: number of equal pieces the batch is run in; the gradient is that of the whole batch.
        backward: accumulates gradients of a scalar.

    Returns:
        Detached outputs and terms of the first pass over the batch.
    """
    with computed_once(step.network) as renew_weights:
        if parts.mixing is not None and parts.mixing.at == "input":
            batch = parts.mixing.mix_batch(batch, step)
        prepared = [_prepare(parts, micro, step) for micro in batch.split(micro_batches)]
        result = StepResult(batches=[micro for micro, _ in prepared])
        # Those of the first pass hold for every further one: they belong to the update, not to perturbed weights.
        coefficients: dict[int, Tensor] = _coefficients_of_all(parts, prepared, step) if len(prepared) > 1 else {}

        def passes() -> Iterator[Terms]:
            # Weights may have been moved since the last pass, and autocast would reuse their cast copies.
            torch.clear_autocast_cache()
            record = not result.outputs
            for position, (micro, given) in enumerate(prepared):
                if not record or position:  # before the first backward the graph of the weights is still whole
                    renew_weights()
                step.coefficients = coefficients.get(position)
                outputs = forward_views(parts, micro, step) | given
                if parts.mixing is not None and parts.mixing.at == "embedding":
                    micro = parts.mixing.mix_pairs(outputs, micro, step)
                losses = parts.loss(outputs, micro, step)
                terms = reduce_terms(parts, losses, outputs, micro, step)
                if step.coefficients is not None:
                    coefficients[position] = step.coefficients
                if record:
                    _record(result, outputs, losses, terms)
                yield terms

        parts.gradient(passes, backward, step.network, step)
    return result


def forward_views(parts: Parts, batch: Batch, step: Step) -> dict[str, Output]:
    """One forward for each declared view; views that show the same image share it."""
    images = {
        "main": batch.image,
        "clean": batch.image if batch.clean_image is None else batch.clean_image,
        "adversarial": batch.image,
        "second": batch.second_image,
    }
    outputs: dict[str, Output] = {}
    done: dict[tuple[int, bool], Output] = {}
    for view in parts.views:
        if view == "teacher":
            continue
        image = images.get(view, batch.extra.get(view))
        if image is None:
            raise ValueError(
                f"a part reads the view {view!r}, and the batch does not carry it; views: {sorted(images)}"
            )
        mix_map = _map_mixing(parts, batch, step) if view == "main" else None
        key = (id(image), mix_map is not None)
        if key not in done:
            maps = {"want_maps": parts.maps} if parts.maps and view == "main" else {}
            done[key] = step.forward(image, label=batch.label, mix_map=mix_map, **maps)
        outputs[view] = done[key]
    return outputs


def reduce_terms(parts: Parts, losses: Terms, outputs: dict[str, Output], batch: Batch, step: Step) -> Terms:
    """Per-sample terms to named scalars of this micro-batch's share: the one place where ``[B]`` becomes a scalar."""
    share = len(batch) / step.batch_size
    weighted = parts.reweighting.term or next(iter(losses))
    if weighted not in losses:
        raise ValueError(unknown_name("reweighting.term", weighted, losses))
    uniform = type(parts.reweighting) is Uniform  # the mean, without a vector of equal numbers
    if twice := losses.keys() & parts.regularizers.keys():
        raise ValueError(f"{', '.join(twice)} names a loss term and a regularizer; give the regularizer another name")
    terms: Terms = {}
    for name, loss in losses.items():
        if loss.ndim == 0:
            terms[name] = loss * share
        elif name != weighted or uniform:
            terms[name] = loss.sum() / step.batch_size
        else:
            if step.coefficients is None:
                step.coefficients = parts.reweighting(loss, outputs, batch, step).detach()
            terms[name] = (loss * step.coefficients).sum()  # a dot product would be cast down by autocast
    for name, part in parts.regularizers.items():
        value = part(outputs, batch, step)
        if value is not None:
            terms[name] = value.sum() / step.batch_size if value.ndim else value * share
    return terms


def _prepare(parts: Parts, batch: Batch, step: Step) -> tuple[Batch, dict[str, Output]]:
    """Draw the partners of a mixing behind the backbone, attack, let the teacher fill its view."""
    if parts.mixing is not None and parts.mixing.at == "feature_map":
        batch = parts.mixing.mix_batch(batch, step)
    if parts.attack is not None:
        batch = parts.attack(batch, step)
    return batch, {} if parts.teacher is None else {"teacher": parts.teacher(batch, step)}


def _map_mixing(parts: Parts, batch: Batch, step: Step) -> Callable[[Tensor], Tensor] | None:
    mixing = parts.mixing
    if mixing is None or mixing.at != "feature_map":
        return None
    return lambda feature_map: mixing.mix_map(feature_map, batch, step)


@torch.no_grad()
def _coefficients_of_all(
    parts: Parts, prepared: list[tuple[Batch, dict[str, Output]]], step: Step
) -> dict[int, Tensor]:
    """Coefficients that need every loss of the update: a pass without gradient, then one call on the whole batch.

    Costs one more forward of the update batch. It leaves no trace: norm statistics are put back, and the random state
    too, so that the pass that follows draws the same dropout masks.
    """
    if not parts.reweighting.needs_all_losses:
        return {}
    seen = StepResult(batches=[micro for micro, _ in prepared])
    with norm_statistics_kept(step.network), torch.random.fork_rng(_cuda_devices(prepared[0][0])):
        for micro, given in prepared:
            outputs = forward_views(parts, micro, step) | given
            _record(seen, outputs, parts.loss(outputs, micro, step), {})
    outputs, batch = seen.whole()
    weighted = parts.reweighting.term or next(iter(seen.losses[0]))
    if weighted not in seen.losses[0]:
        raise ValueError(unknown_name("reweighting.term", weighted, seen.losses[0]))
    loss_B = torch.cat([losses[weighted] for losses in seen.losses])
    coefficients_B = parts.reweighting(loss_B, outputs, batch, step)
    return dict(enumerate(coefficients_B.split([len(micro) for micro in seen.batches])))


def _cuda_devices(batch: Batch) -> list[torch.device]:
    return [batch.image.device] if batch.image.is_cuda else []


def _record(result: StepResult, outputs: dict[str, Output], losses: Terms, terms: Terms) -> None:
    result.outputs.append({view: output.detach() for view, output in outputs.items()})
    result.losses.append({name: loss.detach() for name, loss in losses.items()})
    for name, value in terms.items():
        value = value.detach()
        result.terms[name] = result.terms[name] + value if name in result.terms else value
