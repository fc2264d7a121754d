"""Content of the report: numbers re-derived, names escaped, nothing asked of the outside, missing parts left out."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array

from kernels.wilson import wilson_interval
from lightning_modules.evaluators.result import Curve, Evaluation, Mistake, Table
from recipes.report.axis import position_axis, round_step, value_axis
from recipes.report.confusion import confused_pairs, heat_map
from recipes.report.markup import Markup, element
from recipes.report.mistakes import data_uri
from recipes.report.numbers import duration, label, number, percent, quantity
from recipes.report.page import write_report

HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta", "img"}
METRICS = """epoch,update,seconds,images_per_second,lr,train/loss,train/accuracy,train/saf,train/cross_entropy,\
val/loss,val/accuracy,regularizer/saf/trajectory_kl,regularizer/saf/fresh_share
0,10,1.5,800,0.1,3,0.1,0,3,3.5,0.05,,
1,20,1.5,820,0.05,2,0.3,0,2,nan,0.45,0.5,0.25
2,30,2.0,810,0.0,1,0.6,0.125,0.875,2.5,0.4,0.25,0.75
"""


class Outline(HTMLParser):
    """Checks that tags nest, and collects them with their attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str, class_: str | None = None) -> int:
        return sum(t == tag and (class_ is None or class_ in (a.get("class") or "").split()) for t, a in self.tags)


def write_run(folder: Path) -> Path:
    """A run directory as training leaves it: three epochs, one NaN, empty cells."""
    run_dir = folder / "cifar_saf" / "first"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.csv").write_text(METRICS)
    (run_dir / "config.yaml").write_text(f"recipe: cifar_saf\nnote: '{HOSTILE.replace(chr(39), '')}'\n")
    (run_dir / "command.txt").write_text("python train.py recipe=cifar_saf 'a<b'\n")
    (run_dir / "environment.json").write_text(json.dumps({"torch": "2.15.0", "gpu": None, "cpu": HOSTILE}))
    acted = {"saf": {"first_active_epoch": 1, "active_step_share": 0.64}}
    results = {"test": {"accuracy": 0.625, "loss": 1.25}, "val": {"accuracy": 0.45}, "seed": 3, "wall_seconds": 83.2,
               "peak_memory_mb": 2048.0, "acted": acted, "unforeseen": {"deep": [1, "two"]}}  # fmt: skip
    (run_dir / "results.json").write_text(json.dumps(results))
    return run_dir


def write_page(folder: Path, evaluation: Evaluation) -> str:
    return write_report(write_run(folder), {"classification": evaluation}).read_text(encoding="utf-8")


def small_evaluation(names: list[str]) -> Evaluation:
    picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    return Evaluation(
        metrics={"ece": 0.071}, classes=names, confusion=np.array([[3, 1, 0], [0, 2, 0], [2, 0, 0]]),
        mistakes=[Mistake(picture, names[0], names[1], 0.987, 17)],
        tables={"Robustness " + HOSTILE: Table(["corruption", "accuracy"], [["fog " + HOSTILE, 0.5]])},
        figures={"Calibration": Curve([0.0, 1.0], {"accuracy": [0.2, 0.8], HOSTILE: [0.0, 1.0]}, "confidence", True)},
    )  # fmt: skip


def test_page_holds_the_numbers_of_the_run(tmp_path: Path) -> None:
    outline = Outline(write_page(tmp_path, small_evaluation(["cat", "dog", "eel"])))
    text = "|".join(outline.text).replace("\u00a0", " ")
    assert "62.5 %" in text and "Test ECE|7.1 %" in text and "Wall time|1 min 23 s" in text and "Seed|3" in text
    assert "Peak memory|2.00 GB" in text and "unforeseen/deep|1, two" in text
    assert "8 images · 95 % interval 30.6–86.3 % · chance 33.3 %" in text  # 5 of 8, from Wilson's formula by hand
    assert "best |45.0 %|, epoch 1" in text
    results = tmp_path / "cifar_saf" / "first" / "results.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {"selected_epoch": 0}))
    page = write_report(results.parent, {}).read_text(encoding="utf-8")
    assert re.search(r"selected \|[\d.]+ %\|, epoch 0", "|".join(Outline(page).text).replace("\u00a0", " "))
    assert "SAF: first active in epoch 1, active in 64.0 % of all steps." in text
    assert "Train time|5.0 s" in text and "Rest: set-up, validation, evaluation|1 min 18 s" in text
    assert "2.15.0" in text and "python train.py recipe=cifar_saf 'a<b'" in text
    for title in ("Loss", "Accuracy", "Learning rate", "SAF · Trajectory KL", "SAF · Fresh share",
                  "Training loss by term", "Images per second", "Seconds per epoch", "Calibration"):  # fmt: skip
        assert outline.text.count(title) == 1, title
    assert outline.count("figure", "chart") == 9
    # Pairs by count: eel as cat (2 of 2), cat as dog (1 of 4). Bars: eel 0 of 2, cat 3 of 4, dog 2 of 2.
    assert "eel|cat|2|100 %" in text and "cat|dog|1|25 %" in text
    assert text.index("eel|0 %") < text.index("cat|75 %") < text.index("dog|100 %")


def test_the_selected_epoch_stands_beside_the_last_one(tmp_path: Path) -> None:
    """Robust overfitting is to be seen: the curve of what selected beside those of training, its best epoch marked."""
    run_dir = write_run(tmp_path)
    (run_dir / "metrics.csv").write_text(
        "epoch,lr,train/loss,train/accuracy,val/loss,val/accuracy,val/robustness/pgd_accuracy,val/robustness/accuracy\n"
        "0,0.1,3,0.2,2.5,0.3,0.21,0.3\n1,0.1,2,0.4,2.25,0.4,0.34,0.4\n2,0.1,1,0.8,2.75,0.5,0.26,0.5\n"
    )
    val = {"accuracy": 0.4, "loss": 2.25, "robustness/pgd_accuracy": 0.34, "robustness/accuracy": 0.4}
    last = {"accuracy": 0.5, "loss": 2.75, "robustness/pgd_accuracy": 0.26, "robustness/accuracy": 0.5}
    told = {
        "val": val,
        "val_last": last,
        "selected_epoch": 1,
        "last_epoch": 2,
        "selected_by": ["robustness/pgd_accuracy"],
    }
    (run_dir / "results.json").write_text(json.dumps(told))
    outline = Outline(write_report(run_dir, {}).read_text(encoding="utf-8"))
    text = "|".join(outline.text).replace("\u00a0", " ")
    table = text[text.index("Selected and last epoch") :]
    for words in ("epoch|selected 1|last 2", "Accuracy|40.0 %|50.0 %", "Loss|2.25|2.75",
                  "Robustness · PGD accuracy|34.0 %|26.0 %", "Selected by robustness/pgd_accuracy."):  # fmt: skip
        assert words in table, words
    titles = ["Loss", "Accuracy", "Robustness · PGD accuracy", "Learning rate"]
    places = [outline.text.index(title) for title in titles]
    assert places == sorted(places) and "Robustness · Accuracy" not in outline.text, "it repeats the accuracy"
    for value in ("2.25", "40.0 %", "34.0 %"):  # marked in each chart with a validation
        assert f"selected |{value}|, epoch 1" in text


def test_a_run_without_a_last_validation_has_no_such_table(tmp_path: Path) -> None:
    assert "Selected and last epoch" not in write_page(tmp_path, Evaluation())


def test_tables_leave_out_columns_in_which_nothing_stands(tmp_path: Path) -> None:
    long = "gradients are masked " * 4
    tables = {
        "Checks": Table(["check", "reason"], [["one", ""], ["two", None]]),
        "Protocol": Table(["protocol"], [["linf, eps 8/255"]]),
        "Violated": Table(["check", "reason"], [["one", long]]),
    }
    outline = Outline(write_page(tmp_path, Evaluation(tables=tables)))
    text = "|".join(outline.text)
    assert "Checks|check|one|two" in text and "Protocol|linf, eps 8/255" in text
    assert f"Violated|check|reason|one|{long}" in text and outline.count("td", "long") == 1


def test_several_evaluators_have_a_section_each(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path)
    knn = Evaluation(
        metrics={"accuracy": 0.375, "neighbours": 20},
        figures={"Accuracy over k": Curve([1.0, 20.0], {"accuracy": [0.3, 0.4]}, "k", True)},
    )
    names = ["cat", "dog", "eel"]
    given = {"knn_features": knn, "classification": small_evaluation(names), "empty": Evaluation(), HOSTILE: knn}
    outline = Outline(write_report(run_dir, given).read_text(encoding="utf-8"))
    text = "|".join(outline.text).replace("\u00a0", " ")
    titles = [text.index(f"|{title}|") for title in ("Classification", "kNN features", label(HOSTILE), "Timing")]
    assert titles == sorted(titles), "the main one first, the others in their order"
    assert "|Empty|" not in text and "|Evaluation|" not in text and "|Classes|" not in text
    main, first, second = (text[a:b] for a, b in zip(titles, titles[1:], strict=False))
    for part in ("Calibration", "Accuracy per class", "Most confident mistakes", "eel|cat|2|100 %"):
        assert part in main and part not in first
    assert "Accuracy|37.5 %|Neighbours|20|Accuracy over k" in first and "Accuracy|37.5 %" in second
    assert "Test accuracy|62.5 %" in text[: titles[0]] and "37.5 %" not in text[: titles[0]]
    assert "evaluators/knn_features/accuracy|37.5 %" in text[titles[-1] :]


def test_the_only_evaluator_may_have_any_name(tmp_path: Path) -> None:
    run_dir, evaluation = write_run(tmp_path), small_evaluation(["a", "b", "c"])
    page = write_report(run_dir, {"classification": evaluation}).read_text(encoding="utf-8")
    assert page == write_report(run_dir, {"knn": evaluation}).read_text(encoding="utf-8")


def test_curve_points_lie_where_the_data_are(tmp_path: Path) -> None:
    page = write_page(tmp_path, Evaluation())
    figure = re.search(r"<h3>Loss</h3>.*?</figure>", page, re.S)
    assert figure is not None
    (line,) = re.findall(r'<polyline points="([^"]+)" class="s0"', figure[0])
    x, y = np.array([list(map(float, point.split(","))) for point in line.split()]).T
    np.testing.assert_allclose(np.diff(x), (400 - 12 - 50) / 2, atol=0.11)  # three epochs over the width of the plot
    assert np.diff(y)[0] == pytest.approx(np.diff(y)[1], abs=0.11)  # 3, 2, 1 is a straight line, downwards on screen
    assert y[0] < y[1] < y[2]
    assert len(re.findall(r'class="dot s1"', figure[0].split('class="hover"')[0])) == 2  # val: NaN parts its two values


def test_hostile_names_are_text(tmp_path: Path) -> None:
    page = write_page(tmp_path, small_evaluation([HOSTILE, "b<i>", "c"]))
    assert "<script" not in page.lower() and "<i>" not in page.replace("<i>is </i>", "")
    outline = Outline(page)
    assert HOSTILE in outline.text and f"{HOSTILE}: 3 of 4 right" in [a.get("title") for _, a in outline.tags]


def test_nothing_leaves_the_page(tmp_path: Path) -> None:
    page = write_page(tmp_path, small_evaluation(["a", "b", "c"]))
    assert not re.search(r"https?://|@import|url\(|javascript:", page)
    outline = Outline(page)
    allowed = """html head meta title style body main header section div p h1 h2 h3 dl dt dd ul li b i span pre figure
                 figcaption svg g line text rect circle polyline img table thead tbody tr th td details summary"""
    assert {tag for tag, _ in outline.tags} <= set(allowed.split())
    for tag, attributes in outline.tags:
        assert not {name for name in attributes if name in ("href", "srcset", "style") or name.startswith("on")}
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,"), tag
    policy = next(a["content"] for t, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    style = page.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy is not None and policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy and "script-src" not in policy


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    outline = Outline(write_report(tmp_path, {}).read_text())
    assert outline.count("h1") == 1 and outline.count("h2") == 0
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/loss\n0,2.5,\n")
    outline = Outline(write_report(tmp_path, {}).read_text())
    assert outline.count("figure") == 1 and outline.count("circle", "dot") == 2  # the point and its hover
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/accuracy\n0,nan,text\n1,inf,\n")
    assert Outline(write_report(tmp_path, {}).read_text()).count("figure") == 0
    (tmp_path / "metrics.csv").write_text("epoch,train/loss\n")
    (tmp_path / "config.yaml").write_text("a: [unclosed")
    nothing = Evaluation(confusion=np.zeros((2, 2), int), classes=["a", "b"], metrics={"accuracy": math.nan})
    assert "—" in Outline(write_report(tmp_path, {"classification": nothing}).read_text()).text
    surrogate = Evaluation(confusion=np.eye(2, dtype=int), classes=["caf\udce9", "b"])  # a file name that is not UTF-8
    assert "caf?" in Outline(write_report(tmp_path, {"classification": surrogate}).read_text()).text


def test_many_classes_keep_the_page_readable(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = ((10, True, 10), (40, True, 40), (100, False, 100), (1000, False, 60), (10_000, False, 60))
    for count, named, bars in sizes:
        errors = rng.integers(0, count, (2, min(count * count // 100, 10_000)))
        pairs = np.hstack([[np.arange(count)] * 2, errors])
        confusion = csr_array((rng.integers(1, 9, pairs.shape[1]), tuple(pairs)), shape=(count, count))
        names = [f"name{i}" for i in range(count)]
        evaluation = Evaluation(confusion=confusion, classes=names)
        page = write_report(tmp_path, {"classification": evaluation}).read_text()
        outline = Outline(page)
        assert outline.count("ul", "bars") == 1 and outline.count("rect", "fill") == bars
        drawn = str(heat_map(confusion, names))
        assert (">name9</text>" in drawn) == named
        assert drawn.count("<title>") == (confusion.nnz if count <= 200 else 0)
        assert confused_pairs(confusion, names).count("<tr>") <= 16
        assert len(page) < 1_500_000


def test_pictures_survive_unchanged() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    decoded = Image.open(io.BytesIO(base64.b64decode(data_uri(picture).split(",")[1])))
    np.testing.assert_array_equal(np.asarray(decoded), picture)
    large = Image.open(io.BytesIO(base64.b64decode(data_uri(np.zeros((512, 256, 1), np.uint8)).split(",")[1])))
    assert large.size == (96, 192)
    with pytest.raises(ValueError, match=r"float64 \[4, 4, 3\]; it must be uint8 \[H, W, 3\]"):
        data_uri(np.zeros((4, 4, 3)))  # type: ignore[arg-type]


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run directory at"):
        write_report(tmp_path / "absent", {})
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not valid JSON"):
        write_report(tmp_path, {})
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list; it must hold an object"):
        write_report(tmp_path, {})
    with pytest.raises(ValueError, match=r"shape \[2, 3\]; it must be \[C, C\] with C = 2"):
        Evaluation(confusion=np.zeros((2, 3), int), classes=["a", "b"])
    with pytest.raises(ValueError, match="confusion is for 2 classes, but 1 names were given"):
        Evaluation(confusion=np.zeros((2, 2), int), classes=["a"])
    with pytest.raises(ValueError, match="negative count"):
        Evaluation(confusion=-np.eye(1, dtype=int), classes=["a"])
    with pytest.raises(ValueError, match="row 0 has 1 cells, the table 2 columns"):
        Table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match="line 'a' has 1 values for 2 positions"):
        Curve([0.0, 1.0], {"a": [1.0]})


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (2.3, 2.3), (1e-6, 3e-6), (-3.0, 120.0), (0.0, 0.0), (-2.0, -2.0)])
def test_axes_cover_the_data_with_few_round_ticks(low: float, high: float) -> None:
    axis = value_axis([low, high], 200, 20, zero=False)
    assert axis.low <= low and high <= axis.high and 2 <= len(axis.ticks) <= 6
    assert axis(axis.low) == 200 and axis(axis.high) == 20
    steps = np.diff(axis.ticks)
    np.testing.assert_allclose(steps, steps[0])
    assert position_axis([low, high], 0, 100).low <= low
    assert round_step(299, 6, whole=True) == 50


def test_quantities_read_well() -> None:
    assert [number(v) for v in (0.0, 1.0, 0.12345, 4903210, 11.2e6, 1.58e-5, -2.5, math.inf, math.nan)] == [
        "0", "1", "0.1235", "4\u202f903\u202f210", "11.2\u00a0M", "1.58e−5", "−2.5", "∞", "—"]  # fmt: skip
    assert percent(0.503) == "50.3\u00a0%"
    assert duration(3725) == "1\u00a0h 02\u00a0min" and duration(59.94) == "59.9\u00a0s"
    assert label("images_per_second") == "Images / s" and label("val/top5_accuracy") == "Top-5 accuracy"
    assert quantity("seed", 20250) == "20250" and quantity("x", True) == "True" and quantity("x", None) == "—"
    assert element("p", "a < b", Markup("<b>"), class_="x", hidden=False) == '<p class="x">a &lt; b<b></p>'
    low, high = wilson_interval(0, 10)
    assert low == 0 and wilson_interval(10, 10)[1] == 1 and high == pytest.approx(3.8415 / 13.8415, rel=1e-4)


def test_parts_say_when_they_acted(tmp_path: Path) -> None:
    parts = {"saf": {"first_active_epoch": -1, "active_step_share": 0.0}, "attack": {"forwards": 12, "mean_steps": 3.5}}
    (tmp_path / "results.json").write_text(json.dumps({"parts": parts}))
    (tmp_path / "metrics.csv").write_text("epoch,regularizer/saf/trajectory_kl\n0,0.0\n1,0.0\n")
    text = Outline(write_report(tmp_path, {}).read_text()).text
    assert "SAF: never active, active in 0.0\u00a0% of all steps." in text
    assert "Attack: Forwards 12, Mean steps 3.5." in text and "acts from here" not in text


def test_a_teacher_is_named_with_what_it_knew(tmp_path: Path) -> None:
    found = {"parts": {"nd": {"first_active_epoch": 0}}, "teacher": {"accuracy": 0.475, "images": 120}}
    (tmp_path / "results.json").write_text(json.dumps(found))
    (tmp_path / "networks.txt").write_text(f"teacher={HOSTILE} (sha256 0123456789ab), frozen\n")
    (tmp_path / "metrics.csv").write_text("epoch,regularizer/nd/value\n0,0.5\n1,0.4\n")
    text = Outline(write_report(tmp_path, {}).read_text()).text
    assert f"teacher={HOSTILE} (sha256 0123456789ab), frozen" in text
    assert "teacher: 47.5\u00a0% of the validation images right before training" in text
    assert "ND: first active in epoch 0." in text


def test_what_a_seat_says_of_other_parts_is_told_apart_from_theirs(tmp_path: Path) -> None:
    parts = {"gradient": {"kd/conflict_share": 0.25, "nd/conflict_share": 0.5}, "nd": {"first_active_epoch": 0}}
    (tmp_path / "results.json").write_text(json.dumps({"parts": parts}))
    (tmp_path / "metrics.csv").write_text("epoch,gradient/nd/cosine,regularizer/nd/cosine\n0,0.5,0.1\n1,0.4,0.2\n")
    text = Outline(write_report(tmp_path, {}).read_text()).text
    assert "Gradient: KD · Conflict share 25.0\u00a0%, ND · Conflict share 50.0\u00a0%." in text
    assert "Gradient · ND · Cosine" in text and "ND · Cosine" in text


@pytest.mark.parametrize(
    ("folder", "title"),
    [("grocery_saf/mine/evaluations/today", "grocery_saf mine"), ("evaluations/resnet18/today", "resnet18")],
)
def test_an_evaluation_is_named_after_what_was_evaluated(tmp_path, folder, title):
    (tmp_path / folder).mkdir(parents=True)
    page = write_report(tmp_path / folder, {"classification": Evaluation(metrics={"accuracy": 0.5})}).read_text()
    assert f"<title>{title} · today</title>" in page
