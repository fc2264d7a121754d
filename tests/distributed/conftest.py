"""Fixtures of the tests with two processes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # ``processes`` is imported by its forked children as well

import processes


@pytest.fixture
def two(tmp_path):
    """Runs ``function(rank, *args)`` in two processes; how each ended."""
    return lambda function, *args, **keys: processes.together(function, *args, folder=tmp_path, **keys)
