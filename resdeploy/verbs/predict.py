"""`predict`: what a model sees on single images, by the names of its classes and with probabilities."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.backends.lane import Lane
from resdeploy.data import folder, loading
from resdeploy.deploy import candidates
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError
from resdeploy.measure import prediction_files, run_images
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Answer, Answered, BackendName, ModelSpec, Precision, Preprocessing, Progress

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

DECODED = 32  # images decoded ahead of the model, at least


@dataclass(frozen=True, kw_only=True)
class PredictPlan:
    """How to run a model on images."""

    backend: str = "auto"
    precision: Precision | None = None  # None: what the model is
    batch_size: int = 1
    threads: int | None = None


class Predictor:
    """A model that is open and answers; a context manager, or `close` it.

    The runtime lives in a process of its own (`backends.lane`), which ends with the thread that made this object.
    Several threads may ask; their questions are answered one after the other.

    Attributes:
        spec: what is known of the network: name, classes, input shape, preprocessing.
        backend: what runs it.
        precision: what it computes in.
    """

    def __init__(self, candidate: Candidate) -> None:
        """Opens it.

        Raises:
            UsageError: the model does not say how it sees images.
            ResdeployError: what the backend raised.
        """
        assert candidate.artifact.model is not None
        self.spec: ModelSpec = candidate.artifact.model
        self.backend: BackendName = candidate.backend
        self.precision: Precision = candidate.artifact.precision
        self._candidate = candidate
        self._preprocessing: Preprocessing = run_images.require_preprocessing(self.spec.preprocessing, candidate)
        self._lock = threading.Lock()
        self._lane = Lane(candidate.backend)
        try:
            self._lane.open(candidate.artifact, candidate.execution)
        except BaseException:
            self._lane.close()
            raise

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the runtime's process; closing twice is as good as once."""
        self._lane.close()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes, in the order of the logits; their numbers where the model knows no names."""
        return self.spec.labels or tuple(map(str, range(self.spec.classes)))

    def predict(self, images: Any, *, top: int = 5) -> tuple[Answer, ...]:
        """The likeliest classes of each image, in the images' order.

        Args:
            images: one image or a sequence of them, each a path of a JPEG or PNG file, its bytes, an image of Pillow,
                or uint8 pixels of shape (H, W, 3) in RGB or (H, W) in grey.
            top: how many classes of each.

        Raises:
            UsageError: no image, another kind of image, or one whose size the preprocessing cannot make the model's.
            MalformedInput: images that cannot be decoded, the first of them named.
            ResdeployError: what the backend raised.
        """
        return self.answer(images, top=top).answers

    def answer(self, images: Any, *, top: int = 5, progress: Progress | None = None) -> Answered:
        """As `predict`, with the time that an image took.

        Raises:
            ResdeployError: as `predict`.
        """
        given = loading.given(images)
        begun = time.perf_counter()
        logits, answering_s = self._run(given, progress)
        spent_s = time.perf_counter() - begun
        shares, names = to_probabilities(logits), self.classes
        best = prediction_files.top_classes(logits, top)
        answers = tuple(
            Answer(
                image=image,
                classes=tuple(row.tolist()),
                names=tuple(names[k] for k in row),
                probabilities=tuple(share[row].tolist()),
            )
            for image, row, share in zip(given.ids, best, shares, strict=True)
        )
        return Answered(
            model=self.spec.name,
            backend=self.backend,
            precision=self.precision,
            answers=answers,
            prepare_s=(spent_s - answering_s) / len(logits),
            answer_s=answering_s / len(logits),
        )

    def logits(self, images: Any) -> NDArray[np.float32]:
        """What the model computes, (N, classes), bit for bit as in `eval` with as many threads and this batch size.

        Raises:
            ResdeployError: as `predict`.
        """
        return self._run(loading.given(images), None)[0]

    def _run(self, given: loading.Given, progress: Progress | None) -> tuple[NDArray[np.float32], float]:
        """Logits, (N, classes), and the seconds that the runtime's process took for them."""
        rows, unreadable, answering_s = [], list[str](), 0.0
        ahead = max(DECODED, self._candidate.execution.batch_size)
        with self._lock:
            for batch in loading.batches(given, self._preprocessing, ahead, progress=progress):
                asked = time.perf_counter()
                rows.append(run_images.require_finite(self._lane.predict(batch.inputs), self._candidate))
                answering_s += time.perf_counter() - asked
                unreadable += batch.unreadable
        run_images.refuse_unreadable(unreadable, len(given.ids))
        logits = np.concatenate(rows)
        if logits.ndim != 2:
            raise UsageError(
                f"{self.spec.name} gives an output of shape {list(logits.shape)}, not (images, classes)",
                fix="Give a classifier",
            )
        return logits, answering_s


def open_predictor(
    request: Request, plan: PredictPlan, calibration: CalibrationPlan, *, progress: Progress
) -> Predictor:
    """A model made ready as `eval` does, and opened.

    Raises:
        ResdeployError: as `candidates.source_for`, and as `Predictor`.
    """
    backend = candidates.pick_backend(request, plan.backend, plan.precision)
    source = candidates.source_for(request, backend, plan.precision, calibration, progress=progress)
    return Predictor(candidates.candidate(source, backend, batch_size=plan.batch_size, threads=plan.threads))


def to_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax of logits (N, classes); rows that are probabilities by now (a network that ends in one) stay.

    Those are recognised by being none below 0 with a sum of 1 to within 1e-3, which FP16 keeps; logits are so by
    chance alone.
    """
    values = logits.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1, rtol=0, atol=1e-3):
        return values
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def paths_of(images: Sequence[Path]) -> tuple[Path, ...]:
    """Image files, and those in folders that were named, sorted by name.

    Raises:
        UsageError: no such file, or a folder without JPEG or PNG files.
    """
    found: list[Path] = []
    for path in images:
        if not path.is_dir():
            if not path.exists():
                raise UsageError(f"there is no image {path}", fix="Name JPEG or PNG files, or a folder of them")
            found.append(path)
            continue
        inside = sorted(each for each in path.iterdir() if each.suffix.lower() in folder.SUFFIXES)
        if not inside:
            raise UsageError(f"no image in {path}", fix="Name the folder that holds the files themselves")
        found += inside
    return tuple(found)
