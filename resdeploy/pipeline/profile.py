"""`run`: a whole profile, step by step; a step whose inputs are unchanged and whose file is intact is skipped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from resdeploy import backends, store
from resdeploy.backends import machine
from resdeploy.errors import BackendCrash, IntegrityError, MalformedInput, MissingInput, ProfileError
from resdeploy.judge import accuracy, pairs
from resdeploy.measure import bench as timing
from resdeploy.measure import predictions as saved
from resdeploy.pipeline import bench as rows
from resdeploy.pipeline import judge, make
from resdeploy.pipeline.request import Request, Sight
from resdeploy.records import (
    Artifact,
    BackendName,
    Failure,
    Measurement,
    Precision,
    Predictions,
    Profile,
    Progress,
    Verdict,
)
from resdeploy.report.documents import RunRow

T = TypeVar("T")
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The network in one precision, as one backend runs it."""

    backend: BackendName
    precision: Precision
    source: Artifact
    candidate: timing.Candidate
    predictions: Predictions | None  # None: the profile names no data


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What `measurements.json` of a run holds."""

    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that a profile's run found; verdicts are by label."""

    profile: Profile
    folder: Path
    variants: tuple[Variant, ...]
    bench: rows.Bench
    verdicts: dict[str, Verdict]

    @property
    def verdict(self) -> Verdict:
        """All checks of all candidates in one."""
        return Verdict(checks=tuple(check for verdict in self.verdicts.values() for check in verdict.checks))


def result_rows(result: Result) -> tuple[RunRow, ...]:
    """One row a variant for the final table: its times, accuracy, speed-up and verdict."""
    outcomes = {outcome.label: outcome for outcome in result.bench.outcomes}
    speedups = {comparison.candidate: comparison for comparison in result.bench.comparisons}
    rows_ = []
    for variant in result.variants:
        label = variant.candidate.label
        outcome = outcomes[label]
        rows_.append(
            RunRow(
                outcome=outcome if isinstance(outcome, Failure) else timing.summarise(outcome),
                score=saved.score(variant.predictions) if variant.predictions is not None else None,
                comparison=speedups.get(label),
                verdict=result.verdicts.get(label),
            )
        )
    return tuple(rows_)


class Steps:
    """Remembers, in a folder's `steps.json`, what each of its files was made from."""

    def __init__(self, folder: Path, note: Note) -> None:
        self._folder, self._note, self._file = folder, note, folder / "steps.json"
        self._keys: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            self._keys = json.loads(self._file.read_text())

    def artifact(self, name: str, key: Any, make_it: Callable[[Path], Artifact]) -> Artifact:
        """The model file `name`: as it is there if it was made from the same `key` and is intact, else made."""
        return self.step(name, key, _load_artifact, make_it)

    def step(self, name: str, key: Any, load: Callable[[Path], T], make_it: Callable[[Path], T]) -> T:
        """What the file `name` holds, likewise."""
        path, wanted = self._folder / name, store.fingerprint(key)
        if self._keys.get(name) == wanted:
            with contextlib.suppress(MissingInput, MalformedInput, IntegrityError):
                found = load(path)
                self._note(f"unchanged  {name}")
                return found
        self._note(f"making     {name}")
        made = make_it(path)
        self._keys[name] = wanted
        store.write_json(self._file, self._keys)
        return made


def run(profile: Profile, folder: Path, *, progress: Progress, note: Note) -> Result:
    """Trains (if the profile says so), exports, lowers, builds, evaluates, benches, and gates.

    Raises:
        ProfileError: keys that contradict each other.
        ResdeployError: what a step raised; finished steps are kept and skipped the next time.
    """
    _check(profile)
    steps = Steps(folder, note)
    fp32 = _fp32(profile, steps, progress)
    variants = tuple(
        _variant(profile, steps, fp32, backend, precision, progress)
        for backend in profile.backends
        for precision in profile.precisions
        if precision in backends.load(backend).ACCEPTS
    )
    return Result(
        profile=profile,
        folder=folder,
        variants=variants,
        bench=_bench(profile, steps, variants, progress),
        verdicts=_judged(profile, variants),
    )


def _check(profile: Profile) -> None:
    problems = []
    if profile.epochs and profile.data is None:
        problems.append("epochs: training needs data")
    if profile.max_drop_pp is not None and profile.data is None:
        problems.append("max_drop_pp: judging accuracy needs data")
    if "fp32" not in profile.precisions:
        problems.append("precisions: fp32 is what the others are compared with")
    if not profile.backends:
        problems.append("backends: name at least one")
    if problems:
        raise ProfileError(f"profile {profile.name}: " + "; ".join(problems), fix="Correct these keys")


def _fp32(profile: Profile, steps: Steps, progress: Progress) -> Artifact:
    """The profile's network in ONNX, trained first where it says so."""
    sight = Sight(img_size=profile.img_size)
    request = Request(model=profile.model, weights=profile.weights, seed=profile.seed, sight=sight)
    made_from: Any = request
    if profile.epochs and profile.data is not None:
        data = profile.data
        trained = steps.artifact(
            "model.safetensors",
            (request, profile.epochs, profile.lr, make.data_signature(data, "train"), make.versions("torch")),
            lambda path: make.trained(
                request, data, epochs=profile.epochs, lr=profile.lr, out=path, resume=True, progress=progress
            ),
        )
        request = Request(model=trained.path, seed=profile.seed)
        made_from = trained.sha256
    return steps.artifact(
        "model.fp32.onnx",
        (made_from, make.versions("torch", "onnx", "onnxscript")),
        lambda path: make.onnx_fp32(request, path, data=profile.data, progress=progress),
    )


def _variant(
    profile: Profile, steps: Steps, fp32: Artifact, backend: BackendName, precision: Precision, progress: Progress
) -> Variant:
    """One backend's model in one precision: lowered, built, and run on the held-out images."""
    source = _lowered(profile, steps, fp32, backend, precision, progress)
    execution = rows.execution_for(source, batch_size=profile.batch_sizes[0], threads=profile.threads)
    built = steps.artifact(
        f"{backend}.{precision}{make.suffix_of(backend)}",
        make.built_key(source, backend, execution),
        lambda path: make.built(source, backend, execution, path),
    )
    predictions = None
    if profile.data is not None:
        plan = judge.EvalPlan(data=profile.data, threads=profile.threads)
        predictions = steps.step(
            f"{backend}.{precision}.predictions.npz",
            ("eval", built.sha256, make.data_signature(profile.data, "test"), make.versions(backend, "pillow")),
            saved.load,
            lambda path: _saved(judge.predict(source, backend, plan, progress=progress), path),
        )
    candidate = timing.Candidate(
        label=f"{profile.model} {backend} {precision}", backend=backend, artifact=built, execution=execution
    )
    return Variant(backend=backend, precision=precision, source=source, candidate=candidate, predictions=predictions)


def _lowered(
    profile: Profile, steps: Steps, fp32: Artifact, backend: BackendName, precision: Precision, progress: Progress
) -> Artifact:
    if precision == "fp32":
        return fp32
    target = make.TARGETS[backend]
    plan = make.CalibrationPlan(
        data=profile.calib_data or profile.data,
        samples=profile.calib_samples,
        method=profile.calib_method,
        seed=profile.seed,
    )
    return steps.artifact(
        f"model.int8.{target}.onnx" if precision == "int8" else f"model.{precision}.onnx",
        make.lowered_key(fp32, precision, target, plan),
        lambda path: make.lowered(fp32, precision, target, plan, path, progress=progress),
    )


def _bench(profile: Profile, steps: Steps, variants: tuple[Variant, ...], progress: Progress) -> rows.Bench:
    """All variants in one interleaved run, each compared with FP32 on its own backend."""
    baselines = {variant.backend: variant.candidate.label for variant in variants if variant.precision == "fp32"}
    table = [
        rows.Row(
            source=variant.source,
            candidate=variant.candidate,
            baselines=() if variant.precision == "fp32" else (baselines[variant.backend],),
        )
        for variant in variants
    ]

    def measure(path: Path) -> Measurements:
        found = rows.timed(table, duration_s=profile.duration_s, seed=profile.seed, progress=progress)
        failed = [outcome for outcome in found if not isinstance(outcome, Measurement)]
        if failed:
            raise BackendCrash(failed[0].message, code=failed[0].error_code)
        kept = Measurements(measurements=tuple(m for m in found if isinstance(m, Measurement)))
        store.write_json(path, dataclasses.asdict(kept))
        return kept

    keys = [(row.candidate.label, row.candidate.artifact.sha256, row.candidate.execution) for row in table]
    measured = steps.step(
        "measurements.json",
        ("bench", keys, profile.duration_s, profile.seed, machine.cpu().model, machine.isa_name()),
        lambda path: store.read(Measurements, path),
        measure,
    )
    return rows.compared(table, measured.measurements)


def _judged(profile: Profile, variants: tuple[Variant, ...]) -> dict[str, Verdict]:
    """Every low precision against FP32 on the first backend, Holm's correction over all of them."""
    if profile.max_drop_pp is None:
        return {}
    reference = next(variant.predictions for variant in variants if variant.precision == "fp32")
    candidates = [variant for variant in variants if variant.precision != "fp32" and variant.predictions is not None]
    if reference is None or not candidates:
        return {}
    predictions = [variant.predictions for variant in candidates if variant.predictions is not None]
    for variant, predicted in zip(candidates, predictions, strict=True):
        pairs.refuse_leak(variant.source.calibration, predicted)
    verdicts = accuracy.judge_many(reference, predictions, max_drop_pp=profile.max_drop_pp)
    return {variant.candidate.label: verdict for variant, verdict in zip(candidates, verdicts, strict=True)}


def _load_artifact(path: Path) -> Artifact:
    found = store.load(path)
    if found is None:
        raise MissingInput(f"{path} has lost its sidecar")
    return found


def _saved(predictions: Predictions, path: Path) -> Predictions:
    saved.save(predictions, path)
    return predictions
