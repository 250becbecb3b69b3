"""Profiles: what `init` writes, where paths lead, what is refused, and a run with what the commands have too."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from resdeploy import store
from resdeploy.deploy.model_string import Request
from resdeploy.deploy.resume import Steps
from resdeploy.errors import MalformedInput, ProfileError
from resdeploy.records import Profile, profile
from resdeploy.run import profile_run, relative_paths, run
from resdeploy.run.profile_refusals import refuse_nonsense
from resdeploy.verbs import init
from tests.shortly import time_shortly
from tests.wheels import small_network

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network in ONNX, and images to show it."""
    made = tmp_path_factory.mktemp("mine")
    small_network.network(made / "small.onnx")
    small_network.images(made / "images")
    return made


def test_what_init_writes_is_a_profile_with_every_key(folder: Path, tmp_path: Path) -> None:
    """As it stands, and with every line in force: examples are of their keys' kinds."""
    text = init.init(Request(model=str(folder / "small.onnx")), str(folder / "images"))
    (tmp_path / "a.toml").write_text(text)
    asked = store.read_profile(tmp_path / "a.toml")
    assert (asked.name, asked.model, asked.data) == ("small", str(folder / "small.onnx"), str(folder / "images"))
    assert asked.max_drop_pp == init.limit_for(160) == 3.0
    refuse_nonsense(asked)
    (tmp_path / "b.toml").write_text(whole := re.sub(r"(?m)^# (\w+ = )", r"\1", text))
    keys = re.findall(r"(?m)^(\w+) = ", whole)
    assert keys == [key.name for key in profile.every_key() if key.name not in ("weights", "classes")]
    store.read_profile(tmp_path / "b.toml")


def test_a_limit_is_what_so_many_images_can_show() -> None:
    """docs/gate.md: about 10,000 images for half a point at 4 % flips."""
    assert init.limit_for(10_000) == 0.5
    assert init.limit_for(1_000) == 1.5
    assert init.limit_for(0) == 33.0


def test_paths_are_relative_to_the_profile_and_names_are_none() -> None:
    asked = Profile(name="p", model="nets/a.onnx", weights="random", data="cifar10:images", calib_data="/images")
    seen = relative_paths.seen_from_here(asked, Path("there"))
    assert (seen.model, seen.data, seen.calib_data) == ("there/nets/a.onnx", "cifar10:there/images", "/images")
    named = Profile(name="p", model="timm:resnet18", weights="imagenet1k_v2", data="digits", calib_data="synthetic:8")
    assert relative_paths.seen_from_here(named, Path("there")) == named
    weights = ("w.th", "https://host/w.th")
    moved = [
        relative_paths.seen_from_here(dataclasses.replace(named, weights=one), Path("there")).weights for one in weights
    ]
    assert moved == ["there/w.th", "https://host/w.th"]
    assert relative_paths.seen_from_here(asked, Path()) == asked


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"lr": 0.1}, "lr: of a training"),
        ({"precisions": ("fp32", "fp16"), "effort": "high"}, "effort: of INT8"),
        ({"model": "a.onnx", "weights": "w.pth"}, "weights: a.onnx has its own"),
        ({"model": "a.onnx", "epochs": 1, "data": "digits"}, "epochs: an ONNX file cannot be trained"),
        ({"require_fused": True, "audit": False}, "require_fused: is judged by the audit"),
        ({"sequential": True}, "sequential: decides max_drop_pp"),
        ({"sequential": True, "max_drop_pp": 1.0, "max_top5_drop_pp": 1.0, "data": "d"}, "no max_top5_drop_pp"),
        ({"confidence": 0.5}, "confidence: a share above 0.5"),
        ({"streams": 0}, "streams: a number from 1"),
        ({"scenario": "single-stream", "streams": 2}, "single-stream has one"),
        ({"search_drop_pp": 1.0}, "search_drop_pp: judging a mix needs data"),
        ({"max_top5_drop_pp": 1.0}, "max_top5_drop_pp: judging accuracy needs data"),
    ],
)
def test_what_cannot_be_had_or_would_be_ignored_is_refused(asked: dict, problem: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(problem)):
        refuse_nonsense(Profile(name="p", backends=("onnxruntime",), **asked))


@pytest.mark.parametrize(
    ("line", "problem", "fix"),
    [
        ('max_drop_pp = "0.5%"', "max_drop_pp: it should be a valid number, not '0.5%'", "resdeploy init MODEL"),
        ("max_dorp_pp = 0.5", "max_dorp_pp: there is no such key, perhaps max_drop_pp", "Known keys: name, model"),
        ("backends = [1]", "backends.0: it should be", "resdeploy init MODEL"),
    ],
)
def test_a_value_of_another_kind_is_shown_and_keys_are_listed_where_one_is_unknown(
    line: str, problem: str, fix: str, tmp_path: Path
) -> None:
    (tmp_path / "a.toml").write_text(f'name = "a"\nmodel = "resnet20"\n{line}\n')
    with pytest.raises(ProfileError) as raised:
        store.read_profile(tmp_path / "a.toml")
    assert problem in str(raised.value)
    assert fix in str(raised.value)


def test_a_profile_takes_raw_pixels(folder: Path, tmp_path: Path) -> None:
    asked = Profile(name="p", model=str(folder / "small.onnx"), input="uint8", mean=MEAN, std=STD)
    steps = Steps(tmp_path, lambda _: None)
    making = profile_run.ProfileRun(profile=asked, steps=steps, progress=lambda *_: None, note=lambda _: None)
    made = making.as_input(making.fp32())
    assert Path(made.path).name == "model.uint8.fp32.onnx"
    assert made.model is not None
    assert made.model.preprocessing is not None
    assert made.model.preprocessing.dtype == "uint8"


def test_what_cannot_be_audited_is_said_and_fails_only_where_it_is_judged(folder: Path, tmp_path: Path) -> None:
    """The null backend names no node of the graph."""
    asked = Profile(
        name="p",
        model=str(folder / "small.onnx"),
        mean=MEAN,
        std=STD,
        precisions=("fp32",),
        backends=("null",),
    )
    said: list[str] = []

    def making(profile: Profile) -> profile_run.ProfileRun:
        steps = Steps(tmp_path, said.append)
        return profile_run.ProfileRun(profile=profile, steps=steps, progress=lambda *_: None, note=said.append)

    variants, _ = making(asked).variants(making(asked).fp32(), None)
    assert variants[0].audit is None
    assert any(line.startswith("small null fp32 was not audited: ") for line in said)
    judged = dataclasses.replace(asked, require_fused=True)
    with pytest.raises(MalformedInput):
        making(judged).variants(making(judged).fp32(), None)


@pytest.mark.acceptance
def test_a_run_judges_what_the_gate_can_and_carries_a_step_out_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several streams, images in order, fusion judged: one step's files are made again where that is asked for."""
    time_shortly(monkeypatch.setattr)
    pytest.importorskip("openvino")
    asked = Profile(
        name="p",
        model=str(folder / "small.onnx"),
        data=str(folder / "images"),
        backends=("openvino",),
        scenario="offline",
        streams=2,
        calib_samples=20,
        duration_s=0.1,
        max_time_s=0.1,
        max_drop_pp=20.0,
        sequential=True,
        require_fused=True,
        mean=MEAN,
        std=STD,
    )
    said: list[str] = []
    done = run.run(asked, tmp_path, progress=lambda *_: None, note=said.append)
    fp32, int8 = done.variants
    assert fp32.candidate.label == "small openvino fp32"  # the file's stem, wherever it lies
    assert int8.candidate.execution.streams == 2
    (verdict,) = done.verdicts.values()
    checks = {check.name: check.state for check in verdict.checks}
    assert checks["top1"] == "pass"
    assert {state for name, state in checks.items() if name.startswith("fused: ")} == {"pass"}
    assert int8.predictions is not None
    assert len(int8.predictions.labels) < 160  # decided before the last image
    said.clear()
    run.run(asked, tmp_path, progress=lambda *_: None, note=said.append, again=["audit"])
    made = [line.split()[1] for line in said if line.startswith("making")]
    assert made == ["openvino.fp32.audit.json", "openvino.int8.audit.json"]
