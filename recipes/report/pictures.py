"""Rows of captioned pictures: an image, what was made of it, and the difference."""

from __future__ import annotations

from lightning_modules.evaluators.result import CaptionedPicture, PictureRow
from recipes.report.markup import Markup, element
from recipes.report.mistakes import LARGEST, SMOOTH_FROM, data_uri

ROWS = 24  # of one title


def picture_rows(pictures: dict[str, list[PictureRow]]) -> list[Markup]:
    """A card for each title with rows, the first ``ROWS`` of them."""
    return [
        element(
            "div",
            element("h3", title),
            element("ul", [_row(row) for row in rows[:ROWS]], class_="trios"),
            class_="card",
        )  # fmt: skip
        for title, rows in pictures.items()
        if rows
    ]


def _row(row: PictureRow) -> Markup:
    note = " · ".join(part for part in (row.note, f"#{row.index}") if part)
    shown = [_picture(one, row.index) for one in row.pictures]
    return element("li", element("div", shown, class_="trio"), element("p", note, class_="note"))


def _picture(one: CaptionedPicture, index: int) -> Markup:
    crisp = max(one.picture.shape[:2]) < SMOOTH_FROM
    image = element("img", src=data_uri(one.picture, LARGEST), class_="crisp" if crisp else None,
                    alt=f"Image {index}: {one.caption}")  # fmt: skip
    return element("figure", image, element("figcaption", one.caption))
