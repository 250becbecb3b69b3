"""Fixtures of the tests of what commands do."""

from __future__ import annotations

import pytest

from tests.shortly import time_shortly


@pytest.fixture(autouse=True)
def short_benches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed here is timed as shortly as in `tests/cli`."""
    time_shortly(monkeypatch.setattr)
