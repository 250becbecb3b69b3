"""`eval`: accuracy on real images."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.deploy import candidates
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.measure import run_images
from resdeploy.records import Artifact, BackendName, Precision, Predictions, Progress, Shard
from resdeploy.verbs import float_fallback


@dataclass(frozen=True, kw_only=True)
class EvalPlan:
    """On which images to measure accuracy, and how to run."""

    data: str
    backend: str = "auto"
    precision: Precision | None = None  # None: what the model is
    batch_size: int = 32
    threads: int | None = None
    skip_bad: bool = False
    keep_logits: bool = True
    shard: Shard | None = None  # None: all images


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model's predictions and what they were made with."""

    source: Artifact
    backend: BackendName
    predictions: Predictions


def evaluate(request: Request, plan: EvalPlan, calibration: CalibrationPlan, *, progress: Progress) -> Evaluation:
    """Runs every image of the data set's test split, or of a shard of it, through the model.

    Raises:
        MalformedInput: images that cannot be decoded (each named), unless `skip_bad`.
        UsageError: more shards than batches.
    """
    backend = candidates.pick_backend(request, plan.backend, plan.precision)
    source = candidates.source_for(request, backend, plan.precision, calibration, progress=progress)
    candidate = candidates.candidate(source, backend, batch_size=plan.batch_size, threads=plan.threads)
    float_fallback.warn(source, candidate)
    predictions = run_images.predict_test_split(
        candidate,
        plan.data,
        shard=plan.shard,
        skip_bad=plan.skip_bad,
        keep_logits=plan.keep_logits,
        progress=progress,
    )
    return Evaluation(source=source, backend=backend, predictions=predictions)
