"""The sections of a retrieval evaluation with hostile names, and in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import luminance, needs_chromium
from retrieval_page import Outline, clusters, picture

from lightning_modules.evaluators.result import Evaluation, RankedImage, RankedQuery, Scatter
from recipes.report.bounded import MAX_NAME, MAX_NOTE
from recipes.report.page import write_report
from recipes.report.scatter import TONES

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "</title><base href=//e>",
    "</svg><a href=javascript:alert(1)>x</a>", "<!--", "]]>", "&lt;b&gt;<b>", "\x00\x07\x1b[2Jx\x85", "\u202egnp.exe",
    "\ud800 no text", "long" * 2500 + "<i>",
]  # fmt: skip


TAGS = """html head meta title style body main header div p h1 h2 h3 section figure figcaption svg g line rect circle
polyline text ul li span b i dl dt dd table thead tbody tr th td details summary pre img"""


ATTRIBUTES = """lang charset http-equiv content name class role aria-label aria-hidden tabindex viewbox width height x y
x1 x2 y1 y2 cx cy r points transform fill-opacity title scope src alt"""


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


@needs_chromium
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


@needs_chromium
def test_frames_differ_in_line_and_colour(browser: Any, page: Path) -> None:
    browser.open(page, 1280, "light")
    look = "(s => (c => [c.borderTopStyle, c.borderTopColor])(getComputedStyle(document.querySelector(s))))"
    (hit, green), (miss, red) = (browser.evaluate(f"{look}('.frame-{kind}')") for kind in ("hit", "miss"))
    assert (hit, miss) == ("solid", "dashed") and green != red


@needs_chromium
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
