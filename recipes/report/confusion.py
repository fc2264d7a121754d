"""Confusion matrix as a heat map, and the pairs confused most often as a table.

Right answers and errors have different hues (blue and orange, told apart with any colour vision), and the strength of a
colour is the share of the true class, so a rare class shows as clearly as a frequent one.
"""

from __future__ import annotations

from math import sqrt

from scipy.sparse import csr_array

from recipes.report.markup import Markup, element
from recipes.report.numbers import number, percent

NUMBERS_UP_TO = 20  # classes: counts are written into the cells
NAMES_UP_TO = 60  # classes: rows and columns bear names
MAP_UP_TO = 200  # classes: beyond it a cell is smaller than a pixel
PAIRS = 15
KEY_SHARES = (0.02, 0.1, 0.3, 1.0)


def heat_map(confusion: csr_array, classes: list[str]) -> Markup:
    """The matrix as SVG; empty above ``MAP_UP_TO`` classes.

    Args:
        confusion: ``[C, C]`` counts, rows are true classes, columns predicted ones.
        classes: C names.
    """
    count = len(classes)
    if count > MAP_UP_TO or not confusion.sum():
        return Markup("")
    cell = 36 if count <= 12 else 30 if count <= NUMBERS_UP_TO else 16 if count <= NAMES_UP_TO else max(3, 640 // count)
    font = min(12, round(cell * 0.68))
    gutter = 16 + round(font * 0.56 * min(22, max(map(len, classes)))) if count <= NAMES_UP_TO else 34
    size = gutter + count * cell
    frame = element("rect", x=gutter, y=gutter, width=count * cell, height=count * cell, class_="frame")
    drawing = element(
        "svg", frame, _labels(classes, cell, gutter), _cells(confusion, classes, cell, gutter),
        viewBox=f"0 0 {size + 2} {size + 2}", width=size + 2,
        class_=f"map f{font if count <= NAMES_UP_TO else 14}" + (" small" if count <= 12 else ""),
        role="img", aria_label="Confusion matrix, rows true classes, columns predicted classes",
    )  # fmt: skip
    # Named rows keep their size and scroll in their own box on a narrow screen; a map of bare cells shrinks.
    box = element("div", drawing, class_="scroll" if count <= NAMES_UP_TO else "shrink", tabindex=0)
    note = element("p", "Row: true class. Column: predicted class.", class_="note")
    return element("div", element("h3", "Confusion matrix"), note, box, _key(), class_="card")


def confused_pairs(confusion: csr_array, classes: list[str]) -> Markup:
    """The ``PAIRS`` most frequent errors, by count and then by share of the true class."""
    errors = [entry for entry in _entries(confusion) if entry[0] != entry[1]]
    worst = sorted(errors, key=lambda entry: (-entry[2], -entry[3], entry[0], entry[1]))[:PAIRS]
    if not worst:
        return Markup("")
    rows = [element("tr", element("td", classes[t]), element("td", classes[p]), element("td", number(n), class_="num"),
                    element("td", percent(share, 0), class_="num")) for t, p, n, share in worst]  # fmt: skip
    head = element("thead", element("tr", element("th", "True"), element("th", "Predicted"),
                                    element("th", "Images", class_="num"),
                                    element("th", "Share", class_="num")))  # fmt: skip
    table = element("table", head, element("tbody", rows))
    return element("div", element("h3", "Most confused pairs"), element("div", table, class_="scroll", tabindex=0),
                   class_="card")  # fmt: skip


def strength(share: float) -> float:
    """Opacity of a cell: the square root keeps single errors visible beside a full diagonal."""
    return round(0.1 + 0.9 * sqrt(share), 2)


def _entries(confusion: csr_array) -> list[tuple[int, int, int, float]]:
    """True and predicted class, count and share of the true class, of each pair that occurs."""
    found = confusion.tocoo()
    found.eliminate_zeros()
    shares = found.data / confusion.sum(axis=1)[found.row]
    return list(zip(*(column.tolist() for column in (found.row, found.col, found.data, shares)), strict=True))


def _cells(confusion: csr_array, classes: list[str], cell: int, gutter: int) -> list[Markup]:
    parts = []
    gap = 1 if cell > 6 else 0
    for t, p, n, share in _entries(confusion):
        x, y = gutter + p * cell, gutter + t * cell
        hint = f"{classes[t]} → {classes[p]}: {number(n)} ({percent(share, 0)})"
        rect = element("rect", element("title", hint), x=x, y=y, width=cell - gap, height=cell - gap,
                       class_="hit" if t == p else "miss", fill_opacity=f"{strength(share):g}")  # fmt: skip
        parts.append(rect)
        if len(classes) <= NUMBERS_UP_TO:
            tone = _count_tone(strength(share), right=t == p)
            parts.append(element("text", n, x=x + cell / 2, y=y + cell / 2 + 4, class_=f"mid count {tone}"))
    return parts


def _count_tone(opacity: float, *, right: bool) -> str:
    """Colour of the count on a cell: on a full blue the other one than on a full orange, for the contrast."""
    if opacity <= 0.6:
        return "faint"
    return "strong" if right and opacity > 0.8 else "half"


def _labels(classes: list[str], cell: int, gutter: int) -> list[Markup]:
    parts = []
    named = len(classes) <= NAMES_UP_TO
    for i, name in enumerate(classes):
        if not named and i % 20:
            continue
        text = name if not named else (name if len(name) <= 22 else name[:21] + "…")
        text = text if named else str(i)
        at = gutter + (i + 0.5) * cell
        parts.append(element("text", text, x=gutter - 6, y=at + 4, class_="end"))
        turn = f"translate({at + 4:.1f} {gutter - 6}) rotate(-90)"
        parts.append(element("text", text, transform=turn))
    return parts


def _key() -> Markup:
    """Swatches for the share of the true class."""
    rows = []
    for hue, text in (("hit", "right"), ("miss", "confused")):
        swatches = [element("rect", x=i * 22, y=0, width=20, height=12, class_=hue, fill_opacity=f"{strength(s):g}")
                    for i, s in enumerate(KEY_SHARES)]  # fmt: skip
        rows.append(element("li", element("svg", swatches, viewBox="0 0 86 12", class_="swatches", aria_hidden="true"),
                            text))  # fmt: skip
    shares = ", ".join(percent(s, 0) for s in KEY_SHARES)
    return element("ul", rows, element("li", f"{shares} of the true class", class_="quiet"), class_="legend")
