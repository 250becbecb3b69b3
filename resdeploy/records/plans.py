"""The results of searches over layers and blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from resdeploy.records.artifacts import Artifact
from resdeploy.records.costs import Cost
from resdeploy.records.judged import Check, Score, Verdict
from resdeploy.records.times import Comparison, Failure, Summary
from resdeploy.vocabulary import Precision


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
