"""Names of code: run where a person typed them, and nowhere else. A module leaves a file behind when it is imported."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from tests.cli.conftest import Run

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from resdeploy import store  # noqa: E402
from resdeploy.backends.lane import Lane  # noqa: E402
from resdeploy.cli import app, console  # noqa: E402
from resdeploy.deploy import export, model_files, networks  # noqa: E402
from resdeploy.deploy.model_string import Request  # noqa: E402
from resdeploy.errors import FactoryRefused, MalformedInput, MissingInput, ResdeployError, UsageError  # noqa: E402
from resdeploy.graph import metadata  # noqa: E402
from resdeploy.measure import journal, prediction_files  # noqa: E402
from resdeploy.models import foreign, weights, zoo  # noqa: E402
from resdeploy.records import (  # noqa: E402
    Artifact,
    Block,
    Execution,
    Measurement,
    ModelSpec,
    Predictions,
    Preprocessing,
    Profile,
    Weights,
)
from resdeploy.run import run  # noqa: E402
from resdeploy.train import state  # noqa: E402

NAME = "stranger:net"
SPEC = ModelSpec(
    name=NAME, family="stranger", classes=10, input_shape=(3, 16, 16), labels=tuple("0123456789"),
    preprocessing=Preprocessing(size=(16, 16), resize=16),
)  # fmt: skip
MODULE = """
    from pathlib import Path
    from torch import nn

    Path({canary!r}).touch()

    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
"""


def no_one(*_: object) -> None:
    """Listens to progress and notes."""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that importing `stranger` makes; the module is in the current folder and on every process's path."""
    canary = tmp_path / "canary"
    (tmp_path / "stranger.py").write_text(textwrap.dedent(MODULE).format(canary=str(canary)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(foreign, "_permitted", set(), raising=False)
    monkeypatch.setattr(console, "silent", False, raising=False)
    yield canary
    for name in ("stranger", "other"):
        sys.modules.pop(name, None)


@pytest.fixture
def checkpoint(canary: Path) -> Path:
    """A checkpoint of the stranger's network, which it names; made without importing it."""
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    weights.save(net, SPEC, path := canary.with_name("w.safetensors"), Weights(source="w"))
    return path


@pytest.fixture
def graph(canary: Path) -> Path:
    """The same network as an ONNX file whose metadata and sidecar name the stranger's factory."""
    rng = np.random.default_rng(0)
    shapes = {"c": (4, 3, 3, 3), "l": (10, 4)}
    held = [onnx.numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        onnx.helper.make_node("Conv", ["input", "c"], ["a"]),
        onnx.helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("Gemm", ["f", "l"], ["logits"], transB=1),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", ("N", 3, 16, 16)), ("logits", ("N", 10)))
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], held),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    metadata.attach(model, SPEC)
    onnx.save(model, path := canary.with_name("m.onnx"))
    return path


def with_sidecar(path: Path, **changes: Any) -> Artifact:
    """The file with a sidecar that fits it and names the stranger's factory."""
    found = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=SPEC)
    return store.copy_to(found, path, weights=Weights(source="w"), **changes)


# ---- what a person types ----


def test_a_typed_factory_takes_the_checkpoint_that_names_it(canary: Path) -> None:
    """The canary lives: trained and exported by its name, which runs its module and says from where."""
    train = ["train", NAME, "--data", "digits", "--epochs", "1", "--img-size", "16", "--mean", "0.5,0.5,0.5"]
    done = CliRunner().invoke(app, [*train, "--std", "0.2,0.2,0.2", "-o", "w.safetensors"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert canary.exists()
    assert f"{NAME} is a program" in done.stderr
    assert str(canary.parent) in done.stderr
    done = CliRunner().invoke(app, ["export", NAME, "--weights", "w.safetensors", "-o", "f.onnx"])
    assert done.exit_code == 0, (done.output, done.exception)
    made = store.load(Path("f.onnx"))
    assert made is not None
    assert made.model is not None
    assert made.model.preprocessing is not None
    assert (made.model.name, made.model.classes, made.model.preprocessing.std) == (NAME, 10, (0.2, 0.2, 0.2))
    assert isinstance(CliRunner().invoke(app, ["export", "w.safetensors"]).exception, FactoryRefused)


def test_the_current_folder_is_searched_for_a_typed_factory_alone(
    checkpoint: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last of all, and not for a network of the zoo, of torchvision, or out of a file."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(canary.parent))])
    here = str(canary.parent)
    for model in ("resnet20", str(checkpoint)):
        try:
            networks.resolve(Request(model=model))
        except FactoryRefused:
            assert model == str(checkpoint)
        assert here not in sys.path
    networks.resolve(Request(model=NAME, weights=str(checkpoint)))
    assert sys.path[-1] == here


def test_quiet_silences_what_is_said_of_a_factory(canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a model that is none has nothing said of it."""
    console.name_program(NAME)
    assert NAME in capsys.readouterr().err
    for model in ("resnet20", "timm:resnet18", "torchvision:resnet18", "a.onnx"):
        console.name_program(model)
    CliRunner().invoke(app, ["cost", "no-such-network", "--quiet"])
    console.name_program(NAME)
    assert capsys.readouterr().err == ""


@pytest.mark.acceptance
def test_a_profile_may_name_a_factory_and_its_folder_may_not(checkpoint: Path, canary: Path) -> None:
    """Trained, exported, run: then all files of the run's folder name another one, which is not imported."""
    wanted = Profile(
        name="tiny", model=NAME, weights="w.safetensors", data="digits", epochs=1, img_size=16,
        precisions=("fp32",), backends=("null",), duration_s=0.1,
    )  # fmt: skip
    folder = Path("runs/tiny")
    first = run.run(wanted, folder, progress=no_one, note=no_one)
    assert canary.exists()
    (whole,) = first.variants
    assert whole.source.model is not None
    assert whole.source.model.name == NAME

    canary.unlink()
    canary.with_name("other.py").write_text(canary.with_name("stranger.py").read_text())
    plant(folder, NAME, "other:net")
    with contextlib.suppress(ResdeployError):  # files that say otherwise may be refused or made again
        run.run(wanted, folder, progress=no_one, note=no_one)
    # The trained checkpoint alone, as a profile that starts from a file would take it up.
    with pytest.raises(FactoryRefused):
        networks.resolve(Request(model=str(plant(folder, NAME, "other:net"))))
    assert not canary.exists()


def plant(folder: Path, old: str, new: str) -> Path:
    """Puts another name into every record of a run's folder, with digests that fit; gives the checkpoint."""
    trained = folder / "model.safetensors"
    data = trained.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {k: v.replace(old, new) for k, v in header["__metadata__"].items()}
    text = json.dumps(header).encode()
    trained.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    for record in [*folder.glob("*.json")]:
        document = json.loads(record.read_text().replace(old, new))
        of = record.with_suffix("")
        document.pop("seal", None)  # which a stranger cannot make, and need not
        if of.is_file() and "sha256" in document:
            document["sha256"] = store.digest(of)
        record.write_text(json.dumps(document))
    return trained


# ---- what a file holds ----

COMMANDS = [
    ["export", "w.safetensors"],
    ["cost", "w.safetensors"],
    ["quantize", "w.safetensors"],
    ["build", "w.safetensors", "--backend", "onnxruntime"],
    ["audit", "w.safetensors", "--backend", "onnxruntime"],
    ["bench", "w.safetensors", "--backend", "onnxruntime"],
    ["bench", "w.safetensors", "--backend", "torch"],
    ["eval", "w.safetensors", "--data", "digits", "--backend", "torch"],
    ["gate", "--baseline", "w.safetensors", "--candidate", "w.safetensors", "--max-size", "1"],
    ["prune", "w.safetensors", "--data", "digits", "--max-drop", "2", "-o", "p.onnx"],
    ["study", "lesion", "w.safetensors", "--data", "digits"],
    ["train", "w.safetensors", "--data", "digits", "--epochs", "1", "-o", "t.safetensors"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_checkpoint_that_names_a_factory_is_refused(checkpoint: Path, canary: Path, command: list[str]) -> None:
    """By every verb, before anything is imported; the error names the command that would do it."""
    before = sorted(canary.parent.iterdir())
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, FactoryRefused), done.output
    assert "resdeploy export stranger:net --weights w.safetensors" in done.exception.fix
    assert sorted(canary.parent.iterdir()) == before


def test_the_refusal_is_exit_4_in_one_paragraph(checkpoint: Path, canary: Path, resdeploy: Run) -> None:
    """As every error is told."""
    done = resdeploy("cost", "w.safetensors")
    assert done.returncode == 4
    assert done.stderr.startswith("error[E-FACTORY]")
    assert done.stderr.count("\n") == 1
    assert not canary.exists()


def saying(name: str, folder: Path) -> Path:
    """A checkpoint that says this of its network."""
    path = folder / "w.safetensors"
    weights.save(zoo.create(zoo.spec("resnet20")), dataclasses.replace(SPEC, name=name), path, Weights(source="w"))
    return path


@pytest.mark.parametrize("name", ["stranger:net; touch canary", ":", "stranger:", "./stranger:net", "timm :x"])
def test_a_name_that_is_none_is_not_put_into_a_command(canary: Path, name: str) -> None:
    """What a person is told to type holds nothing of the file's."""
    path = saying(name, canary.parent)
    with pytest.raises(FactoryRefused) as refused:
        networks.resolve(Request(model=str(path)))
    assert "`resdeploy export package.module:factory --weights " in refused.value.fix
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../../x", "", "resnet5O", "timm:hf-hub:evil/model", "torchvision:../x"])
def test_a_checkpoint_of_a_network_that_nobody_has_is_named(canary: Path, name: str) -> None:
    """The file is at fault and not what was typed: exit 4, its name, and no advice to try a factory."""
    path = saying(name, canary.parent)
    with pytest.raises(MalformedInput, match=r"w\.safetensors says") as refused:
        networks.resolve(Request(model=str(path)))
    assert "factory" not in str(refused.value)
    assert refused.value.exit_status == 4


def test_weights_that_name_a_factory_are_tensors_for_another_network(canary: Path) -> None:
    """The network is the one that was typed."""
    net = zoo.create(zoo.spec("resnet20"), seed=3)
    weights.save(
        net, dataclasses.replace(SPEC, name=NAME), path := canary.with_name("w.safetensors"), Weights(source="w")
    )
    made = export.to_checkpoint(Request(model="resnet20", weights=str(path)))
    assert made.model is not None
    assert made.model.name == "resnet20"
    assert not canary.exists()


def test_a_checkpoints_sidecar_names_nothing(canary: Path) -> None:
    """What the network is, is read from the checkpoint alone; and a .pth with a sidecar does not say it."""
    spec = zoo.spec("resnet20")
    weights.save(zoo.create(spec), spec, path := canary.with_name("w.safetensors"), Weights(source="w"))
    with_sidecar(path, format="checkpoint")
    assert networks.resolve(Request(model=str(path))).spec == spec
    torch.save(zoo.create(spec).state_dict(), bare := canary.with_name("w.pth"))
    with_sidecar(bare, format="checkpoint")
    with pytest.raises(UsageError):
        networks.resolve(Request(model=str(bare)))
    assert not canary.exists()


def test_a_sidecars_path_is_not_followed(graph: Path, canary: Path) -> None:
    """The file that was named is the one that is opened."""
    with_sidecar(graph)
    record = store.sidecar(graph)
    document = json.loads(record.read_text()) | {"path": "../elsewhere.onnx"}
    del document["seal"]  # as a stranger's tool writes it
    record.write_text(json.dumps(document))
    found = model_files.open_model(Request(model=str(graph)))
    assert found.path == str(graph)


@pytest.mark.parametrize("beside", [False, True], ids=["metadata", "sidecar"])
def test_an_onnx_file_may_be_called_after_a_factory(graph: Path, canary: Path, beside: bool) -> None:
    """It needs no module, so it is counted, lowered and timed under that name."""
    commands = [["cost", "m.onnx"], ["quantize", "m.onnx", "--precision", "fp16", "-o", "h.onnx"]]
    if beside:
        with_sidecar(graph)
        commands.append(["bench", "m.onnx", "--backend", "null", "--duration", "0.1"])
    for command in commands:
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    assert not canary.exists()


def test_a_factory_runs_in_the_child_where_it_was_typed_and_from_a_cached_record_it_does_not(
    checkpoint: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The child imports what the parent was told to, and not what an artifact beside a fitting sidecar names."""
    artifact = export.to_checkpoint(Request(model=NAME, weights=str(checkpoint)))
    assert canary.exists()
    canary.unlink()
    with Lane("torch") as lane:
        lane.build(artifact, Execution(), tmp_path / "b.safetensors")
    assert canary.exists()

    canary.unlink()
    monkeypatch.setattr(foreign, "_permitted", set())
    planted = store.load(Path(artifact.path))
    assert planted is not None
    assert planted.model is not None
    assert planted.model.name == NAME
    with Lane("torch") as lane, pytest.raises(FactoryRefused):
        lane.build(planted, Execution(), tmp_path / "b.safetensors")
    assert not canary.exists()


def test_the_state_of_a_training_names_nothing(canary: Path) -> None:
    """A state of the stranger's network is not that of the one that was typed."""
    header = {"settings": {"model": dataclasses.asdict(SPEC)}, "history": [], "digest": state._digest({})}
    last, _ = state.paths(canary.with_name("r.safetensors"))
    save_file({}, last, metadata={"train": json.dumps(header)})
    command = ["train", "resnet20", "--data", "digits", "--epochs", "1", "--resume", "-o", "r.safetensors"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UsageError), done.output
    assert "was started with another" in done.exception.what
    assert not canary.exists()


def test_saved_measurements_and_predictions_name_nothing(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal, a saved bench and saved predictions of the stranger's network are shown and judged."""
    block = Block(put_s=(0.1,) * 9, run_s=(0.2,) * 9, get_s=(0.3,) * 9, started_s=0.0, wall_s=5.4, cpu_s=0.5)
    row = Measurement(
        label=NAME, model=NAME, backend="null", precision="fp32", batch_size=1, scenario="single-stream", sha256="0",
        execution=Execution(), blocks=(), weights=NAME,
    )  # fmt: skip
    path = canary.with_name("j.journal")
    with contextlib.suppress(KeyboardInterrupt), journal.open_journal(path) as keep:
        assert keep
        keep(row, 0, 0)
        keep(dataclasses.replace(row, blocks=(block,)), 0, 0)
        raise KeyboardInterrupt
    answers = Predictions(
        model=NAME, ids=("a", "b"), labels=np.array([0, 1]), top=np.array([[0], [1]]), logits=None, data=NAME,
        data_fingerprint="", preprocessing_fingerprint="", sha256="0",
    )  # fmt: skip
    prediction_files.save(answers, canary.with_name("p.npz"))
    for command in (
        ["show", "j.journal", "--format", "json", "-o", "b.json"],
        ["show", "b.json"],
        ["gate", "--baseline", "p.npz", "--candidate", "p.npz", "--max-drop", "99"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code in (0, 3), (done.output, done.exception)
    CliRunner().invoke(app, ["compare", "b.json", "b.json"])  # one block is too little to compare
    assert not canary.exists()


def test_a_files_own_name_is_no_factory(canary: Path) -> None:
    """`stranger:x.onnx` is a file, wherever a loop over files finds it."""
    done = CliRunner().invoke(app, ["cost", "stranger:x.onnx"])
    assert isinstance(done.exception, MissingInput)
    assert not canary.exists()


@pytest.mark.parametrize("module", ["typer", "numpy"])
def test_modules_in_the_current_folder_are_not_ours(tmp_path: Path, new_resdeploy: Run, module: str) -> None:
    """`python -m` would take them for the real ones."""
    (tmp_path / f"{module}.py").write_text("import pathlib\npathlib.Path('canary').touch()\nraise SystemExit(99)\n")
    done = new_resdeploy("cost", "no.onnx")
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "canary").exists()
