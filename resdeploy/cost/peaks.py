"""The roofs of a machine: how fast it multiplies in each precision, and how fast it moves memory.

Measured on what a deployment runs: the backends' own kernels, in their lanes, on graphs that do nothing else
(`peak_graphs`). Which shape and backend is fastest in a precision is found in short heats; the roof is what that one
then does in one interleaved run with the other precisions' best, so that it is not the luckiest of many results. Where
a backend silently computes in another precision it has no roof, and the reason is kept instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resdeploy import backends, cache, packages, scratch, store
from resdeploy.backends import machine
from resdeploy.backends.lane import Lane
from resdeploy.cost import gpus, peak_graphs
from resdeploy.errors import BackendMissing, ResdeployError, UnknownName, UsageError
from resdeploy.graph import cast, files
from resdeploy.measure import interleaved
from resdeploy.measure.interleaved import Listener, Schedule
from resdeploy.measure.summary import summarise
from resdeploy.records import (
    PRECISIONS,
    Artifact,
    BackendName,
    Execution,
    Failure,
    Measurement,
    Peaks,
    Precision,
    Progress,
    Roof,
    Summary,
)

MACHINE = "machine"  # the name of this one
RUNTIMES: tuple[BackendName, ...] = ("openvino", "onnxruntime")  # the fastest on a CPU
DURATION_S = 1.0  # of timed queries per graph
HEAT_SHARE, HEAT_BLOCKS = 1 / 4, 4  # of that in a heat: of several graphs only the fastest is measured in full
# STREAM's rule: each array at least four times the last-level cache (McCalpin, "Run Rules"); bounded, since a virtual
# machine may report the cache of a whole socket.
CACHE_TIMES, LEAST_BYTES, MOST_BYTES = 4, 64 << 20, 256 << 20
STREAMS = 3  # two arrays read, one written
VERSION = 2  # of what is measured: another one is measured again
OpenLane = Callable[[BackendName], Lane]


@dataclass(frozen=True, kw_only=True)
class _Entrant:
    """A graph in the run, and the work of one query of it: FLOPs, or bytes."""

    candidate: interleaved.Candidate
    precision: Precision | None  # None: it moves memory
    work: int


@dataclass(frozen=True)
class _Timing:
    """A graph with its times."""

    entrant: _Entrant
    summary: Summary

    @property
    def rate(self) -> float:
        p50_s = self.summary.latency_s["p50"]
        assert p50_s is not None
        return self.entrant.work / p50_s

    def roof(self) -> Roof:
        work, interval_s = self.entrant.work, self.summary.p50_ci95_s
        return Roof(
            rate=self.rate,
            ci95=None if interval_s is None else (work / interval_s[1], work / interval_s[0]),
            by=self.entrant.candidate.label,
            valid=self.summary.steady,
        )


def of_machine(
    name: str, *, refresh: bool = False, threads: int | None = None, progress: Progress | None = None
) -> Peaks:
    """The roofs of this machine (`machine`) with so many threads (None: the usable cores), or of a GPU by its name.

    Raises:
        UnknownName: no such GPU.
        BackendMissing: this machine, and no backend to measure it with.
    """
    refuse_unknown(name)
    if name != MACHINE:
        return gpus.GPUS[name]
    return of_this_machine(refresh=refresh, threads=threads, progress=progress)


def refuse_unknown(name: str) -> None:
    """Raises UnknownName unless `of_machine` knows the name."""
    if name != MACHINE and name not in gpus.GPUS:
        raise UnknownName(f"no roofs are known of {name!r}", fix=f"Name one of: {MACHINE}, {', '.join(gpus.GPUS)}")


def of_this_machine(
    *,
    refresh: bool = False,
    threads: int | None = None,
    names: Sequence[BackendName] = RUNTIMES,
    shapes: Sequence[tuple[int, int, int, int]] = peak_graphs.SHAPES,
    duration_s: float = DURATION_S,
    progress: Progress | None = None,
    open_lane: OpenLane = Lane,
) -> Peaks:
    """Measured now, or taken from the cache: one entry per processor, core count and versions of the runtimes.

    Raises:
        BackendMissing: none of the backends is installed.
    """
    cores = threads or machine.usable_cores()
    states = {name: backends.load(name).available() for name in names}
    usable = {name: state.version for name, state in states.items() if state.ok}
    if not usable:
        raise BackendMissing(
            "peaks are measured with OpenVINO or ONNX Runtime", fix=f"Run `{packages.install(*RUNTIMES)}`"
        )
    cpu = machine.cpu()
    key = (VERSION, cpu.model, sorted(cpu.isa), cores, usable, tuple(shapes), duration_s)
    if not refresh and (entry := cache.recall(Peaks, cache.PEAKS, key)) is not None:
        return entry
    fresh = measure(tuple(usable), cores, shapes, duration_s, progress=progress, open_lane=open_lane)
    if fresh.valid:  # a disturbed machine has no roof to remember
        cache.keep(cache.PEAKS, key, fresh)
    return fresh


def measure(
    names: Sequence[BackendName],
    cores: int,
    shapes: Sequence[tuple[int, int, int, int]],
    duration_s: float,
    *,
    progress: Progress | None,
    open_lane: OpenLane = Lane,
) -> Peaks:
    """Times every graph briefly, and the fastest of each kind in full.

    Raises:
        ResdeployError: the memory could not be timed on any backend.
    """
    missing: dict[Precision, list[str]] = {}
    with scratch.folder() as folder:
        entrants = _build_entrants(names, cores, shapes, folder, missing, open_lane)
        run = functools.partial(interleaved.run, listener=Listener(progress=progress), open_lane=open_lane)
        heat = Schedule(duration_s=HEAT_SHARE * duration_s, blocks=HEAT_BLOCKS, processes=1)
        heats = run([each.candidate for each in entrants], heat)
        finalists = [timing.entrant for timing in _find_fastest(entrants, heats, missing).values()]
        finals = run([each.candidate for each in finalists], Schedule(duration_s=duration_s))
        best = _find_fastest(finalists, finals, missing)
    roofs = {p: best[p].roof() for p in PRECISIONS if p in best}
    return Peaks(
        name=machine.cpu().model,
        source=f"measured with {cores} threads",
        roofs=roofs,
        bandwidth=best[None].roof(),
        missing={p: "; ".join(why) for p, why in missing.items() if p not in roofs},
        notes=_notes(),
    )


def _build_entrants(
    names: Sequence[BackendName],
    cores: int,
    shapes: Sequence[tuple[int, int, int, int]],
    folder: Path,
    missing: dict[Precision, list[str]],
    open_lane: OpenLane,
) -> list[_Entrant]:
    """All that can be timed; what a backend does not compute goes to `missing`.

    Raises:
        ResdeployError: the memory cannot be timed on any backend.
    """
    entrants: list[_Entrant] = []
    errors: list[ResdeployError] = []
    for name in names:
        for precision in PRECISIONS:
            try:
                entrants += _build_chains(name, precision, shapes, cores, folder, open_lane)
            except ResdeployError as e:
                missing.setdefault(precision, []).append(f"{name}: {e.what}")
        try:
            entrants.append(_build_stream(name, cores, folder, open_lane))
        except ResdeployError as e:  # the other backend's will do
            errors.append(e)
    if len(errors) == len(names):
        raise errors[0]
    return entrants


def stream_bytes() -> int:
    """The size of one array of the memory stream here."""
    return max(LEAST_BYTES, min(MOST_BYTES, CACHE_TIMES * machine.last_level_cache_bytes()))


def _notes() -> tuple[str, ...]:
    cache = machine.last_level_cache_bytes()
    if stream_bytes() >= CACHE_TIMES * cache > 0:
        return ()
    size = f"{cache >> 20} MiB" if cache else "of unknown size"
    return (f"the arrays of the memory stream, {stream_bytes() >> 20} MiB each, are not 4 times the cache ({size})",)


def _build_chains(
    name: BackendName,
    precision: Precision,
    shapes: Sequence[tuple[int, int, int, int]],
    cores: int,
    folder: Path,
    open_lane: OpenLane,
) -> list[_Entrant]:
    """The chains of convolutions in one precision, each shown to be computed in it.

    Raises:
        UsageError: the backend does not take the precision, or computes in another one.
        ResdeployError: whatever it says itself.
    """
    backend = backends.load(name)
    if precision not in backend.ACCEPTS:
        raise UsageError("does not take it")
    entrants = []
    for shape in shapes:
        model, spec = peak_graphs.chain(*shape), peak_graphs.spec(*shape)
        if precision == "int8":
            target = backends.load(name).TARGET
            assert target is not None
            model = peak_graphs.quantize(model, target)
        elif precision != "fp32":
            model = cast.to_half(model, precision)
        path = folder / f"{name}-{precision}-{spec.name}.onnx"
        files.save_model(model, path)
        source = Artifact(path=str(path), format="onnx", precision=precision, sha256=store.digest(path), model=spec)
        arithmetic: Precision = "fp32" if precision == "int8" else precision
        execution = Execution(threads=cores, precision=arithmetic, input_shape=spec.input_shape)
        candidate = _build(source, name, execution, open_lane)
        _refuse_another(candidate, open_lane)
        entrants.append(_Entrant(candidate=candidate, precision=precision, work=2 * peak_graphs.macs(*shape)))
    return entrants


def _refuse_another(candidate: interleaved.Candidate, open_lane: OpenLane) -> None:
    """Looks into what the backend executes.

    Raises:
        UsageError: convolutions in another precision.
    """
    with open_lane(candidate.backend) as lane:
        lane.open(candidate.artifact, candidate.execution, trace=True)
        precisions = {layer.precision for layer in lane.layers() if "Conv" in layer.kind}
    if precisions != {candidate.artifact.precision}:
        raise UsageError(f"computes it in {' and '.join(sorted(precisions)).upper() or 'something unknown'}")


def _build_stream(name: BackendName, cores: int, folder: Path, open_lane: OpenLane) -> _Entrant:
    size = stream_bytes()
    path = folder / f"{name}-stream.onnx"
    files.save_model(peak_graphs.stream(size), path)
    source = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
    candidate = _build(source, name, Execution(threads=cores), open_lane)
    return _Entrant(candidate=candidate, precision=None, work=STREAMS * 4 * math.prod(peak_graphs.stream_shape(size)))


def _build(source: Artifact, name: BackendName, execution: Execution, open_lane: OpenLane) -> interleaved.Candidate:
    path = Path(source.path)
    out = path.with_name(f"{path.stem}-built{backends.load(name).SUFFIXES[0]}")
    with open_lane(name) as lane:
        artifact = lane.build(source, execution, out)
    return interleaved.Candidate(label=path.stem, backend=name, artifact=artifact, execution=execution)


def _find_fastest(
    entrants: Sequence[_Entrant], outcomes: Sequence[Measurement | Failure], missing: dict[Precision, list[str]]
) -> dict[Precision | None, _Timing]:
    """The highest rate of each kind; what failed goes to `missing`.

    Raises:
        ResdeployError: the memory could not be timed on any backend.
    """
    best: dict[Precision | None, _Timing] = {}
    for entrant, outcome in zip(entrants, outcomes, strict=True):
        if isinstance(outcome, Measurement):
            timing = _Timing(entrant, summarise(outcome))
            best[entrant.precision] = max(best.get(entrant.precision, timing), timing, key=lambda each: each.rate)
        elif entrant.precision is not None:
            missing.setdefault(entrant.precision, []).append(f"{entrant.candidate.backend}: {outcome.message}")
    if None not in best:
        interleaved.measurement_or_raise(
            next(o for e, o in zip(entrants, outcomes, strict=True) if e.precision is None)
        )
    return best
