"""SECURITY.md: every promise names tests, and every test it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = TEXT.partition("## What is promised")[2].partition("\n## ")[0]


def test_every_named_test_exists():
    named = sorted(set(re.findall(r"`(tests/[\w/.]+)`", TEXT)))
    assert len(named) > 10
    absent = [name for name in named if not (ROOT / name).is_file() or "def test_" not in (ROOT / name).read_text()]
    assert absent == [], f"SECURITY.md names tests that are not there: {absent}"


def test_every_promise_names_a_test():
    promises = re.findall(r"^- .*?(?=^- |^\*\*|\Z)", PROMISES, flags=re.MULTILINE | re.DOTALL)
    assert len(promises) > 15
    without = [promise for promise in promises if "`tests/" not in promise and "run directory is yours" not in promise]
    assert without == []
