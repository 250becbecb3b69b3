"""`eval`: accuracy on real images."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.backends import choose
from resdeploy.deploy import build, calibration, candidates, model_string
from resdeploy.deploy.model_string import Request
from resdeploy.errors import MalformedInput
from resdeploy.measure import interleaved, run_images
from resdeploy.records import Artifact, BackendName, Precision, Predictions, Progress

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
    keep_logits: bool = True


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model's predictions and what they were made with."""

    source: Artifact
    backend: BackendName
    predictions: Predictions


def evaluate(
    request: Request, plan: EvalPlan, calibration: calibration.CalibrationPlan, *, progress: Progress
) -> Evaluation:
    """Runs every image of the data set's test split through the model.

    Raises:
        MalformedInput: images that cannot be decoded (each named), unless `skip_bad`.
    """
    backend, _ = choose.pick(plan.backend, plan.precision or "fp32")
    source = candidates.source_for(request, backend, plan.precision, calibration, progress=progress)
    return Evaluation(source=source, backend=backend, predictions=predict(source, backend, plan, progress=progress))


def predict(source: Artifact, backend: BackendName, plan: EvalPlan, *, progress: Progress) -> Predictions:
    """Per-image results of a file on the data set's test split."""
    execution = candidates.execution_for(source, batch_size=plan.batch_size, threads=plan.threads)
    candidate = interleaved.Candidate(
        label=f"{model_string.stem(source.path)} {backend}",
        backend=backend,
        artifact=build.build(source, backend, execution),
        execution=execution,
    )
    return predict_built(candidate, plan.data, skip_bad=plan.skip_bad, keep_logits=plan.keep_logits, progress=progress)


def predict_built(
    candidate: interleaved.Candidate, data: str, *, skip_bad: bool = False, keep_logits: bool = True, progress: Progress
) -> Predictions:
    """Per-image results of a built model on the data set's test split.

    Raises:
        MalformedInput: images that cannot be decoded (each named), unless `skip_bad`.
    """
    from resdeploy.data import datasets

    images = datasets.open_dataset(data, split="test")
    model = candidate.artifact.model
    found = run_images.predict(
        candidate,
        images,
        model.preprocessing if model else None,
        batch_size=max(DECODED, candidate.execution.batch_size),
        keep_logits=keep_logits,
        progress=progress,
    )
    if found.unreadable and not skip_bad:
        shown = ", ".join(found.unreadable[:5]) + (" ..." if len(found.unreadable) > 5 else "")
        raise MalformedInput(
            f"{len(found.unreadable)} of {len(images)} images cannot be decoded: {shown}",
            fix="Repair or remove them; eval and gate go on without them with --skip-bad",
        )
    return found
