"""`gate --sequential`: real models on as many images as decide, and what cannot be asked together."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from resdeploy.cli import app
from resdeploy.deploy.model_string import PreprocessingOverride
from resdeploy.errors import MalformedInput, UsageError
from resdeploy.records import Gate
from resdeploy.verbs import gate
from resdeploy.verbs.gate_options import GatePlan
from resdeploy.verbs.judge_limits import Limits

IMAGES = 300


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base.onnx, which is always right, alike.onnx, which answers the same, and broken.onnx; images/ in 3 classes."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(108, 3)).astype(np.float32)
    noise = rng.normal(size=weights.shape).astype(np.float32)
    for name, values in (("base", weights), ("alike", 2 * weights), ("broken", weights + noise)):
        graph = helper.make_graph(
            [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 6, 6])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
            [numpy_helper.from_array(values, "w")],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / f"{name}.onnx"
        )
    pixels = rng.integers(0, 256, (IMAGES, 6, 6, 3), np.uint8)
    inputs = (pixels / 255 - 0.5) / 0.5
    answers = (inputs.transpose(0, 3, 1, 2).reshape(IMAGES, -1) @ weights).argmax(axis=1)
    for k, (image, answer) in enumerate(zip(pixels, answers, strict=True)):
        place = folder / "images" / "abc"[answer]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k:03d}.png")
    return folder


def judged(folder: Path, *candidates: str, drop_pp: float = 5.0, **options: Any) -> Gate:
    plan = GatePlan(
        baseline=str(folder / "base.onnx"),
        candidates=tuple(str(folder / name) for name in candidates),
        **{
            "limits": Limits(drop_pp=drop_pp),
            "data": str(folder / "images"),
            "override": PreprocessingOverride(img_size=6, mean=(0.5,) * 3, std=(0.5,) * 3),
            "backends": ("onnxruntime",),
            "sequential": True,
            **options,
        },
    )
    return gate.gate(plan, progress=lambda *_: None).gate


def test_it_stops_at_the_image_that_decides(models: Path) -> None:
    """A model without flips passes before all images were seen, a broken one fails within a few of them."""
    good = judged(models, "alike.onnx").judged[0]
    (check,) = good.verdict.checks
    assert check.state == "pass"
    assert good.candidate.images is not None
    assert 60 <= good.candidate.images <= 120
    assert check.interval is not None
    assert check.interval[1] <= 5.0
    assert f"decided after {good.candidate.images} of {IMAGES} images in random order" in check.note

    bad = judged(models, "broken.onnx").judged[0]
    assert bad.verdict.checks[0].state == "fail"
    assert bad.candidate.images is not None
    assert bad.candidate.images < 40
    assert bad.verdict.checks[0].interval is not None
    assert bad.verdict.checks[0].interval[0] >= 5.0
    assert bad.unchanged is not None
    assert len(bad.flips) + bad.unchanged == bad.candidate.images


def test_the_same_seed_gives_the_same_verdict_and_another_one_another_order(models: Path) -> None:
    """The order is the only thing that is random."""
    first, again, other = (judged(models, "broken.onnx", seed=seed).judged[0] for seed in (0, 0, 1))
    assert first == again
    assert {flip.image for flip in first.flips} != {flip.image for flip in other.flips}


def test_several_candidates_are_each_judged_by_their_own_images(models: Path) -> None:
    """The broken one stops first, the other one goes on; half of the error is each one's."""
    found = judged(models, "alike.onnx", "broken.onnx")
    good, bad = found.judged
    assert [one.verdict.state for one in found.judged] == ["pass", "fail"]
    assert good.candidate.images is not None
    assert bad.candidate.images is not None
    assert bad.candidate.images < good.candidate.images == found.baseline.images
    assert "Bonferroni's correction for 2 candidates" in good.verdict.checks[0].note
    alone = judged(models, "alike.onnx").judged[0].candidate.images
    assert alone is not None
    assert good.candidate.images > alone


def test_all_images_without_a_decision_say_how_many_would_do(models: Path) -> None:
    """300 images cannot show a drop of at most 0.5 points, flips or none: inconclusive, and the limit lies between."""
    found = judged(models, "alike.onnx", drop_pp=0.5)
    (check,) = found.verdict.checks
    assert check.state == "inconclusive"
    assert check.interval is not None
    assert check.interval[0] < 0.5 < check.interval[1]
    assert check.note.startswith("300 of 300 images in random order decided nothing")
    assert re.search(r"without --sequential, about 5\d\d images would decide", check.note)


def test_an_image_that_is_there_twice_is_shown_once(models: Path) -> None:
    """Under another name it is no new image, in whatever order they come."""
    copies = [path.with_stem(f"{path.stem}_again") for path in sorted((models / "images" / "a").iterdir())]
    for path in copies:
        os.link(path.with_stem(path.stem.removesuffix("_again")), path)
    try:
        found = judged(models, "alike.onnx", drop_pp=0.5)
    finally:
        for path in copies:
            path.unlink()
    assert found.baseline.images == IMAGES
    assert any(f"{len(copies)} repeats of others" in note for note in found.notes)


def test_an_image_that_cannot_be_decoded_stops_it_unless_skipped(models: Path) -> None:
    """As without --sequential; skipped images are not among those that there are."""
    (models / "images/a/bad.png").write_bytes(b"none")
    try:
        with pytest.raises(MalformedInput, match="1 of 301 images cannot be decoded"):
            judged(models, "alike.onnx", drop_pp=0.5)
        found = judged(models, "alike.onnx", drop_pp=0.5, skip_bad=True)
    finally:
        (models / "images/a/bad.png").unlink()
    assert found.verdict.checks[0].note.startswith("300 of 300 images")


def test_other_limits_are_judged_beside_it(models: Path) -> None:
    """Size is counted whatever stops the images."""
    found = judged(models, "alike.onnx", limits=Limits(drop_pp=5.0, size_mb=1.0))
    assert [(check.name, check.state) for check in found.verdict.checks] == [("top1", "pass"), ("size", "pass")]


@pytest.mark.parametrize(
    ("candidate", "limits", "options", "said"),
    [
        ("saved.npz", Limits(drop_pp=1.0), {}, "saved.npz is a saved result.*Leave --sequential out"),
        ("alike.onnx", Limits(size_mb=1.0), {}, "there is no --max-drop.*Add --max-drop 0.5"),
        ("alike.onnx", Limits(drop_pp=1.0, top5_drop_pp=1.0), {}, "--max-top5-drop.*Leave one of the two out"),
        ("alike.onnx", Limits(drop_pp=1.0), {"update_baseline": True}, "no baseline.*Leave --sequential or"),
        ("alike.onnx", Limits(drop_pp=1.0), {"data": None}, "needs images.*Add --data"),
        ("alike.onnx", Limits(drop_pp=100.0), {}, "is no limit"),
    ],
)
def test_what_cannot_be_judged_in_order_names_the_way_out(
    models: Path, candidate: str, limits: Limits, options: dict[str, Any], said: str
) -> None:
    """Before anything is run."""
    with pytest.raises(UsageError) as caught:
        judged(models, candidate, limits=limits, **options)
    assert re.search(said, str(caught.value), re.DOTALL)


def test_the_command_line_takes_it(models: Path) -> None:
    """Exit 1 for the broken model; the document has the interval and the images seen."""
    sides = ["--baseline", str(models / "base.onnx"), "--candidate", str(models / "broken.onnx")]
    override = ["--img-size", "6", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--backend", "onnxruntime"]
    asked = ["--data", str(models / "images"), "--max-drop", "5", "--sequential", "--format", "json"]
    done = CliRunner().invoke(app, ["gate", *sides, *override, *asked])
    assert done.exit_code == 1, done.output
    assert "of 300 images in random order" in json.dumps(json.loads(done.stdout))
