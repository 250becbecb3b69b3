"""How long a lock is waited for, by who says so."""

from __future__ import annotations

import pytest

from resdeploy import waiting
from resdeploy.errors import UsageError


def test_the_option_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_option_s", None)
    monkeypatch.delenv(waiting.VARIABLE, raising=False)
    assert waiting.timeout_s() == waiting.TIMEOUT_S
    monkeypatch.setenv(waiting.VARIABLE, "7.5")
    assert waiting.timeout_s() == 7.5
    waiting.set_timeout(3.0)
    assert waiting.timeout_s() == 3.0
    waiting.set_timeout(None)
    for bad in ("soon", "-1", "nan"):
        monkeypatch.setenv(waiting.VARIABLE, bad)
        with pytest.raises(UsageError, match=waiting.VARIABLE):
            waiting.timeout_s()
