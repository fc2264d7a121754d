"""``init: REFERENCE``: a network starts from the weights of another one, and says which."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from datamodules.base import ImageData
from datamodules.labels.unicode_form import same_names
from lightning_modules.backbones.weights import adapt_input, converted
from lightning_modules.network import Network
from lightning_modules.state.state_fit import kind_problem
from recipes.building.make import build_network, without_pretrained
from recipes.building.networks import Reference, network_of

Part = dict[str, Any]

_SHOWN = 4  # names in a line that is printed


@dataclass(slots=True)
class Loaded:
    """What came of it, weight by weight, with the reason where one was not taken as it is."""

    reference: str
    checksum: str
    notes: list[str] = field(default_factory=list)
    loaded: dict[str, str] = field(default_factory=dict)
    resampled: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, str]:
        """For the checkpoint."""
        return {"reference": self.reference, "checksum": self.checksum}

    def lines(self) -> list[str]:
        """The report, in the form of the one about surgery: what is about the whole, then a line for each weight."""
        groups = {"loaded": self.loaded, "resampled": self.resampled}
        groups |= {"left as initialized": self.left, "unused": self.unused}
        summary = [f"init={self.reference} (sha256 {self.checksum[:12]})", *self.notes]
        summary += [f"{what}: {_some(list(weights))}" for what, weights in groups.items()]
        rest = [f"  changed {name}: loaded" for name in self.loaded]
        rest += [f"  changed {name}: resampled, {how}" for name, how in self.resampled.items()]
        rest += [f"  left {name}: as initialized, {why}" for name, why in self.left.items()]
        rest += [f"  left {name}: not used, {why}" for name, why in self.unused.items()]
        return [*summary, *rest]


def built_network(
    backbone: Part, surgery: dict[str, Part], head: Part, init: str | None, data: ImageData, resumed: bool
) -> tuple[Network, dict[str, list[str]], dict[str, str] | None]:
    """The network of a run as it starts, reports by name, and what its checkpoints say about ``init``.

    The weights of a run that goes on are in its checkpoint: neither ``init`` nor a pretrained file is needed again.
    """
    body = without_pretrained(backbone) if resumed or init is not None else backbone
    if init is None or resumed:
        network, report = build_network(body, surgery, head, data.num_classes)
        return network, {"surgery": report}, None
    source, found = network_of(init, "init", data.channels), list[Loaded]()

    def start(network: Network) -> None:
        stated = any(backbone.get(key) is not None for key in ("mean", "std"))
        found.append(initialize(network, source, data.classes, stated))

    # Weights of a plain network come in front of surgery, as pretrained ones do; those of one with surgery fit behind.
    plain = not source.network.surgery_config
    network, report = build_network(body, surgery, head, data.num_classes, start if plain else None)
    if not plain:
        start(network)
    if body != backbone:
        found[0].notes.append(f"backbone.pretrained={backbone['pretrained']} is not read: init is in its place")
    return network, {"surgery": report, "init": found[0].lines()}, found[0].facts()


def initialize(network: Network, source: Reference, classes: tuple[str, ...], own_constants: bool) -> Loaded:
    """Give a network the weights of another one, as far as they fit.

    Those of the backbone go by name; timm resamples position embeddings of another image size and adapts the first
    convolution to other channels. Those of the head are taken where it has the same classes, and where it embeds, to
    which classes do not matter.

    Args:
        network: changed in place.
        source: whose weights they are.
        classes: of ``network``, in the order of its logits.
        own_constants: mean and std of the images stay those of ``network``, because its configuration states them.

    Raises:
        ValueError: nothing of the backbone fits.
    """
    found = Loaded(source.origin, source.checksum)
    target, given = network.state_dict(), source.network.state_dict()
    state = _in_form(network, given)
    held = dict.fromkeys((key for key in state if key.startswith("head.")), _why_not_the_head(network, source, classes))
    if own_constants:
        held |= dict.fromkeys(("normalize.mean", "normalize.std"), "the configuration states it")
    taken: dict[str, Tensor] = {}
    for key, value in state.items():
        reason = held.get(key) or _why_not(value, target.get(key))
        if reason:
            (found.left if key in target else found.unused)[key] = reason
            continue
        taken[key] = value
        if key in given and given[key].shape == value.shape:
            found.loaded[key] = ""
        else:
            before = list(given[key].shape) if key in given else "another form"
            found.resampled[key] = f"{before} to {list(value.shape)}"
    found.left |= {key: f"{source.origin} has none" for key in target if key not in state}
    if not any(key.startswith("backbone.") for key in taken):
        raise ValueError(
            f"init={source.origin}: none of its weights fits the backbone {network.backbone_name}; they are of "
            f"{source.network.backbone_name}, choose backbone={source.network.backbone_name}"
        )
    network.load_state_dict(taken, strict=False)
    return found


def _in_form(network: Network, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with those of the backbone in the form of ``network``'s."""
    body = {key.removeprefix("backbone."): value for key, value in given.items() if key.startswith("backbone.")}
    keys: dict[str, Any] = {"name": network.backbone_name, "in_channels": network.in_channels}
    state = converted(network.backbone, body, **keys, kwargs=network.backbone_kwargs)
    adapt_input(network.backbone, state, network.in_channels)
    rest = {key: value for key, value in given.items() if not key.startswith("backbone.")}
    return {**{f"backbone.{key}": value for key, value in state.items()}, **rest}


def _why_not_the_head(network: Network, source: Reference, classes: tuple[str, ...]) -> str:
    """Why no weight of the head is taken; empty where they are."""
    if type(network.head) is not type(source.network.head):
        return f"its head is {type(source.network.head).__name__}"
    if "logits" not in network.head.gives:
        return ""
    if source.classes is None:
        return "nothing says what its classes are"
    return "" if same_names(source.classes, classes) else "its classes are others"


def _why_not(given: Tensor, target: Tensor | None) -> str:
    if target is None:
        return "the network has none of this name"
    if given.shape != target.shape:
        return f"{list(given.shape)} there, {list(target.shape)} here"
    return kind_problem(given, target) or ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} weights ({', '.join(names[:_SHOWN])}{more})" if names else "none"
