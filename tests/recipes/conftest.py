"""Lets the tests of this folder import what they share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("checkpoint_faults", "chromium", "retrieval_page")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium; tests that use it are marked ``needs_chromium``."""
    from chromium import CHROMIUM, Browser

    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
