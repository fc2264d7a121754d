"""What a retrieval evaluation shows: rows of found pictures and maps of the embedding, on a page and in a browser."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
import runpy
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_modules.evaluators.result import Curve, Evaluation, RankedImage, RankedQuery, Scatter
from recipes.report.bounded import MAX_NAME, MAX_NOTE
from recipes.report.gallery import query_galleries, score_text
from recipes.report.mistakes import data_uri
from recipes.report.numbers import is_share, label
from recipes.report.page import write_report
from recipes.report.scatter import HIGHEST, LOWEST, NAMED, SHAPES, TONES, WIDTH, _groups, _names, _placed, scatter_maps

BROWSER = runpy.run_path(str(Path(__file__).with_name("test_report_browser.py")))
HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "</title><base href=//e>",
    "</svg><a href=javascript:alert(1)>x</a>", "<!--", "]]>", "&lt;b&gt;<b>", "\x00\x07\x1b[2Jx\x85", "\u202egnp.exe",
    "\ud800 no text", "long" * 2500 + "<i>",
]  # fmt: skip
TAGS = """html head meta title style body main header div p h1 h2 h3 section figure figcaption svg g line rect circle
polyline text ul li span b i dl dt dd table thead tbody tr th td details summary pre img"""
ATTRIBUTES = """lang charset http-equiv content name class role aria-label aria-hidden tabindex viewbox width height x y
x1 x2 y1 y2 cx cy r points transform fill-opacity title scope src alt"""
DRAWN = re.compile(r"<(circle|rect|polyline) ")


class Outline(HTMLParser):
    """Tags with their attributes, and the text, as a browser would split them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def count(self, tag: str, class_: str | None = None) -> int:
        return sum(t == tag and (class_ is None or class_ in (a.get("class") or "").split()) for t, a in self.tags)


def picture(size: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (size, size, channels), dtype=np.uint8)


def query(name: str = "cat", labels: str = "cat dog", score: float = 0.5) -> RankedQuery:
    """A query that found images of these classes."""
    found = [RankedImage(picture(), one, one == name, 0.9 - i / 8, 30 + i) for i, one in enumerate(labels.split())]
    return RankedQuery(picture(), name, 7, score, found, "AP")


def clusters(classes: int, points: int, seed: int = 0) -> Scatter:
    """Classes around random centres, as many points each, in random order."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(points) % classes)
    xy = rng.normal(size=(classes, 2))[group] * [12, 6] + rng.normal(size=(points, 2)) * 0.3
    names = [f"class {i}" for i in range(classes)]
    return Scatter(xy[:, 0].tolist(), xy[:, 1].tolist(), group.tolist(), names, "first", "second", "How it was made.")


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


def test_a_row_tells_hits_from_misses_by_frame_mark_and_words(tmp_path: Path) -> None:
    evaluation = Evaluation(queries={"Worst queries": [query("cat", "dog cat cat", 0.25)]})
    outline = Outline(write_report(tmp_path, {"retrieval": evaluation}).read_text())
    text = "|".join(outline.text)
    assert "|Retrieved images|Worst queries|hit|miss|" in text
    assert "|cat|AP 0.250|2 of 3 hits|#7|0.900|dog|0.775|0.650|" in text
    assert outline.count("span", "frame-hit") == 2 and outline.count("span", "frame-miss") == 1
    assert outline.count("svg", "good") == 3 and outline.count("svg", "bad") == 2  # with those of the key
    assert [a["alt"] for t, a in outline.tags if t == "img"] == [
        "Query, image 7: cat", "Place 1, miss, image 30: dog",
        "Place 2, hit, image 31: cat", "Place 3, hit, image 32: cat",
    ]  # fmt: skip
    # The class of a hit stands there where it is another one: a hit may be defined by more than the class.
    other = RankedQuery(picture(), "cat", 0, 1.0, [RankedImage(picture(), "lynx", True, 1.0, 1)])
    drawn = str(query_galleries({"q": [other]})[0])
    assert '<p class="label">lynx</p>' in drawn and "score 1.000" in drawn
    style = write_report(tmp_path, {}).read_text()
    assert "border: 3px solid var(--s2)" in style and "border: 3px dashed var(--wrong)" in style


def test_galleries_are_bounded_and_say_so() -> None:
    many = [query("cat", "cat " * 12) for _ in range(13)]
    (card,) = query_galleries({"Random queries": many})
    outline = Outline(card)
    assert outline.count("img") == 10 * 11 and "5 more" in outline.text
    assert "The first 10 of 13 queries." in outline.text and "The first 10 images of each." in outline.text
    assert (
        card.index("<details>") > card.index("Query, image") and card.split("<details>")[0].count("Query, image") == 5
    )
    few = Outline(query_galleries({"Random queries": many[:5]})[0])
    assert few.count("details") == 0 and few.count("img") == 55 and not any("queries." in text for text in few.text)
    shown = query_galleries({f"list {i}": many[:1] for i in range(6)})
    assert len(shown) == 5 and shown[-1] == '<p class="note">Not shown: list 4, list 5.</p>'


def test_empty_parts_leave_nothing(tmp_path: Path) -> None:
    empty = Evaluation(queries={"Best queries": []}, maps={"Map": Scatter([], [], [], [])})
    page = write_report(tmp_path, {"retrieval": empty}).read_text()
    assert Outline(page).count("h2") == 0 and "Best queries" not in page
    alone = Evaluation(queries={"Best queries": [query(labels="")]})
    text = "|".join(Outline(write_report(tmp_path, {"retrieval": alone}).read_text()).text)
    assert "cat|AP 0.500|no image found|#7" in text
    assert query_galleries({}) == [] and scatter_maps({}) == []


def test_each_evaluator_has_its_own(tmp_path: Path) -> None:
    ours = Evaluation(queries={"Random queries": [query()]}, maps={"Our map": clusters(3, 9)})
    theirs = Evaluation(
        metrics={"recall@1": 0.5}, queries={"Best queries": [query()]}, maps={"Their map": clusters(2, 4)}
    )
    page = write_report(tmp_path, {"classification": ours, "retrieval": theirs}).read_text()
    text = "|".join(Outline(page).text)
    first, second = text.split("|Retrieval|")
    assert first.index("Our map") < first.index("Random queries") and "Their map" not in first
    assert second.index("Their map") < second.index("Best queries") and "Our map" not in second
    text = "|".join(Outline(write_report(tmp_path, {"retrieval": ours}).read_text()).text)
    assert text.index("|Embedding|Our map|How it was made.|") < text.index("|Retrieved images|Random queries|")


def test_pictures_are_exact_when_small_and_small_when_large() -> None:
    def decoded(uri: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))

    for channels in (1, 3):
        small = picture(96, channels)
        np.testing.assert_array_equal(np.asarray(decoded(data_uri(small, 96, 256))).reshape(small.shape), small)
    noise = picture(400)
    assert decoded(data_uri(noise, 96, 256)).size == (96, 96) and len(data_uri(noise, 96, 256)) < 15_000
    ramp = np.broadcast_to(np.linspace(0, 255, 300).astype(np.uint8)[:, None, None], (300, 150, 3))
    reduced = decoded(data_uri(ramp, 96, 256))
    assert reduced.size == (48, 96)
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(ramp)).resize((48, 96), Image.Resampling.BICUBIC))
    assert np.abs(np.asarray(reduced.convert("RGB")).astype(int) - expected).max() <= 3
    crisp = [Outline(query_galleries({"q": [RankedQuery(picture(s), "a", 0, 0.0, [])]})[0]) for s in (32, 48)]
    assert [one.count("img", "crisp") for one in crisp] == [1, 0]


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


def test_hostile_names_are_text(tmp_path: Path) -> None:
    queries = [
        RankedQuery(picture(), name, 1, 0.5, [RankedImage(picture(), name, False, 0.5, 2)], name) for name in HOSTILE
    ]
    count = len(HOSTILE)
    scatter = [
        Scatter([*range(count)], [*range(count)], [*range(count)], list(HOSTILE), name, name, name * 9)
        for name in HOSTILE
    ]
    groups = [queries[:10], queries[2:]]
    for k in range(0, count, 4):  # the page shows four titles of each kind
        names = HOSTILE[k : k + 4]
        found = Evaluation(queries={name: groups[i % 2] for i, name in enumerate(names)},
                           maps=dict(zip(names, scatter[k : k + 4], strict=True)))  # fmt: skip
        page = write_report(tmp_path, {"retrieval": found, "second" + names[0]: found}).read_text(encoding="utf-8")
        outline = Outline(page)
        assert {tag for tag, _ in outline.tags} <= {*TAGS.split()} and not outline.comments
        assert {name for _, attributes in outline.tags for name in attributes} <= {*ATTRIBUTES.split()}
        sources = [a["src"] or "" for _, a in outline.tags if "src" in a]
        assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
        assert not [c for c in page if (ord(c) < 32 and c not in "\t\n") or c in "\x7f\x85\u202e"]
        assert all(name in "".join(outline.text) for name in HOSTILE[:8])
        without_notes = re.sub(r'<p class="note">[^<]*</p>', "", page)
        assert HOSTILE[-1][: MAX_NAME + 1] not in without_notes and len(page) < 2_000_000
    assert HOSTILE[-1][: MAX_NOTE - 21] in page and HOSTILE[-1][: MAX_NOTE + 1] not in page  # a note may be longer


IMAGE: dict[str, Any] = {"picture": picture(), "label": "cat", "correct": True, "score": 0.5, "index": 0}
CURVE = Curve([1.0, 2.0], {"recall": [0.8, 0.9]}, "k", percent=True)
WRONG: dict[str, Any] = {"list": ["x"], "none": None, "group": [0.5]}
ERRORS: list[tuple[Callable[[], object], str]] = [
    (lambda: RankedImage(**{**IMAGE, "picture": np.zeros((4, 4, 3))}),
     r"picture of a ranked image is float64 \[4, 4, 3\]; it must be uint8 \[H, W, 3\] or \[H, W, 1\]"),
    (lambda: RankedImage(**{**IMAGE, "picture": np.zeros((3, 4, 4), np.uint8)}), r"uint8 \[3, 4, 4\]; it must be"),
    (lambda: RankedImage(**{**IMAGE, "picture": np.zeros((4, 4), np.uint8)}), r"uint8 \[4, 4\]; it must be"),
    (lambda: RankedImage(**{**IMAGE, "picture": np.zeros((0, 4, 3), np.uint8)}), r"uint8 \[0, 4, 3\]; it must be"),
    (lambda: RankedImage(**{**IMAGE, "score": math.nan}), "score of a ranked image is nan; it must be a finite number"),
    (lambda: RankedImage(**{**IMAGE, "index": -1}), "index of a ranked image is -1; it must be a position"),
    (lambda: RankedQuery(np.zeros((4, 4), np.uint8), "a", 0, 0.0, []), r"picture of a query is uint8 \[4, 4\]"),
    (lambda: RankedQuery(picture(), "a", 0, math.inf, []), "score of a query is inf"),
    (lambda: RankedQuery(picture(), "a", 0, 0.0, WRONG["list"]), "neighbours of a query hold a str; .* RankedImage"),
    (lambda: RankedQuery(picture(), "a", 0, 0.0, WRONG["none"]), "must be a list of RankedImage, not a NoneType"),
    (lambda: Scatter([0.0], [0.0, 1.0], [0], ["a"]), "x, y and group hold 1, 2 and 1 values; .* one for each point"),
    (lambda: Scatter([0.0, math.nan], [0.0, 1.0], [0, 0], ["a"]), "x of point 1 is nan; leave out points"),
    (lambda: Scatter([0.0], [math.inf], [0], ["a"]), "y of point 0 is inf"),
    (lambda: Scatter([0.0], [0.0], [1], ["a"]), "group of point 0 is 1; it must be a whole number from 0 to 0"),
    (lambda: Scatter([0.0], [0.0], [-1], ["a"]), "group of point 0 is -1"),
    (lambda: Scatter([0.0], [0.0], WRONG["group"], ["a"]), "group of point 0 is 0.5"),
    (lambda: Evaluation(queries={"Best": WRONG["list"]}), "queries under 'Best' hold a str; .* RankedQuery only"),
    (lambda: Evaluation(queries={"Best": WRONG["none"]}), "queries under 'Best' must be a list of RankedQuery"),
    (lambda: Evaluation(maps={"Map": WRONG["list"]}), "maps hold a list; they must hold Scatter only"),
]  # fmt: skip


@pytest.mark.parametrize("make, message", ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors_say_what_is_allowed(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_numpy_values_are_fine() -> None:
    values = np.linspace(0, 1, 5, dtype=np.float32)
    scatter = Scatter(values, values, np.arange(5) % 2, ["a", "b"])  # type: ignore[arg-type]
    assert len(dots(scatter_maps({"Map": scatter})[0])) == 2
    assert RankedImage(picture(channels=1), "a", True, np.float32(0.5), np.int64(3)).index == 3  # type: ignore[arg-type]


def test_the_main_number_stands_on_the_page_once(tmp_path: Path) -> None:
    evaluation = Evaluation(metrics={"recall@1": 0.812, "map@r": 0.5}, figures={"Recall over k": CURVE})
    text = "|".join(Outline(write_report(tmp_path, {"retrieval": evaluation}).read_text()).text).replace("\u00a0", " ")
    assert "|Test recall@1|81.2 %|" in text and text.count("Test recall@1|") == 1 and "|Test mAP@R|50.0 %|" in text
    assert "|Recall over k|recall |" in text  # the line's own name: "last" is for epochs


def test_retrieval_metrics_read_well() -> None:
    assert is_share("recall@1") and is_share("map@r") and is_share("ir_recall@10") and is_share("mrr")
    assert not is_share("mapping") and not is_share("remap")
    names = [label(name) for name in ("recall@1", "map@r", "map", "r_precision", "nmi", "retrieval/precision@10")]
    assert names == ["Recall@1", "mAP@R", "mAP", "R precision", "NMI", "Precision@10"]
    assert [score_text(v) for v in (0.12345, -0.5, 12345.6, 1)] == ["0.123", "−0.500", "12\u202f346", "1.000"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if BROWSER["CHROMIUM"] is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    browser = BROWSER["Browser"](BROWSER["CHROMIUM"], tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Galleries with long names and pictures of several sizes, and a map of many classes."""
    rng = np.random.default_rng(0)
    names = ["n" * 90, "a long name of several words that fills more than three lines of its cell", "cat"]
    found = [RankedImage(picture((8, 48, 300)[i % 3]), names[i % 3], i % 3 == 2, rng.random(), i) for i in range(10)]
    queries = [
        RankedQuery(picture(64), names[i % 3], i, 0.5, found[: 1 + i * 3], "average precision") for i in range(7)
    ]
    evaluation = Evaluation(queries={"Random queries": queries, "Worst queries": queries[:2]},
                            maps={"Map": clusters(60, 600), "Few": clusters(2, 20)})  # fmt: skip
    return write_report(tmp_path_factory.mktemp("run"), {"retrieval": evaluation})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 700, 400])
def test_page_fits_and_is_legible(browser: Any, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width, scheme)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("window.innerWidth") == width
    assert [e["entry"]["text"] for e in browser.seen("Log.entryAdded")] == []
    sizes = browser.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.clientHeight])")
    assert len(sizes) > 50 and {natural for natural, _, _ in sizes} == {8, 48, 64, 96}
    assert all(40 <= shown <= 96 and abs(shown - high) <= 1 for _, shown, high in sizes)
    # All pictures of a row stand in line where there is room, and never over each other.
    overlaps = """[...document.querySelectorAll('.found')].flatMap(row => {
        const boxes = [...row.children].map(c => c.getBoundingClientRect());
        return boxes.slice(1).map((b, i) => b.left < boxes[i].right && b.top < boxes[i].bottom) })"""
    assert not any(browser.evaluate(overlaps))
    texts = browser.evaluate("""[...document.querySelectorAll('.scatter svg[role]')].map(
        s => 12 * s.getBoundingClientRect().width / s.viewBox.baseVal.width)""")
    assert len(texts) == 2 and min(texts) >= 10 and max(texts) <= 13
    luminance = BROWSER["luminance"]
    pairs = [(".found .wrong", "color"), (".found .note", "color"), (".names text", "fill"), (".good circle", "fill"),
             *((f".points .m{i}", "fill") for i in range(TONES))]  # fmt: skip
    for selector, field in pairs:
        behind = (
            luminance(browser, ".scatter .frame", "fill")
            if "fill" in field
            else luminance(browser, ".card", "backgroundColor")
        )
        shown = luminance(browser, selector, field)
        contrast = (max(shown, behind) + 0.05) / (min(shown, behind) + 0.05)
        assert contrast >= (4.5 if "color" in field or "text" in selector else 3), selector  # WCAG AA: text, graphics


def test_frames_differ_in_line_and_colour(browser: Any, page: Path) -> None:
    browser.open(page, 1280, "light")
    look = "(s => (c => [c.borderTopStyle, c.borderTopColor])(getComputedStyle(document.querySelector(s))))"
    (hit, green), (miss, red) = (browser.evaluate(f"{look}('.frame-{kind}')") for kind in ("hit", "miss"))
    assert (hit, miss) == ("solid", "dashed") and green != red


def test_pointing_at_a_dot_names_its_class(browser: Any, page: Path) -> None:
    browser.open(page, 1280, "light")
    at = """(() => { const d = [...document.querySelectorAll('.points .m0 circle')].at(-1);
        d.scrollIntoView({block: 'center'}); const b = d.getBoundingClientRect();
        return [b.x + b.width / 2, b.y + b.height / 2] })()"""
    x, y = browser.evaluate(at)
    visible = """[...document.querySelectorAll('.points > g')].map(g => [getComputedStyle(g).opacity,
        getComputedStyle(g.querySelector('text')).visibility])"""
    assert {tuple(look) for look in browser.evaluate(visible)} == {("1", "hidden")}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    looks = [tuple(look) for look in browser.evaluate(visible)]
    assert looks.count(("1", "visible")) == 1 and ("0.15", "hidden") in looks
