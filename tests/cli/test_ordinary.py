"""What any machine may lack or refuse is no defect of resdeploy: its own exit status, and the next command."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy import cli
from resdeploy.cli import console

MODULE = [sys.executable, "-m", "resdeploy"]
# Runs commands one after another, and prints the status and the words of each.
RUN = """
import contextlib, io, json, sys
from resdeploy.cli import main
for args in json.loads(sys.argv[1]):
    sys.argv = ["resdeploy", *args]
    words = io.StringIO()
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as e:
            status = e.code
    print(json.dumps([status, words.getvalue()]))
"""
HIDING = """
import os, sys
for name in os.environ["WITHOUT"].split(","):
    sys.modules[name] = None
"""
SIGHT = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]


def classifier(path: Path, *, outputs: bool = True, inputs: bool = True) -> Path:
    """An ONNX file of a network that mixes three channels and averages each: images (N, 3, 8, 8) -> (N, 3)."""
    weights = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["y"], name="pool"),
        helper.make_node("Flatten", ["y"], ["logits"], name="flat"),
    ]
    shape = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [shape("x", TensorProto.FLOAT, ["N", 3, 8, 8])] if inputs else [],
        [shape("logits", TensorProto.FLOAT, ["N", 3])] if outputs else [],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


TRAIN = ["train", "resnet20", "--data", "digits", "--epochs", "1", "-o"]
GATE = ["gate", "--baseline", "m.onnx", "--candidate", "n.onnx", "--max-drop", "1", "--data", "digits", *SIGHT]


TORCH, RUNTIMES = "pip install 'torch>=2.11,<2.14' onnxscript", "pip install "


@pytest.mark.parametrize(
    ("hidden", "commands"),
    [
        (
            "torch",
            [
                (TORCH, ["export", "resnet20"]),
                (TORCH, ["bench", "resnet20"]),
                (TORCH, ["cost", "resnet20"]),
                (TORCH, ["cost", "timm:resnet18"]),
                (TORCH, ["export", "torchvision:resnet18"]),
                (TORCH, [*TRAIN, "r.safetensors"]),
                (TORCH, [*TRAIN, "r.onnx", "--qat"]),
                (TORCH, ["prune", "resnet20", "--data", "digits", "--max-drop", "2", "--epochs", "1", "-o", "p.onnx"]),
                (TORCH, ["study", "degradation"]),
                (TORCH, ["study", "lesion", "resnet20", "--data", "digits"]),
            ],
        ),
        (
            "onnxscript,timm,torchvision,sklearn,openvino,tensorrt,cuda,pynvml",
            [
                ("pip install onnxscript", ["export", "resnet20"]),
                ("pip install onnxscript", ["cost", "resnet20"]),
                ("pip install timm", ["cost", "timm:resnet18"]),
                ("pip install torchvision", ["cost", "torchvision:resnet18"]),
                ("pip install scikit-learn", ["eval", "m.onnx", "--data", "digits", *SIGHT]),
                ("pip install scikit-learn", [*TRAIN, "r.safetensors"]),
                ("pip install scikit-learn", GATE),
                ("pip install openvino", ["build", "m.onnx", "--backend", "openvino", "-o", "m.xml"]),
                ("pip install openvino", ["bench", "m.onnx", "--backend", "openvino"]),
                ("pip install openvino", ["run", "p.toml"]),
                ("pip install tensorrt", ["bench", "m.onnx", "--backend", "tensorrt"]),
            ],
        ),
        (
            "openvino,onnxruntime",
            [
                (RUNTIMES, ["bench", "m.onnx"]),
                (RUNTIMES, ["eval", "m.onnx", "--data", "digits", *SIGHT]),
                (RUNTIMES, ["audit", "m.onnx"]),
                (RUNTIMES, ["cost", "m.onnx", "--roofline", "machine"]),
                (RUNTIMES, ["quantize", "m.onnx", "--calib-data", "synthetic:8", *SIGHT]),
                (RUNTIMES, GATE),
            ],
        ),
    ],
    ids=["torch", "one each", "all runtimes"],
)
def test_a_missing_package_is_exit_6_with_the_command_that_installs_it(
    tmp_path: Path, hidden: str, commands: list[tuple[str, list[str]]]
) -> None:
    """Whatever command needs it, in this process and in its children."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(HIDING)
    classifier(tmp_path / "m.onnx")
    classifier(tmp_path / "n.onnx")
    (tmp_path / "p.toml").write_text('name = "p"\nmodel = "m.onnx"\nbackends = ["openvino"]\n')
    path = os.pathsep.join((str(tmp_path / "site"), str(Path(cli.__file__).parents[2])))
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([command for _, command in commands])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "WITHOUT": hidden},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for (remedy, command), (status, words) in zip(commands, found, strict=True):
        assert status == 6, (command, words)
        assert remedy in words.splitlines()[-1], (command, words)
        assert "defect" not in words


@pytest.fixture
def outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs a command in this process, in an empty folder, and gives its exit status and its words."""
    monkeypatch.chdir(tmp_path)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals}

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["resdeploy", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
        return int(done.value.code or 0), capsys.readouterr().err

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_name_that_is_too_long_is_a_usage_error(outcome: Callable[..., tuple[int, str]]) -> None:
    """As input and as output."""
    long = "x" * 300 + ".onnx"
    for command in (["cost", long], ["bench", "resnet20", "-o", long]):
        status, words = outcome(*command)
        assert status == 2, words
        assert "too long" in words


def test_a_folder_in_place_of_a_file_is_a_usage_error(outcome: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """Of each kind of file that is read."""
    for name in ("m.onnx", "p.toml", "p.npz", "w.pth", "r.json"):
        (tmp_path / name).mkdir()
    gate = ["gate", "--baseline", "p.npz", "--candidate", "p.npz", "--max-drop", "1"]
    weights = ["export", "resnet20", "--weights", "w.pth"]
    for command in (
        ["cost", "m.onnx"],
        ["run", "p.toml"],
        gate,
        weights,
        ["show", "r.json"],
        ["compare", "r.json", "r.json"],
    ):
        assert outcome(*command)[0] == 2, command


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (PermissionError(13, "Permission denied", "secret.onnx"), 6, "secret.onnx cannot be read"),
        (OSError(24, "Too many open files"), 6, "ulimit -n"),
        (OSError(28, "No space left on device", "f"), 6, "E-DISK-FULL"),
        (OSError(27, "File too large"), 6, "ulimit -f"),
        (OSError("libcuda.so.1: cannot open shared object file"), 6, "libcuda.so.1"),
        (MemoryError(), 6, "E-MEMORY"),
        (EOFError("the archive ends"), 7, "E-INTERNAL"),  # Typer itself takes it for Ctrl-D: exit 1, a failed gate's
    ],
)
def test_what_the_system_refuses_has_its_own_status(
    outcome: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, words: str
) -> None:
    """Wherever it comes up; 7 is left for what nobody foresaw, and 1 for verdicts."""
    from resdeploy.measure import environment

    def refuse() -> None:
        raise error

    monkeypatch.setattr(environment, "capture", refuse)
    found, said = outcome("models", "resnet50")
    assert found == status
    assert words in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_utf_8_is_written_to(tmp_path: Path, encoding: str) -> None:
    """A table draws lines; what a name holds is escaped."""
    for args in (["models", "resnet50"], ["cost", "ä→.onnx"]):
        done = subprocess.run(
            [*MODULE, *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.returncode == (2 if "cost" in args else 0), done.stderr
        said = (done.stdout + done.stderr).decode(encoding)
        assert "\\u2500" not in said
        assert ("->" in said) == ("cost" in args)


@pytest.mark.parametrize(("args", "status"), [(["--version"], 141), (["models", "--chart", "c.svg"], 0)])
def test_a_reader_that_left_stops_no_work(tmp_path: Path, args: list[str], status: int) -> None:
    """`2>&1 | head`: what is asked for is done; a version that nobody reads ends as other programs do."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*MODULE, *args], cwd=tmp_path, stdout=writing, stderr=writing, check=False)
    os.close(writing)
    assert done.returncode == status
    assert (tmp_path / "c.svg").exists() == ("--chart" in args)


def test_a_closed_stdout_is_exit_6(tmp_path: Path) -> None:
    """A result that cannot be printed is not lost in silence."""
    command = shlex.join([*MODULE, "models", "resnet50"])
    done = subprocess.run(["sh", "-c", f"{command} >&-"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "standard output" in done.stderr


def test_a_gate_that_breaks_tells_ci_why(
    outcome: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save_answers: Callable[[str, int], None],
) -> None:
    """Any error, a defect of ours too, and options that contradict each other: JUnit file and annotation."""
    from resdeploy.verbs import gate

    save_answers("a", 1)
    args = ["gate", "--baseline", "a.npz", "--candidate", "a.npz", "--junit", "g.xml", "--github"]
    status, words = outcome(*args)  # no limit is given
    assert status == 2
    assert words.startswith("::error title=resdeploy gate::")
    assert 'errors="1"' in (tmp_path / "g.xml").read_text(encoding="utf-8")
    (tmp_path / "g.xml").unlink()
    for error, expected in ((OSError(5, "Input/output error", "a.npz"), 6), (KeyError("no such thing"), 7)):
        monkeypatch.setattr(gate, "gate", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        status, words = outcome(*args, "--max-drop", "1")
        assert status == expected
        assert words.startswith("::error title=resdeploy gate::")
        assert "Input/output error" in words or "no such thing" in words
        assert 'errors="1"' in (tmp_path / "g.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["inputs", "outputs"])
def test_a_graph_without_inputs_or_outputs_is_malformed(
    outcome: Callable[..., tuple[int, str]], tmp_path: Path, missing: str
) -> None:
    """It is valid protobuf, and no model."""
    classifier(tmp_path / "m.onnx", **{missing: False})
    status, words = outcome("cost", "m.onnx")
    assert status == 4
    assert f"no {missing}" in words


@pytest.mark.parametrize(
    "text",
    [
        "not XML",
        "<html></html>",
        "<net>" + "<a>" * 200 + "</a>" * 200 + "</net>",
        '<!DOCTYPE net [<!ENTITY a "b">]><net>&a;</net>',
        "<net><layers></net>",
    ],
)
def test_an_odd_network_of_openvino_is_refused_before_openvino_sees_it(
    outcome: Callable[..., tuple[int, str]], tmp_path: Path, text: str
) -> None:
    """By counting, whatever its sidecar vouches for."""
    from resdeploy import store
    from resdeploy.records import Artifact

    (tmp_path / "m.xml").write_text(text)
    digest = store.digest(tmp_path / "m.xml")
    written = Artifact(path=str(tmp_path / "m.xml"), format="openvino", precision="fp32", sha256=digest)
    store.copy_to(written, tmp_path / "m.xml")
    status, words = outcome("bench", "m.xml", "--backend", "openvino")
    assert status == 4, words
    assert "not a network in OpenVINO's format" in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        (".".join("a" * 2000) + " = 1", "nested too deeply"),
        ("# " + "x" * 70_000, "bytes"),
        ("seed = " + "9" * 5000, "not valid TOML"),
        ("duration_s = nan", "not valid TOML"),
        ('name = "a\\u0000b"\nmodel = "resnet20"', "zero byte"),
    ],
)
def test_an_odd_profile_is_exit_2(
    outcome: Callable[..., tuple[int, str]], tmp_path: Path, text: str, words: str
) -> None:
    """Too large, too deep, or with what no profile can mean."""
    (tmp_path / "p.toml").write_text(text, encoding="utf-8")
    status, said = outcome("run", "p.toml")
    assert status == 2, said
    assert words in said


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "content", [b"\xff", DEEP.encode(), b"[]", b"3", b'{"row": 3}', b'{"run": {"environment": 3}}']
)
def test_odd_json_is_exit_4(outcome: Callable[..., tuple[int, str]], tmp_path: Path, content: bytes) -> None:
    """Of every kind that commands read: results, journals, predictions, sidecars, an inspector's layers."""
    for name in ("r.json", "p.json", "e.graph.json", "b.journal"):
        (tmp_path / name).write_bytes(content)
    classifier(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.json").write_bytes(content)
    gate = ["gate", "--baseline", "p.json", "--candidate", "p.json", "--max-drop", "1"]
    readers = (["show", "r.json"], ["show", "b.journal"], ["compare", "r.json", "r.json"], ["audit", "e.graph.json"])
    for command in (*readers, ["cost", "m.onnx"]):
        status, said = outcome(*command)
        assert status == 4, (command, said)
    assert outcome(*gate)[0] in (2, 4)  # JSON of another kind has no predictions: 2


def test_plain_signs_stand_for_lines_and_arrows() -> None:
    """Everything else is shown as its escape."""
    console.adapt_streams()
    assert "a─→é".encode("ascii", console.PLAINLY) == b"a-->\\xe9"
