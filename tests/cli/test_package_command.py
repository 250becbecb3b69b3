"""`resdeploy package`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resdeploy import cli
from resdeploy.errors import UsageError
from resdeploy.records import Preprocessing
from tests.packaged.networks import network


def test_a_folder_is_written_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0, and 5 once a file in it is another one, which is named."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "m.onnx", Preprocessing(size=(8, 8)))
    made = CliRunner().invoke(
        cli.app, ["package", "m.onnx", "--for", "python", "-o", "s", "--backend", "onnxruntime", "--format", "json"]
    )
    assert made.exit_code == 0, made.output
    document = json.loads(made.stdout)
    assert {row["file"] for row in document["results"]} | {"manifest.json"} == {
        path.name for path in Path("s").iterdir()
    }
    good = CliRunner().invoke(cli.app, ["package", "--verify", "s"])
    assert good.exit_code == 0, good.output
    assert "12 of 12 images have the logits of" in " ".join(good.stdout.split())
    Path("s/classifier.py").unlink()
    bad = CliRunner().invoke(cli.app, ["package", "--verify", "s", "--format", "json"])
    assert bad.exit_code == 5
    document = json.loads(bad.stdout)
    assert document["verdict"] == "fail"
    assert [(row["file"], row["what"]) for row in document["results"]] == [("classifier.py", "missing")]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("package", "MODEL is missing"),
        ("package m.onnx -o s", "--for is missing"),
        ("package m.onnx --for python", "-o is missing"),
        ("package m.onnx --for python -o s --data digits", "--data are images for --verify"),
        ("package --verify s -o t", "--verify only reads"),
        ("package --verify s -b 4", "--verify only reads"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(command: str, words: str) -> None:
    done = CliRunner().invoke(cli.app, command.split())
    assert isinstance(done.exception, UsageError)
    assert words in done.exception.paragraph
