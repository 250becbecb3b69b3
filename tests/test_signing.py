"""The user's key: made once, by one of many; refused where others could know it; done without where there is none."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resdeploy import signing


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the key of a new user will lie, who has no process running yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    next_process()
    return tmp_path / "resdeploy/signing.key"


def next_process() -> None:
    """Forgets what a process keeps in mind."""
    signing._keys.clear()
    signing._temporary_key.cache_clear()
    signing._process_key.cache_clear()


def test_a_key_is_made_on_first_use_and_is_its_owners_alone(key: Path) -> None:
    signed = signing.mac("a", "b")
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o077 == 0
    assert len(key.read_bytes()) == 32
    next_process()
    assert signing.good(signed, "a", "b")
    for other in (("ab",), ("a", "b", ""), ("b", "a"), ("a", "c")):
        assert not signing.good(signed, *other)
    for bad in (None, "", 7, "é", signed[:-1], signed.upper()):
        assert not signing.good(bad, "a", "b")


def test_of_many_that_begin_at_once_one_makes_the_key(key: Path) -> None:
    reader, writer = os.pipe()
    children = []
    for _ in range(8):
        if not (pid := os.fork()):
            try:
                os.write(writer, signing.mac("x").encode())
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    said = os.read(reader, 8 * 64)
    assert {said[i : i + 64] for i in range(0, len(said), 64)} == {signing.mac("x").encode()}
    assert [path.name for path in key.parent.iterdir()] == ["signing.key"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda key: key.write_bytes(b""), "does not hold a key"),
        (lambda key: key.write_bytes(b"0" * 33), "does not hold a key"),
        (lambda key: key.chmod(0o666), "can be read or changed by others"),
        (lambda key: key.chmod(0o640), "can be read or changed by others"),
        (lambda key: (key.unlink(), os.mkfifo(key)), "is not a plain file"),  # type: ignore[func-returns-value]
    ],
)
def test_a_key_that_others_could_know_is_replaced_with_a_word(
    key: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object], says: str
) -> None:
    before = signing.mac("x")
    spoil(key)
    next_process()
    with caplog.at_level(logging.WARNING):
        assert not signing.good(before, "x")
    assert says in caplog.text
    assert len(key.read_bytes()) == 32
    assert key.stat().st_mode & 0o777 == 0o600
    after = signing.mac("x")
    next_process()
    assert signing.good(after, "x")


def test_where_links_cannot_be_made_there_is_a_key_all_the_same(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    signed = signing.mac("x")
    next_process()
    assert signing.good(signed, "x")
    assert [path.name for path in key.parent.iterdir()] == ["signing.key"]


def test_where_no_key_can_be_kept_a_process_believes_itself_alone_and_says_so(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No home at all; a file in the place of the folder; another user's key."""

    def no_home() -> None:
        monkeypatch.delenv("XDG_CONFIG_HOME")
        monkeypatch.setattr(Path, "home", raised)

    def raised() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for spoil in (
        lambda: monkeypatch.setattr(os, "geteuid", lambda: key.stat().st_uid + 1 if key.exists() else 12345),
        lambda: monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file")),
        no_home,
    ):
        (tmp_path / "file").write_bytes(b"x")
        signing.mac("there is a key")
        spoil()
        caplog.clear()
        next_process()
        signed = signing.mac("x")
        assert signing.good(signed, "x")
        next_process()
        assert not signing.good(signed, "x")
        assert "what earlier commands have cached is made again" in caplog.text
