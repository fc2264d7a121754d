"""The rules of composition: what parts need, and what refuses what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_modules.part import MAIN, Mixing, Part, split_view
from lightning_modules.reweightings.uniform import Uniform

if TYPE_CHECKING:
    from lightning_modules.parts import Parts


def check_composition(parts: Parts) -> None:
    """Refuse pairs of parts that contradict each other.

    Raises:
        ValueError: all problems at once.
    """
    named = list(parts.named())
    problems = []
    for name, part in named:
        others = [(other, effect) for other, acting in named if acting is not part for effect in _effects(acting)]
        problems += [
            f"{name} cannot be combined with {other}: {part.refuses[effect]}"
            for other, effect in others
            if effect in part.refuses
        ]
        effects = {effect for _, effect in others}
        problems += [f"{name} needs {need!r}, which nothing can give" for need in sorted(part.needs - NEEDS)]
        missing = [need for need in sorted(part.needs & NEEDS) if _missing(need, parts, effects)]
        problems += [f"{name} needs {need}: {_HOW[need]}" for need in missing]
        problems += [f"{name}: {objection}" for objection in part.objections(parts.loss)]
        problems += [
            f"{name} reads the view {view!r}, and {lack}" for view in part.views if (lack := _lack(view, parts))
        ]
    if parts.loss.prediction not in parts.loss.views:
        problems.append(
            f"loss calls the view {parts.loss.prediction!r} its prediction and does not read it; it reads "
            f"{', '.join(parts.loss.views)}"
        )
    if not parts.loss.per_sample and type(parts.reweighting) is not Uniform:
        problems.append(
            f"reweighting needs per-sample losses, and {type(parts.loss).__name__} is defined on pairs or batches; "
            "remove it with ~reweighting"
        )
    if problems:
        raise ValueError("these parts cannot work together:\n- " + "\n- ".join(problems))


def _lack(view: str, parts: Parts) -> str | None:
    """What a view needs and this run does not have."""
    network, image = split_view(view)
    if image == "adversarial" and parts.attack is None:
        return "there is no attack; add one with attack=NAME"
    if network not in (MAIN, "average", *parts.networks):
        return f"there is no network {network!r}; this run has {', '.join([MAIN, *parts.networks])}"
    return None


#: What a part can ask for. ``index`` is in every batch.
NEEDS = frozenset({"attack", "hard_labels", "logits", "embedding", "index", "pair_form"})
_HOW = {
    "logits": "choose a head that gives them, such as head=linear",
    "embedding": "choose a head that gives one, such as head=embedding",
    "pair_form": "choose a loss on pairs that can be mixed (loss=multi_similarity, contrastive, proxy_anchor, ...)",
    "attack": "add one with attack=NAME",
    "hard_labels": "a class for each sample, and mixing makes soft labels; remove it with ~mixing",
}


def _missing(need: str, parts: Parts, effects: set[str]) -> bool:
    """Whether the other parts, with these effects, leave a need open."""
    match need:
        case "attack":
            return parts.attack is None
        case "hard_labels":
            return "mixes_labels" in effects
        case "pair_form":
            return parts.loss.pair_form is None
        case "logits" | "embedding":
            return any(need not in head.gives for head in parts._head)
    return False


def _effects(part: Part) -> frozenset[str]:
    """What a part does to the rest; mixing behind the backbone also mixes features."""
    mixes_features = isinstance(part, Mixing) and part.at == "feature_map"
    return part.does | {"mixes_features"} if mixes_features else part.does
