"""Rows of found pictures: what tells hits from misses, how many there are, what is refused."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from retrieval_page import Outline, clusters, picture, query

from lightning_modules.evaluators.result import Curve, Evaluation, RankedImage, RankedQuery, Scatter
from recipes.report.gallery import query_galleries, score_text
from recipes.report.mistakes import data_uri
from recipes.report.numbers import is_share, label
from recipes.report.page import write_report
from recipes.report.scatter import scatter_maps


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


def test_where_nobody_knows_what_is_right_there_is_no_verdict() -> None:
    found = [RankedImage(picture(), "lynx", None, 0.5, 1), RankedImage(picture(), "cat", None, 0.25, 2)]
    outline = Outline(query_galleries({"q": [RankedQuery(picture(), "photo.jpg", 0, 0.5, found, "best score")]})[0])
    text = "|".join(outline.text)
    assert "hit" not in text and "miss" not in text and "photo.jpg|best score 0.500|#0|0.500|lynx|0.250|cat" in text
    assert outline.count("span", "frame-unknown") == 2 and outline.count("svg") == 0
    assert [a["alt"] for t, a in outline.tags if t == "img"][1] == "Place 1, image 1: lynx"


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
