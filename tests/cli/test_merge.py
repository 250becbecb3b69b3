"""Evaluations in shards as a user runs them: one is killed and repeated alone, and `merge` gives the whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from resdeploy import api
from resdeploy.cli import app
from resdeploy.measure import prediction_files
from tests.cli.conftest import Run, Started, left_by
from tests.verbs.test_predict import linear


@pytest.fixture
def evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`eval` of a tiny model on a folder of three batches, the last of them short."""
    linear(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for k in range(70):
        path = tmp_path / "data" / ("bird", "cat", "dog", "elk")[k // 20] / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(path)
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return ["eval", "m.onnx", "--data", "data", "--backend", "onnxruntime"]


def document(*arguments: object) -> dict[str, Any]:
    """What a command in this process prints."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--format", "json"])
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def open_for_writing(pipe: Path) -> int:
    """The other end of a pipe, once somebody reads it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.02)
    pytest.fail("nobody reads the image")


@pytest.mark.acceptance
def test_a_killed_shard_leaves_nothing_and_is_repeated_alone(
    evaluation: list[str], resdeploy: Run, started: Callable[..., Started], tmp_path: Path
) -> None:
    """Killed with -9 while it waits for an image in its middle: no part, no half of one; the rest is merged with it."""
    assert resdeploy(*evaluation, "--predictions", "one.npz").returncode == 0
    slow = tmp_path / "data/cat/35.png"
    content = slow.read_bytes()
    slow.unlink()
    os.mkfifo(slow)
    before = {path.name for path in tmp_path.iterdir()}
    second = started(*evaluation, "--shard", "2/3", "--predictions", "part2.npz")
    end = open_for_writing(slow)
    second.send_signal(signal.SIGKILL)
    second.stderr.read()
    assert second.wait() == -signal.SIGKILL
    os.close(end)
    assert {path.name for path in tmp_path.iterdir()} == before
    for number in (1, 3):  # the pipe is not among their images
        done = resdeploy(*evaluation, "--shard", f"{number}/3", "--predictions", f"part{number}.npz")
        assert done.returncode == 0, done.stderr
    refused = resdeploy("merge", "part1.npz", "part3.npz", "-o", "all.npz")
    assert (refused.returncode, "shard 2/3 is missing" in refused.stderr) == (2, True)
    assert left_by(second.pid, tmp_path) == []  # its private folder went with the next command
    slow.unlink()
    slow.write_bytes(content)
    assert resdeploy(*evaluation, "--shard", "2/3", "--predictions", "part2.npz").returncode == 0
    assert resdeploy("merge", "part1.npz", "part2.npz", "part3.npz", "-o", "all.npz").returncode == 0
    assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_all_of_it_in_every_process_of_torchrun_is_said_once(
    evaluation: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first process, with the option that divides the work."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        told.append(CliRunner().invoke(app, evaluation).stderr)
    assert "started 2 processes" in told[0]
    assert "--shard auto" in told[0]
    assert "processes" not in told[1]


def test_torchrun_numbers_shards_and_their_files(
    evaluation: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command line for all processes; no part says an accuracy, and the whole says what `eval` says of it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = CliRunner().invoke(
            app, [*evaluation, "--shard", "auto", "--predictions", "r.npz", "--format", "json", "-o", "r.json"]
        )
        assert done.exit_code == 0, (done.output, done.exception)
    parts = [tmp_path / "r.1-of-2.npz", tmp_path / "r.2-of-2.npz"]
    assert sorted(path.name for path in tmp_path.glob("r.*")) == sorted(
        [*(path.name for path in parts), "r.1-of-2.json", "r.2-of-2.json"]
    )
    told = json.loads((tmp_path / "r.2-of-2.json").read_text())
    (row,) = told["results"]
    assert (told["command"], row["shard"], row["images"], row["images_of_all"]) == ("eval --shard", "2/2", 38, 70)
    assert not {"top1", "correct", "top1_ci95"} & row.keys()
    assert "resdeploy merge" in told["notes"][0]
    (whole,), (one,) = (
        document(*command)["results"]
        for command in (["merge", *parts, "-o", tmp_path / "all.npz"], [*evaluation, "--predictions", "one.npz"])
    )
    assert {**whole, "name": ""} == {**one, "name": ""}
    assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    merged = api.merge(parts, tmp_path / "again.npz")
    assert merged.data_fingerprint == prediction_files.load(tmp_path / "again.npz").data_fingerprint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shard", "1/2"], "Add --predictions"),
        (["--shard", "3/2", "--predictions", "p.npz"], "not '3/2'"),
        (["--shard", "auto", "--predictions", "p.npz"], "torchrun"),
        (["--shard", "1/4", "--predictions", "p.npz"], "3 batches of 32"),
    ],
)
def test_a_shard_that_cannot_be_is_refused(
    options: list[str], words: str, evaluation: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, and no file."""
    monkeypatch.delenv("RANK", raising=False)
    done = CliRunner().invoke(app, [*evaluation, *options])
    assert words in str(done.exception)
    assert not list(tmp_path.glob("p*"))
