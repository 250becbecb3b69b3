"""The Python interface: the commands' options by their names, and what they do."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer

import resdeploy
from resdeploy import api
from resdeploy.cli import app
from resdeploy.errors import MissingInput, UnknownName, UsageError
from resdeploy.verbs import gate_options
from tests.shortly import time_shortly
from tests.verbs.test_predict import CLASSES, PIXELS, expected, linear

COMMANDS = vars(typer.main.get_command(app))["commands"]
# What only a command has: how it talks, and files that it writes besides what it makes.
TALK = {"format", "output", "quiet", "verbose", "help", "predictions", "top", "strict", "junit", "comment", "metrics"}
TALK |= {"github", "no-github", "wide", "report"}
VERIFIED = set(inspect.signature(api.verify_package).parameters) - {"model", "progress"}  # `package --verify`
FUNCTIONS = {
    "predict": api.load,
    "export": api.export,
    "quantize": api.quantize,
    "eval": api.evaluate,
    "bench": api.bench,
    "gate": api.gate,
    "package": api.package,
}


def options_of(function: Any) -> set[str]:
    """Names that it takes by keyword, those of its TypedDict included."""
    parameters = inspect.signature(function).parameters.values()
    names = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY} - {"progress"}
    packed = [each for each in parameters if each.kind is each.VAR_KEYWORD]
    if not packed:
        return {name.removesuffix("_") for name in names}
    hint = str(packed[0].annotation).removeprefix("Unpack[").removesuffix("]")
    kinds = {"LoadOptions": api.LoadOptions, "ModelOptions": api.ModelOptions, "GateOptions": gate_options.GateOptions}
    return names | set(kinds[hint].__annotations__)


@pytest.mark.parametrize("command", FUNCTIONS)
def test_a_function_has_the_options_of_its_command(command: str) -> None:
    """Every option of the command by its name; the other way round, only what all commands on a MODEL understand."""
    params = [param for param in COMMANDS[command].params if param.param_type_name == "option"]
    wanted = {opt.removeprefix("--").replace("-", "_") for param in params for opt in param.opts if opt[:2] == "--"}
    found = options_of(FUNCTIONS[command])
    assert wanted - {name.replace("-", "_") for name in TALK} - {"baseline", "candidate"} <= found | (
        VERIFIED if command == "package" else set()
    )
    assert found - wanted <= set(api.LoadOptions.__annotations__)


def test_importing_the_package_imports_nothing_of_it() -> None:
    """`resdeploy.load` is found when it is asked for; other names are no attributes."""
    probe = (
        "import sys, resdeploy; print([m for m in sys.modules if m.startswith('resdeploy')], 'numpy' in sys.modules); "
        "print(resdeploy.load.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['resdeploy'] False", "resdeploy.api"]
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        resdeploy.lode  # noqa: B018


def test_a_loaded_model_answers(tmp_path: Path) -> None:
    """The classes of float64, by name; the process ends with the block."""
    linear(tmp_path / "m.onnx")
    with resdeploy.load(tmp_path / "m.onnx", backend="onnxruntime") as model:
        answers = model.predict(PIXELS)
        assert [each.name for each in answers] == [CLASSES[k] for k in expected(PIXELS).argmax(axis=1)]
    with pytest.raises(RuntimeError, match="closed"):
        model.predict(PIXELS)


def test_what_is_written_lies_where_the_command_would_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the model, by its stem; an FP16 file that onnx takes."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    linear(tmp_path / "m.onnx")
    told: list[str] = []
    made = api.quantize(tmp_path / "m.onnx", precision="fp16", progress=lambda what, _done, _total: told.append(what))
    assert made.artifact.path == str(tmp_path / "m.fp16.onnx")
    onnx.checker.check_model(onnx.load(made.artifact.path))
    again = api.export(tmp_path / "m.onnx", tmp_path / "n.onnx")
    assert (again.path, (tmp_path / "n.onnx").exists()) == (str(tmp_path / "n.onnx"), True)


def test_models_are_judged_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file equals itself by its size, and both rows of a bench are there."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    time_shortly(monkeypatch.setattr)
    linear(tmp_path / "m.onnx")
    judged = api.gate(tmp_path / "m.onnx", tmp_path / "m.onnx", max_size=1.0)
    assert judged.verdict.state == "pass"
    result = api.bench(tmp_path / "m.onnx", backend="onnxruntime", batch_size=(1, 2), threads=1, duration=0.1)
    assert [each.batch_size for each in result.outcomes] == [1, 2]


def test_a_data_set_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image of a folder, with logits that float64 confirms."""
    from PIL import Image

    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    linear(tmp_path / "m.onnx")
    for number, (name, pixels) in enumerate(zip((*CLASSES, CLASSES[0]), PIXELS, strict=True)):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    found = api.evaluate(tmp_path / "m.onnx", data=str(tmp_path / "data"), backend="onnxruntime").predictions
    order = [int(Path(each).stem) for each in found.ids]
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, expected(PIXELS[order]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: api.load("no.onnx"), MissingInput, "no.onnx"),
        (lambda: api.export("resnet51"), UnknownName, "resnet51"),
        (lambda: api.load("resnet20", clases=3), UsageError, "no option clases"),  # type: ignore[call-arg]
        (lambda: api.gate("a", "b", max_dorp=3), UsageError, "max_dorp"),  # type: ignore[call-arg]
        (lambda: api.bench("resnet20", batch_size=0), UsageError, "batch_size takes positive"),
        (lambda: api.quantize("resnet20", max_drop=1.0), UsageError, "labelled images"),
    ],
)
def test_what_a_command_refuses_is_raised(call: Any, error: type[Exception], words: str) -> None:
    """By the same errors, with the same words."""
    with pytest.raises(error, match=words):
        call()
