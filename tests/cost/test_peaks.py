"""The roofs of this machine, through real lanes at small sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from resdeploy import backends
from resdeploy.backends import machine
from resdeploy.cost import cost, peaks, under_roofs
from resdeploy.errors import BackendCrash, BackendMissing
from resdeploy.measure import entrant, interleaved
from resdeploy.records import Artifact, Availability, BackendName, Block, Execution, Measurement, Peaks, Roof
from resdeploy.verbs.bench import BenchPlan

SHAPE, SMALLER = (32, 16, 2, 3), (16, 16, 2, 3)


@pytest.mark.acceptance
@pytest.mark.slow
def test_a_machine_has_roofs_only_in_what_it_computes_and_they_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision that ONNX Runtime turns into FP32 is named, not timed; the second call starts no process."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr(peaks, "LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(peaks, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(entrant, "REPLAY_S", 0.01)
    run, runs = interleaved.run, []

    def shortened(candidates: list[interleaved.Candidate], schedule: interleaved.Schedule, **options: Any) -> object:
        runs.append([candidate.label for candidate in candidates])
        return run(candidates, dataclasses.replace(schedule, blocks=8, processes=1), **options)

    monkeypatch.setattr(interleaved, "run", shortened)
    options: dict[str, Any] = {"names": ("onnxruntime",), "shapes": (SMALLER, SHAPE), "duration_s": 0.05}
    found = peaks.of_this_machine(**options)
    heats, final = runs
    assert len(heats) == 5  # two shapes in two precisions, and the memory
    assert set(final) < set(heats)
    assert sorted(final) == sorted(roof.by for roof in (*found.roofs.values(), found.bandwidth))
    assert {"fp32", "int8"} <= set(found.roofs)
    assert found.roofs.keys().isdisjoint(found.missing)
    assert set(found.roofs) | set(found.missing) == {"fp32", "fp16", "bf16", "int8"}
    if not machine.cpu().isa & {"avx512_fp16", "fphp", "asimdhp"}:
        assert "computes it in FP32" in found.missing["fp16"]
    assert "does not take it" in found.missing["bf16"]
    # From a busy calculator to a supercomputer.
    assert all(1e6 < roof.rate < 1e16 for roof in found.roofs.values())
    assert 1e6 < found.bandwidth.rate < 1e14
    assert any("not 4 times the cache" in note for note in found.notes)
    if found.valid:

        def forbidden(_name: object) -> Any:
            raise AssertionError

        assert peaks.of_this_machine(**options, open_lane=forbidden) == found


def test_without_a_runtime_there_is_no_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the error says what to install."""

    class Absent:
        @staticmethod
        def available() -> Availability:
            return Availability(ok=False)

    monkeypatch.setattr(backends, "load", lambda _name: Absent)
    with pytest.raises(BackendMissing, match="pip install"):
        peaks.of_this_machine()


def test_the_largest_cache_is_read_and_an_unknown_one_is_zero(tmp_path: Path) -> None:
    """From the kernel's list, whatever its unit."""
    for index, size in enumerate(("32K", "1024K", "36M")):
        path = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}/size"
        path.parent.mkdir(parents=True)
        path.write_text(size + "\n")
    assert machine.last_level_cache_bytes(tmp_path) == 36 << 20
    assert machine.last_level_cache_bytes(tmp_path / "none") == 0


def test_a_chain_that_crashes_without_memory_times_is_raised_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no roofs without the memory's, and what went wrong is said in its own words."""

    def run(candidates: list[interleaved.Candidate], *_: object, **__: object) -> tuple[object, ...]:
        return tuple(entrant.failure(candidate, BackendCrash("died of SIGSEGV")) for candidate in candidates)

    monkeypatch.setattr(interleaved, "run", run)
    monkeypatch.setattr(peaks, "LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(peaks, "MOST_BYTES", 1 << 20)
    with pytest.raises(BackendCrash, match="SIGSEGV"):
        peaks.measure(("onnxruntime",), 1, (SHAPE,), 0.05, progress=None)


def test_a_damaged_cache_file_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And replaced: neither a torn file nor one of another shape has to be removed by hand."""
    roof = Roof(rate=1e9, ci95=None, by="stream", valid=True)
    good = Peaks(name="a machine", source="measured", roofs={}, bandwidth=roof)
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr(peaks, "measure", lambda *_, **__: good)
    options: dict[str, Any] = {"names": ("onnxruntime",), "shapes": (SHAPE,), "duration_s": 0.05}
    peaks.of_this_machine(**options)
    (path,) = tmp_path.glob("peaks/*.json")
    for damaged in ('{"name": "a mach', "{}", ""):
        path.write_text(damaged)
        assert peaks.of_this_machine(**options) == good
        assert json.loads(path.read_text())["record"]["name"] == good.name


@pytest.mark.parametrize("failing", [{"openvino"}, {"openvino", "onnxruntime"}])
def test_a_backend_without_a_memory_stream_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, failing: set[str]
) -> None:
    """One backend's stream is enough; where none can be built the first reason is raised."""

    def stream(name: BackendName, *_: object) -> object:
        if name in failing:
            raise BackendCrash(f"{name} cannot build it")
        source = Artifact(path="stream.onnx", format="onnx", precision="fp32", sha256="0")
        candidate = interleaved.Candidate(label="stream", backend=name, artifact=source, execution=Execution())
        return peaks._Entrant(candidate=candidate, precision=None, work=10)

    def run(candidates: list[interleaved.Candidate], *_: object, **__: object) -> tuple[object, ...]:
        block = Block(put_s=(0.1,), run_s=(0.5,), get_s=(0.1,), started_s=0, wall_s=0.7, cpu_s=0.7)
        return tuple(
            Measurement(
                label=one.label, model="m", backend=one.backend, precision="fp32", batch_size=1, sha256="0",
                scenario="single-stream", execution=one.execution, blocks=(block,) * 8,
            )
            for one in candidates
        )  # fmt: skip

    monkeypatch.setattr(peaks, "_build_stream", stream)
    monkeypatch.setattr(peaks, "_build_chains", lambda *_: [])
    monkeypatch.setattr(interleaved, "run", run)
    if len(failing) == 1:
        found = peaks.measure(("openvino", "onnxruntime"), 1, (SHAPE,), 0.05, progress=None)
        assert found.bandwidth.rate == pytest.approx(20)
        assert found.bandwidth.by == "stream"
    else:
        with pytest.raises(BackendCrash, match="openvino cannot build it"):
            peaks.measure(("openvino", "onnxruntime"), 1, (SHAPE,), 0.05, progress=None)


@pytest.mark.parametrize(("options", "threads"), [({"measured": True}, 1), ({}, None)])
def test_a_network_is_held_against_the_roofs_of_its_own_threads(
    options: dict[str, Any], threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On paper this machine has all of its cores."""
    asked: list[int | None] = []

    def roofs(*, threads: int | None, **_: object) -> Peaks:
        asked.append(threads)
        return Peaks(name="m", source="s", roofs={}, bandwidth=Roof(rate=1.0), measured=True)

    monkeypatch.setattr(peaks, "of_this_machine", roofs)
    plan = cost.CostPlan(machine="machine", timing=BenchPlan(threads=(1,)), **options)
    monkeypatch.setattr(under_roofs, "time_under_roofs", lambda *_, **__: ())
    cost.cost([], plan, progress=lambda *_: None)
    assert asked == [threads]
