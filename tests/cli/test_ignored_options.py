"""What would be ignored, or be done twice, is refused before any work, each with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from resdeploy.cli import app
from resdeploy.errors import MalformedInput, UsageError


@pytest.mark.parametrize(
    ("command", "what", "remedy"),
    [
        ("prune r.onnx --data d --train-data e -o p.onnx", "--train-data are images to fine-tune on", "--epochs 1"),
        ("prune r.onnx --data d --lr 0.1 -o p.onnx", "--lr is that of the fine-tuning", "--epochs 1"),
        ("cost resnet18 --duration 5", "--duration and --max-time are of the timing", "--measure"),
        ("cost resnet18 --max-time 5", "--duration and --max-time are of the timing", "--measure"),
        ("quantize r.onnx --max-time 5", "--max-time limits the timing of the search", "--max-drop"),
        ("bench resnet18 resnet18 --provider cuda --backend openvino", "--provider is ONNX Runtime's", "onnxruntime"),
        ("bench resnet18 --provider cuda", "--provider is ONNX Runtime's", "--backend onnxruntime"),
        ("bench resnet18 resnet50 resnet18", "resnet18 is named twice", "Name it once"),
        ("models --chart c.png", "c.png is not called .svg", "c.svg"),
        ("cost resnet18 --chart c", "c is not called .svg", "c.svg"),
        ("run quickstart --again bench --again tast", "there is no step tast", "train, export"),
    ],
)
def test_an_option_that_nothing_would_heed_is_refused(
    command: str, what: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if "openvino" in command:
        pytest.importorskip("openvino")
    done = CliRunner().invoke(app, command.split())
    assert isinstance(done.exception, UsageError), done.output
    assert what in done.exception.paragraph
    assert remedy in done.exception.paragraph
    assert list(tmp_path.iterdir()) == []


def test_a_file_under_two_paths_is_one_and_its_copy_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link or another spelling of the path."""
    from resdeploy.deploy.model_string import Request
    from resdeploy.verbs import bench

    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        Path(name).write_bytes(b"the same")
    Path("c.onnx").symlink_to("a.onnx")
    bench.refuse_twice([Request(model="a.onnx"), Request(model="b.onnx")])
    for other in ("./a.onnx", "c.onnx", str(tmp_path / "a.onnx")):
        with pytest.raises(UsageError, match=r"is the file a\.onnx"):
            bench.refuse_twice([Request(model="a.onnx"), Request(model=other)])


def test_a_result_that_was_cut_short_is_said_to_be_one(tmp_path: Path) -> None:
    """Not that it is no journal."""
    whole = '{\n  "schema_version": 1,\n  "command": "bench",\n  "results": [1, 2'
    (tmp_path / "r.json").write_text(whole)
    done = CliRunner().invoke(app, ["show", str(tmp_path / "r.json")])
    assert isinstance(done.exception, MalformedInput)
    assert "a saved result that was cut short" in done.exception.paragraph
