"""What a run remembers of its files, and what happens where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdeploy.deploy.resume import Steps


def write(path: Path) -> str:
    path.write_text("made", encoding="utf-8")
    return "made"


@pytest.mark.parametrize("memory", [b"\xff", b"[]", b"[" * 100_000, b'{"f": 3}', b'{"f": ', b"", b'"f"'])
def test_a_damaged_memory_is_none_and_is_said(tmp_path: Path, memory: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Every step is made again, and remembered from then on."""
    said: list[str] = []
    (tmp_path / "steps.json").write_bytes(memory)
    assert Steps(tmp_path, said.append).step("eval", "f", "key", Path.read_text, write) == "made"
    (warned,) = caplog.messages
    assert "steps.json is damaged" in warned
    assert said == ["making     f"]
    again = Steps(tmp_path, said.append)
    assert again.step("eval", "f", "key", Path.read_text, write) == "made"
    assert said[1:] == ["unchanged  f"]
    assert caplog.messages == [warned]


def test_a_first_run_has_nothing_to_say(tmp_path: Path) -> None:
    """A memory that is not there is no damaged one."""
    said: list[str] = []
    Steps(tmp_path, said.append).step("eval", "f", "key", Path.read_text, write)
    assert said == ["making     f"]
