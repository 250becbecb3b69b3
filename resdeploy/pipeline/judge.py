"""`eval` and `gate`: accuracy on real images, and whether a candidate may replace a baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from resdeploy.backends import choose
from resdeploy.errors import MalformedInput, UsageError, of_code
from resdeploy.judge import accuracy, pairs, speed
from resdeploy.measure import bench as timing
from resdeploy.measure import evaluate as evaluation
from resdeploy.measure import predictions as saved
from resdeploy.measure import summary
from resdeploy.pipeline import bench as rows
from resdeploy.pipeline import make, sources
from resdeploy.pipeline.request import Request, Sight
from resdeploy.records import Artifact, BackendName, Check, Failure, Precision, Predictions, Progress, Verdict

SAVED = (".npz", ".json", ".csv")
DECODED = 32  # images decoded at a time, whatever the batch size of the model


@dataclass(frozen=True, kw_only=True)
class EvalPlan:
    """On which images to measure accuracy, and how to run."""

    data: str
    backend: str = "auto"
    precision: Precision | None = None  # None: what the model is
    batch_size: int = 32
    threads: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model's predictions and what they were made with."""

    source: Artifact
    backend: BackendName
    predictions: Predictions


@dataclass(frozen=True, kw_only=True)
class GatePlan:
    """What a candidate may lose."""

    max_drop_pp: float
    max_slowdown_pct: float | None = None
    data: str | None = None
    sight: Sight = field(default_factory=Sight)
    skip_bad: bool = False
    confidence: float = 0.95
    backend: str = "auto"
    batch_size: int = 32
    threads: int | None = None
    duration_s: float = 3.0
    seed: int = 0


def evaluate(request: Request, plan: EvalPlan, calibration: make.CalibrationPlan, *, progress: Progress) -> Evaluation:
    """Runs every image of the data set's test split through the model.

    Raises:
        MalformedInput: images that cannot be decoded (each named), unless `skip_bad`.
    """
    backend, _ = choose.pick(plan.backend, plan.precision or "fp32")
    source = rows.source_for(request, backend, plan.precision, calibration, progress=progress)
    return Evaluation(source=source, backend=backend, predictions=predict(source, backend, plan, progress=progress))


def predict(source: Artifact, backend: BackendName, plan: EvalPlan, *, progress: Progress) -> Predictions:
    """Per-image results of a file on the data set's test split."""
    execution = rows.execution_for(source, batch_size=plan.batch_size, threads=plan.threads)
    candidate = timing.Candidate(
        label=f"{sources.stem(source.path)} {backend}",
        backend=backend,
        artifact=make.built(source, backend, execution),
        execution=execution,
    )
    return predict_built(candidate, plan.data, skip_bad=plan.skip_bad, progress=progress)


def predict_built(candidate: timing.Candidate, data: str, *, skip_bad: bool = False, progress: Progress) -> Predictions:
    """Per-image results of a built model on the data set's test split.

    Raises:
        MalformedInput: images that cannot be decoded (each named), unless `skip_bad`.
    """
    from resdeploy.data import datasets

    images = datasets.open_dataset(data, split="test")
    model = candidate.artifact.model
    found = evaluation.predict(
        candidate,
        images,
        model.preprocessing if model else None,
        batch_size=max(DECODED, candidate.execution.batch_size),
        progress=progress,
    )
    if found.unreadable and not skip_bad:
        shown = ", ".join(found.unreadable[:5]) + (" ..." if len(found.unreadable) > 5 else "")
        raise MalformedInput(
            f"{len(found.unreadable)} of {len(images)} images cannot be decoded: {shown}",
            fix="Repair or remove them; eval and gate go on without them with --skip-bad",
        )
    return found


def gate(baseline: str, candidate: str, plan: GatePlan, *, progress: Progress) -> Verdict:
    """Judges a candidate against a baseline; each is a model, or a file of saved predictions.

    Raises:
        UsageError: a model without data; `max_slowdown_pct` without two models; a candidate calibrated on synthetic
            images or on the evaluation images; predictions of different images.
    """
    if plan.max_slowdown_pct is not None and any(Path(name).suffix.lower() in SAVED for name in (baseline, candidate)):
        raise UsageError("--max-slowdown compares two models, not saved predictions", fix="Name the model files")
    sides = [_side(name, plan, progress) for name in (baseline, candidate)]
    for source, predictions in sides:
        if source is not None:
            pairs.refuse_leak(source.calibration, predictions)
    (_, before), (_, after) = sides
    verdict = accuracy.judge(before, after, max_drop_pp=plan.max_drop_pp, confidence=plan.confidence)
    if plan.max_slowdown_pct is None:
        return verdict
    models = [source for source, _ in sides if source is not None]
    return Verdict(checks=(*verdict.checks, _slowdown(models[0], models[1], plan, progress)))


def _side(name: str, plan: GatePlan, progress: Progress) -> tuple[Artifact | None, Predictions]:
    """A model's file and predictions, or saved predictions alone."""
    if Path(name).suffix.lower() in SAVED:
        return None, saved.load(Path(name))
    if plan.data is None:
        raise UsageError(f"{name} is a model, and judging it needs images", fix="Add --data DIR")
    evaluation_plan = EvalPlan(
        data=plan.data, backend=plan.backend, batch_size=plan.batch_size, threads=plan.threads, skip_bad=plan.skip_bad
    )
    found = evaluate(
        Request(model=name, seed=plan.seed, sight=plan.sight),
        evaluation_plan,
        make.CalibrationPlan(),
        progress=progress,
    )
    return found.source, found.predictions


def _slowdown(baseline: Artifact, candidate: Artifact, plan: GatePlan, progress: Progress) -> Check:
    """Both models timed in one interleaved run, one image a query."""
    assert plan.max_slowdown_pct is not None
    backend, _ = choose.pick(plan.backend, candidate.precision)
    table = []
    for role, source in (("baseline", baseline), ("candidate", candidate)):
        execution = rows.execution_for(source, batch_size=1, threads=plan.threads)
        built = make.built(source, backend, execution)
        row = timing.Candidate(label=role, backend=backend, artifact=built, execution=execution)
        table.append(rows.Row(source=source, candidate=row, baselines=()))
    outcomes = rows.timed(table, duration_s=plan.duration_s, seed=plan.seed, progress=progress)
    times = []
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise of_code(outcome.error_code)(outcome.message)
        times.append(summary.per_image_s(outcome))
    return speed.judge(*times, max_slowdown_pct=plan.max_slowdown_pct, confidence=plan.confidence, seed=plan.seed)
