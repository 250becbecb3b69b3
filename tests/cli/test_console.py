"""What is printed where, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from resdeploy.cli import console, live_view
from resdeploy.report import documents
from tests.cli.conftest import LONGEST_S, Run, Started

COMMAND = [sys.executable, "-m", "resdeploy"]


@pytest.mark.parametrize("verbose", [["-vv"], ["-v", "-v"], ["--verbose", "--verbose"]])
@pytest.mark.parametrize("verb", ["cost", "export"])
def test_a_traceback_keeps_the_exit_status(resdeploy: Run, verb: str, verbose: list[str]) -> None:
    """However -vv is spelt, a misspelt model exits 2, with a traceback and the same paragraph."""
    done = resdeploy(verb, "resnet5O", *verbose)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error[E-UNKNOWN-NAME]")


def test_once_verbose_is_no_traceback(resdeploy: Run) -> None:
    """-v alone leaves errors at one paragraph."""
    done = resdeploy("cost", "resnet5O", "-v")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


INTERRUPTED_WHILE_IMPORTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "resdeploy.cli.cost":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from resdeploy.__main__ import main
main()
"""


def test_ctrl_c_before_anything_is_imported_shows_no_traceback() -> None:
    """The process ends by the signal, as any program that has not set a handler; a shell calls that 130."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_IMPORTED], capture_output=True, check=False, timeout=LONGEST_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_an_interrupted_training_says_what_it_kept(started: Callable[..., Started]) -> None:
    """Exit 130, the state of the last whole epoch named, and --resume goes on from it."""
    small = ["--data", "digits", "--img-size", "8", "-b", "256", "--epochs", "50", "-o", "r.safetensors"]
    process = started("train", "resnet20", *small)
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("epoch  2/50"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait() == 130, [*said, rest]
    assert re.search(r"kept r\.(last|previous)\.safetensors: the same command with --resume goes on from it", rest)
    assert rest.endswith("interrupted\n")


def test_a_name_in_a_progress_bar_is_text() -> None:
    """Neither rich's markup, which would raise, nor an escape that the terminal would act upon."""
    from rich.console import Console

    shown = live_view.bars()
    tasks: dict[str, Any] = {}
    live_view._advance(shown, tasks, "downloading a[/b][red]\x1b[2Jc.pth", 1, 2)
    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, color_system=None, width=120)
    terminal.print(shown)
    assert "downloading a[/b][red]\\x1b[2Jc.pth" in drawn.getvalue()
    assert "\x1b[2J" not in drawn.getvalue()
    live_view._advance(shown, tasks, "downloading a[/b][red]\x1b[2Jc.pth", 2, 2)
    assert not shown.tasks


def test_a_result_in_a_file_is_named(resdeploy: Run, digits_onnx: Path) -> None:
    """On stderr; --quiet says nothing."""
    done = resdeploy("models", "resnet18", "--format", "json", "-o", "m.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "wrote m.json\n")
    quiet = resdeploy("cost", digits_onnx, "--format", "json", "-o", "c.json", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize("args", [["models"], ["models", "--format", "json"], ["doctor"]])
def test_a_reader_that_left_is_no_error(args: list[str], tmp_path: Path) -> None:
    """Into a pipe that nobody reads: exit 0, and not a word."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, *args], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_behind_stdout_is_exit_6(tmp_path: Path) -> None:
    """`> FILE` on a full disk is the machine's failure, in one paragraph."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "models"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 6
    assert re.fullmatch(r"error\[E-DISK-FULL\]: standard output .*\n", done.stderr)


def test_auto_says_which_backend_it_took_and_with_v_why(resdeploy: Run, digits_onnx: Path) -> None:
    """Name and version on stderr; -v also says why, and names the file that was used; --quiet silences both."""
    named, why = r"(?m)^\w+ [\d.]+ \(auto\)$", r"(?m)^(\w+) (\S+) \(auto: .*\1 \2 is the best here\)$"
    file = rf"{re.escape(str(digits_onnx))} \([\d.]+ MB, fp32"
    timed = resdeploy("bench", digits_onnx, "--duration", 0.1).stderr
    assert len(re.findall(named, timed)) == 1
    assert not re.search(file, timed)
    judged = resdeploy("eval", digits_onnx, "--data", "digits", "-v").stderr
    assert len(re.findall(why, judged)) == 1
    assert len(re.findall(file, judged)) == 1
    assert resdeploy("eval", digits_onnx, "--data", "digits", "-v", "-q").stderr == ""


def test_a_named_backend_needs_no_explanation(resdeploy: Run, digits_onnx: Path) -> None:
    """Who asks for a backend gets it without a word."""
    assert resdeploy("bench", digits_onnx, "--duration", 0.1, "--backend", "onnxruntime").stderr == ""


def test_training_says_which_images_it_left_out(resdeploy: Run, tmp_path: Path) -> None:
    """What the checkpoint's notes hold is printed: here the one image that is broken."""
    rng = np.random.default_rng(0)
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "images" / part).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / part / f"{i}.png")
    (tmp_path / "images/train/b/2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    size = ["--img-size", 16, "--resize", 18]
    done = resdeploy("train", "resnet20", "--data", "images", "--epochs", 1, "-b", 2, *size, "-o", "r.safetensors")
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^resnet20: left out of training, unreadable: .*b/2\.png", done.stderr)
    assert "wrote r.safetensors" in done.stderr
    seen = json.loads((tmp_path / "r.safetensors.json").read_text())["model"]["preprocessing"]
    assert (seen["size"], seen["resize"]) == ([16, 16], 18)


def test_the_size_printed_counts_the_weights_beside_the_file(resdeploy: Run, tmp_path: Path, digits_onnx: Path) -> None:
    """OpenVINO's XML is small; its .bin holds the model."""
    done = resdeploy("build", digits_onnx, "--backend", "openvino", "-o", "m.xml")
    assert done.returncode == 0, done.stderr
    (printed,) = map(float, re.findall(r"wrote m\.xml \(([\d.]+) MB", done.stderr))
    real = sum((tmp_path / name).stat().st_size for name in ("m.xml", "m.bin")) / 1e6
    assert printed == pytest.approx(real, abs=0.05)
    assert (tmp_path / "m.bin").stat().st_size / 1e6 > 0.1


@pytest.fixture
def foreign(tmp_path: Path, digits_onnx: Path) -> Path:
    """The digits network as another exporter would have left it: nothing in it but the graph, and no sidecar."""
    model = onnx.load(digits_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


def seen_as(original: Path) -> list[object]:
    """The options that say what the original's own metadata says."""
    props = {p.key: p.value for p in onnx.load(original).metadata_props}
    seen = json.loads(props["resdeploy.spec"])["preprocessing"]
    mean, std = (",".join(map(str, seen[name])) for name in ("mean", "std"))
    return ["--mean", mean, "--std", std, "--resize", seen["resize"], "--interpolation", seen["interpolation"]]


@pytest.mark.acceptance
def test_a_foreign_file_is_gated_timed_in_int8_and_adopted(
    resdeploy: Run, tmp_path: Path, digits_onnx: Path, foreign: Path
) -> None:
    """With the options it is what the original is, in every verb; `export` writes them into a canonical copy."""
    override = seen_as(digits_onnx)
    data = ["--data", "digits"]
    pair = ["--baseline", digits_onnx, "--candidate", foreign, "--max-drop", 1, *data]
    assert resdeploy("gate", *pair).returncode == 2
    gated = resdeploy("gate", *pair, *override)
    assert gated.returncode == 0, gated.stdout + gated.stderr

    bench = ["bench", foreign, "--precision", "int8", "--calib-data", "digits", "--calib-samples", 20]
    assert resdeploy(*bench, "--backend", "onnxruntime", "--duration", 0.1, *override).returncode == 0

    exported = resdeploy("export", foreign, "-o", "ours.onnx", *override)
    assert exported.returncode == 0, exported.stderr
    assert "wrote ours.onnx" in exported.stderr
    scores = [
        json.loads(resdeploy("eval", path, *data, "--format", "json").stdout)["results"][0]["correct"]
        for path in (digits_onnx, tmp_path / "ours.onnx")
    ]
    assert scores[0] == scores[1] > 0


def test_rows_that_are_invalid_are_counted_where_the_result_goes_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever does not open the file knows that it holds unreliable times."""
    rows = [{"state": "INVALID"}, {"state": "ok"}]
    console.emit(documents.document("bench", {}, rows), "json", tmp_path / "b.json")
    assert capsys.readouterr().err == f"wrote {tmp_path / 'b.json'}; 1 of 2 rows are INVALID, the file says why\n"


def test_what_the_network_sees_is_said_where_images_are_read(resdeploy: Run, digits_onnx: Path) -> None:
    """One line of `eval`, with who says so; none of `bench`, which reads no image; --quiet silences it."""
    line = r"(?m)^\S+ sees 16x16 RGB as NCHW float32: .*; from the file's record; change it with --img-size, .*--std$"
    assert len(re.findall(line, resdeploy("eval", digits_onnx, "--data", "digits").stderr)) == 1
    assert resdeploy("eval", digits_onnx, "--data", "digits", "-q").stderr == ""
