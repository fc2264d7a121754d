"""The report in a real browser: no error, no request, nothing wider than the screen, legible in light and dark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, luminance, needs_chromium

from lightning_modules.evaluators.result import Curve, Evaluation, Mistake, Table
from recipes.report.page import write_report

pytestmark = needs_chromium


KNN = Evaluation(
    metrics={"accuracy": 0.25} | {f"a_metric_with_quite_a_long_name_{i}": i / 7 for i in range(8)},
    figures={"Accuracy over k": Curve([1.0, 20.0], {"accuracy": [0.3, 0.4]}, "k", percent=True)},
)


@pytest.fixture(scope="module", params=[{}, {"knn" * 30: KNN}], ids=["one evaluator", "two"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every section, long names and wide content."""
    run_dir = tmp_path_factory.mktemp("runs") / "a_recipe_with_quite_a_long_name_in_it"
    run_dir.mkdir()
    rng = np.random.default_rng(0)
    rows = [f"{e},{28 * (e + 1)},4.{e},{900 - e},{0.1 / (e + 1)},{2 / (e + 1)},{e / 12},{2.2 / (e + 1)},{e / 14},"
            + (f"{0.3 / (e + 1)},{min(1, e / 9)}" if e > 3 else ",") for e in range(12)]  # fmt: skip
    header = ("epoch,update,seconds,images_per_second,lr,train/loss,train/accuracy,val/loss,val/accuracy,"
              "regularizer/saf/trajectory_kl,regularizer/saf/fresh_share")  # fmt: skip
    (run_dir / "metrics.csv").write_text("\n".join([header, *rows]))
    (run_dir / "config.yaml").write_text("recipe: saf\npath: " + "x" * 300 + "\n")
    (run_dir / "command.txt").write_text("python train.py recipe=saf " + "data.root=/a/long/path" * 12)
    (run_dir / "environment.json").write_text(json.dumps({"cpu": "y" * 200}))
    (run_dir / "results.json").write_text(json.dumps({"test": {"accuracy": 0.5, "loss": 1.5}, "wall_seconds": 99.0}))
    names = [f"<b>class</b>-with-a-long-name-{i}" for i in range(30)]
    pictures = rng.integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    evaluation = Evaluation(
        confusion=rng.integers(0, 9, (30, 30)), classes=names,
        mistakes=[Mistake(picture, names[0], "n" * 80, 0.9, i) for i, picture in enumerate(pictures)],
        tables={"Wide": Table([f"column_{i}" for i in range(30)], [[0.5] * 30])},
        figures={"Calibration": Curve([0.0, 0.5, 1.0], {"accuracy": [0.1, None, 0.9]}, "confidence", percent=True)},
    )  # fmt: skip
    return write_report(run_dir, {"classification": evaluation, **request.param})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_page_is_quiet_fits_and_is_legible(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width, scheme)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("window.innerWidth") == width  # a page that overflows is zoomed out, and this grows
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shown = "[...document.images].every(i => i.complete && i.naturalWidth == 48 && i.clientWidth > 90)"
    assert browser.evaluate("document.images.length") == 5 and browser.evaluate(shown)

    assert not browser.seen("Runtime.exceptionThrown") and not browser.seen("Runtime.consoleAPICalled")
    assert [e["entry"]["text"] for e in browser.seen("Log.entryAdded")] == []  # policy violations are reported here
    urls = [e["request"]["url"] for e in browser.seen("Network.requestWillBeSent")]
    assert page.as_uri() in urls
    assert [url for url in urls if url != page.as_uri() and not url.startswith("data:image/png;base64,")] == []

    background = luminance(browser, "body", "backgroundColor")
    assert background < 0.05 if scheme == "dark" else background > 0.8
    for selector, backdrop in ((".note", ".card"), (".hero", "body"), (".wrong", "body"), ("pre", ".card")):
        text, behind = luminance(browser, selector, "color"), luminance(browser, backdrop, "backgroundColor")
        assert (max(text, behind) + 0.05) / (min(text, behind) + 0.05) >= 4.5, selector  # WCAG level AA


@pytest.mark.parametrize("width", [1280, 400])
def test_text_of_charts_is_large_enough(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, "light")
    sizes = browser.evaluate("""[...document.querySelectorAll('.chart > svg')].map(
        s => 12 * s.getBoundingClientRect().width / s.viewBox.baseVal.width)""")
    assert len(sizes) == (9 if "Accuracy over k" in page.read_text() else 8)
    assert min(sizes) >= 10 and max(sizes) <= 16


def test_hover_shows_the_values_without_script(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, "light")
    browser.evaluate("window.box = document.querySelector('.hover rect').getBoundingClientRect()")
    x, y = browser.evaluate("[box.x + box.width / 2, box.y + box.height / 2]")
    visible = "getComputedStyle(document.querySelector('.hover .readout')).visibility"
    assert browser.evaluate(visible) == "hidden"
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.evaluate(visible) == "visible"
    assert browser.evaluate("document.querySelector('.hover .readout').textContent") == "epoch 0 · train 2 · val 2.2"
