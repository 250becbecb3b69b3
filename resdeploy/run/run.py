"""Carries a profile out, and judges what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy import locks
from resdeploy.deploy.resume import Note, Steps
from resdeploy.judge import pairs
from resdeploy.measure import one_run, prediction_files, summary
from resdeploy.records import Failure, Measurement, Profile, Progress, Verdict
from resdeploy.report.documents import RunRow
from resdeploy.run.profile_limits import limits_of
from resdeploy.run.profile_refusals import refuse_nonsense
from resdeploy.run.profile_run import ProfileRun, Variant
from resdeploy.verbs import answer_in_order, judge_limits
from resdeploy.verbs.gate_options import GatePlan
from resdeploy.verbs.judge_limits import Evidence
from resdeploy.vocabulary import Step


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that a profile's run found; verdicts are by label."""

    profile: Profile
    folder: Path
    variants: tuple[Variant, ...]
    bench: one_run.Bench
    environment: dict[str, Any]  # of the bench
    verdicts: dict[str, Verdict]
    failures: tuple[Failure, ...] = ()  # what could not be built, run on the images, or timed

    @property
    def verdict(self) -> Verdict | None:
        """All checks of all candidates in one; None where the profile asks for none."""
        checks = tuple(check for verdict in self.verdicts.values() for check in verdict.checks)
        return Verdict(checks=checks) if checks else None


def result_rows(result: Result) -> tuple[RunRow, ...]:
    """One row per variant for the final table: its times, accuracy, speed-up, audit and verdict."""
    outcomes = {outcome.label: outcome for outcome in result.bench.outcomes}
    speedups = {comparison.candidate: comparison for comparison in result.bench.comparisons}
    rows = [RunRow(outcome=failure) for failure in result.failures]
    for variant in result.variants:
        label = variant.candidate.label
        outcome = outcomes[label]
        if isinstance(outcome, Failure):
            continue
        rows.append(
            RunRow(
                outcome=summary.summarise(outcome),
                score=prediction_files.score(variant.predictions) if variant.predictions is not None else None,
                comparison=speedups.get(label),
                verdict=result.verdicts.get(label),
                audit=variant.audit,
                source=variant.source.path,
            )
        )
    return tuple(rows)


def run(profile: Profile, folder: Path, *, progress: Progress, note: Note, again: Collection[Step] = ()) -> Result:
    """Trains and drops blocks (if the profile says so), exports, lowers, builds, audits, evaluates, benches, and gates.

    A second run of the folder waits for the first, whose steps it then finds.

    Args:
        profile: what is asked for, its paths as they are from the current folder.
        folder: where its files go.
        progress: told how far a step is.
        note: told of each step, and of what must be known.
        again: steps that are carried out although nothing has changed.

    Raises:
        ProfileError: keys that contradict each other.
        BackendMissing: a backend that the profile names cannot run here.
        Locked: another run of the folder took longer than the time-out.
        ResdeployError: what a step raised; finished steps are kept and skipped the next time.
    """
    refuse_nonsense(profile)
    with locks.hold(folder / ".lock", f"the folder {folder}"):
        making = ProfileRun(profile=profile, steps=Steps(folder, note, again), progress=progress, note=note)
        fp32 = making.fp32()
        pruned = making.prune(fp32)
        fp32, pruned = making.as_input(fp32), pruned and making.as_input(pruned)
        variants, failures = making.variants(fp32, pruned)
        # What cannot be judged is refused before minutes of measuring.
        if profile.sequential:
            variants, accuracies = _answer_in_order(profile, variants, progress)
        else:
            accuracies = _judge_accuracy(profile, variants)
        bench, where = making.bench(variants)
    return Result(
        profile=profile,
        folder=folder,
        variants=variants,
        bench=bench,
        environment=where,
        verdicts=_judge(profile, variants, bench, accuracies),
        failures=(*failures, *bench.failures),
    )


def _answer_in_order(
    profile: Profile, variants: tuple[Variant, ...], progress: Progress
) -> tuple[tuple[Variant, ...], dict[str, Verdict]]:
    """The variants with their answers to as many images as decided, and the verdicts on these.

    It is done anew in every run: what is kept of it would be the answers to a part of the images.
    """
    reference = next((variant for variant in variants if variant.baseline), None)
    others = [variant for variant in variants if not variant.baseline]
    if reference is None or not others:
        return variants, _judge_accuracy(profile, variants)
    plan = GatePlan(
        baseline=profile.model,
        candidates=(),
        limits=limits_of(profile),
        data=profile.data,
        skip_bad=profile.skip_bad,
        sequential=True,
        confidence=profile.confidence,
        seed=profile.seed,
    )
    shown = [variant.candidate for variant in others]
    answered = answer_in_order.answer(reference.candidate, shown, plan, progress=progress)
    answers_by_label = {one.candidate.label: answer for one, answer in zip(others, answered, strict=True)}
    longest = max((answer.pair.baseline for answer in answered), key=lambda seen: len(seen.labels))
    answers = {label: answer.pair.candidate for label, answer in answers_by_label.items()}
    answers[reference.candidate.label] = longest
    return (
        tuple(dataclasses.replace(one, predictions=answers.get(one.candidate.label)) for one in variants),
        {label: answer.verdict for label, answer in answers_by_label.items()},
    )


def _judge_accuracy(profile: Profile, variants: tuple[Variant, ...]) -> dict[str, Verdict]:
    """All others against the whole network in FP32 on the first backend, by label; none where no limit asks for it."""
    limits = limits_of(profile)
    if not limits.of_accuracy:
        return {}
    reference = next((variant.predictions for variant in variants if variant.baseline), None)
    answers: dict[str, pairs.Pair | None] = {}
    for variant in variants:
        if not variant.baseline:
            own = variant.predictions
            if own is not None:
                pairs.refuse_leak(own)
            pair = None if reference is None or own is None else pairs.match(reference, own)
            answers[variant.candidate.label] = pair
    verdicts = judge_limits.judge_answers(list(answers.values()), limits, confidence=profile.confidence)
    return dict(zip(answers, verdicts, strict=True))


def _judge(
    profile: Profile, variants: tuple[Variant, ...], bench: one_run.Bench, accuracies: dict[str, Verdict]
) -> dict[str, Verdict]:
    """A verdict on every candidate that was timed; Holm's correction is over all, timed or not.

    Its speed is judged against FP32 on its own backend.
    """
    runs = {outcome.label: outcome for outcome in bench.outcomes if isinstance(outcome, Measurement)}
    fp32 = {v.backend: runs.get(v.candidate.label) for v in variants if v.baseline}
    evidence: dict[str, Evidence] = {}
    for variant in variants:
        label = variant.candidate.label
        if not variant.baseline and (run := runs.get(label)) is not None:
            evidence[label] = Evidence(
                accuracy=accuracies.get(label),
                times=judge_limits.times_of_run(fp32.get(variant.backend), run),
                size_bytes=run.size_bytes,
                peak_rss_bytes=run.peak_rss_bytes,
                audit=variant.audit,
            )
    verdicts = judge_limits.judge(list(evidence.values()), limits_of(profile), confidence=profile.confidence)
    return {label: one for label, one in zip(evidence, verdicts, strict=True) if one.checks}
