"""Pairs two models' predictions image by image, or says why that cannot be done.

Images are matched by id, never by position, unless neither side has ids. Whatever would make the comparison mean
something else than "the same images, two models" is refused: a wrong verdict is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.errors import MalformedInput, UsageError
from resdeploy.records import Calibration, Flip, Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Predictions of two models for the same images in the same order, the baseline's."""

    baseline: Predictions
    candidate: Predictions

    @property
    def images(self) -> int:
        return len(self.baseline.labels)

    @property
    def clusters(self) -> tuple[str, ...]:
        """What each image was taken from; () unless both sides tell."""
        return self.baseline.cluster if self.candidate.cluster else ()

    @property
    def lost(self) -> NDArray[np.bool_]:
        """(N,): only the baseline is right."""
        return _right_answers(self.baseline) & ~_right_answers(self.candidate)

    @property
    def gained(self) -> NDArray[np.bool_]:
        """(N,): only the candidate is right."""
        return _right_answers(self.candidate) & ~_right_answers(self.baseline)


def _right_answers(predictions: Predictions) -> NDArray[np.bool_]:
    return np.asarray(predictions.top[:, 0] == predictions.labels)


def flips(pair: Pair) -> tuple[Flip, ...]:
    """The images whose predicted class changed, in the order of the baseline."""
    before, after = pair.baseline.top[:, 0], pair.candidate.top[:, 0]
    ids, labels = pair.baseline.ids, pair.baseline.labels
    return tuple(
        Flip(image=ids[k] if ids else str(k), label=int(labels[k]), baseline=int(before[k]), candidate=int(after[k]))
        for k in np.flatnonzero(before != after).tolist()
    )


def differences(baseline: Predictions, candidate: Predictions) -> tuple[str, ...]:
    """What else than the model differs between the two sides: machine, backend and versions.

    Preprocessing is not here: it is among the hints, since it explains a drop. Sides that do not say are not compared.
    """
    before, after = baseline.origin, candidate.origin
    if before is None or after is None:
        return ()
    facts = [("machine", before.machine, after.machine), ("backend", before.backend, after.backend)]
    facts += [(tool, before.tools[tool], after.tools[tool]) for tool in sorted(before.tools.keys() & after.tools)]
    return tuple(f"{what}: {old} before, {new} now" for what, old, new in facts if old != new)


def match(baseline: Predictions, candidate: Predictions) -> Pair:
    """Brings two models' predictions into one order.

    Raises:
        UsageError: they are not of the same images with the same labels, or not of the same kind.
        MalformedInput: one of them contradicts itself (lengths, duplicate ids, logits that are not finite).
    """
    for role, predictions in (("baseline", baseline), ("candidate", candidate)):
        _check(predictions, f"the {role} ({predictions.model})")
    prints = (baseline.data_fingerprint, candidate.data_fingerprint)
    if all(prints) and prints[0] != prints[1]:
        raise UsageError(
            f"the predictions are of different data: {baseline.data} ({prints[0][:12]}) "
            f"and {candidate.data} ({prints[1][:12]})",
            cause="Images or labels differ, or a baseline was stored before the data changed",
            fix="Evaluate both on the same --data; to store a baseline anew, remove its file and use --update-baseline",
        )
    if (baseline.logits is None) != (candidate.logits is None):
        raise UsageError(
            "one side has logits and the other only class ids",
            fix="Save both the same way: logits on both sides, or predictions (class ids) on both",
        )
    if baseline.logits is not None and candidate.logits is not None:
        classes = (baseline.logits.shape[1], candidate.logits.shape[1])
        if classes[0] != classes[1]:
            raise UsageError(
                f"the baseline has {classes[0]} classes and the candidate {classes[1]}",
                cause="They were trained for different class lists (1,001 with a background class, say)",
                fix="Drop the extra columns of the logits, or compare models of the same classes",
            )
    matched = _reorder(candidate, _order(baseline, candidate))
    _check_labels(baseline, matched)
    _check_clusters(baseline, matched)
    return Pair(baseline=baseline, candidate=matched)


def refuse_leak(evaluated: Predictions) -> None:
    """Refuses to judge a model on images that its INT8 ranges were taken from, or one calibrated on no real images.

    Raises:
        UsageError: the calibration is synthetic, or shares images with the evaluation.
    """
    calibration = evaluated.origin.calibration if evaluated.origin else None
    refuse_calibrated_on(calibration, evaluated.images, model=evaluated.model, data=evaluated.data)


def refuse_calibrated_on(calibration: Calibration | None, images: Sequence[str], *, model: str, data: str) -> None:
    """The same of images that are yet to be evaluated, by the hashes of their contents.

    Raises:
        UsageError: the calibration is synthetic, or shares images with them.
    """
    if calibration is None:
        return
    if calibration.synthetic:
        raise UsageError(
            f"{model} was calibrated on synthetic images: its accuracy cannot be judged",
            cause="Ranges from random images say nothing about real ones; such a model can only be timed",
            fix="Quantize it again with --calib-data",
        )
    if shared := set(calibration.images) & set(images):
        raise UsageError(
            f"{len(shared)} of {len(images)} evaluated images were also used to calibrate {model}",
            cause=f"It was calibrated on {calibration.data}, which overlaps with {data}",
            fix="Evaluate on images that were not used for calibration, or quantize with other --calib-data",
        )


def _check(predictions: Predictions, who: str) -> None:
    count = len(predictions.labels)
    lengths = {
        "top": len(predictions.top),
        "ids": len(predictions.ids) or count,
        "images": len(predictions.images) or count,
        "cluster": len(predictions.cluster) or count,
    }
    if predictions.logits is not None:
        lengths["logits"] = len(predictions.logits)
    if wrong := {name: length for name, length in lengths.items() if length != count}:
        raise MalformedInput(f"{who} has {count} labels but {', '.join(f'{n} {name}' for name, n in wrong.items())}")
    if count == 0:
        raise MalformedInput(f"{who} has no predictions at all")
    if len(set(predictions.ids)) != len(predictions.ids):
        repeated = [i for i, times in zip(*np.unique(predictions.ids, return_counts=True), strict=True) if times > 1]
        raise MalformedInput(
            f"{who} has ids twice: {_name_some(repeated)}",
            cause="Predictions of several runs or folders in one file, or file names without their folder",
            fix="Give every image one id, such as its path",
        )
    logits = predictions.logits
    if logits is not None and not (finite := np.isfinite(logits.min(axis=1)) & np.isfinite(logits.max(axis=1))).all():
        raise MalformedInput(
            f"{who} has logits that are not finite for {int((~finite).sum())} of {count} images",
            cause="The model overflowed (in half precision, often) or its weights are damaged",
        )


def _order(baseline: Predictions, candidate: Predictions) -> NDArray[np.int64]:
    """Positions in the candidate of the baseline's images."""
    if bool(baseline.ids) != bool(candidate.ids):
        raise UsageError(
            f"the {'baseline' if baseline.ids else 'candidate'} has ids and the other side has none",
            fix="Save ids on both sides: without them nobody knows which image is which",
        )
    if not baseline.ids:
        if len(baseline.labels) != len(candidate.labels):
            raise UsageError(
                f"the baseline has {len(baseline.labels)} images and the candidate {len(candidate.labels)}",
                fix="Evaluate both on the same images, and save ids so that they can be matched",
            )
        return np.arange(len(baseline.labels))
    position = {name: k for k, name in enumerate(candidate.ids)}
    missing = [name for name in baseline.ids if name not in position]
    extra = position.keys() - set(baseline.ids)
    if missing or extra:
        overlap = len(baseline.ids) - len(missing)
        raise UsageError(
            f"the two sides share {overlap} images; {len(missing)} are only in the baseline ({_name_some(missing)}) "
            f"and {len(extra)} only in the candidate ({_name_some(sorted(extra))})",
            cause="Unreadable images, different data, or ids of different form" if overlap else "Ids of different form",
            fix="Evaluate both models on the same images",
        )
    return np.array([position[name] for name in baseline.ids], dtype=np.int64)


def _reorder(predictions: Predictions, order: NDArray[np.int64]) -> Predictions:
    if (order == np.arange(len(order))).all():
        return predictions
    return replace(
        predictions,
        ids=tuple(predictions.ids[k] for k in order) if predictions.ids else (),
        images=tuple(predictions.images[k] for k in order) if predictions.images else (),
        cluster=tuple(predictions.cluster[k] for k in order) if predictions.cluster else (),
        labels=predictions.labels[order],
        top=predictions.top[order],
        logits=None if predictions.logits is None else predictions.logits[order],
    )


def _check_labels(baseline: Predictions, candidate: Predictions) -> None:
    differs = baseline.labels != candidate.labels
    if not differs.any():
        return
    shift = np.unique(candidate.labels - baseline.labels)
    raise UsageError(
        f"the labels of {int(differs.sum())} of {len(differs)} images differ between the two sides",
        cause=f"The candidate's class ids are the baseline's {shift[0]:+d}: one of the class lists starts elsewhere"
        if len(shift) == 1
        else "The images are in another order, or the classes are numbered differently",
        fix="Save ids, and label both sides from the same class list",
    )


def _check_clusters(baseline: Predictions, candidate: Predictions) -> None:
    if not baseline.cluster or not candidate.cluster:
        return
    if differs := sum(a != b for a, b in zip(baseline.cluster, candidate.cluster, strict=True)):
        raise UsageError(
            f"the clusters of {differs} of {len(baseline.cluster)} images differ between the two sides",
            fix="Save the same `cluster` on both sides (the video that a frame is from, say), or leave it out of one",
        )
    if len(set(baseline.cluster)) == 1:
        raise UsageError(
            f"all images are of one cluster, {baseline.cluster[0]!r}: from one alone nothing follows about others",
            fix="Save images of several clusters, or leave `cluster` out if the images were drawn one by one",
        )


def _name_some(names: Iterable[object]) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "") or "none"
