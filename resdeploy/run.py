"""`run`: a whole profile, step by step; a step whose inputs are unchanged and whose file is intact is skipped."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy import backends, locks, store
from resdeploy.backends import machine
from resdeploy.deploy import build, calibration, candidates, export, lower, model_files, model_string, networks, reuse
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.deploy.resume import Note, Steps
from resdeploy.errors import (
    BackendCrash,
    DiskFull,
    EnvironmentFailure,
    NotWritable,
    OutputLost,
    ProfileError,
    ResdeployError,
)
from resdeploy.judge import accuracy, budgets, pairs
from resdeploy.measure import environment, interleaved, summary
from resdeploy.measure.predictions import load, save, score
from resdeploy.records import (
    Artifact,
    BackendName,
    Check,
    Failure,
    Measurement,
    Precision,
    Predictions,
    Profile,
    Progress,
    Verdict,
)
from resdeploy.report.documents import RunRow
from resdeploy.verbs import evaluate, prune, verdict
from resdeploy.verbs.bench import Bench, Row, compare_rows, time_rows
from resdeploy.verbs.train import outcome_of, train_float


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The network in one precision, as one backend runs it."""

    backend: BackendName
    precision: Precision
    source: Artifact
    candidate: interleaved.Candidate
    baseline: bool  # FP32, and no block dropped: what the others are compared with
    predictions: Predictions | None  # None: the profile names no data


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What `measurements.json` of a run holds."""

    measurements: tuple[Measurement, ...]
    environment: dict[str, Any]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that a profile's run found; verdicts are by label."""

    profile: Profile
    folder: Path
    variants: tuple[Variant, ...]
    bench: Bench
    environment: dict[str, Any]  # of the bench
    verdicts: dict[str, Verdict]
    failures: tuple[Failure, ...] = ()  # what could not be built, run on the images, or timed

    @property
    def verdict(self) -> Verdict | None:
        """All checks of all candidates in one; None where the profile asks for none."""
        checks = tuple(check for verdict in self.verdicts.values() for check in verdict.checks)
        return Verdict(checks=checks) if checks else None


def result_rows(result: Result) -> tuple[RunRow, ...]:
    """One row per variant for the final table: its times, accuracy, speed-up and verdict."""
    outcomes = {outcome.label: outcome for outcome in result.bench.outcomes}
    speedups = {comparison.candidate: comparison for comparison in result.bench.comparisons}
    rows_ = [RunRow(outcome=failure) for failure in result.failures]
    for variant in result.variants:
        label = variant.candidate.label
        outcome = outcomes[label]
        if isinstance(outcome, Failure):
            continue
        rows_.append(
            RunRow(
                outcome=summary.summarise(outcome),
                score=score(variant.predictions) if variant.predictions is not None else None,
                comparison=speedups.get(label),
                verdict=result.verdicts.get(label),
            )
        )
    return tuple(rows_)


def run(profile: Profile, folder: Path, *, progress: Progress, note: Note) -> Result:
    """Trains and drops blocks (if the profile says so), exports, lowers, builds, evaluates, benches, and gates.

    A second run of the folder waits for the first, whose steps it then finds.

    Raises:
        ProfileError: keys that contradict each other.
        BackendMissing: a backend that the profile names cannot run here.
        Locked: another run of the folder took longer than the time-out.
        ResdeployError: what a step raised; finished steps are kept and skipped the next time.
    """
    _check(profile)
    with locks.held(folder / ".lock", f"the folder {folder}"):
        return _run(profile, folder, Steps(folder, note), progress, note)


def _run(profile: Profile, folder: Path, steps: Steps, progress: Progress, note: Note) -> Result:
    fp32 = _fp32(profile, steps, progress, note)
    variants, failures = _variants(profile, steps, fp32, _pruned(profile, steps, fp32, progress), progress)
    accuracies = _judged(profile, variants)
    bench, where = _bench(profile, steps, variants, progress)
    verdicts = _with_budgets(profile, variants, bench, accuracies)
    return Result(
        profile=profile,
        folder=folder,
        variants=variants,
        bench=bench,
        environment=where,
        verdicts=verdicts,
        failures=(*failures, *bench.failures),
    )


def _check(profile: Profile) -> None:
    """Refuses what could only fail later, all of it at once."""
    backend_names = [name for name in profile.backends if backends.load(name).SOURCE == "onnx"]
    limits_given = (profile.max_drop_pp, profile.max_slowdown_pct, profile.max_size_mb, profile.max_memory_mb)
    limited = any(limit is not None for limit in limits_given)
    problems = [
        message
        for wrong, message in (
            (not _is_file_name(profile.name), "name: the name of a folder in runs/, without a path"),
            (profile.epochs < 0, "epochs: a number from 0"),
            (profile.epochs and profile.data is None, "epochs: training needs data"),
            (profile.max_drop_pp is not None and profile.data is None, "max_drop_pp: judging accuracy needs data"),
            (profile.prune_drop_pp is not None and profile.data is None, "prune_drop_pp: dropping blocks needs data"),
            (not 0 <= (profile.prune_drop_pp or 0) < 100, "prune_drop_pp: points of top-1 from 0 up to 100"),
            (not 0 <= (profile.max_drop_pp or 0) < 100, "max_drop_pp: points of top-1 from 0 up to 100"),
            ((profile.max_slowdown_pct or 0) <= -100, "max_slowdown_pct: a percentage above -100"),
            (profile.max_size_mb is not None and profile.max_size_mb <= 0, "max_size_mb: megabytes above 0"),
            (profile.max_memory_mb is not None and profile.max_memory_mb <= 0, "max_memory_mb: megabytes above 0"),
            ("fp32" not in profile.precisions, "precisions: fp32 is what the others are compared with"),
            (
                limited and profile.prune_drop_pp is None and set(profile.precisions) == {"fp32"},
                "precisions: limits need one beside fp32 to be judged",
            ),
            (len(set(profile.precisions)) < len(profile.precisions), "precisions: one is named twice"),
            (not profile.backends, "backends: name at least one"),
            (len(set(profile.backends)) < len(profile.backends), "backends: one is named twice"),
            (len(backend_names) < len(profile.backends), "backends: only those that run ONNX (not torch)"),
            (profile.batch_size < 1, "batch_size: a number from 1"),
            (profile.calib_samples < 1, "calib_samples: a number from 1"),
            (profile.threads is not None and profile.threads < 1, "threads: a number from 1"),
            (profile.duration_s <= 0, "duration_s: seconds above 0"),
            (profile.lr is not None and profile.lr <= 0, "lr: a number above 0"),
        )
        if wrong
    ]
    if problems:
        raise ProfileError(f"profile {profile.name}: " + "; ".join(problems), fix="Correct these keys")
    for name in backend_names:
        backends.require(backends.load(name).available(), name)


def _is_file_name(name: str) -> bool:
    return name == Path(name).name and name not in ("", "..") and name.isprintable()


def _fp32(profile: Profile, steps: Steps, progress: Progress, note: Note) -> Artifact:
    """The profile's network in ONNX, trained first where it says so."""
    sight = PreprocessingOverride(img_size=profile.img_size)
    request = Request(model=profile.model, weights=profile.weights, seed=profile.seed, sight=sight)
    if profile.epochs and profile.data is not None:
        trained = _trained(profile, profile.data, request, steps, progress, note)
        if model_string.format_of(profile.model) is None:  # with its name: a factory's may come from the profile alone
            request = dataclasses.replace(request, weights=trained.path)
        else:
            request = Request(model=trained.path, seed=profile.seed)
    if model_string.format_of(request.model) == "onnx":
        made_from: Any = model_files.open_model(request)
    else:
        network = networks.resolve(request)
        made_from = dataclasses.replace(network, path=None)  # its hash is in `weights`
    return steps.artifact(
        "model.fp32.onnx",
        (made_from, reuse.versions("torch", "onnx", "onnx-ir", "onnxscript")),
        lambda path: export.to_onnx(request, path, data=profile.data, progress=progress),
    )


def _trained(profile: Profile, data: str, request: Request, steps: Steps, progress: Progress, note: Note) -> Artifact:
    """The trained checkpoint; an interrupted training of the same key goes on, another one starts anew."""
    name, started = "model.safetensors", "model.safetensors (begun)"
    key = (
        dataclasses.replace(networks.resolve(request), path=None),
        profile.epochs,
        profile.lr,
        [reuse.data_signature(data, split) for split in ("train", "test")],
        reuse.versions("torch"),
    )

    def train(path: Path) -> Artifact:
        from resdeploy.train import state
        from resdeploy.train.loop import Plan

        resume = steps.recalls(started, key) and state.own(path)
        steps.remember(started, key)
        plan = Plan(epochs=profile.epochs, lr=profile.lr, seed=profile.seed)
        made = train_float(request, data, plan, path, resume=resume, progress=progress)
        if (outcome := outcome_of(made)) is not None:
            note(outcome.told(profile.lr))
        return made

    return steps.artifact(name, key, train)


def _pruned(profile: Profile, steps: Steps, fp32: Artifact, progress: Progress) -> Artifact | None:
    """The network without the blocks that training images can spare; None where the profile keeps them all."""
    if profile.prune_drop_pp is None or profile.data is None:
        return None
    data, drop_pp = profile.data, profile.prune_drop_pp
    signatures = [reuse.data_signature(data, split) for split in ("train", "test")]
    return steps.artifact(
        "model.pruned.fp32.onnx",
        ("prune", fp32.sha256, drop_pp, profile.seed, signatures, reuse.versions("onnx", "onnxruntime", "pillow")),
        lambda path: prune.cut(fp32, data, drop_pp, profile.seed, path, progress=progress),
    )


def _variants(
    profile: Profile, steps: Steps, fp32: Artifact, pruned: Artifact | None, progress: Progress
) -> tuple[tuple[Variant, ...], tuple[Failure, ...]]:
    """Every backend in every precision that it runs; one that fails is a row of the result, and the others go on.

    Where blocks were dropped, that network in all of them, and the whole one in FP32 for the comparison.

    Raises:
        ResdeployError: all failed; the first one's.
    """
    variants: list[Variant] = []
    failures: list[Failure] = []
    errors: list[ResdeployError] = []
    networks = [(fp32, p) for p in profile.precisions if pruned is None or p == "fp32"]
    networks += [(pruned, p) for p in profile.precisions if pruned is not None]
    for backend, (network, precision) in itertools.product(profile.backends, networks):
        if precision not in backends.load(backend).ACCEPTS:
            continue
        stem = ".pruned" if network is pruned else ""
        try:
            variants.append(_variant(profile, steps, network, stem, backend, precision, progress))
        except (BackendCrash, EnvironmentFailure, OutputLost) as e:
            if isinstance(e, (DiskFull, NotWritable)):
                raise
            errors.append(e)
            failures.append(
                Failure(
                    label=_label(profile, stem, backend, precision),
                    model=profile.model,
                    backend=backend,
                    precision=precision,
                    batch_size=profile.batch_size,
                    error_code=e.code,
                    exit_status=e.exit_status,
                    message=str(e),
                )
            )
    if not variants:
        raise errors[0]
    return tuple(variants), tuple(failures)


def _label(profile: Profile, stem: str, backend: BackendName, precision: Precision) -> str:
    return f"{profile.model}{stem.replace('.', ' ')} {backend} {precision}"


def _variant(
    profile: Profile,
    steps: Steps,
    fp32: Artifact,
    stem: str,
    backend: BackendName,
    precision: Precision,
    progress: Progress,
) -> Variant:
    """One backend's model in one precision: lowered, built, and run on the held-out images; its files have `stem`."""
    source = _lowered(profile, steps, fp32, stem, backend, precision, progress)
    execution = candidates.execution_for(source, batch_size=profile.batch_size, threads=profile.threads)
    built = steps.artifact(
        f"{backend}{stem}.{precision}{build.suffix_of(backend)}",
        build.build_key(source, backend, execution),
        lambda path: build.build(source, backend, execution, path),
    )
    candidate = interleaved.Candidate(
        label=_label(profile, stem, backend, precision),
        backend=backend,
        artifact=built,
        execution=execution,
        macs=candidates.cost_of(source).macs,
    )
    predictions = None
    if profile.data is not None:
        data = profile.data
        predictions = steps.step(
            f"{backend}{stem}.{precision}.predictions.npz",
            ("eval", built.sha256, execution, reuse.data_signature(data, "test"), reuse.versions(backend, "pillow")),
            load,
            lambda path: _saved(evaluate.predict_built(candidate, data, progress=progress), path),
        )
    return Variant(
        backend=backend,
        precision=precision,
        source=source,
        candidate=candidate,
        baseline=precision == "fp32" and not stem,
        predictions=predictions,
    )


def _lowered(
    profile: Profile,
    steps: Steps,
    fp32: Artifact,
    stem: str,
    backend: BackendName,
    precision: Precision,
    progress: Progress,
) -> Artifact:
    if precision == "fp32":
        return fp32
    target = lower.TARGETS[backend]
    plan = calibration.CalibrationPlan(
        data=profile.calib_data or profile.data,
        samples=profile.calib_samples,
        method=profile.calib_method,
        arithmetic=profile.calib_precision,
        portable=profile.portable,
        seed=profile.seed,
    )
    return steps.artifact(
        f"model{stem}.int8.{target}.onnx" if precision == "int8" else f"model{stem}.{precision}.onnx",
        lower.lower_key(fp32, precision, target, plan),
        lambda path: lower.lower(fp32, precision, target, plan, path, progress=progress),
    )


def _bench(
    profile: Profile, steps: Steps, variants: tuple[Variant, ...], progress: Progress
) -> tuple[Bench, dict[str, Any]]:
    """All variants in one interleaved run, each compared with FP32 on its own backend; and where that was."""
    baselines = {variant.backend: variant.candidate.label for variant in variants if variant.baseline}
    table = [
        Row(
            source=variant.source,
            candidate=variant.candidate,
            baselines=() if variant.baseline or variant.backend not in baselines else (baselines[variant.backend],),
        )
        for variant in variants
    ]

    def measure(path: Path) -> Measurements:
        found = time_rows(table, duration_s=profile.duration_s, seed=profile.seed, progress=progress)
        kept = Measurements(
            measurements=tuple(m for m in found if isinstance(m, Measurement)),
            environment=environment.capture(),
            failures=tuple(f for f in found if isinstance(f, Failure)),
        )
        store.write_json(path, dataclasses.asdict(kept))
        return kept

    keys = [
        (row.candidate.label, build.build_key(row.source, row.candidate.backend, row.candidate.execution))
        for row in table
    ]
    key = ("bench", keys, profile.duration_s, profile.seed, machine.cpu().model, machine.usable_cores())
    measured = steps.step("measurements.json", key, lambda path: store.read(Measurements, path), measure)
    if measured.failures:
        steps.forget("measurements.json")
    return compare_rows(table, (*measured.measurements, *measured.failures)), measured.environment


def _judged(profile: Profile, variants: tuple[Variant, ...]) -> dict[str, Verdict]:
    """All others against the whole network in FP32 on the first backend, Holm's correction over all of them."""
    if profile.max_drop_pp is None:
        return {}
    reference = next((variant.predictions for variant in variants if variant.baseline), None)
    others = {v.candidate.label: v.predictions for v in variants if not v.baseline and v.predictions is not None}
    if reference is None or not others:
        return {}
    for predicted in others.values():
        pairs.refuse_leak(predicted)
    matched = [pairs.match(reference, predicted) for predicted in others.values()]
    return dict(zip(others, accuracy.judge_many(matched, max_drop_pp=profile.max_drop_pp), strict=True))


def _with_budgets(
    profile: Profile, variants: tuple[Variant, ...], bench: Bench, verdicts: dict[str, Verdict]
) -> dict[str, Verdict]:
    """Every candidate's verdict on accuracy with the checks of its speed against FP32, its memory and its size."""
    budget = verdict.Limits(slowdown_pct=profile.max_slowdown_pct, memory_mb=profile.max_memory_mb)
    found = {outcome.label: outcome for outcome in bench.outcomes if isinstance(outcome, Measurement)}
    fp32 = {v.backend: found[v.candidate.label] for v in variants if v.baseline and v.candidate.label in found}
    timed = [
        (fp32.get(v.backend), found[v.candidate.label])
        for v in variants
        if not v.baseline and v.candidate.label in found
    ]
    measured = verdict.check_runs(timed, budget, confidence=0.95, seed=profile.seed)
    whole = {}
    for (_, new), checks in zip(timed, measured, strict=True):
        of_accuracy = _of_accuracy(profile, verdicts, new.label)
        size = () if profile.max_size_mb is None else (budgets.size(new.size_bytes, max_mb=profile.max_size_mb),)
        if together := (*of_accuracy.checks, *checks, *size):
            whole[new.label] = dataclasses.replace(of_accuracy, checks=together)
    return whole


def _of_accuracy(profile: Profile, verdicts: dict[str, Verdict], label: str) -> Verdict:
    """A limit that was asked for and could not be judged does not pass."""
    if label in verdicts or profile.max_drop_pp is None:
        return verdicts.get(label, Verdict(checks=()))
    check = Check(
        name="top1",
        limit=profile.max_drop_pp,
        observed=None,
        interval=None,
        state="inconclusive",
        unit="points",
        note="FP32 or this model has no predictions to compare: it failed on the images.",
    )
    return Verdict(checks=(check,))


def _saved(predictions: Predictions, path: Path) -> Predictions:
    save(predictions, path)
    return predictions
