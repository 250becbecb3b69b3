"""`resdeploy train` from trained weights: the figures before and after, and what happens if it gets worse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from resdeploy import store
from resdeploy.cli import app
from resdeploy.deploy.model_string import Request
from resdeploy.deploy.resume import Steps
from resdeploy.records import Profile
from resdeploy.run import profile_run
from resdeploy.train import curves

pytest.importorskip("sklearn")


def checks_of(path: Path) -> dict[str, float]:
    record = store.load(path)
    assert record is not None
    return dict(record.checks)


def train(model: object, out: Path, *options: str) -> Result:
    """On digits at 8x8, one thread."""
    return CliRunner().invoke(
        app, ["train", str(model), "--data", "digits", "--threads", "1", "-o", str(out), *options]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 after three epochs from random weights."""
    out = tmp_path_factory.mktemp("train") / "r20.safetensors"
    done = train("resnet20", out, "--img-size", "8", "--epochs", "3", "-b", "32")
    assert done.exit_code == 0, done.output
    assert re.search(r"^top-1 [\d.]+ % on 360 images$", done.output.splitlines()[-1])  # nothing before
    return out


def test_an_epoch_more_keeps_what_was_learned_and_the_last_line_says_so(trained: Path, tmp_path: Path) -> None:
    """By default, also under --strict: within a point of 360 images, or better; the same figures in the sidecar."""
    before = checks_of(trained)["test_top1"]
    assert before > 70
    done = train(trained, tmp_path / "ft.safetensors", "--epochs", "1")
    checks = checks_of(tmp_path / "ft.safetensors")
    assert done.exit_code == 0
    assert checks["test_top1_before"] == before
    assert checks["test_top1"] > before - 1
    assert done.output.splitlines()[-1].startswith(
        f"top-1 {before:.2f} % before, {checks['test_top1']:.2f} % after, on 360 images"
    )


def test_a_network_that_got_worse_is_said_and_is_exit_1_under_strict(trained: Path, tmp_path: Path) -> None:
    """A rate that wrecks it: the file is written either way, with the advice to try a lower one."""
    for options, status in (((), 0), (("--strict",), 1)):
        out = tmp_path / f"{status}.safetensors"
        done = train(trained, out, "--epochs", "1", "--lr", "3", *options)
        assert done.exit_code == status, done.output
        checks = checks_of(out)
        assert checks["test_top1"] < checks["test_top1_before"]
        assert done.output.splitlines()[-1].endswith("it fell on these images; try --lr 0.3, or more images")


def test_a_profile_trains_trained_weights_as_gently(trained: Path, tmp_path: Path) -> None:
    """Its `lr` has the same default as the command, and the same line is said."""
    train(trained, tmp_path / "ft.safetensors", "--epochs", "1")
    said: list[str] = []
    asked = Profile(name="p", model=str(trained), data="digits", epochs=1)
    steps = Steps(tmp_path / "run", said.append)
    making = profile_run.ProfileRun(profile=asked, steps=steps, progress=lambda *_: None, note=said.append)
    made = making.train(Request(model=str(trained)), "digits")
    rates = [curves.read(path)[-1].lr for path in (Path(made.path), tmp_path / "ft.safetensors")]
    assert rates[0] == rates[1]
    assert said[-1].startswith(f"top-1 {checks_of(trained)['test_top1']:.2f} % before, ")
