"""`run`: a whole profile, step by step; a step whose inputs are unchanged and whose file is intact is skipped."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy import backends, locks, store
from resdeploy.backends import machine
from resdeploy.deploy import build, calibration, candidates, export, lower, model_files, networks, reuse
from resdeploy.deploy.model_string import ForeignName, OnnxFile, PreprocessingOverride, Request, ZooName
from resdeploy.deploy.resume import Note, Steps
from resdeploy.errors import (
    BackendCrash,
    DiskFull,
    EnvironmentFailure,
    NotWritable,
    OutputLost,
    ProfileError,
    ResdeployError,
    refuse,
)
from resdeploy.judge import pairs
from resdeploy.measure import environment, interleaved, one_run, prediction_files, run_images, summary
from resdeploy.records import (
    Artifact,
    BackendName,
    Execution,
    Failure,
    Measurement,
    Precision,
    Predictions,
    Profile,
    Progress,
    Verdict,
)
from resdeploy.report.documents import RunRow
from resdeploy.verbs import judge_limits, prune, train
from resdeploy.verbs.judge_limits import Evidence, Limits

CONFIDENCE = 0.95  # of the verdicts of a profile


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
    bench: one_run.Bench
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
    rows = [RunRow(outcome=failure) for failure in result.failures]
    for variant in result.variants:
        label = variant.candidate.label
        outcome = outcomes[label]
        if isinstance(outcome, Failure):
            continue
        rows.append(
            RunRow(
                outcome=summary.summarise(outcome),
                score=prediction_files.score(variant.predictions) if variant.predictions is not None else None,
                comparison=speedups.get(label),
                verdict=result.verdicts.get(label),
            )
        )
    return tuple(rows)


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
    with locks.hold(folder / ".lock", f"the folder {folder}"):
        making = ProfileRun(profile=profile, steps=Steps(folder, note), progress=progress, note=note)
        fp32 = making.fp32()
        variants, failures = making.variants(fp32, making.prune(fp32))
        accuracies = _judge_accuracy(profile, variants)  # what cannot be judged is refused before minutes of measuring
        bench, where = making.bench(variants)
    return Result(
        profile=profile,
        folder=folder,
        variants=variants,
        bench=bench,
        environment=where,
        verdicts=_judge(profile, variants, bench, accuracies),
        failures=(*failures, *bench.failures),
    )


def _check(profile: Profile) -> None:
    """Refuses what could only fail later, all of it at once."""
    backend_names = [name for name in profile.backends if backends.load(name).SOURCE == "onnx"]
    slowdowns = (profile.max_slowdown_pct, profile.max_cpu_slowdown_pct)
    limits_given = (profile.max_drop_pp, *slowdowns, profile.max_size_mb, profile.max_memory_mb)
    limited = any(limit is not None for limit in limits_given)
    problems: tuple[tuple[object, str], ...] = (
        (not _is_file_name(profile.name), "name: the name of a folder in runs/, without a path"),
        (profile.epochs < 0, "epochs: a number from 0"),
        (profile.epochs and profile.data is None, "epochs: training needs data"),
        (profile.max_drop_pp is not None and profile.data is None, "max_drop_pp: judging accuracy needs data"),
        (profile.prune_drop_pp is not None and profile.data is None, "prune_drop_pp: dropping blocks needs data"),
        (not 0 <= (profile.prune_drop_pp or 0) < 100, "prune_drop_pp: points of top-1 from 0 up to 100"),
        (not 0 <= (profile.max_drop_pp or 0) < 100, "max_drop_pp: points of top-1 from 0 up to 100"),
        ((profile.max_slowdown_pct or 0) <= -100, "max_slowdown_pct: a percentage above -100"),
        ((profile.max_cpu_slowdown_pct or 0) <= -100, "max_cpu_slowdown_pct: a percentage above -100"),
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
    refuse(
        *((wrong, message, "Correct these keys") for wrong, message in problems),
        kind=ProfileError,
        subject=f"profile {profile.name}: ",
    )
    for name in backend_names:
        backends.require(backends.load(name).available(), name)


def _is_file_name(name: str) -> bool:
    return name == Path(name).name and name not in ("", "..") and name.isprintable()


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """A network on a backend in a precision."""

    network: Artifact
    backend: BackendName
    precision: Precision
    pruned: bool

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return f"{self.backend}{'.pruned' if self.pruned else ''}.{self.precision}"


@dataclass(frozen=True, kw_only=True)
class ProfileRun:
    """Makes what a profile asks for, file by file; `steps` remembers what is there already."""

    profile: Profile
    steps: Steps
    progress: Progress
    note: Note

    def fp32(self) -> Artifact:
        """The profile's network in ONNX, trained first where it says so."""
        profile = self.profile
        override = PreprocessingOverride(img_size=profile.img_size)
        request = Request(model=profile.model, weights=profile.weights, seed=profile.seed, sight=override)
        if profile.epochs and profile.data is not None:
            trained = self.train(request, profile.data)
            if isinstance(request.named, (ZooName, ForeignName)):  # a factory may be named by the profile alone
                request = dataclasses.replace(request, weights=trained.path)
            else:
                request = Request(model=trained.path, seed=profile.seed)
        if isinstance(request.named, OnnxFile):
            made_from: Any = model_files.open_model(request)
        else:
            made_from = dataclasses.replace(networks.resolve(request), path=None)  # its hash is in `weights`
        return self.steps.artifact(
            "model.fp32.onnx",
            (made_from, reuse.versions("torch", "onnx", "onnx-ir", "onnxscript")),
            lambda path: export.to_onnx(request, path, data=profile.data, progress=self.progress),
        )

    def train(self, request: Request, data: str) -> Artifact:
        """The trained checkpoint; an interrupted training of the same key goes on, another one starts anew."""
        profile, steps = self.profile, self.steps
        name, started = "model.safetensors", "model.safetensors (begun)"
        key = (
            dataclasses.replace(networks.resolve(request), path=None),
            profile.epochs,
            profile.lr,
            [reuse.data_signature(data, split) for split in ("train", "test")],
            reuse.versions("torch", by_verb=True),
        )

        def make(path: Path) -> Artifact:
            from resdeploy.train import state
            from resdeploy.train.loop import Plan

            resume = steps.recalls(started, key) and state.own(path)
            steps.remember(started, key)
            plan = Plan(epochs=profile.epochs, lr=profile.lr, seed=profile.seed)
            made = train.train_float(request, data, plan, path, resume=resume, progress=self.progress)
            if (outcome := train.outcome_of(made)) is not None:
                self.note(outcome.note(profile.lr))
            return made

        return steps.artifact(name, key, make)

    def prune(self, fp32: Artifact) -> Artifact | None:
        """The network without the blocks that training images can spare; None where the profile keeps them all."""
        drop_pp, data, seed = self.profile.prune_drop_pp, self.profile.data, self.profile.seed
        if drop_pp is None or data is None:
            return None
        signatures = [reuse.data_signature(data, split) for split in ("train", "test")]
        versions = reuse.versions("onnx", "onnxruntime", "pillow", by_verb=True)
        return self.steps.artifact(
            "model.pruned.fp32.onnx",
            ("prune", fp32.sha256, drop_pp, seed, signatures, versions),
            lambda path: prune.cut(fp32, data, drop_pp, seed, path, progress=self.progress),
        )

    def variants(self, fp32: Artifact, pruned: Artifact | None) -> tuple[tuple[Variant, ...], tuple[Failure, ...]]:
        """Every backend in every precision that it runs; one that fails is a row of the result, and the others go on.

        Where blocks were dropped, that network in all of them, and the whole one in FP32 for the comparison.

        Raises:
            ResdeployError: all failed; the first one's.
        """
        variants: list[Variant] = []
        failures: list[Failure] = []
        errors: list[ResdeployError] = []
        networks = [(fp32, p) for p in self.profile.precisions if pruned is None or p == "fp32"]
        networks += [(pruned, p) for p in self.profile.precisions if pruned is not None]
        for backend, (network, precision) in itertools.product(self.profile.backends, networks):
            if precision not in backends.load(backend).ACCEPTS:
                continue
            one = VariantPlan(network=network, backend=backend, precision=precision, pruned=network is pruned)
            try:
                variants.append(self.variant(one))
            except (BackendCrash, EnvironmentFailure, OutputLost) as e:
                if isinstance(e, (DiskFull, NotWritable)):
                    raise
                errors.append(e)
                failures.append(self._failure(one, e))
        if not variants:
            raise errors[0]
        return tuple(variants), tuple(failures)

    def _label(self, one: VariantPlan) -> str:
        return f"{self.profile.model}{' pruned' if one.pruned else ''} {one.backend} {one.precision}"

    def _failure(self, one: VariantPlan, error: ResdeployError) -> Failure:
        return Failure.of(
            error,
            label=self._label(one),
            model=self.profile.model,
            backend=one.backend,
            precision=one.precision,
            batch_size=self.profile.batch_size,
        )

    def variant(self, one: VariantPlan) -> Variant:
        """One backend's model in one precision: lowered, built, and run on the held-out images."""
        profile, source = self.profile, self._lower(one)

        def make(source: Artifact, backend: BackendName, execution: Execution) -> Artifact:
            return self.steps.artifact(
                f"{one.stem}{build.suffix_of(backend)}",
                build.build_key(source, backend, execution),
                lambda path: build.build(source, backend, execution, path),
            )

        candidate = candidates.candidate(
            source,
            one.backend,
            label=self._label(one),
            batch_size=profile.batch_size,
            threads=profile.threads,
            make=make,
        )
        candidate = dataclasses.replace(candidate, macs=candidates.cost_of(source).macs)
        return Variant(
            backend=one.backend,
            precision=one.precision,
            source=source,
            candidate=candidate,
            baseline=one.precision == "fp32" and not one.pruned,
            predictions=None if profile.data is None else self._answers(one, candidate, profile.data),
        )

    def _answers(self, one: VariantPlan, candidate: interleaved.Candidate, data: str) -> Predictions:
        """Per-image answers on the held-out images, kept in a file."""

        def make(path: Path) -> Predictions:
            answers = run_images.predict_test_split(candidate, data, progress=self.progress)
            prediction_files.save(answers, path)
            return answers

        versions = reuse.versions(*backends.load(one.backend).PACKAGES, "pillow")
        signature = reuse.data_signature(data, "test")
        key = ("eval", candidate.artifact.sha256, candidate.execution, signature, versions)
        return self.steps.step(f"{one.stem}.predictions.npz", key, prediction_files.load, make)

    def _lower(self, one: VariantPlan) -> Artifact:
        """The network in the precision that is wanted."""
        profile, network, precision = self.profile, one.network, one.precision
        if precision == "fp32":
            return network
        target = backends.load(one.backend).TARGET
        plan = calibration.CalibrationPlan(
            data=profile.calib_data or profile.data,
            samples=profile.calib_samples,
            method=profile.calib_method,
            arithmetic=profile.calib_precision,
            portable=profile.portable,
            seed=profile.seed,
        )
        stem = "model.pruned" if one.pruned else "model"
        return self.steps.artifact(
            f"{stem}.int8.{target}.onnx" if precision == "int8" else f"{stem}.{precision}.onnx",
            lower.lower_key(network, precision, target, plan),
            lambda path: lower.lower(network, precision, target, plan, path, progress=self.progress),
        )

    def bench(self, variants: tuple[Variant, ...]) -> tuple[one_run.Bench, dict[str, Any]]:
        """All variants in one interleaved run, each compared with FP32 on its own backend; and where that was."""
        profile = self.profile
        baselines = {variant.backend: variant.candidate.label for variant in variants if variant.baseline}
        table = [
            one_run.Row(
                source=variant.source,
                candidate=variant.candidate,
                baselines=() if variant.baseline or variant.backend not in baselines else (baselines[variant.backend],),
            )
            for variant in variants
        ]

        def measure(path: Path) -> Measurements:
            outcomes = one_run.time_rows(
                table,
                interleaved.Schedule(duration_s=profile.duration_s, seed=profile.seed, max_time_s=profile.max_time_s),
                interleaved.Listener(progress=self.progress),
                questions=_questions(table, profile),
            )
            kept = Measurements(
                measurements=tuple(m for m in outcomes if isinstance(m, Measurement)),
                environment=environment.capture(),
                failures=tuple(f for f in outcomes if isinstance(f, Failure)),
            )
            store.write_json(path, dataclasses.asdict(kept))
            return kept

        keys = [
            (row.candidate.label, build.build_key(row.source, row.candidate.backend, row.candidate.execution))
            for row in table
        ]
        key = (
            "bench",
            keys,
            profile.duration_s,
            profile.max_time_s,
            profile.max_slowdown_pct,
            profile.max_cpu_slowdown_pct,
            profile.seed,
            machine.cpu().model,
            machine.usable_cores(),
        )
        kept = self.steps.step("measurements.json", key, lambda path: store.read(Measurements, path), measure)
        if kept.failures:
            self.steps.forget("measurements.json")
        return one_run.compare_rows(table, (*kept.measurements, *kept.failures)), kept.environment


def _questions(table: Sequence[one_run.Row], profile: Profile) -> tuple[interleaved.Question, ...]:
    """How fast each row is against its baseline, and whether it is within the limit where there is one."""
    sides = [(baseline, row.candidate.label) for row in table for baseline in row.baselines]
    limits = Limits(slowdown_pct=profile.max_slowdown_pct, cpu_slowdown_pct=profile.max_cpu_slowdown_pct)
    return (
        *(interleaved.Question(baseline=baseline, candidate=candidate) for baseline, candidate in sides),
        *judge_limits.questions(sides, limits, confidence=CONFIDENCE),
    )


def _judge_accuracy(profile: Profile, variants: tuple[Variant, ...]) -> dict[str, Verdict]:
    """All others against the whole network in FP32 on the first backend, by label; none where no limit asks for it."""
    if profile.max_drop_pp is None:
        return {}
    reference = next((variant.predictions for variant in variants if variant.baseline), None)
    answers: dict[str, pairs.Pair | None] = {}
    for variant in variants:
        if not variant.baseline:
            own = variant.predictions
            if own is not None:
                pairs.refuse_leak(own)
            pair = None if reference is None or own is None else pairs.match(reference, own)
            answers[variant.candidate.label] = pair
    verdicts = judge_limits.judge_answers(
        list(answers.values()), Limits(drop_pp=profile.max_drop_pp), confidence=CONFIDENCE
    )
    return dict(zip(answers, verdicts, strict=True))


def _judge(
    profile: Profile, variants: tuple[Variant, ...], bench: one_run.Bench, accuracies: dict[str, Verdict]
) -> dict[str, Verdict]:
    """A verdict on every candidate that was timed; Holm's correction is over all, timed or not.

    Its speed is judged against FP32 on its own backend.
    """
    limits = Limits(
        slowdown_pct=profile.max_slowdown_pct,
        cpu_slowdown_pct=profile.max_cpu_slowdown_pct,
        memory_mb=profile.max_memory_mb,
        size_mb=profile.max_size_mb,
    )
    runs = {outcome.label: outcome for outcome in bench.outcomes if isinstance(outcome, Measurement)}
    fp32 = {v.backend: runs.get(v.candidate.label) for v in variants if v.baseline}
    evidence: dict[str, Evidence] = {}
    for variant in variants:
        label = variant.candidate.label
        if not variant.baseline and (run := runs.get(label)) is not None:
            evidence[label] = Evidence(
                accuracy=accuracies.get(label),
                times=judge_limits.times_of_run(fp32.get(variant.backend), run),
                size_bytes=run.size_bytes,
                peak_rss_bytes=run.peak_rss_bytes,
            )
    verdicts = judge_limits.judge(list(evidence.values()), limits, confidence=CONFIDENCE)
    return {label: one for label, one in zip(evidence, verdicts, strict=True) if one.checks}
