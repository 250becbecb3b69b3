"""Makes what a profile asks for, file by file, and remembers what is there already."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy import backends, store
from resdeploy.backends import machine
from resdeploy.deploy import (
    build,
    calibration,
    candidates,
    export,
    lower,
    model_files,
    model_string,
    networks,
    pixel_input,
    reuse,
)
from resdeploy.deploy.model_string import ForeignName, OnnxFile, PreprocessingOverride, Request, ZooName
from resdeploy.deploy.resume import Note, Steps
from resdeploy.errors import (
    BackendCrash,
    DiskFull,
    EnvironmentFailure,
    NothingRemoved,
    NotWritable,
    OutputLost,
    ResdeployError,
)
from resdeploy.measure import environment, interleaved, lull, one_run, prediction_files, run_images
from resdeploy.records import (
    Artifact,
    Audit,
    BackendName,
    Execution,
    Failure,
    Measurement,
    Precision,
    Predictions,
    Profile,
    Progress,
    Target,
)
from resdeploy.run import profile_limits
from resdeploy.verbs import prune, quantize, train
from resdeploy.verbs.audit_candidate import audit_candidate


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The network in one precision, as one backend runs it."""

    backend: BackendName
    precision: Precision
    source: Artifact
    candidate: interleaved.Candidate
    baseline: bool  # FP32, and no block dropped: what the others are compared with
    predictions: Predictions | None  # None: the profile names no data, or images are seen in order, later
    audit: Audit | None = None  # None: the profile wants none


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What `measurements.json` of a run holds."""

    measurements: tuple[Measurement, ...]
    environment: dict[str, Any]
    failures: tuple[Failure, ...] = ()


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
        override = PreprocessingOverride(
            img_size=profile.img_size,
            resize=profile.resize,
            interpolation=profile.interpolation,
            mean=profile.mean,
            std=profile.std,
        )
        request = Request(
            model=profile.model, weights=profile.weights, classes=profile.classes, seed=profile.seed, override=override
        )
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
            "export",
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
            self._how_to_train(),
            [reuse.data_signature(data, split) for split in ("train", "test")],
            reuse.versions("torch", by_verb=True),
        )

        def make(path: Path) -> Artifact:
            from resdeploy.train import state
            from resdeploy.train.loop import Plan

            resume = steps.recalls(started, key) and state.own(path)
            steps.remember(started, key)
            plan = Plan(seed=profile.seed, **self._how_to_train())
            made = train.train_float(request, data, plan, path, resume=resume, progress=self.progress)
            if (outcome := train.outcome_of(made)) is not None:
                self.note(outcome.note(profile.lr))
            return made

        return steps.artifact("train", name, key, make)

    def _how_to_train(self) -> dict[str, Any]:
        """The fields of `train.loop.Plan` that the profile decides on."""
        profile = self.profile
        return {
            "epochs": profile.epochs,
            "lr": profile.lr,
            "recipe": profile.recipe,
            "batch_size": profile.train_batch_size,
            "accumulate": profile.accumulate,
            "hold_out": profile.hold_out,
            "augmentation": profile.augmentation,
            "precision": profile.train_precision,
            "threads": profile.threads,
        }

    def prune(self, fp32: Artifact) -> Artifact | None:
        """The network without the blocks that training images can spare; None where it keeps them all."""
        drop_pp, data, seed = self.profile.prune_drop_pp, self.profile.data, self.profile.seed
        if drop_pp is None or data is None:
            return None
        signatures = [reuse.data_signature(data, split) for split in ("train", "test")]
        versions = reuse.versions("onnx", "onnxruntime", "pillow", by_verb=True)
        try:
            return self.steps.artifact(
                "prune",
                "model.pruned.fp32.onnx",
                ("prune", fp32.sha256, drop_pp, seed, signatures, versions),
                lambda path: prune.prune_unjudged(fp32, data, drop_pp, seed, path, progress=self.progress),
            )
        except NothingRemoved as e:
            self.note(f"prune_drop_pp: {e.what}; the whole network is taken")
            return None

    def as_input(self, network: Artifact) -> Artifact:
        """The network with the input that the profile asks for: floats, or raw pixels."""
        data = self.profile.data
        if self.profile.input == "float32":
            return network
        name = Path(network.path).name.replace(".fp32.", ".uint8.fp32.")
        return self.steps.artifact(
            "export",
            name,
            ("uint8", network.sha256, data, reuse.versions("onnx")),
            lambda path: pixel_input.uint8_input(network, path, data=data),
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
        named = model_string.classify(self.profile.model)
        name = self.profile.model if isinstance(named, (ZooName, ForeignName)) else named.path.stem
        return f"{name}{' pruned' if one.pruned else ''} {one.backend} {one.precision}"

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
        """One backend's model in one precision: lowered, built, audited, and run on the held-out images."""
        profile, source = self.profile, self._lower(one)

        def make(source: Artifact, backend: BackendName, execution: Execution) -> Artifact:
            return self.steps.artifact(
                "build",
                f"{one.stem}{build.suffix_of(backend)}",
                build.build_key(source, backend, execution),
                lambda path: build.build(source, backend, execution, path),
            )

        streams = candidates.streams_of(profile.scenario, profile.streams, profile.threads)
        candidate = candidates.candidate(
            source,
            one.backend,
            label=self._label(one),
            execution=candidates.execution_for(
                source, batch_size=profile.batch_size, threads=profile.threads, streams=streams
            ),
            make=make,
        )
        macs = candidates.cost_of(source).macs
        candidate = dataclasses.replace(candidate, macs=macs, scenario=profile.scenario)
        answers = profile.data is not None and not profile.sequential
        return Variant(
            backend=one.backend,
            precision=one.precision,
            source=source,
            candidate=candidate,
            baseline=one.precision == "fp32" and not one.pruned,
            audit=self._audit(one, source, candidate) if profile.audit else None,
            predictions=self._answers(one, candidate, profile.data) if answers and profile.data else None,
        )

    def _audit(self, one: VariantPlan, source: Artifact, candidate: interleaved.Candidate) -> Audit | None:
        """What the backend executes, held against the graph, kept in a file; None where that cannot be told.

        Raises:
            ResdeployError: it cannot be told, and is to be judged.
        """

        def make(path: Path) -> Audit:
            self.progress(f"auditing {candidate.label}", 0, 1)
            seen = audit_candidate(source, candidate)
            store.write_json(path, dataclasses.asdict(seen))
            return seen

        versions = reuse.versions(*backends.load(one.backend).PACKAGES, by_verb=True)
        key = ("audit", source.sha256, candidate.artifact.sha256, candidate.execution, versions)
        try:
            return self.steps.step("audit", f"{one.stem}.audit.json", key, lambda path: store.read(Audit, path), make)
        except ResdeployError as e:
            if self.profile.require_fused or isinstance(e, (DiskFull, NotWritable)):
                raise
            self.note(f"{candidate.label} was not audited: {e.what}")
            return None

    def _answers(self, one: VariantPlan, candidate: interleaved.Candidate, data: str) -> Predictions:
        """Per-image answers on the held-out images, kept in a file."""

        def make(path: Path) -> Predictions:
            answers = run_images.predict_test_split(
                candidate, data, skip_bad=self.profile.skip_bad, progress=self.progress
            )
            prediction_files.save(answers, path)
            return answers

        versions = reuse.versions(*backends.load(one.backend).PACKAGES, "pillow")
        signature = reuse.data_signature(data, "test")
        key = ("eval", candidate.artifact.sha256, candidate.execution, signature, self.profile.skip_bad, versions)
        return self.steps.step("eval", f"{one.stem}.predictions.npz", key, prediction_files.load, make)

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
            effort=profile.effort,
            seed=profile.seed,
        )
        stem = "model.pruned" if one.pruned else "model"
        name = f"{stem}.int8.{target}.onnx" if precision == "int8" else f"{stem}.{precision}.onnx"
        key = lower.lower_key(network, precision, target, plan)
        if precision == "int8" and profile.search_drop_pp is not None and target is not None:
            return self._search(network, target, plan, name, key)
        return self.steps.artifact(
            "quantize",
            name,
            key,
            lambda path: lower.lower(network, precision, target, plan, path, progress=self.progress),
        )

    def _search(
        self, network: Artifact, target: Target, plan: calibration.CalibrationPlan, name: str, key: Any
    ) -> Artifact:
        """The fastest mix of INT8 and floats within the budget, on the held-out images."""
        profile = self.profile
        assert profile.data is not None
        goal = quantize.QuantizeGoal(
            max_drop_pp=profile.search_drop_pp,
            data=profile.data,
            confidence=profile.confidence,
            duration_s=profile.duration_s,
            max_time_s=profile.max_time_s,
        )

        def make(path: Path) -> Artifact:
            found = quantize.quantize(network, "int8", target, plan, path, goal, progress=self.progress)
            self.note(found.artifact.notes[-1])
            return found.artifact

        signature = reuse.data_signature(profile.data, "test")
        whole = ("search", key, goal, signature, machine.cpu().model, reuse.versions(by_verb=True))
        return self.steps.artifact("quantize", name, whole, make)

    def bench(self, variants: tuple[Variant, ...]) -> tuple[one_run.Bench, dict[str, Any]]:
        """All variants in one interleaved run, each compared with FP32 on its own backend; and where that was."""
        baselines = {variant.backend: variant.candidate.label for variant in variants if variant.baseline}
        table = [
            one_run.Row(
                source=variant.source,
                candidate=variant.candidate,
                baselines=() if variant.baseline or variant.backend not in baselines else (baselines[variant.backend],),
            )
            for variant in variants
        ]
        key = self._bench_key(table)
        kept = self.steps.step(
            "bench", "measurements.json", key, lambda path: store.read(Measurements, path), self._measure(table)
        )
        if kept.failures:
            self.steps.forget("measurements.json")
        return one_run.compare_rows(table, (*kept.measurements, *kept.failures)), kept.environment

    def _bench_key(self, table: list[one_run.Row]) -> Any:
        """All that the times depend on; not how long a quiet machine was waited for."""
        profile = self.profile
        rows = [
            (row.candidate.label, build.build_key(row.source, row.candidate.backend, row.candidate.execution))
            for row in table
        ]
        limits = (profile.max_slowdown_pct, profile.max_cpu_slowdown_pct, profile.confidence)
        how = (profile.duration_s, profile.max_time_s, profile.scenario, profile.seed)
        return ("bench", rows, limits, how, machine.cpu().model, machine.usable_cores())

    def _measure(self, table: list[one_run.Row]) -> Callable[[Path], Measurements]:
        """Times the rows and keeps what was measured in a file."""
        profile = self.profile

        def measure(path: Path) -> Measurements:
            if profile.wait_quiet_s is not None:
                self.note(lull.wait(profile.wait_quiet_s, progress=self.progress).note)
            outcomes = one_run.time_rows(
                table,
                interleaved.Schedule(duration_s=profile.duration_s, seed=profile.seed, max_time_s=profile.max_time_s),
                interleaved.Listener(progress=self.progress),
                questions=profile_limits.questions(table, profile),
            )
            kept = Measurements(
                measurements=tuple(m for m in outcomes if isinstance(m, Measurement)),
                environment=environment.capture(),
                failures=tuple(f for f in outcomes if isinstance(f, Failure)),
            )
            store.write_json(path, dataclasses.asdict(kept))
            return kept

        return measure
