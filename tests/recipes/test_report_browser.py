"""The report in a real browser: no error, no request, nothing wider than the screen, legible in light and dark.

Chromium is driven over its DevTools pipe (JSON messages that end in NUL on two file descriptors), so the page under
test is the page as written, and the test needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_modules.evaluators.result import Curve, Evaluation, Mistake, Table
from recipes.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
         "--no-first-run", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND")  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


class Browser:
    """One headless Chromium with one page; ``events`` holds what it reported since ``open``."""

    def __init__(self, executable: str, profile: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Descriptors 3 and 4 are the child's ends by convention: move ours away first, so that neither overwrites.
        theirs_in, theirs_out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (theirs_in, theirs_out))
        log = os.open(profile / "chromium.log", os.O_CREAT | os.O_WRONLY)
        actions = [(os.POSIX_SPAWN_DUP2, *pair) for pair in ((theirs_in, 3), (theirs_out, 4), (log, 1), (log, 2))]
        command = [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.pid = os.posix_spawn(executable, command, os.environ, file_actions=actions, setpgroup=0)
        for descriptor in (theirs_in, theirs_out, log):
            os.close(descriptor)
        self.input, self.output, self.buffer, self.count = ours_in, ours_out, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.input], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.input, 1 << 16) if ready else b""
            assert chunk, "the browser gave no answer for 20 s, or ended"
            self.buffer += chunk
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        if "id" not in message:
            self.events.append(message)
        return message

    def open(self, page: Path, width: int, scheme: str) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not self.seen("Page.loadEventFired"):
            self.receive()

    def seen(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] == method]

    def evaluate(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        os.close(self.output)  # the end of the pipe ends the browser; its own process group, started above, if not
        for _ in range(50):
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
            time.sleep(0.1)
        else:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.input)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


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


def luminance(browser: Browser, selector: str, field: str) -> float:
    """Relative luminance (WCAG 2.1) of a computed colour."""
    text = browser.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{field}")
    channels = [float(c) / 255 for c in re.findall(r"[\d.]+", text)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
