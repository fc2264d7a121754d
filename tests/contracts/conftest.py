"""Lets the contracts import what they share, and tells what the matrix found."""

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import corruption_package
import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("bench", "matrix")


@pytest.fixture(autouse=True)
def _optional_packages(monkeypatch):
    """Evaluators that need a package of their own keep their contract with a stand-in where it is not installed."""
    if find_spec("imagecorruptions") is None:
        corruption_package.install(monkeypatch)


def pytest_terminal_summary(terminalreporter):
    """One line on the pairs; with ``-v`` every reason, and one of the pairs that it refuses."""
    reports = [
        report for found in terminalreporter.stats.values() for report in found if getattr(report, "when", "") == "call"
    ]
    outcomes = [value for report in reports for name, value in report.user_properties if name == "matrix"]
    if not outcomes:
        return
    trained, refused, broken = (sum(len(one[key]) for one in outcomes) for key in ("trained", "refused", "broken"))
    terminalreporter.write_line(
        f"composition matrix: {trained + refused + broken} pairs, {trained} trained, {refused} refused with a reason, "
        f"{broken} broken"
    )
    if terminalreporter.config.get_verbosity() > 0:
        pairs = [(name, line) for one in outcomes for name, lines in one["refused"].items() for line in lines]
        example = {line: name for name, line in reversed(pairs)}
        for line, count in Counter(line for _, line in pairs).most_common():
            terminalreporter.write_line(f"  {count:4d}  {line}  ({example[line]})")
