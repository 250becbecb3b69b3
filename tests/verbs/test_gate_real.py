"""The gate on a real network spoiled on purpose: ResNet-20 and 600 real CIFAR-10 images.

`benchmarks/gate_real.py` does the same with both networks, all images and three ways of INT8; its result is committed.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from resdeploy.deploy import candidates, export
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.measure import prediction_files, run_images
from resdeploy.records import Artifact, Check
from resdeploy.verbs import gate, gate_options
from resdeploy.verbs.judge_limits import Limits

PER_CLASS = 60


def quiet(_what: str, _done: int, _total: int) -> None:
    """No bars."""


@pytest.fixture(scope="module")
def spoils() -> ModuleType:
    """The benchmark, for its ways to spoil a network."""
    path = Path(__file__).parents[2] / "benchmarks" / "gate_real.py"
    spec = importlib.util.spec_from_file_location("gate_real", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gate_real"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fp32(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """ResNet-20 as an ONNX file, with sixty images per class and its own predictions of them (base.npz) beside it."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("real")
    for source in sorted((shared / "data/cifar10/test").iterdir()):
        (folder / "images" / source.name).mkdir(parents=True)
        for image in sorted(source.iterdir())[:PER_CLASS]:
            shutil.copy(image, folder / "images" / source.name)
    weights = next((shared / "data/weights").glob("resnet20-*.th"))
    request = Request(model="resnet20", weights=str(weights))
    artifact = export.to_onnx(request, folder / "resnet20.onnx", progress=quiet)
    candidate = candidates.candidate(artifact, "onnxruntime", batch_size=32)
    answers = run_images.predict_test_split(candidate, str(folder / "images"), progress=quiet)
    prediction_files.save(answers, folder / "base.npz")
    return artifact


def judged(fp32: Artifact, candidate: Path, override: PreprocessingOverride | None = None) -> Check:
    folder = Path(fp32.path).parent
    plan = gate_options.GatePlan(
        baseline=str(folder / "base.npz"),
        candidates=(str(candidate),),
        limits=Limits(drop_pp=1.0),
        data=str(folder / "images"),
        override=override or PreprocessingOverride(),
        backends=("onnxruntime",),
    )
    (one,) = gate.gate(plan, progress=quiet).gate.judged
    return one.verdict.checks[0]


def test_the_baseline_is_the_network_that_was_published(fp32: Artifact) -> None:
    """81 % of these JPEG copies are right (weights' README): the spoiled networks are held against the real one."""
    score = prediction_files.score(prediction_files.load(Path(fp32.path).with_name("base.npz")))
    assert score.total == 10 * PER_CLASS
    assert score.top1_ci95[0] < 81.03 < score.top1_ci95[1]


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        ("one block's scale doubled", ""),
        ("1 % of weights flipped", ""),
        ("classes shifted by one", "classes are the baseline's shifted by +1"),
        ("trained on BGR, says RGB", "with BGR in place of RGB"),
    ],
)
def test_a_spoiled_network_fails_and_a_cause_that_can_be_known_is_named(
    fp32: Artifact, spoils: ModuleType, spoil: str, hint: str
) -> None:
    """Each loses more than a point beyond its interval; no cause is made up where none shows."""
    check = judged(fp32, spoils.spoiled(fp32, spoil, Path(fp32.path).parent))
    assert check.interval is not None
    assert check.state == ("fail" if check.interval[0] > 1 else "inconclusive")
    assert check.state == "fail"
    if hint:
        assert hint in check.note
    else:
        assert check.note.endswith(").")  # of the mid-p: nothing after it


def test_a_wrong_mean_and_std_are_told_by_the_fingerprint(fp32: Artifact) -> None:
    """The settings that differ are named with both values."""
    wrong = PreprocessingOverride(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    check = judged(fp32, Path(fp32.path), wrong)
    assert check.state == "fail"
    assert "mean 0.485,0.456,0.406 and 0.5,0.5,0.5, std 0.229,0.224,0.225 and 0.5,0.5,0.5" in check.note
