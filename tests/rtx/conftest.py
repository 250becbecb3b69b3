"""What asks the real compiler: `make rtx` installs it and runs these."""

from __future__ import annotations

import pytest

from resdeploy.backends import tensorrt_rtx


@pytest.fixture(autouse=True, scope="session")
def compiler() -> None:
    """Skips where it is not installed."""
    found = tensorrt_rtx.available()
    if not found.builds:
        pytest.skip(f"backend tensorrt-rtx: {found.reason}")
