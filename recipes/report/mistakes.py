"""The most confident mistakes as pictures inside the page."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt

from lightning_modules.evaluators.result import Mistake
from recipes.report.markup import Markup, element
from recipes.report.numbers import percent

SHOWN = 24
LARGEST = 192  # pixels: twice the shown size, enough for a dense screen
SMOOTH_FROM = 112  # pixels: the shown size; smaller pictures are enlarged with hard pixel edges


def mistake_gallery(mistakes: list[Mistake]) -> Markup:
    """The first ``SHOWN`` mistakes, in the order given; empty without any."""
    if not mistakes:
        return Markup("")
    return element("ul", [_card(mistake) for mistake in mistakes[:SHOWN]], class_="gallery")


def data_uri(picture: npt.NDArray[np.uint8], largest: int = LARGEST, colours: int | None = None) -> str:
    """The picture as a PNG data URI, exact up to ``largest`` pixels a side and made smaller above.

    Args:
        picture: ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` uint8.
        largest: pixels of the longer side.
        colours: a picture that was made smaller keeps that many, which halves its size; at most 256.

    Raises:
        ValueError: another shape or type.
    """
    from PIL import Image  # not needed by a report without mistakes

    pixels = np.asarray(picture)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"a picture is {pixels.dtype} {list(pixels.shape)}; it must be uint8 [H, W, 3]")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > largest:
        image.thumbnail((largest, largest))
        image = image.quantize(colours) if colours else image
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _card(mistake: Mistake) -> Markup:
    crisp = max(mistake.picture.shape[:2]) < SMOOTH_FROM
    picture = element("img", src=data_uri(mistake.picture), class_="crisp" if crisp else None,
                      alt=f"Image {mistake.index}: {mistake.true}, predicted {mistake.predicted}")  # fmt: skip
    true = element("span", element("i", "is "), mistake.true)
    names = element("p", element("span", mistake.predicted, class_="wrong"), true)
    note = element("p", f"{percent(mistake.confidence, 0)} sure · #{mistake.index}", class_="note")
    return element("li", picture, names, note)
