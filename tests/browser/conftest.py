"""What is tried in a real browser: `make browser` installs what these need, and runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import chromium


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    """A tab of Debian's Chromium."""
    if chromium.PROGRAM is None:
        pytest.fail("Chromium is not installed: apt-get install chromium")
    with chromium.started(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which is put into pages by the browser itself, whatever their policy."""
    path = os.environ.get("AXE", "")
    if not Path(path).is_file():
        pytest.fail("axe-core is not installed: make browser")
    return Path(path).read_text(encoding="utf-8")
