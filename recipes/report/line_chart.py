"""A small line chart as inline SVG: colours from the page's style, values on hover, no script.

Its natural width is that of one column of the page both at 1280 and at 400 pixels, so text never shrinks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from recipes.report.axis import Axis, position_axis, value_axis
from recipes.report.markup import Markup, element
from recipes.report.numbers import number, percent
from recipes.report.run_files import Column

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 26, 40
MAX_HOVER_POSITIONS = 150  # more bands than this are too narrow to point at
TONES = {"train": 0, "val": 1, "test": 2, "ideal": 5, "chance": 5}  # the same thing looks the same in every chart


@dataclass(slots=True)
class Chart:
    """What to draw.

    Attributes:
        title: heading.
        x: shared positions, ascending.
        lines: values by name; None where there is none, which breaks the line.
        x_label: what ``x`` is.
        share: values are fractions, shown as percentages.
        zero: the value axis starts at 0, for quantities whose ratio matters.
        marks: labelled vertical lines by position.
        best: line of which one value is marked: that of ``selected``, without it the highest.
        selected: position that was chosen, by whatever.
    """

    title: str
    x: list[float]
    lines: dict[str, Column]
    x_label: str = "epoch"
    share: bool = False
    zero: bool = False
    marks: dict[float, str] = field(default_factory=dict)
    best: str = ""
    selected: float | None = None

    def text(self, value: float | None) -> str:
        """``value`` as the chart writes it."""
        if value is None:
            return "—"
        return percent(value) if self.share else number(value)

    def tone(self, name: str) -> str:
        """Style class of a line."""
        return f"s{TONES.get(name, list(self.lines).index(name)) % 6}"


def line_chart(chart: Chart) -> Markup:
    """The chart as a ``<figure>``; nothing where no line has a value."""
    known = [value for values in chart.lines.values() for value in values if value is not None]
    if not known:
        return Markup("")
    x = position_axis(chart.x, LEFT, WIDTH - RIGHT)
    y = value_axis(known, HEIGHT - BOTTOM, TOP, zero=chart.zero, top=1.0 if chart.share else None)
    drawing = element(
        "svg",
        _grid(chart, x, y),
        [_line(values, chart.x, x, y, chart.tone(name)) for name, values in chart.lines.items()],
        [_mark(chart, at, text, x, y) for at, text in chart.marks.items() if x.low <= at <= x.high],
        _best_dot(chart, x, y),
        _hover(chart, x, y),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.title} over {chart.x_label}",
    )
    caption = element("figcaption", element("h3", chart.title), _legend(chart))
    return element("figure", caption, drawing, class_="card chart")


def _legend(chart: Chart) -> Markup:
    """Each line's name and, over epochs, its last value: what a reader looks for first."""
    items = []
    for name, values in chart.lines.items():
        last = next((value for value in reversed(values) if value is not None), None)
        alone = chart.x_label == "epoch" and len(chart.lines) == 1 and name not in TONES
        named = "last" if alone else name
        key = element("svg", element("line", x1=0, y1=5, x2=16, y2=5, class_=chart.tone(name)), viewBox="0 0 16 10",
                      class_="key", aria_hidden="true")  # fmt: skip
        value = element("b", chart.text(last)) if chart.x_label == "epoch" else None
        items.append(element("li", key, named, " ", value))
    if at := _best_position(chart):
        word = "selected " if at[0] == chart.selected else "best "
        items.append(element("li", word, element("b", chart.text(at[1])), f", epoch {number(at[0])}"))
    return element("ul", items, class_="legend")


def _best_position(chart: Chart) -> tuple[float, float] | None:
    """Position and value of the point of the line ``chart.best`` that is marked; the first of equals."""
    points = [(at, v) for at, v in zip(chart.x, chart.lines.get(chart.best, []), strict=False) if v is not None]
    chosen = [(at, v) for at, v in points if at == chart.selected]
    return max(chosen or points, key=lambda p: p[1], default=None)


def _best_dot(chart: Chart, x: Axis, y: Axis) -> Markup | None:
    at = _best_position(chart)
    return element("circle", cx=x(at[0]), cy=y(at[1]), r=3.5, class_=f"dot {chart.tone(chart.best)}") if at else None


def _grid(chart: Chart, x: Axis, y: Axis) -> list[Markup]:
    parts = []
    tick_text: Callable[[float], str] = (lambda v: f"{round(100 * v, 1):g} %") if chart.share else number
    for tick in y.ticks:
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(element("text", tick_text(round(tick, 12)), x=LEFT - 7, y=y(tick) + 4, class_="end"))
    for tick in x.ticks:
        parts.append(element("text", number(round(tick, 12)), x=x(tick), y=HEIGHT - BOTTOM + 17, class_="mid"))
    parts.append(element("text", chart.x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, class_="mid"))
    return parts


def _mark(chart: Chart, at: float, text: str, x: Axis, y: Axis) -> list[Markup]:
    """A vertical line; its text stands at the end that the curves leave free."""
    nearest = min(range(len(chart.x)), key=lambda i: abs(chart.x[i] - at))
    heights = [y(line[nearest]) for line in chart.lines.values() if line[nearest] is not None]  # type: ignore[arg-type]
    low = bool(heights) and min(heights) < (TOP + HEIGHT - BOTTOM) / 2
    turned = x(at) > WIDTH - RIGHT - 6 * len(text) - 10  # no room to the right
    return [
        element("line", x1=x(at), x2=x(at), y1=TOP, y2=HEIGHT - BOTTOM, class_="mark"),
        element("text", text, x=x(at) + (-5 if turned else 5), y=HEIGHT - BOTTOM - 8 if low else TOP + 12,
                class_="end halo" if turned else "halo"),
    ]  # fmt: skip


def _line(values: Column, positions: list[float], x: Axis, y: Axis, tone: str) -> list[Markup]:
    """Runs of neighbouring values as lines; a value without neighbours as a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for position, value in zip(positions, values, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((x(position), y(value)))
    parts = []
    for run in filter(None, runs):
        if len(run) == 1:
            parts.append(element("circle", cx=run[0][0], cy=run[0][1], r=3, class_=f"dot {tone}"))
        else:
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in run)
            parts.append(element("polyline", points=points, class_=tone))
    return parts


def _hover(chart: Chart, x: Axis, y: Axis) -> list[Markup]:
    """A band for each position that shows a guide and the values while the pointer is over it."""
    stride = -(-len(chart.x) // MAX_HOVER_POSITIONS)
    chosen = list(range(0, len(chart.x), stride))
    centres = [x(chart.x[i]) for i in chosen]
    edges = [x.start, *((a + b) / 2 for a, b in pairwise(centres)), x.end]
    return [_band(chart, i, edges[k], edges[k + 1], x, y) for k, i in enumerate(chosen)]


def _band(chart: Chart, i: int, left: float, right: float, x: Axis, y: Axis) -> Markup:
    at = x(chart.x[i])
    values = {name: line[i] for name, line in chart.lines.items()}
    single = len(values) == 1
    readings = [chart.text(v) if single else f"{name} {chart.text(v)}" for name, v in values.items()]
    heading = f"{chart.x_label} {number(chart.x[i])}"
    dots = [element("circle", cx=at, cy=y(v), r=3.5, class_=f"dot {chart.tone(name)}")
            for name, v in values.items() if v is not None]  # fmt: skip
    readout = element("text", " · ".join([heading, *readings[:3]]), x=WIDTH - RIGHT, y=14, class_="end readout")
    return element(
        "g",
        element("title", "\n".join([heading, *readings])),
        element("rect", x=left, y=TOP, width=max(right - left, 0.1), height=HEIGHT - BOTTOM - TOP),
        element("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="guide"),
        dots,
        readout,
        class_="hover",
    )
