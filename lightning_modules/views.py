"""Views: a view is an image as a network sees it, written ``image`` or ``network/image``.

Images are ``main`` (what the batch carries, mixed and attacked), ``clean``, ``adversarial``, ``second`` and the batch's
extra fields. Networks are ``main`` (the one in training, which needs not be written) and those of ``Parts.networks``:
``peer/main``, ``teacher/clean``, ``average/main``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from kernels.batch import Batch, Output, Step
from lightning_modules.frozen import Frozen
from lightning_modules.norm_statistics import norm_statistics_frozen
from lightning_modules.part import MAIN, split_view
from lightning_modules.parts import Parts

IMAGES = ("main", "clean", "adversarial", "second")


def forward_views(parts: Parts, batch: Batch, step: Step) -> dict[str, Output]:
    """One forward for each declared view, the loss's first; views of one network that show the same image share it.

    A forward moves running norm statistics unless the first part that reads the view calls it still.

    Raises:
        ValueError: a view of an image that the batch does not carry.
    """
    mix_map = _map_mixing(parts, batch, step)
    shared: dict[tuple[str, int, bool], list[str]] = {}
    for view in parts.views:
        network, name = split_view(view)
        image = batch.shown(name)
        if image is None:
            raise ValueError(
                f"a part reads the view {view!r}, and the batch does not carry it; images: "
                f"{', '.join([*IMAGES, *batch.extra])}"
            )
        mixed = mix_map is not None and name == MAIN and not isinstance(step.network_of(network), Frozen)
        shared.setdefault((network, id(image), mixed), []).append(view)
    outputs: dict[str, Output] = {}
    for (network, _, mixed), views in shared.items():
        module = step.network_of(network)
        forward = step.forward if network == MAIN else module
        moves = not parts.still.issuperset(views)
        wanted = tuple(dict.fromkeys(name for view in views for name in parts.maps.get(view, ())))
        keys: dict[str, Any] = {"want_maps": wanted} if wanted else {}
        if isinstance(module, Frozen) and module.keyed_by_sample:
            keys["batch"] = batch
        with nullcontext() if moves else norm_statistics_frozen(module):
            image = batch.shown(split_view(views[0])[1])
            output = forward(image, label=batch.label, mix_map=mix_map if mixed else None, **keys)
        outputs |= dict.fromkeys(views, output)
    return outputs


def _map_mixing(parts: Parts, batch: Batch, step: Step) -> Callable[[Tensor], Tensor] | None:
    mixing = parts.mixing
    if mixing is None or mixing.at != "feature_map":
        return None
    return lambda feature_map: mixing.mix_map(feature_map, batch, step)
