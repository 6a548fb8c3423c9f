"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# one thread: the models of the tests are tiny, and threads that wait for each other take most of the time
os.environ.setdefault("OMP_NUM_THREADS", "1")

# continuous integration repeats itself: the same examples on every run, and no limit of time on a shared machine
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published vectors and the real vocabulary; absent outside the project's own machines."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared test data (real vocabulary, published vectors) is not beside this checkout")
    return SHARED_DATA
