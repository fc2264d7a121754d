"""A map of an embedding as inline SVG: a dot for each image, a colour and a shape for each class, no script.

Eyes tell few colours apart, so colours repeat, but such that classes of one colour lie far from each other. The classes
with most points are named, in the map where there is room and in the legend; every class is named under the pointer,
which also lets the other classes fade. There are no ticks: the coordinates of such a map mean nothing by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_modules.evaluators.result import Scatter
from recipes.report.markup import Markup, element
from recipes.report.numbers import number

WIDTH, EDGE = 760, 34  # pixels; the edge bears the labels of the axes
LOWEST, HIGHEST = 0.45, 0.9  # height of the map as a share of its width
MAPS = 4  # of one evaluation
MAX_POINTS = 4000  # beyond it an even share of them is drawn
TONES, SHAPES = 6, 4  # their product is the number of classes that can be told apart
NAMED = TONES * SHAPES
LONGEST_LABEL = 18  # characters of a name in the map
RADIUS = 3.0

Positions = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """One class of the map: how many points it has, where those drawn are in pixels, and how they look."""

    name: str
    total: int
    points_N2: Positions
    middle: tuple[float, float]
    tone: int
    shape: int


def scatter_maps(maps: dict[str, Scatter]) -> list[Markup]:
    """A card for each of the first ``MAPS`` maps that has a point, and a line on those left out."""
    filled = {title: scatter for title, scatter in maps.items() if len(scatter.x)}
    cards = [scatter_map(title, filled[title]) for title in list(filled)[:MAPS]]
    left = ", ".join(list(filled)[MAPS:])
    return [*cards, element("p", f"Not shown: {left}.", class_="note")] if left else cards


def scatter_map(title: str, scatter: Scatter) -> Markup:
    """The map as a ``<figure>``; nothing without a point."""
    if not len(scatter.x):
        return Markup("")
    pixels_N2, height = _placed(scatter)
    groups = _groups(scatter, pixels_N2)
    drawn = sum(len(group.points_N2) for group in groups)
    notes = [scatter.note] if scatter.note else []
    if drawn < len(scatter.x):
        notes.append(f"{number(drawn)} of {number(len(scatter.x))} points are drawn.")
    frame = element("rect", x=EDGE, y=2, width=WIDTH - EDGE - 2, height=height - EDGE, class_="frame")
    drawing = element(
        "svg", frame, _axis_labels(scatter, height), element("g", [_dots(group) for group in groups], class_="points"),
        _names(groups, height), viewBox=f"0 0 {WIDTH} {height}", role="img",
        aria_label=f"{title}: {number(drawn)} points of {number(len(groups))} classes",
    )  # fmt: skip
    paragraphs = [element("p", note, class_="note") for note in notes]
    box = element("div", element("div", drawing, class_="scroll", tabindex=0), _legend(groups), class_="sides")
    return element("figure", element("figcaption", element("h3", title), paragraphs), box, class_="card scatter")


def _placed(scatter: Scatter) -> tuple[Positions, int]:
    """Pixels of the points and the height of the drawing. Both axes have one scale, so distances keep their ratios."""
    data_N2 = np.stack([np.asarray(scatter.x, np.float64), np.asarray(scatter.y, np.float64)], 1)
    low, high = data_N2.min(0), data_N2.max(0)
    # Halves, because a difference of very large positions would overflow.
    span = high / 2 - low / 2
    width = WIDTH - EDGE - 2 - 4 * RADIUS
    share = span[1] / span[0] if span[0] > 0 else HIGHEST
    room = width * min(max(share, LOWEST), HIGHEST)
    scale = min((size / part for size, part in zip((width, room), span, strict=True) if part > 0), default=1.0)
    centre = np.array([EDGE + (WIDTH - EDGE - 2) / 2, 2 + 2 * RADIUS + room / 2])
    offset_N2 = (data_N2 / 2 - (low / 4 + high / 4)) * scale
    return centre + offset_N2 * np.array([1, -1]), round(room + 4 * RADIUS) + EDGE


def _groups(scatter: Scatter, pixels_N2: Positions) -> list[Group]:
    """The classes that have a point, those with most points first; all of them thinned alike."""
    group_N = np.asarray(scatter.group)
    by_class = np.argsort(group_N, kind="stable")
    if len(by_class) > MAX_POINTS:
        # An even stride over points sorted by class takes about the same share of each.
        by_class = by_class[np.linspace(0, len(by_class) - 1, MAX_POINTS).round().astype(int)]
    kept = np.zeros(len(group_N), bool)
    kept[by_class] = True
    classes, totals = np.unique(group_N, return_counts=True)
    order = [i for i in np.argsort(-totals, kind="stable") if kept[group_N == classes[i]].any()]
    parts = [pixels_N2[kept & (group_N == classes[i])] for i in order]
    middles_C2 = np.array([np.median(part, axis=0) for part in parts])
    looks = [(tone, k // TONES % SHAPES) for k, tone in enumerate(_tones(middles_C2))]
    return [Group(scatter.names[classes[i]], int(totals[i]), part, (float(middle[0]), float(middle[1])), *look)
            for i, part, middle, look in zip(order, parts, middles_C2, looks, strict=True)]  # fmt: skip


def _tones(middles_C2: Positions) -> list[int]:
    """A tone for each class. Each round of ``TONES`` classes uses every tone once, so tone and shape tell the first
    ``NAMED`` classes apart; within a round a class takes the tone whose other classes are farthest away."""
    tones_C = np.zeros(len(middles_C2), np.int64)
    for k, middle in enumerate(middles_C2):
        away_k = np.hypot(*(middles_C2[:k] - middle).T)
        free = set(range(TONES)) - set(tones_C[k - k % TONES : k].tolist())
        # Of equals (tones that no class has yet) the first one.
        tones_C[k] = -max((float(away_k[tones_C[:k] == tone].min(initial=np.inf)), -tone) for tone in free)[1]
    return tones_C.tolist()


def _dots(group: Group) -> Markup:
    """All points of a class in one group, so that its name is written once and all light up together."""
    readout = f"{group.name} · {number(group.total)}"
    text = element("text", readout, x=WIDTH - 12, y=20, class_="end halo readout")
    dots = [_dot(float(x), float(y), group.shape) for x, y in group.points_N2]
    return element("g", element("title", readout), dots, text, class_=f"m{group.tone}")


def _dot(x: float, y: float, shape: int) -> Markup:
    """A disc, square, triangle or diamond of about the same area."""
    if shape == 0:
        return element("circle", cx=x, cy=y, r=RADIUS)
    if shape == 1:
        return element("rect", x=x - 2.7, y=y - 2.7, width=5.4, height=5.4)
    corners = ((0, -3.9), (3.7, 2.7), (-3.7, 2.7)) if shape == 2 else ((0, -4.0), (4.0, 0), (0, 4.0), (-4.0, 0))
    return element("polyline", points=" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners))


def _names(groups: list[Group], height: int) -> Markup:
    """Names in the middle of their classes, each where it covers no earlier one."""
    placed: list[tuple[str, float, float]] = []
    for group in groups[:NAMED]:
        name = group.name if len(group.name) <= LONGEST_LABEL else group.name[: LONGEST_LABEL - 1] + "…"
        x = min(max(group.middle[0], EDGE + _half(name)), WIDTH - _half(name) - 4)
        y = min(max(group.middle[1] + 4, 16), height - EDGE - 6)
        if all(abs(x - a) > _half(name) + _half(other) or abs(y - b) > 14 for other, a, b in placed):
            placed.append((name, x, y))
    return element("g", [element("text", name, x=x, y=y, class_="mid halo") for name, x, y in placed], class_="names")


def _half(name: str) -> float:
    """About half the width of a text of 12 pixels."""
    return 3.4 * len(name) + 3


def _axis_labels(scatter: Scatter, height: int) -> list[Markup]:
    x, y = (EDGE + WIDTH) / 2, (height - EDGE) / 2
    below = element("text", scatter.x_label, x=x, y=height - 10, class_="mid")
    beside = element("text", scatter.y_label, transform=f"translate(16 {y:.1f}) rotate(-90)", class_="mid")
    return [label for label, text in ((below, scatter.x_label), (beside, scatter.y_label)) if text]


def _legend(groups: list[Group]) -> Markup:
    """The named classes with their marks and numbers of points; how the others are found."""
    items = []
    for group in groups[:NAMED]:
        key = element("svg", _dot(8, 5, group.shape), viewBox="0 0 16 10", class_=f"key points m{group.tone}",
                      aria_hidden="true")  # fmt: skip
        words = (element("span", group.name), " ", element("b", number(group.total)))
        items.append(element("li", key, words, title=group.name))
    if len(groups) > NAMED:
        rest = (
            f"and {number(len(groups) - NAMED)} more classes, in colours that repeat: point at a dot to see its class"
        )
        items.append(element("li", rest, class_="quiet"))
    return element("ul", items, class_="legend")
