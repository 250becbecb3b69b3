"""Each bad input: its exit status, one paragraph on stderr, and nothing left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from resdeploy import backends
from resdeploy.cli import app
from resdeploy.errors import ProfileError
from tests.cli.conftest import Run


def files_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def refused(done: Any, status: int, *words: str) -> None:
    """One paragraph `error[E-...]` with these words, and the status."""
    assert done.returncode == status, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error[E-")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


def test_an_unknown_model_names_the_nearest(resdeploy: Run, tmp_path: Path) -> None:
    """A misspelt zoo name exits 2 and suggests the right one."""
    refused(resdeploy("export", "resnet5O"), 2, "resnet50")
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("quantize no.onnx --precision fp16 --sensitivity", 2, ("--sensitivity", "--precision int8")),
        ("cost no.onnx --roofline t4 --measure", 2, ("--measure", "--roofline machine")),
        ("cost no.onnx --roofline t4 --refresh", 2, ("--refresh", "--roofline machine")),
        ("cost no.onnx --roofline t4 --precision bf16", 2, ("no roof in bf16",)),
        ("prune no.onnx --data digits -o p.onnx --backend toy", 2, ("toy",)),
        ("bench no.engine no.xml --backend all", 2, ("no.engine",)),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_model_is_looked_for(
    resdeploy: Run, tmp_path: Path, command: str, status: int, words: tuple[str, ...]
) -> None:
    """Options that contradict each other, and backends that are not there, cost no export and no search."""
    refused(resdeploy(*command.split()), status, *words)
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    ("command", "first", "second"),
    [
        ("export no.onnx --weights w.pth --classes 7", "--weights does not apply", "--classes does not apply"),
        ("export resnet20 --mean 0.5 --std 0.5,0.5", "--mean has 1 numbers", "--std has 2 numbers"),
        (
            "quantize no.onnx --precision fp16 --max-drop 1 --effort high",
            "needs labelled images to judge on. Add --data DIR.",
            "start from INT8, not from fp16. Add --precision int8.",
        ),
        (
            "train resnet20 --data digits --epochs 1 -o m.onnx --strict --effort high",
            "is no .safetensors file, which is what this writes. Name it -o m.safetensors.",
            "--effort is that of the INT8 file which --qat trains. Add --qat, or leave it out.",
        ),
        (
            "train resnet20 --data digits --epochs 1 -o m.onnx --qat --resume --strict",
            "--resume does not go with --qat",
            "--strict does not go with --qat. Leave it out.",
        ),
        (
            "build no.onnx --backend onnxruntime --refit-from e.engine --refit",
            "--refit, --refit-from: without effect on backend onnxruntime. Leave out what has none",
            "--refit-from builds nothing",
        ),
        (
            "bench resnet20 --scope jpeg --backend onnxruntime --precision bf16",
            "timing from JPEG files needs files. Add --data FOLDER.",
            "backend onnxruntime does not run bf16. Choose one of: ",
        ),
        (
            "eval no.onnx m.onnx --data digits --predictions p.txt",
            "--predictions saves one model's predictions. Name one model.",
            "--predictions does not write p.txt. End it in ",
        ),
        (
            "gate --baseline a.npz --candidate b.npz --max-slowdown 3 --max-size 5",
            "a.npz holds predictions, and --max-slowdown needs times",
            "b.npz holds predictions, not a model with a size",
        ),
        (
            "gate --baseline a.onnx --candidate b.onnx --data digits --update-baseline",
            "was given no limit",
            "stores one",
        ),
        (
            "gate --baseline a.npz --candidate b.npz --max-drop 1 -o a.npz --junit b.npz",
            "a.npz is an input",
            "b.npz is an input",
        ),
        (
            "cost no.onnx --roofline t4 --measure --precision bf16",
            "--measure measures this machine, which says nothing of t4. Use --roofline machine.",
            "no roof in bf16",
        ),
        ("cost no.onnx --refresh --precision int8", "--refresh belongs to", "--precision belongs to"),
        (
            "prune no.onnx --data digits --epochs 1 -o p.safetensors",
            "a checkpoint needs a network",
            "fine-tuning needs a network",
        ),
        ("study lesion resnet20 vgg19 --data digits", "resnet20 is not trained", "vgg19 has no residual blocks"),
        ("study degradation --depths 8", "no plain network of 8 layers", "one depth or one seed shows no difference"),
    ],
)
def test_options_that_contradict_each_other_are_all_reported(
    resdeploy: Run, tmp_path: Path, command: str, first: str, second: str
) -> None:
    """Two contradictions are one message with both, before a model is looked for; each has its fix."""
    refused(resdeploy(*command.split()), 2, first, second)
    assert not files_in(tmp_path)


def test_a_profile_whose_keys_contradict_each_other_says_all_of_them(resdeploy: Run, tmp_path: Path) -> None:
    """The problems share their fix, which is given once."""
    (tmp_path / "p.toml").write_text('name = "p"\nmodel = "resnet20"\nepochs = 3\nbackends = []\nmax_drop_pp = 1\n')
    words = (
        "p: backends: name at least one; epochs: training needs data; max_drop_pp: judging",
        ". Correct these keys.",
    )
    refused(resdeploy("run", "p.toml"), 2, *words)
    assert files_in(tmp_path) == {Path("p.toml")}


def test_a_bench_that_has_no_row_says_so(resdeploy: Run, tmp_path: Path) -> None:
    """`--backend all` leaves out what cannot run a model; with none left there is nothing to time."""
    (tmp_path / "x.engine").write_bytes(b"plan")
    if backends.load("tensorrt").available().ok:
        pytest.skip("TensorRT is here, and would try it")
    refused(resdeploy("bench", "x.engine", "--backend", "all"), 6, "x.engine", "--backend")


def test_a_url_is_no_model_and_it_is_said_what_to_do(resdeploy: Run, tmp_path: Path) -> None:
    """Weights may come from one, a model may not."""
    refused(resdeploy("export", "https://host/m.onnx"), 2, "https://host/m.onnx", "Download it", "--weights URL")
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "no.onnx", "--calib-data", "digits"],
        ["export", "resnet20", "--weights", "no.pth"],
        ["eval", "no.onnx", "--data", "digits"],
        ["run", "no.toml"],
        ["gate", "--baseline", "a.npz", "--candidate", "b.npz", "--max-drop", "1"],
    ],
)
def test_a_missing_file_is_named(resdeploy: Run, tmp_path: Path, command: list[str]) -> None:
    """A file that is not there exits 2 and is named."""
    refused(resdeploy(*command), 2, next(part for part in command if "." in part))
    assert not files_in(tmp_path)


@pytest.mark.parametrize("verb", [["bench"], ["bench", "--backend", "all"], ["eval", "--data", "digits"]])
@pytest.mark.parametrize("model", ["no.onnx", "no.pth", "no.engine", "resnet5O"])
def test_a_missing_model_is_all_that_is_said(resdeploy: Run, verb: list[str], model: str) -> None:
    """Which backend would have been taken is not, however many models before it are there."""
    done = resdeploy(*verb, "resnet20", model)
    refused(done, 2, model)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "m.safetensors", "--data", "digits"],
        ["export", "m.safetensors"],
        ["export", "resnet20", "--weights", "m.safetensors", "--img-size", "16"],
    ],
)
def test_a_changed_checkpoint_is_refused(
    resdeploy: Run, tmp_path: Path, digits_checkpoint: Path, command: list[str]
) -> None:
    """Other weights under a sidecar that describes the old ones: exit 5, as model and as weights."""
    changed = bytearray(digits_checkpoint.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "m.safetensors").write_bytes(changed)
    shutil.copy(f"{digits_checkpoint}.json", tmp_path / "m.safetensors.json")
    before = files_in(tmp_path)
    refused(resdeploy(*command), 5, "m.safetensors is not the file its sidecar describes")
    assert files_in(tmp_path) == before


def test_resuming_what_is_finished_is_refused(resdeploy: Run, tmp_path: Path, digits_checkpoint: Path) -> None:
    """It would train anew and write over it."""
    shutil.copy(digits_checkpoint, tmp_path / "m.safetensors")
    done = resdeploy("train", "resnet20", "--data", "digits", "--epochs", "1", "--resume", "-o", "m.safetensors")
    refused(done, 2, "nothing to resume", "finished")
    assert (tmp_path / "m.safetensors").read_bytes() == digits_checkpoint.read_bytes()


def test_depths_that_the_zoo_lacks_are_refused_by_the_option(resdeploy: Run, tmp_path: Path) -> None:
    """And those that it has are named."""
    refused(resdeploy("study", "degradation", "--depths", "8,20"), 2, "--depths", "8 layers", "20, 32, 44, 56, 110")
    assert not files_in(tmp_path)


def test_a_truncated_checkpoint_is_malformed(resdeploy: Run, tmp_path: Path, digits_checkpoint: Path) -> None:
    """Half a safetensors file exits 4."""
    data = digits_checkpoint.read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: len(data) // 2])
    refused(resdeploy("export", "resnet20", "--weights", "half.safetensors"), 4, "half.safetensors")
    assert files_in(tmp_path) == {Path("half.safetensors")}


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def test_a_pickle_with_a_payload_is_refused_and_never_run(resdeploy: Run, tmp_path: Path) -> None:
    """A checkpoint that wants to run code exits 4, and its code did not run."""
    torch = pytest.importorskip("torch")
    canary = tmp_path / "canary"
    torch.save({"state_dict": Payload(canary)}, tmp_path / "evil.pth")
    refused(resdeploy("export", "resnet20", "--weights", "evil.pth"), 4, "E-PICKLE")
    assert not canary.exists()
    assert files_in(tmp_path) == {Path("evil.pth")}


def test_a_wrong_number_of_classes_is_said(resdeploy: Run, tmp_path: Path, digits_checkpoint: Path) -> None:
    """Weights for ten classes do not go into a network of seven."""
    refused(resdeploy("export", "resnet20", "--classes", 7, "--weights", digits_checkpoint), 4, "classes")
    assert not files_in(tmp_path)


def test_an_empty_data_folder_is_a_usage_error(resdeploy: Run, tmp_path: Path, digits_onnx: Path) -> None:
    """A folder without images exits 2."""
    (tmp_path / "empty").mkdir()
    refused(resdeploy("eval", digits_onnx, "--data", "empty"), 2, "empty")


@pytest.fixture
def folder_of_digits(tmp_path: Path) -> Path:
    """Three images in each of ten class folders."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 255, (16, 16), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / str(label) / f"{i}.png")
    return tmp_path / "images"


def test_a_corrupt_image_is_counted_and_named(resdeploy: Run, folder_of_digits: Path, digits_onnx: Path) -> None:
    """One broken image stops eval with exit 4 and its name; --skip-bad goes on with one image fewer and says so."""
    (folder_of_digits / "3" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    refused(resdeploy("eval", digits_onnx, "--data", folder_of_digits), 4, "1 of 30", "3/1.png")
    done = resdeploy("eval", digits_onnx, "--data", folder_of_digits, "--skip-bad", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert '"total": 29' in done.stdout
    assert "3/1.png" in done.stdout


@pytest.mark.parametrize("verb", ["export", "quantize"])
def test_a_read_only_folder_is_an_environment_failure(
    resdeploy: Run, tmp_path: Path, digits_onnx: Path, digits_checkpoint: Path, verb: str
) -> None:
    """Output that cannot be written exits 6 and names the place. (`/proc` refuses root too.)"""
    args = {
        "export": ["export", digits_checkpoint],
        "quantize": ["quantize", digits_onnx, "--calib-data", "digits", "--calib-samples", 20],
    }[verb]
    refused(resdeploy(*args, "-o", "/proc/nowhere/x.onnx"), 6, "/proc/nowhere")


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "no.onnx", "-o", "/proc/x.json"],
        ["eval", "no.onnx", "--data", "digits", "-o", "/proc/x.json"],
        ["eval", "no.onnx", "--data", "digits", "--predictions", "/proc/x.npz"],
        ["gate", "--baseline", "a.npz", "--candidate", "b.npz", "--max-drop", "1", "-o", "/proc/x.json"],
        ["run", "no.toml", "-o", "/proc/x.json"],
    ],
)
def test_an_unwritable_result_is_found_before_the_work(resdeploy: Run, tmp_path: Path, command: list[str]) -> None:
    """The output is refused before the model, which is not there either, is even looked for."""
    refused(resdeploy(*command), 6, "/proc/x")
    assert not files_in(tmp_path)


def test_predictions_of_an_unknown_form_are_refused_before_the_work(resdeploy: Run, tmp_path: Path) -> None:
    """A suffix that nobody writes is found before the model is looked for."""
    refused(resdeploy("eval", "no.onnx", "--data", "digits", "--predictions", "p.txt"), 2, "p.txt", ".npz")
    assert not files_in(tmp_path)


@pytest.mark.parametrize("limit", [["--confidence", "0.5"], ["--max-drop", "150"], ["--max-drop", "-1"]])
def test_a_limit_that_is_none_is_refused_before_the_work(resdeploy: Run, limit: list[str]) -> None:
    """gate looks at its limits before it looks for the models."""
    done = resdeploy("gate", "--baseline", "a.npz", "--candidate", "b.npz", "--max-drop", "1", *limit)
    assert done.returncode == 2
    assert limit[0] in done.stderr
    assert "a.npz" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading always fails")
def test_a_file_that_cannot_be_read_is_an_environment_failure(resdeploy: Run, tmp_path: Path) -> None:
    """The operating system's refusal to read exits 6, not 7. (`/proc/self/mem` refuses root too.)"""
    (tmp_path / "x.onnx").symlink_to("/proc/self/mem")
    refused(resdeploy("cost", "x.onnx"), 6, "E-ENVIRONMENT", "Input/output error")
    assert files_in(tmp_path) == {Path("x.onnx")}


def test_a_profile_reports_all_its_problems_at_once(resdeploy: Run, tmp_path: Path) -> None:
    """Two unknown keys and one wrong type are three problems in one message, exit 2."""
    (tmp_path / "p.toml").write_text('name = "p"\nmodle = "resnet18"\nbatchsize = 3\nepochs = "ten"\n')
    refused(resdeploy("run", "p.toml"), 2, "modle", "perhaps model", "batchsize", "perhaps batch_size", "epochs")
    assert files_in(tmp_path) == {Path("p.toml")}


@pytest.mark.parametrize("name", ["../../x", "/proc/nowhere/x", "a/b", "..", ".", "", "a\\u001b[31m"])
def test_a_profile_writes_into_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Its name is that of a folder there, and no way out of it."""
    (tmp_path / "p.toml").write_text(f'name = "{name}"\nmodel = "resnet20"\nbackends = ["null"]\n')
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "p.toml"])
    assert isinstance(done.exception, ProfileError), done.output
    assert "name: the name of a folder" in done.exception.what
    assert files_in(tmp_path) == {Path("p.toml")}


def test_int8_without_images_is_refused_for_weights_that_are_not_random(
    resdeploy: Run, tmp_path: Path, digits_onnx: Path
) -> None:
    """Nobody calibrates on noise unasked."""
    refused(resdeploy("quantize", digits_onnx, "-o", "x.onnx"), 2, "--calib-data")
    assert not files_in(tmp_path)


def test_a_damaged_file_does_not_pass_its_sidecar(resdeploy: Run, tmp_path: Path, digits_onnx: Path) -> None:
    """One changed byte beside a sidecar exits 5."""
    shutil.copy(digits_onnx, tmp_path / "m.onnx")
    shutil.copy(f"{digits_onnx}.json", tmp_path / "m.onnx.json")
    data = bytearray((tmp_path / "m.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.onnx").write_bytes(data)
    refused(resdeploy("eval", "m.onnx", "--data", "digits"), 5, "m.onnx")


def test_a_model_calibrated_on_noise_cannot_be_gated(resdeploy: Run, tmp_path: Path) -> None:
    """Synthetic calibration may be timed, not judged."""
    assert resdeploy("export", "resnet20", "--img-size", 16, "--resize", 16, "-o", "r.onnx").returncode == 0
    assert resdeploy("quantize", "r.onnx", "--calib-data", "synthetic:4", "-o", "q.onnx").returncode == 0
    args = ["--baseline", "r.onnx", "--candidate", "q.onnx", "--data", "digits", "--max-drop", 1]
    refused(resdeploy("gate", *args), 2, "synthetic")


def test_a_killed_backend_is_exit_7(resdeploy: Run, digits_onnx: Path) -> None:
    """A backend's process that dies of a signal is reported as such."""
    done = resdeploy("bench", digits_onnx, "--backend", "null", RESDEPLOY_NULL_FAULT="kill")
    refused(done, 7, "SIGKILL")


def test_no_gpu_is_exit_6_in_one_paragraph(resdeploy: Run, digits_onnx: Path) -> None:
    """TensorRT where it cannot run says why and what to install."""
    from resdeploy.backends import load

    if load("tensorrt").available().ok:
        pytest.skip("TensorRT runs here")
    refused(resdeploy("bench", digits_onnx, "--backend", "tensorrt"), 6)
