"""The rules of composition: what parts need, and what refuses what."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightning_modules.part import MAIN, Attack, Loss, Mixing, Part, Regularizer, Reweighting, split_view
from lightning_modules.reweightings.uniform import Uniform

#: What a part can ask for. ``index`` is in every batch.
NEEDS = frozenset(
    {
        "attack",
        "auxiliary_logits",
        "barrier",
        "embedding",
        "hard_labels",
        "index",
        "logits",
        "pair_form",
        "regularizer",
        "survived_steps",
    }
)
_HOW = {
    "logits": "choose a head that gives them, such as head=linear",
    "auxiliary_logits": "choose a head that gives them in training, head=dual",
    "embedding": "choose a head that gives one, such as head=embedding",
    "pair_form": "choose a loss on pairs that can be mixed (loss=multi_similarity, contrastive, proxy_anchor, ...)",
    "attack": "add one with attack=NAME",
    "regularizer": "there is nothing to align with the loss; add a term, such as +regularizer=kd with "
    "teacher=REFERENCE, or take gradient=sum",
    "survived_steps": "choose an attack that counts the steps which each sample withstands, such as attack=pgd",
    "barrier": "an attack whose solution is a smooth function of the weights, as no projection is; take attack=barrier",
    "hard_labels": "a class for each sample, and mixing makes soft labels; remove it with ~mixing",
}


def check_composition(named: Sequence[tuple[str, Part]], networks: Collection[str] = ()) -> None:
    """Refuse parts that contradict each other.

    Args:
        named: every part with the name a user knows it by; one of them is the loss.
        networks: names of the networks beside the one in training.

    Raises:
        ValueError: all problems at once.
    """
    loss = next(part for _, part in named if isinstance(part, Loss))
    problems = _of_loss(loss, next((part for _, part in named if isinstance(part, Reweighting)), None))
    for name, part in named:
        others = [(other, effect) for other, acting in named if acting is not part for effect in _effects(acting)]
        problems += [
            f"{name} cannot be combined with {other}: {part.refuses[effect]}"
            for other, effect in others
            if effect in part.refuses
        ]
        problems += [f"{name} needs {need!r}, which nothing can give" for need in sorted(part.needs - NEEDS)]
        effects = {effect for _, effect in others}
        missing = [need for need in sorted(part.needs & NEEDS) if _missing(need, named, effects)]
        problems += [f"{name} needs {need}: {_HOW[need]}" for need in missing]
        problems += [f"{name}: {objection}" for objection in part.objections(loss)]
        lacks = {view: lack for view in part.views if (lack := _lack(view, named, networks))}
        problems += [f"{name} reads the view {view!r}, and {lack}" for view, lack in lacks.items()]
    problems += _of_auxiliary(named)
    if problems:
        raise ValueError("these parts cannot work together:\n- " + "\n- ".join(problems))


def _of_loss(loss: Loss, reweighting: Reweighting | None) -> list[str]:
    problems = []
    if loss.prediction not in loss.views:
        problems.append(
            f"loss calls the view {loss.prediction!r} its prediction and does not read it; it reads "
            f"{', '.join(loss.views)}"
        )
    if not loss.per_sample and not isinstance(reweighting, Uniform | None):
        problems.append(
            f"reweighting needs per-sample losses, and {type(loss).__name__} is defined on pairs or batches; remove it "
            "with ~reweighting"
        )
    return problems


def _of_auxiliary(named: Sequence[tuple[str, Part]]) -> list[str]:
    """A second classifier from which nothing learns is none."""
    gives = any("auxiliary_logits" in part.gives for _, part in named)
    if not gives or any("auxiliary_logits" in part.needs for _, part in named):
        return []
    return [
        "head has an auxiliary classifier, and no part of this run reads it, so that it would learn nothing; choose a "
        "term with head=auxiliary, such as regularizer=[binary_kl_norm] with teacher=REFERENCE, or head=linear"
    ]


def _lack(view: str, named: Sequence[tuple[str, Part]], networks: Collection[str]) -> str | None:
    """What a view needs and this run does not have; whether it has an average is for the task to say."""
    network, image = split_view(view)
    if image == "adversarial" and not _has(named, Attack):
        return "there is no attack; add one with attack=NAME"
    if network not in (MAIN, "average", *networks):
        given = f": name one with {network}=REFERENCE" if network in ("teacher", "peer") else ""
        return f"there is no network {network!r}{given}; this run has {', '.join([MAIN, *networks])}"
    return None


def _missing(need: str, named: Sequence[tuple[str, Part]], effects: set[str]) -> bool:
    """Whether the other parts, with these effects, leave a need open."""
    match need:
        case "attack":
            return not _has(named, Attack)
        case "regularizer":
            return not _has(named, Regularizer)
        case "survived_steps":
            return not any(need in part.gives for _, part in named if isinstance(part, Attack))
        case "barrier":
            return "barrier" not in effects
        case "hard_labels":
            return "mixes_labels" in effects
        case "pair_form":
            return all(part.pair_form is None for _, part in named if isinstance(part, Loss))
        case "logits" | "embedding" | "auxiliary_logits":
            return any(need not in part.gives for name, part in named if name == "head")
    return False


def _has(named: Sequence[tuple[str, Part]], kind: type[Part]) -> bool:
    return any(isinstance(part, kind) for _, part in named)


def _effects(part: Part) -> frozenset[str]:
    """What a part does to the rest; mixing behind the backbone also mixes features."""
    mixes_features = isinstance(part, Mixing) and part.at == "feature_map"
    reads_maps = bool(part.maps) and isinstance(part, Loss | Mixing | Regularizer)
    more = {"mixes_features": mixes_features, "reads_maps": reads_maps}
    return part.does | {effect for effect, there in more.items() if there}
