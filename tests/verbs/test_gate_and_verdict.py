"""The gate over saved predictions, saved benches and baselines that it stores itself."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from resdeploy import store
from resdeploy.cli import app
from resdeploy.deploy.model_string import PreprocessingOverride
from resdeploy.errors import MalformedInput, MissingInput, ProfileError, ResdeployError, UsageError
from resdeploy.measure import interleaved, one_run
from resdeploy.measure.prediction_files import load, save
from resdeploy.records import Block, Calibration, Check, Execution, Gate, Measurement, Origin, Predictions, Profile
from resdeploy.run import run
from resdeploy.verbs import gate, gate_options, judge_limits
from resdeploy.verbs.gate_options import GatePlan
from resdeploy.verbs.judge_limits import Evidence, Limits
from tests.backends.conftest import tiny_network

DROP = Limits(drop_pp=1.0)


def predictions(lost: int, gained: int = 0, images: int = 5000, **fields: Any) -> Predictions:
    """A model that answers class 1 wrongly for `lost` images that the baseline (0, 0) has right."""
    labels = np.zeros(images, dtype=np.int64)
    labels[images - gained :] = 2  # the baseline is wrong here
    top = np.zeros(images, dtype=np.int64)
    top[:lost] = 1
    top[images - gained :] = 2
    known: dict[str, Any] = {
        "model": "m",
        "ids": tuple(f"test/{k:05d}.jpg" for k in range(images)),
        "labels": labels,
        "top": top[:, None],
        "logits": None,
        "data": "cifar",
        "data_fingerprint": "d",
        "preprocessing_fingerprint": "p",
        "sha256": "s",
    }
    return Predictions(**known | fields)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """base.npz, good.npz (0.1 points worse) and bad.npz (4 points worse)."""
    for name, lost in (("base", 0), ("good", 5), ("bad", 200)):
        save(predictions(lost), tmp_path / f"{name}.npz")
    return tmp_path


def judged(folder: Path, baseline: str, *candidates: str, limits: Limits = DROP, **options: Any) -> Gate:
    plan = GatePlan(
        baseline=str(folder / baseline),
        candidates=tuple(str(folder / name) for name in candidates),
        limits=limits,
        **options,
    )
    return gate.gate(plan, progress=lambda *_: None).gate


@pytest.mark.parametrize("suffix", ["npz", "csv", "json"])
def test_frames_of_one_video_widen_the_bounds(tmp_path: Path, suffix: str) -> None:
    """Where both sides say which images belong together; where one does, nothing changes."""
    videos = tuple(f"=video {k // 100}" for k in range(5000))  # each flips as a whole, or not at all
    save(predictions(0, cluster=videos), tmp_path / f"base.{suffix}")
    save(predictions(200, cluster=videos), tmp_path / f"videos.{suffix}")
    save(predictions(200), tmp_path / f"frames.{suffix}")
    assert load(tmp_path / f"base.{suffix}").cluster == videos
    (wide,) = judged(tmp_path, f"base.{suffix}", f"videos.{suffix}").verdict.checks
    (narrow,) = judged(tmp_path, f"base.{suffix}", f"frames.{suffix}").verdict.checks
    assert (narrow.state, wide.state) == ("fail", "inconclusive")
    assert narrow.interval is not None
    assert wide.interval is not None
    assert wide.interval[0] < narrow.interval[0] < narrow.interval[1] < wide.interval[1]
    assert "The images are of 50 clusters, and worth 47 drawn one by one" in wide.note
    assert "McNemar" in narrow.note
    assert "McNemar" not in wide.note


def test_clusters_that_differ_or_are_one_alone_are_refused(tmp_path: Path) -> None:
    """Neither says anything about new clusters."""
    save(predictions(0, cluster=("a",) * 5000), tmp_path / "base.npz")
    save(predictions(5, cluster=("a",) * 5000), tmp_path / "one.npz")
    save(predictions(5, cluster=("a",) * 4999 + ("b",)), tmp_path / "other.npz")
    with pytest.raises(UsageError, match="all images are of one cluster, 'a'"):
        judged(tmp_path, "base.npz", "one.npz")
    with pytest.raises(UsageError, match="the clusters of 1 of 5000 images differ"):
        judged(tmp_path, "base.npz", "other.npz")


def test_candidates_are_judged_together_each_with_its_own_verdict(files: Path) -> None:
    """One passes and one fails: the gate fails, flips and classes are each candidate's, Holm is in the note."""
    found = judged(files, "base.npz", "good.npz", "bad.npz")
    assert [(one.candidate.name, one.verdict.state) for one in found.judged] == [("good", "pass"), ("bad", "fail")]
    assert found.verdict.state == "fail"
    assert [len(one.flips) for one in found.judged] == [5, 200]
    assert found.judged[0].flips[0].image == "test/00000.jpg"
    assert found.judged[1].classes[0].drop_pp == 4.0
    assert "Holm's correction for 2 candidates" in found.judged[0].verdict.checks[0].note


def test_files_of_one_name_are_told_apart(files: Path) -> None:
    """a/p.npz and b/p.npz are named as they were typed."""
    for folder in "ab":
        (files / folder).mkdir()
        save(predictions(3), files / folder / "p.npz")
    found = judged(files, "base.npz", "a/p.npz", "b/p.npz")
    assert [one.candidate.name for one in found.judged] == [str(files / "a/p.npz"), str(files / "b/p.npz")]


def test_a_saved_file_of_a_model_calibrated_on_noise_is_refused(files: Path) -> None:
    """The calibration travels in the file: synthetic images, or images that are evaluated too, cannot be judged."""
    calibration = Calibration(data="synthetic", count=16, seed=0, method="minmax")
    save(predictions(5, origin=Origin(calibration=calibration)), files / "noise.npz")
    with pytest.raises(UsageError, match="synthetic"):
        judged(files, "base.npz", "noise.npz")
    images = tuple(f"{k:016x}" for k in range(5000))
    leak = dataclasses.replace(calibration, data="test", images=images[:7])
    save(dataclasses.replace(predictions(5), images=images, origin=Origin(calibration=leak)), files / "leak.json")
    with pytest.raises(UsageError, match="7 of 5000 evaluated images"):
        judged(files, "base.npz", "leak.json")


def test_random_weights_in_a_saved_file_are_announced(files: Path) -> None:
    """They can be compared, and what that is worth is said."""
    save(predictions(5, origin=Origin(weights="random")), files / "r.npz")
    assert any("random weights" in note for note in judged(files, "base.npz", "r.npz").notes)


def test_the_first_baseline_is_stored_and_the_next_is_judged_against_it(files: Path) -> None:
    """Nothing to compare with: stored, and said. Then a pass replaces it, and a fail leaves it byte for byte."""
    stored = files / "store" / "baseline.npz"
    first = judged(files, "store/baseline.npz", "base.npz", update_baseline=True)
    assert first.verdict.state == "pass"
    assert "are the baseline from now on" in first.judged[0].verdict.checks[0].note
    assert judged(files, "store/baseline.npz", "good.npz", update_baseline=True).notes[-1].endswith("of good")
    before = stored.read_bytes()
    assert load(stored).top[:5].tolist() == [[1]] * 5
    refused = judged(files, "store/baseline.npz", "bad.npz", update_baseline=True)
    assert refused.verdict.state == "fail"
    assert "left as it is" in refused.notes[-1]
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]


def test_a_baseline_is_replaced_only_by_what_its_accuracy_was_judged(files: Path) -> None:
    """A limit of size alone would let any answers through."""
    before = (files / "base.npz").read_bytes()
    with pytest.raises(UsageError, match="limit of accuracy"):
        judged(files, "base.npz", "good.onnx", limits=Limits(size_mb=5), data="d", update_baseline=True)
    assert (files / "base.npz").read_bytes() == before


def test_a_baseline_from_another_machine_is_said(files: Path) -> None:
    """Machine and versions of a stored baseline are compared with those of now; other data is refused."""
    old = Origin(machine="Xeon (avx512-vnni)", backend="openvino", tools={"openvino": "2025.4"})
    new = Origin(machine="EPYC (avx2)", backend="openvino", tools={"openvino": "2026.4"})
    save(predictions(0, origin=old), files / "old.npz")
    save(predictions(5, origin=new), files / "new.npz")
    (note,) = judged(files, "old.npz", "new.npz").notes
    assert "machine: Xeon (avx512-vnni) before, EPYC (avx2) now; openvino: 2025.4 before, 2026.4 now" in note
    save(predictions(5, data_fingerprint="e"), files / "other.npz")
    with pytest.raises(UsageError, match=r"different data.*--update-baseline"):
        judged(files, "old.npz", "other.npz")


@pytest.mark.parametrize(
    ("baseline", "candidate", "limits", "says"),
    [
        ("base.npz", "good.npz", Limits(), "no limit"),
        ("base.npz", "good.npz", Limits(slowdown_pct=3), "needs times"),
        ("base.npz", "good.npz", Limits(cpu_slowdown_pct=3), "--max-cpu-slowdown needs times"),
        ("base.npz", "good.npz", Limits(size_mb=3), "not a model with a size"),
        ("base.npz", "good.npz", Limits(memory_mb=3), "not a model with a size"),
        ("base.npz", "good.npz", Limits(fused=True), "not a model with a size and layers"),
        ("bench.json", "bench.json", Limits(fused=True), "no layers"),
        ("base.npz", "good.npz", Limits(top5_drop_pp=3), "top-5 cannot be judged"),
        ("base.npz", "m.onnx", DROP, "Add --data DIR"),
        ("bench.json", "good.npz", Limits(slowdown_pct=3), "one side is a saved bench"),
        ("bench.json", "bench.json", DROP, "no predictions to judge --max-drop"),
    ],
)
def test_what_cannot_be_judged_is_a_usage_error(
    files: Path, baseline: str, candidate: str, limits: Limits, says: str
) -> None:
    """Each combination that makes no sense says so before any work."""
    (files / "bench.json").write_text(json.dumps(bench([0.01] * 320)))
    with pytest.raises(UsageError) as caught:
        judged(files, baseline, candidate, limits=limits)
    assert says in str(caught.value)


def bench(times_s: list[float], *, cpu: str = "Xeon", rows: int = 1) -> dict[str, Any]:
    """A saved bench of 16 blocks, with the keys that `resdeploy bench` writes."""
    row: dict[str, Any] = {
        "label": "r20 openvino b1", "model": "r20", "backend": "openvino", "precision": "int8", "batch_size": 1,
        "scenario": "single-stream", "samples_ms": [1e3 * t for t in times_s],
        "block_sizes": [len(times_s) // 16] * 16, "size_bytes": 3_000_000, "peak_rss_bytes": 90_000_000, "sha256": "ab",
    }  # fmt: skip
    table = [{**row, "batch_size": 2**k, "samples_ms": [2**k * t for t in row["samples_ms"]]} for k in range(rows)]
    environment = {"cpu": {"model": cpu, "usable_cores": 2}, "packages": {"openvino": "2026.4"}}
    return {"schema_version": 1, "command": "bench", "environment": environment, "results": table}


def clock(median_s: float, seed: int) -> list[float]:
    """16 blocks of 20 times, 1 % of noise."""
    return (median_s * np.exp(np.random.default_rng(seed).normal(0, 0.01, 320))).tolist()


def write(folder: Path, name: str, document: object) -> None:
    (folder / name).write_text(json.dumps(document))


def test_saved_benches_are_judged_on_speed_size_and_memory(tmp_path: Path) -> None:
    """Rows of one thing are compared: 10 % slower fails 3 %; size and memory are the candidate's own."""
    write(tmp_path, "a.json", bench(clock(0.01, 0), rows=2))
    write(tmp_path, "b.json", bench(clock(0.011, 1), rows=2))
    found = judged(tmp_path, "a.json", "b.json", limits=Limits(slowdown_pct=3, size_mb=5, memory_mb=80))
    assert len(found.judged) == 2
    for one in found.judged:
        assert [(c.name, c.state) for c in one.verdict.checks] == [
            ("slowdown", "fail"),
            ("memory", "fail"),
            ("size", "pass"),
        ]
        assert one.verdict.checks[0].observed == pytest.approx(10, abs=0.5)
    assert "in runs of their own" in found.notes[0]


def test_rows_of_several_saved_benches_are_told_apart(tmp_path: Path) -> None:
    """Two candidates have rows of one label: the file's name stands before it."""
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        write(tmp_path, f"{name}.json", bench(clock(0.01, seed)))
    found = judged(tmp_path, "a.json", "b.json", "c.json", limits=Limits(slowdown_pct=50))
    assert [one.candidate.name for one in found.judged] == ["b: r20 openvino b1", "c: r20 openvino b1"]
    assert found.verdict.state == "pass"


def test_a_candidate_named_twice_is_one() -> None:
    """Nothing is run or corrected for twice."""
    plan = gate_options.plan_of("a.npz", ["b.npz", "b.npz"], backend="openvino,openvino", max_drop=1)
    assert (plan.candidates, plan.backends) == (("b.npz",), ("openvino",))


def test_times_of_two_machines_decide_nothing(tmp_path: Path) -> None:
    """A candidate timed elsewhere is inconclusive, however fast."""
    write(tmp_path, "a.json", bench(clock(0.01, 0)))
    write(tmp_path, "b.json", bench(clock(0.002, 1), cpu="EPYC"))
    (check,) = judged(tmp_path, "a.json", "b.json", limits=Limits(slowdown_pct=3)).verdict.checks
    assert check.state == "inconclusive"
    assert "other machines" in check.note


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"samples_ms": [1.0] * 7}, MalformedInput),
        ({"samples_ms": [0.0] * 320}, MalformedInput),
        ({"samples_ms": "x"}, MalformedInput),
        ({"label": None, "samples_ms": None}, MalformedInput),
        ({"error": {"code": "E-BACKEND-CRASH"}}, UsageError),
        ({"block_walls_s": [-1.0] * 16, "scenario": "offline"}, MalformedInput),
        ({"batch_size": 0}, MalformedInput),
        ({"batch_size": float("inf")}, MalformedInput),
        ({"size_bytes": "9"}, MalformedInput),
        ({"size_bytes": -9}, MalformedInput),
        ({"threads": [1]}, MalformedInput),
        ({"batch_size": 7}, UsageError),
        ({"model": "other", "backend": "other"}, None),
    ],
)
def test_a_damaged_bench_is_refused(tmp_path: Path, change: dict[str, Any], error: type[ResdeployError] | None) -> None:
    """Times that contradict their blocks, no times, only failed rows; the only row of each side needs no equal name."""
    document = bench(clock(0.01, 0))
    write(tmp_path, "a.json", document)
    document["results"][0] |= change
    write(tmp_path, "b.json", document)
    if error is None:
        judged(tmp_path, "a.json", "b.json", limits=Limits(slowdown_pct=3))
        return
    with pytest.raises(error):
        judged(tmp_path, "a.json", "b.json", limits=Limits(slowdown_pct=3))


def test_what_only_one_side_measured_is_not_passed(tmp_path: Path) -> None:
    """A row that failed, that is missing or that has another name on one side: inconclusive, with its label."""
    both = bench(clock(0.01, 0))
    second = {**both["results"][0], "label": "second", "model": "second"}
    both["results"].append(second)
    write(tmp_path, "a.json", both)
    for changed in ({"label": "second", "error": {"code": "E-BACKEND-CRASH"}}, None, {**second, "model": "renamed"}):
        document = bench(clock(0.01, 1))
        document["results"] += [changed] if changed else []
        write(tmp_path, "b.json", document)
        found = judged(tmp_path, "a.json", "b.json", limits=Limits(slowdown_pct=30))
        assert found.verdict.state == "inconclusive"
        assert "second" in [check.note.split()[0] for one in found.judged[1:] for check in one.verdict.checks]


def test_a_file_that_tells_no_machine_or_another_gpu_decides_nothing(tmp_path: Path) -> None:
    """Two unknown machines are not one."""
    document = bench(clock(0.01, 0))
    for before, after in (({}, {}), ({"gpu": {"name": "T4", "driver": "1"}}, {"gpu": {"name": "H100", "driver": "1"}})):
        for name, own in (("a.json", before), ("b.json", after)):
            environment = {**document["environment"], **own} if own else {}
            write(tmp_path, name, {**document, "environment": environment})
        (check,) = judged(tmp_path, "a.json", "b.json", limits=Limits(slowdown_pct=3)).verdict.checks
        assert (check.state, "other machines" in check.note) == ("inconclusive", True)


def test_a_size_that_is_not_told_is_not_passed(tmp_path: Path) -> None:
    """As with memory."""
    document = bench(clock(0.01, 0))
    document["results"][0]["size_bytes"] = None
    write(tmp_path, "a.json", document)
    (check,) = judged(tmp_path, "a.json", "a.json", limits=Limits(size_mb=0.5)).verdict.checks
    assert check.state == "inconclusive"


def test_images_for_saved_predictions_are_refused(tmp_path: Path) -> None:
    """They would be ignored."""
    for name in ("a.npz", "b.npz"):
        save(predictions(0), tmp_path / name)
    with pytest.raises(UsageError, match="--data"):
        judged(tmp_path, "a.npz", "b.npz", data="digits")


def test_a_missing_side_is_named(tmp_path: Path) -> None:
    """Exit 2 with the path."""
    save(predictions(0), tmp_path / "a.npz")
    with pytest.raises(MissingInput, match=r"b\.npz"):
        judged(tmp_path, "a.npz", "b.npz")


def measurement(label: str, median_s: float, seed: int, **fields: object) -> Measurement:
    """16 blocks of 20 queries in eight processes, as `bench` keeps them."""
    times = np.split(np.array(clock(median_s, seed)), 16)
    blocks = [
        Block(put_s=(0.0,) * 20, run_s=tuple(part), get_s=(0.0,) * 20, started_s=float(k), process=k // 2)
        for k, part in enumerate(times)
    ]
    known: dict[str, Any] = {
        "label": label,
        "model": "m",
        "backend": "openvino",
        "precision": "int8",
        "batch_size": 1,
        "scenario": "single-stream",
        "sha256": "s",
        "execution": Execution(),
        "blocks": tuple(blocks),
        "peak_rss_bytes": 90_000_000,
    }
    return Measurement(**known | fields)


def judged_runs(timed: Sequence[tuple[Measurement | None, Measurement]], limits: Limits) -> list[tuple[Check, ...]]:
    """The checks of candidates of which only a run with their baselines was seen."""
    evidence = [
        Evidence(times=judge_limits.times_of_run(old, new), peak_rss_bytes=new.peak_rss_bytes) for old, new in timed
    ]
    return [one.checks for one in judge_limits.judge(evidence, limits, confidence=0.95)]


def test_measured_candidates_are_judged_each_against_its_own_baseline() -> None:
    """Twice as fast passes a demanded speed-up of a third, an equal one fails it; memory is the candidate's own."""
    fp32 = measurement("fp32", 0.01, 0)
    timed = [(fp32, measurement("a", 0.005, 1)), (fp32, measurement("b", 0.01, 2, peak_rss_bytes=0))]
    limits = Limits(slowdown_pct=-33, memory_mb=100)
    found = judged_runs(timed, limits)
    assert [[(check.name, check.state) for check in one] for one in found] == [
        [("slowdown", "pass"), ("memory", "pass")],
        [("slowdown", "fail"), ("memory", "inconclusive")],
    ]
    assert "Holm's correction for 2 candidates" in found[0][0].note


class Runs:
    """Interleaved runs on made-up machines, one for each run: seconds of each candidate, by its label."""

    def __init__(self, *machines: dict[str, Sequence[float]]) -> None:
        self.machines = list(machines)
        self.runs: list[tuple[tuple[str, ...], int, tuple[float, ...]]] = []  # labels, seed, errors of the questions

    def __call__(
        self,
        rows: Sequence[one_run.Row],
        schedule: interleaved.Schedule,
        _listener: object,
        *,
        questions: Sequence[interleaved.Question],
    ) -> tuple[Measurement, ...]:
        labels = tuple(row.candidate.label for row in rows)
        self.runs.append((labels, schedule.seed, tuple(question.error for question in questions)))
        machine = self.machines[len(self.runs) - 1]
        return tuple(measured_in_turns(label, machine.get(label, (0.01,) * 8)) for label in labels)


def measured_in_turns(label: str, process_s: Sequence[float]) -> Measurement:
    """Two turns of 20 queries in each process, which all take as long."""
    blocks = tuple(
        Block(put_s=(0.0,) * 20, run_s=(process_s[k // 2],) * 20, get_s=(0.0,) * 20, started_s=float(k), process=k // 2)
        for k in range(2 * len(process_s))
    )
    return dataclasses.replace(measurement(label, 0.01, 0), blocks=blocks)


STEADY = (0.01, 0.010001) * 4
WIDE = (0.008, 0.012) * 4  # neither within 3 % nor beyond it
SLOW = (0.0111, 0.01111) * 4


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """old.onnx, a.onnx and b.onnx, which differ."""
    for k, name in enumerate(("old", "a", "b")):
        network = tiny_network()
        network.doc_string = str(k)
        onnx.save(network, tmp_path / f"{name}.onnx")
    return tmp_path


def timed_gate(folder: Path, runs: Runs, *candidates: str, patch: pytest.MonkeyPatch, **options: Any) -> Gate:
    patch.setattr(one_run, "time_rows", runs)
    return judged(folder, "old.onnx", *candidates, limits=Limits(slowdown_pct=3), backends=("null",), **options)


@pytest.mark.parametrize(("second", "state"), [(STEADY, "pass"), (SLOW, "fail"), (WIDE, "inconclusive")])
def test_what_several_left_open_is_measured_again_alone_and_the_second_counts(
    timed: Path, monkeypatch: pytest.MonkeyPatch, second: Sequence[float], state: str
) -> None:
    """That candidate and its baseline only, in another order of turns; each attempt has half of the error."""
    runs = Runs({"candidate 0": STEADY, "candidate 1": WIDE}, {"candidate 0": second})
    found = timed_gate(timed, runs, "a.onnx", "b.onnx", patch=monkeypatch, seed=4)
    labels, seeds, errors = zip(*runs.runs, strict=True)
    assert labels == (("candidate 0", "baseline null", "candidate 1"), ("candidate 0", "baseline null"))
    assert seeds == (4, 5)
    assert errors[0] == pytest.approx((0.025, 0.025))  # two-sided: 0.05 one-sided is halved, and shared by two
    assert errors[1] == pytest.approx((0.05,))
    (kept,), (again,) = (one.verdict.checks for one in found.judged)
    assert (kept.state, again.state) == ("pass", state)
    assert "second attempt" not in kept.note
    assert "each end at 97.5 % confidence" in again.note
    assert "This is a second attempt, alone with its baseline: beside the other candidates nothing was" in again.note
    assert "Holm" not in again.note


def test_all_that_were_left_open_share_the_second_attempts_error(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, each at a quarter of the error; Holm's correction is over the two."""
    runs = Runs({"candidate 0": WIDE, "candidate 1": WIDE}, {"candidate 0": STEADY}, {"candidate 0": SLOW})
    found = timed_gate(timed, runs, "a.onnx", "b.onnx", patch=monkeypatch)
    assert [one.verdict.state for one in found.judged] == ["pass", "fail"]
    assert [errors for *_, errors in runs.runs[1:]] == [pytest.approx((0.025,))] * 2
    assert all("Holm's correction for 2 candidates" in one.verdict.checks[0].note for one in found.judged)


def test_one_candidate_is_measured_once_with_the_whole_error(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was alone already; so is a decided one of several."""
    runs = Runs({"candidate 0": WIDE})
    (check,) = timed_gate(timed, runs, "a.onnx", patch=monkeypatch).verdict.checks
    ((_, _, errors),) = runs.runs
    assert errors == pytest.approx((0.1,))
    assert check.state == "inconclusive"
    assert "each end at 95 % confidence" in check.note
    decided = Runs({"candidate 0": STEADY, "candidate 1": SLOW})
    assert timed_gate(timed, decided, "a.onnx", "b.onnx", patch=monkeypatch).verdict.state == "fail"
    assert len(decided.runs) == 1


def test_cpu_time_is_judged_beside_the_time_in_a_check_of_its_own() -> None:
    """Equally fast with half as much CPU time again: a runtime that waits actively fails, its time passes."""
    fp32, spins = measurement("fp32", 0.01, 0), measurement("a", 0.01, 1)
    sides = [
        dataclasses.replace(
            one, blocks=tuple(dataclasses.replace(block, cpu_s=factor * sum(block.run_s)) for block in one.blocks)
        )
        for one, factor in ((fp32, 2.0), (spins, 3.0))
    ]
    ((time, cpu),) = judged_runs([(sides[0], sides[1])], Limits(slowdown_pct=3, cpu_slowdown_pct=10))
    assert [(time.name, time.state), (cpu.name, cpu.state)] == [("slowdown", "pass"), ("cpu-slowdown", "fail")]
    assert cpu.observed == pytest.approx(50, abs=1)
    ((alone,),) = judged_runs([(sides[0], sides[1])], Limits(cpu_slowdown_pct=60))
    assert (alone.name, alone.state, alone.limit) == ("cpu-slowdown", "pass", 60)
    ((uncounted,),) = judged_runs([(fp32, spins)], Limits(cpu_slowdown_pct=60))
    assert (uncounted.state, uncounted.observed) == ("inconclusive", None)


def test_a_run_is_asked_about_every_limit_on_times() -> None:
    """Each candidate, once for each limit, at its share of the error over the candidates."""
    found = judge_limits.questions(
        [("base", "a"), ("base", "b")], Limits(slowdown_pct=3, cpu_slowdown_pct=-10), confidence=0.95
    )
    assert [(one.candidate, one.of, one.limit) for one in found] == [
        ("a", "time", 1.03),
        ("a", "cpu", 0.9),
        ("b", "time", 1.03),
        ("b", "cpu", 0.9),
    ]
    assert {one.error for one in found} == {2 * (1 - 0.95) / 2}


def test_a_saved_bench_leaves_the_cpu_time_open(tmp_path: Path) -> None:
    """Nothing is guessed from it, and the note says what to do."""
    write(tmp_path, "a.json", bench(clock(0.01, 0)))
    write(tmp_path, "b.json", bench(clock(0.01, 1)))
    found = judged(tmp_path, "a.json", "b.json", limits=Limits(slowdown_pct=50, cpu_slowdown_pct=50))
    time, cpu = found.verdict.checks
    assert (time.state, cpu.name, cpu.state) == ("pass", "cpu-slowdown", "inconclusive")
    assert "not in a saved bench: name two models for --max-cpu-slowdown" in cpu.note


def test_a_candidate_without_a_timed_baseline_is_not_passed() -> None:
    """A limit of speed was asked for; a baseline that failed on this backend leaves it open."""
    ((check,),) = judged_runs([(None, measurement("a", 0.005, 1))], Limits(slowdown_pct=3))
    assert (check.name, check.state) == ("slowdown", "inconclusive")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "profiles").glob("ci-*.toml")), ids=lambda p: p.stem
)
def test_profiles_for_ci_are_complete(path: Path) -> None:
    """Each is read without a complaint, has a limit, and is short enough to be read whole."""
    profile = store.read_profile(path)
    assert profile.name == path.stem
    assert profile.max_drop_pp is not None
    assert len(path.read_text().splitlines()) <= 30


def test_a_file_compared_with_itself_is_said(files: Path) -> None:
    """A slip in a CI job that would pass for ever."""
    assert any("are the same" in note for note in judged(files, "base.npz", "./base.npz").notes)
    assert not judged(files, "base.npz", "good.npz").notes
    write(files, "times.json", bench(clock(0.01, 0)))
    assert any(
        "are the same" in n for n in judged(files, "times.json", "times.json", limits=Limits(slowdown_pct=3)).notes
    )


def test_a_profiles_limit_that_could_not_be_judged_does_not_pass() -> None:
    """FP32 failed on the images: size and memory alone make no pass of a profile that limits the drop."""
    limits = Limits(drop_pp=1.0, size_mb=1.0)
    (accuracy,) = judge_limits.judge_answers([None], limits, confidence=0.95)
    (limited,) = judge_limits.judge([Evidence(accuracy=accuracy, size_bytes=1)], limits, confidence=0.95)
    assert [(check.name, check.state) for check in limited.checks] == [("top1", "inconclusive"), ("size", "pass")]
    assert limited.state == "inconclusive"
    (free,) = judge_limits.judge([Evidence(size_bytes=1)], Limits(size_mb=1.0), confidence=0.95)
    assert free.state == "pass"


def test_a_profile_with_limits_and_nothing_to_judge_is_refused(tmp_path: Path) -> None:
    """FP32 alone is what others are compared with: nothing would be judged, and that must not end in 0."""
    alone = Profile(name="p", data="digits", precisions=("fp32",), backends=("onnxruntime",), max_drop_pp=1.0)
    with pytest.raises(ProfileError, match="one beside fp32"):
        run.run(alone, tmp_path, progress=lambda *_: None, note=lambda _: None)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two linear classifiers of 6x6 images, base.onnx and other.onnx, and forty images per class under images/."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(108, 3)).astype(np.float32)
    for name, noise in (("base", 0.0), ("other", 0.4)):
        values = weights + noise * rng.normal(size=weights.shape).astype(np.float32)
        graph = helper.make_graph(
            [
                helper.make_node("Flatten", ["input"], ["flat"]),
                helper.make_node("MatMul", ["flat", "w"], ["logits"]),
            ],
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 6, 6])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
            [numpy_helper.from_array(values, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    for name in "abc":
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(40):
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(tmp_path / f"images/{name}/{k}.png")
    return tmp_path


def test_repeated_images_change_neither_the_verdict_nor_the_count_and_are_told(models: Path) -> None:
    """Copies, links and loops by the hundred: n and interval are those without them; `eval` counts alike, and says so.

    Of the two images in two classes neither counts on either side.
    """
    override = PreprocessingOverride(img_size=6, mean=(0.5,) * 3, std=(0.5,) * 3)
    asked: dict[str, Any] = {"data": str(models / "images"), "override": override, "backends": ("onnxruntime",)}
    clean = judged(models, "base.onnx", "other.onnx", **asked)
    for path in sorted((models / "images" / "b").iterdir()):
        os.link(path, path.with_stem(f"{path.stem}_again"))
    for path in sorted((models / "images" / "c").iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem}_copy"))
    (models / "images/a/loop").symlink_to(".")
    found = judged(models, "base.onnx", "other.onnx", **asked)
    assert (found.baseline.images, found.judged[0].candidate.images) == (120, 120)
    assert found.judged[0].verdict == clean.judged[0].verdict
    assert found.judged[0].flips == clean.judged[0].flips
    (said,) = [note for note in found.notes if "repeats" in note]
    assert "81 repeats of others: each image is counted once (a/loop is a, b/0_again.png is b/0.png, " in said

    (models / "images/a/other.png").write_bytes((models / "images/b/1.png").read_bytes())
    options = ["--img-size", "6", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--format", "json"]
    data = ["--data", str(models / "images"), "--backend", "onnxruntime"]
    done = CliRunner().invoke(app, ["eval", str(models / "base.onnx"), *data, *options])
    document = json.loads(done.stdout)
    assert document["results"][0]["total"] == 119
    assert document["results"][0]["repeats"]["contradicted"] == ["a/other.png is b/1.png is b/1_again.png"]
    assert any("1 image of several labels: left out (a/other.png is b/1.png is" in note for note in document["notes"])


def test_an_old_baseline_with_repeated_images_is_counted_once(files: Path) -> None:
    """Files that were saved before they were looked for: the interval is that of the images that differ."""
    contents = tuple(f"{k:016x}" for k in range(5000))
    for name, lost in (("base", 0), ("good", 5)):
        save(dataclasses.replace(predictions(lost), images=contents), files / f"{name}.npz")
    clean = judged(files, "base.npz", "good.npz").judged[0].verdict.checks[0]
    for name, lost in (("base", 0), ("good", 5)):
        once = predictions(lost)
        twice: dict[str, Any] = {field: np.concatenate([getattr(once, field)] * 2) for field in ("labels", "top")}
        ids = (*once.ids, *(f"again/{i}" for i in once.ids))
        save(dataclasses.replace(once, **twice, ids=ids, images=contents * 2), files / f"{name}.npz")
    assert judged(files, "base.npz", "good.npz").judged[0].verdict.checks[0] == clean


def test_a_profile_limits_the_cpu_time_too(tmp_path: Path) -> None:
    """A percentage that is none is refused by its key, and a limit alone needs a precision to be judged."""
    wrong = Profile(name="p", backends=("onnxruntime",), max_cpu_slowdown_pct=-100.0)
    with pytest.raises(ProfileError, match="max_cpu_slowdown_pct: a percentage above -100"):
        run.run(wrong, tmp_path, progress=lambda *_: None, note=lambda _: None)
    alone = Profile(name="p", precisions=("fp32",), backends=("onnxruntime",), max_cpu_slowdown_pct=3.0)
    with pytest.raises(ProfileError, match="one beside fp32"):
        run.run(alone, tmp_path, progress=lambda *_: None, note=lambda _: None)
