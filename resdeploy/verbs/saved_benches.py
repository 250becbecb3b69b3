"""Judges the limits of `gate` on saved results of `bench`, where nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdeploy.errors import UsageError
from resdeploy.judge import speed
from resdeploy.measure import results
from resdeploy.records import Check, Gate, Judged, Subject, Verdict
from resdeploy.verbs import judge_limits

NO_CPU_TIMES = "CPU times of single processes are not in a saved bench: name two models for --max-cpu-slowdown"


def judge_saved(
    baseline: str, candidates: Sequence[str], limits: judge_limits.Limits, *, confidence: float, seed: int
) -> Gate:
    """Speed, size and memory from two or more saved results of `bench`; rows of one thing are compared.

    Raises:
        UsageError: no row of one side is a row of the other.
        MissingInput, MalformedInput: a file that is not there, or no such result.
    """
    before = results.load(Path(baseline))
    compared: list[tuple[results.SavedBench, results.SavedRow, results.SavedRow]] = []
    unmatched: list[Judged] = []
    for given in candidates:
        after = results.load(Path(given))
        common = _in_common(before, after)
        compared += [(after, old, new) for old, new in common]
        unmatched += _judge_unmatched(before, after, common)
    evidence = [
        judge_limits.Evidence(
            times={
                "time": speed.Apart(
                    baseline=old.blocks_s,
                    candidate=new.blocks_s,
                    seed=seed,
                    known=(*_elsewhere(before, after), *_invalid(old, new)),
                )
            },
            untimed=NO_CPU_TIMES,
            size_bytes=new.size_bytes,
            peak_rss_bytes=new.peak_rss_bytes,
        )
        for after, old, new in compared
    ]
    verdicts = judge_limits.judge(evidence, limits, confidence=confidence)
    judged = [
        Judged(candidate=_timed_subject(after, new, several=len(candidates) > 1), verdict=one)
        for one, (after, _, new) in zip(verdicts, compared, strict=True)
    ]
    same = [
        judge_limits.compares_nothing(given)
        for given in candidates
        if Path(given).resolve() == Path(baseline).resolve()
    ]
    note = "The two sides were timed in runs of their own: what the machine did meanwhile is not in the interval"
    return Gate(
        baseline=_timed_subject(before, compared[0][1]),
        judged=(*judged, *unmatched),
        confidence=confidence,
        notes=(*same, note),
    )


def _in_common(
    before: results.SavedBench, after: results.SavedBench
) -> list[tuple[results.SavedRow, results.SavedRow]]:
    """As `results.in_common`; nothing in common is an error."""
    common = results.in_common(before.rows, after.rows)
    if not common:
        raise UsageError(
            f"{before.path} and {after.path} have no row of the same model, backend, precision and batch size",
            fix="Measure the same rows on both sides",
        )
    return common


def _judge_unmatched(
    before: results.SavedBench,
    after: results.SavedBench,
    common: Sequence[tuple[results.SavedRow, results.SavedRow]],
) -> list[Judged]:
    """What only one side measured, or a candidate failed at: a gate does not pass what it has not seen."""
    olds, news = {id(old) for old, _ in common}, {id(new) for _, new in common}
    missing = [(label, f"failed in {after.path}") for label in after.failed]
    missing += [
        (row.label, f"is not in {after.path}")
        for row in before.rows
        if id(row) not in olds and row.label not in after.failed
    ]
    missing += [(row.label, f"is not in {before.path}") for row in after.rows if id(row) not in news]
    return [
        Judged(
            candidate=Subject(name=f"{after.path.stem}: {label}", model=label),
            verdict=Verdict(
                checks=(
                    Check(
                        name="measured",
                        limit=None,
                        observed=None,
                        interval=None,
                        state="inconclusive",
                        note=f"{label} {why}. Measure the same rows on both sides.",
                    ),
                )
            ),
        )
        for label, why in missing
    ]


def _elsewhere(before: results.SavedBench, after: results.SavedBench) -> tuple[str, ...]:
    """Why times of two saved runs cannot be compared."""
    if before.machine and before.machine == after.machine:
        return ()
    return (f"other machines ({before.machine or 'not told'}; {after.machine or 'not told'})",)


def _invalid(old: results.SavedRow, new: results.SavedRow) -> tuple[str, ...]:
    """What the runs themselves said against their times."""
    sides = (("baseline", old), ("candidate", new))
    return tuple(f"{role}: its run was INVALID" for role, row in sides if not row.valid)


def _timed_subject(bench: results.SavedBench, row: results.SavedRow, *, several: bool = False) -> Subject:
    return Subject(
        name=f"{bench.path.stem}: {row.label}" if several else row.label,
        model=row.model,
        sha256=row.sha256,
        weights=row.weights,
        precision=row.precision,
        backend=row.backend,
        machine=bench.machine,
        tools=bench.tools,
    )
