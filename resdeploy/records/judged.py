"""Predictions, and the verdicts of gates and audits on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from resdeploy.records.artifacts import Calibration, Layer, Preprocessing, Repeats
from resdeploy.registered_backends import BackendName
from resdeploy.vocabulary import STRICT, Precision, State

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made predictions, besides the model file and the images: what a gate must know before it compares two."""

    __pydantic_config__ = STRICT
    weights: str = ""  # `Weights.source`: a file, a URL or `random`
    precision: str = ""
    backend: str = ""
    machine: str = ""  # processor and instruction set, or the GPU
    tools: Mapping[str, str] = field(default_factory=dict)  # package -> version
    preprocessing: Preprocessing | None = None
    calibration: Calibration | None = None  # without `methods`, which no gate asks for


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which part of an evaluation: the `number`-th of `count`, from 1 on."""

    __pydantic_config__ = STRICT
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, kw_only=True)
class Partial:
    """Of an evaluation in shards, what `Predictions` of a whole one need not tell: all but `shard` is equal in all."""

    __pydantic_config__ = STRICT
    shard: Shard
    images: int  # of the whole data set, copies and unreadable ones included
    listing: str  # a fingerprint of the whole set: names, labels, classes
    batch_size: int  # images per query
    threads: int  # that computed; 0 on a GPU


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Per-image results on one data set, in the data set's order, every image counted once where hashes tell.

    Those of a shard (`partial`) are not counted yet: its images may be copies of another shard's.
    """

    model: str
    ids: tuple[str, ...]  # () where a foreign file has none: its order is then all there is to match by
    labels: NDArray[np.int64]  # (N,)
    top: NDArray[np.int64]  # (N, min(5, classes)) class ids, best first
    logits: NDArray[np.float32] | None  # (N, classes)
    data: str
    data_fingerprint: str
    preprocessing_fingerprint: str
    sha256: str  # the artifact's
    images: tuple[str, ...] = ()  # content hashes (16 hex digits), as in Calibration.images
    cluster: tuple[str, ...] = ()  # what each image was taken from (a video, say); () where nobody told
    unreadable: tuple[str, ...] = ()  # images that could not be decoded, never silently dropped
    repeats: Repeats = field(default_factory=Repeats)  # names of the data set that are not among `ids`
    classes: tuple[str, ...] = ()  # their names, by id; () where nobody told them
    origin: Origin | None = None  # None: a foreign file, which does not say
    partial: Partial | None = None  # None: of the whole data set


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model sees on one image, its likeliest classes first."""

    image: str  # the path, or `image N` of pixels
    classes: tuple[int, ...]
    names: tuple[str, ...]  # of those classes; their numbers where the model knows no names
    probabilities: tuple[float, ...]  # of those classes; all of a model's sum to 1

    @property
    def name(self) -> str:
        """Of the likeliest class."""
        return self.names[0]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one model answered to some images, and how long its caller waited: more than what `bench` times."""

    model: str
    backend: BackendName
    precision: Precision
    answers: tuple[Answer, ...]  # in the order of the images
    prepare_s: float  # per image: read, decode, resize, normalise
    answer_s: float  # per image: hand over to the runtime's process, compute, hand back


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy of predictions, in percent."""

    model: str
    top1: float
    top5: float | None  # None: only one class per image is known, or there are fewer than five
    correct: int  # top-1
    total: int
    top1_ci95: tuple[float, float]  # Wilson
    repeats: Repeats = field(default_factory=Repeats)  # what `total` leaves out


@dataclass(frozen=True, kw_only=True)
class Check:
    """One judged quantity: what was allowed, what was seen, and how sure that is."""

    name: str
    limit: float | None
    observed: float | None
    interval: tuple[float, float] | None
    state: State
    unit: str = ""
    note: str = ""  # one sentence a person understands; for `inconclusive` what would decide


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One quantity that was looked at and has no limit: it has no state, since nobody judged it."""

    name: str
    observed: float
    interval: tuple[float, float] | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A tuple of checks; its state is the worst of theirs, and `fail` is worse than `inconclusive`."""

    checks: tuple[Check, ...]
    reported: tuple[Reported, ...] = ()  # beside the checks; none of it decides

    @property
    def state(self) -> State:
        states = {check.state for check in self.checks}
        if "fail" in states:
            return "fail"
        return "inconclusive" if "inconclusive" in states or not states else "pass"


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One image whose predicted class changed from the baseline to the candidate."""

    image: str  # its id, such as its path in the data set; its position where the files have no ids
    label: int
    baseline: int
    candidate: int

    @property
    def effect(self) -> Literal["right to wrong", "wrong to right", "wrong to other"]:
        if self.baseline == self.label:
            return "right to wrong"
        return "wrong to right" if self.candidate == self.label else "wrong to other"


@dataclass(frozen=True, kw_only=True)
class ClassDrop:
    """What one class lost, in points of its own images."""

    label: int
    name: str  # "" where nobody told it
    images: int
    lost: int
    gained: int
    p_adjusted: float  # McNemar mid-p, corrected by Holm for the number of classes

    @property
    def drop_pp(self) -> float:
        return 100 * (self.lost - self.gained) / self.images


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a gate: which model, what it ran on, and which images it answered. "" is what nobody told."""

    name: str  # as the command line names it
    model: str
    sha256: str = ""
    weights: str = ""
    precision: str = ""
    backend: str = ""
    machine: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    data_fingerprint: str = ""
    preprocessing_fingerprint: str = ""
    images: int | None = None  # None: it was only measured


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One candidate of a gate: its verdict, and what that was drawn from."""

    candidate: Subject
    verdict: Verdict
    flips: tuple[Flip, ...] = ()
    unchanged: int | None = None  # images with the same predicted class; None: no predictions were compared
    classes: tuple[ClassDrop, ...] = ()  # the largest drop first


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a gate found: one baseline, one or more candidates."""

    baseline: Subject
    judged: tuple[Judged, ...]
    confidence: float
    notes: tuple[str, ...] = ()  # what a reader must know of the comparison: other machines, a baseline replaced

    @property
    def verdict(self) -> Verdict:
        """All checks of all candidates."""
        return Verdict(checks=tuple(check for one in self.judged for check in one.verdict.checks))


@dataclass(frozen=True, kw_only=True)
class BlockAudit:
    """How one residual block ran. None and "unknown": the runtime does not say."""

    name: str
    fused: bool | None  # its convolutions, activations and addition took no kernel but the convolutions'
    precision: str  # in which the addition ran: the widest of the tensors that it reads and writes
    asked: str
    conv_precisions: tuple[str, ...]
    executed_as: tuple[str, ...]  # kernels in order: `layer1.0.conv2 + layer1.0.add + layer1.0.relu2 [int8]`
    reformats: tuple[str, ...] = ()  # kernels that only convert what this block reads or writes
    # Whether all that the block has of these ran inside its convolutions: bias, activation, sum, requantization.
    inside: Mapping[str, bool | None] = field(default_factory=dict)
    kernels: int = 0  # that run any of it, requantization included
    activation_bytes: int | None = None  # that these read and write; None: a size or type is not told
    time_s: float | None = None
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a built model really executes, and the verdict on it."""

    subject: str
    asked: Precision
    verdict: Verdict
    blocks: tuple[BlockAudit, ...]
    layers: tuple[Layer, ...]
    superfluous: tuple[Layer, ...]  # Q/DQ kernels that a better placement does without
    kernels: int = 0
    activation_bytes: int | None = None  # that all kernels read and write; None: a size or type is not told
    notes: tuple[str, ...] = ()

    @property
    def time_s(self) -> float | None:
        """All kernels together; None where none was timed."""
        times = [layer.time_s for layer in self.layers if layer.time_s is not None]
        return math.fsum(times) if times else None
