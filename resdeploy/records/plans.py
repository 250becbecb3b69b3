"""What a profile asks for, and the results of searches over layers and blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resdeploy.records.artifacts import Artifact
from resdeploy.records.costs import Cost
from resdeploy.records.judged import Check, Score, Verdict
from resdeploy.records.times import Comparison, Failure, Summary
from resdeploy.registered_backends import BackendName
from resdeploy.vocabulary import MAX_TIME_S, STRICT, Arithmetic, Precision


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a TOML profile says. Flat, no inheritance; every field has a command-line equivalent."""

    __pydantic_config__ = STRICT
    name: str
    model: str = "resnet50"
    weights: str = "random"
    img_size: int | None = None  # input height and width; None: the model's own
    data: str | None = None
    calib_data: str | None = None  # None: the training split of `data`
    calib_samples: int = 300
    calib_method: Literal["auto", "minmax", "entropy", "percentile", "mse"] = "percentile"
    calib_precision: Arithmetic | None = None  # in what ranges are observed; None: BF16 on CPUs that have it
    portable: bool | None = None  # INT8 weights in 7 bits, exact on CPUs without VNNI too; None: what this CPU needs
    epochs: int = 0  # 0: no training
    lr: float | None = None  # peak; None: as `train`
    prune_drop_pp: float | None = None  # drop residual blocks within so many points of top-1 on training images
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    backends: tuple[BackendName, ...] = ("openvino", "onnxruntime")
    batch_size: int = 1
    threads: int | None = None
    duration_s: float = 3.0
    max_time_s: float = MAX_TIME_S  # longest that one comparison with FP32 may take
    max_drop_pp: float | None = None
    max_slowdown_pct: float | None = None  # of the median time, against FP32 on the same backend; may be negative
    max_cpu_slowdown_pct: float | None = None  # likewise of the CPU time per image
    max_size_mb: float | None = None  # of the built model
    max_memory_mb: float | None = None  # peak of the process that ran it
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What quantizing one layer, or one residual block, alone did to the logits, against the float network."""

    name: str
    kind: str  # the operator of a layer, or "block"
    layers: tuple[str, ...]  # convolutions and matrix products in it
    images: int
    changed: int  # images whose predicted class differs
    signal: float  # sum of the squared float logits
    noise: float  # sum of the squared differences

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise of the logits, in decibels; infinite without any difference."""
        return 10 * math.log10(self.signal / self.noise) if self.noise and self.signal else math.inf


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """One candidate of the search for the fastest model within an accuracy budget."""

    label: str
    precision: Precision
    keep_float: tuple[str, ...]  # layers of an INT8 model that stay in FP32
    noise_share: float  # predicted logit noise, as a share of that with every layer in INT8
    check: Check | None = None  # of its top-1 drop; None: not judged, since a more exact one was not within the budget
    summary: Summary | None = None  # its times; None: not measured
    speedup: Comparison | None = None  # over FP32
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """What the network loses, on the images to choose on, when a block goes."""

    block: str
    divergence: float  # mean Kullback-Leibler divergence from the whole network's answers, nats
    drop_pp: float  # of top-1
    interval_pp: tuple[float, float]  # Tango, each end one-sided at the budget's confidence
    flips: int  # images that are right on one side only


@dataclass(frozen=True, kw_only=True)
class PruneSide:
    """The network before or after blocks went."""

    cost: Cost
    timing: Summary | Failure  # one image per query, both sides in one run
    score: Score  # on the images to judge on


@dataclass(frozen=True, kw_only=True)
class PruneOutcome:
    """What was removed and why, and what that changed."""

    artifact: Artifact  # as it was written
    removed: tuple[str, ...]  # in the order in which they went
    lesions: tuple[Lesion, ...]  # every block that can go, alone
    path: tuple[Lesion, ...]  # after each removal, all before it gone too; the last may be the one that was too much
    tuned: Lesion | None  # after the fine-tuning; None: there was none
    before: PruneSide
    after: PruneSide
    comparisons: tuple[Comparison, ...]
    verdict: Verdict
