"""Rows measured in one interleaved run, each compared with its baselines."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resdeploy.backends import lane
from resdeploy.measure import interleaved, summary
from resdeploy.measure.interleaved import Listener, Question, Schedule
from resdeploy.records import (
    Artifact,
    Comparison,
    Failure,
    Measurement,
    Summary,
)
from resdeploy.vocabulary import EQUAL_WITHIN


@dataclass(frozen=True, kw_only=True)
class Row:
    """One built model as one row of a run; `baselines` are the labels of the rows it is compared with."""

    source: Artifact
    candidate: interleaved.Candidate
    baselines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The result of one interleaved run, in the order of its rows, those that could not be built first."""

    outcomes: tuple[Measurement | Failure, ...]
    comparisons: tuple[Comparison, ...]
    sources: tuple[Artifact, ...] = ()  # the files measured, before they were built
    notes: tuple[str, ...] = ()  # what must be known of the whole run

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Failure))


def summaries(outcomes: Iterable[Measurement | Failure]) -> tuple[Summary | Failure, ...]:
    """Every outcome as it is reported."""
    return tuple(o if isinstance(o, Failure) else summary.summarise(o) for o in outcomes)


def time_rows(
    rows: Sequence[Row],
    schedule: Schedule,
    listener: Listener,
    *,
    questions: Sequence[Question] | None = None,
    equal_within: float = EQUAL_WITHIN,
    timeout_s: float = lane.TIMEOUT_S,
) -> tuple[Measurement | Failure, ...]:
    """Raw times of built rows from one interleaved run.

    Args:
        rows: what is timed.
        schedule: how long.
        listener: who is told of it.
        questions: what the run is to tell; None: whether each row is faster than its baselines.
        equal_within: the share of the time that is then called no difference.
        timeout_s: longest that one operation of a row may take.
    """
    if questions is None:
        questions = [
            Question(baseline=baseline, candidate=row.candidate.label, equal_within=equal_within)
            for row in rows
            for baseline in row.baselines
        ]
    return interleaved.run(
        [row.candidate for row in rows],
        schedule,
        listener,
        questions=questions,
        open_lane=functools.partial(lane.Lane, timeout_s=timeout_s),
    )


def compare_rows(
    rows: Sequence[Row], outcomes: Sequence[Measurement | Failure], *, equal_within: float = EQUAL_WITHIN
) -> Bench:
    """Each row beside its baselines, where both could be measured."""
    measured = {outcome.label: outcome for outcome in outcomes if isinstance(outcome, Measurement)}
    comparisons = tuple(
        summary.compare(measured[baseline], measured[row.candidate.label], equal_within=equal_within)
        for row in rows
        for baseline in row.baselines
        if baseline in measured and row.candidate.label in measured
    )
    return Bench(outcomes=tuple(outcomes), comparisons=comparisons, sources=tuple(row.source for row in rows))
