"""Maps of an embedding: where the dots lie, how classes look apart, which are named."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from retrieval_page import Outline, clusters, picture

from lightning_modules.evaluators.result import RankedImage, Scatter
from recipes.report.scatter import HIGHEST, LOWEST, NAMED, SHAPES, TONES, WIDTH, _groups, _names, _placed, scatter_maps

DRAWN = re.compile(r"<(circle|rect|polyline) ")


def dots(drawing: str) -> list[list[tuple[float, float]]]:
    """Centres of the drawn points of each class, in the order of the drawing."""
    area = drawing.split('class="points">')[1].split('<g class="names">')[0]
    return [[_centre(shape) for shape in re.findall(r"<(?:circle|rect|polyline) [^>]*>", part)]
            for part in area.split("<title>")[1:]]  # fmt: skip


def _centre(shape: str) -> tuple[float, float]:
    value = {name: text for name, text in re.findall(r'(\w+)="([^"]*)"', shape)}
    if "cx" in value:
        return float(value["cx"]), float(value["cy"])
    if "points" in value:
        corners = [tuple(map(float, corner.split(","))) for corner in value["points"].split()]
        x, y = zip(*corners, strict=True)
        return (min(x) + max(x)) / 2, y[1] - 2.7 if len(corners) == 3 else y[1]
    return float(value["x"]) + float(value["width"]) / 2, float(value["y"]) + float(value["height"]) / 2


@pytest.mark.parametrize("classes, points", [(1, 1), (5, 40), (30, 600), (300, 900)])
def test_dots_lie_where_the_points_are(classes: int, points: int) -> None:
    scatter = clusters(classes, points)
    (drawing,) = scatter_maps({"Map": scatter})
    drawn = dots(drawing)
    assert len(drawn) == classes and sum(map(len, drawn)) == points
    names = [name.split(" · ")[0] for name in re.findall(r"<g class=\"m\d\"><title>([^<]*)<", drawing)]
    where = {name: np.array(sorted(part)) for name, part in zip(names, drawn, strict=True)}
    x, y, group = np.array(scatter.x), np.array(scatter.y), np.array(scatter.group)
    data = {name: np.stack([x, y], 1)[group == i] for i, name in enumerate(scatter.names)}
    pixels = np.concatenate([where[name] for name in data])
    if points > 1:  # one scale for both axes, y upwards: the extremes give it
        scale = np.ptp(pixels[:, 0]) / np.ptp(x)
        assert np.ptp(pixels[:, 1]) == pytest.approx(np.ptp(y) * scale, abs=0.4)
        for name, part in data.items():
            expected = pixels.min(0) + (part - [x.min(), y.max()]) * [scale, -scale]
            expected = expected[np.argsort(expected[:, 0])]
            np.testing.assert_allclose(np.sort(where[name][:, 0]), expected[:, 0], atol=0.25)
            np.testing.assert_allclose(np.sort(where[name][:, 1]), np.sort(expected[:, 1]), atol=0.25)
    width, height = map(float, re.findall(r'<rect x="34" y="2" width="(\d+)" height="(\d+)" class="frame"', drawing)[0])
    assert (pixels.min(0) >= [34 + 4, 2 + 4]).all() and (pixels.max(0) <= [34 + width - 4, 2 + height - 4]).all()


@pytest.mark.parametrize(
    "x, y",
    [
        ([3.0], [4.0]), ([1.0, 1.0], [2.0, 2.0]), ([0.0, 1.0], [5.0, 5.0]), ([5.0, 5.0], [0.0, 1e-300]),
        ([-1.7e308, 1.7e308], [0.0, 1.0]), ([1e9, 1e9 + 1], [0.0, 1000.0]),
    ],
)  # fmt: skip
def test_degenerate_maps_stay_inside_the_frame(x: list[float], y: list[float]) -> None:
    pixels_N2, height = _placed(Scatter(x, y, [0] * len(x), ["a"]))
    assert np.isfinite(pixels_N2).all() and (pixels_N2 > [34, 2]).all() and (pixels_N2 < [WIDTH - 2, height - 32]).all()
    assert LOWEST * 700 < height < HIGHEST * WIDTH + 50


@pytest.mark.parametrize("classes", [1, 7, 24, 61])
def test_colours_repeat_far_away_and_the_named_look_different(classes: int) -> None:
    scatter = clusters(classes, 10 * classes)
    pixels_N2, _ = _placed(scatter)
    groups = _groups(scatter, pixels_N2)
    assert max(Counter((g.tone, g.shape) for g in groups[:NAMED]).values()) == 1
    for k, group in enumerate(groups):  # the rule, in plain loops
        assert group.shape == k // TONES % SHAPES
        free = set(range(TONES)) - {g.tone for g in groups[k - k % TONES : k]}

        def away(tone: int, k: int = k) -> float:
            others = [g for g in groups[:k] if g.tone == tone]
            return min((math.dist(g.middle, groups[k].middle) for g in others), default=math.inf)

        assert group.tone in free and away(group.tone) == pytest.approx(max(map(away, free)))


def test_many_points_are_thinned_alike_and_many_classes_named_in_part() -> None:
    scatter = clusters(300, 12_000)
    scatter.group[:40] = [299] * 40  # the largest class
    (drawing,) = scatter_maps({"Map": scatter})
    drawn, outline = dots(drawing), Outline(drawing)
    assert sum(map(len, drawn)) == 4000 and len(drawn) == 300
    assert all(abs(len(part) - 40 / 3) <= 2 for part in drawn[1:]) and abs(len(drawn[0]) - 80 / 3) <= 2
    text = "|".join(outline.text)
    assert "4\u202f000 of 12\u202f000 points are drawn." in text and "How it was made." in text
    assert "and 276 more classes" in text and text.count("class 299") >= 3
    legend = drawing[drawing.index('<ul class="legend">') :]
    assert legend.count("<li") == NAMED + 1 and legend.index("class 299") < legend.index("class 0")
    size = scatter.group.count(299)
    assert f"<span>class 299</span> <b>{size}</b>" in legend  # the whole class, not the dots
    assert len(drawing) < 600_000
    lone = Scatter([0.0, 1.0, 2.0], [0.0, 1.0, 0.0], [2, 0, 2], ["a", "absent", "c"])
    assert "absent" not in scatter_maps({"Map": lone})[0]
    assert scatter_maps({f"m{i}": lone for i in range(5)})[-1] == '<p class="note">Not shown: m4.</p>'


def test_names_in_the_map_cover_no_other() -> None:
    scatter = clusters(24, 480)
    pixels_N2, height = _placed(scatter)
    groups = _groups(scatter, pixels_N2)
    pattern = r'<text x="([\d.]+)" y="([\d.]+)" class="mid halo">([^<]*)<'
    placed = [(name, float(x), float(y)) for x, y, name in re.findall(pattern, _names(groups, height))]
    assert 8 <= len(placed) <= 24
    for (a, x, y), (b, u, v) in itertools.combinations(placed, 2):
        assert abs(x - u) > 3 * (len(a) + len(b)) or abs(y - v) > 12, (a, b)
    long = Scatter([0.0], [0.0], [0], ["n" * 100])
    assert "n" * 17 + "…</text>" in scatter_maps({"Map": long})[0]


def test_numpy_values_are_fine() -> None:
    values = np.linspace(0, 1, 5, dtype=np.float32)
    scatter = Scatter(values, values, np.arange(5) % 2, ["a", "b"])  # type: ignore[arg-type]
    assert len(dots(scatter_maps({"Map": scatter})[0])) == 2
    assert RankedImage(picture(channels=1), "a", True, np.float32(0.5), np.int64(3)).index == 3  # type: ignore[arg-type]
