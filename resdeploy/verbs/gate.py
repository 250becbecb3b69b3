"""`gate`: whether candidates may replace a baseline, by every limit that was given, in one verdict.

Sides are models, saved predictions, or saved results of `bench`. Models are run here; accuracy is judged on
predictions, speed on one interleaved run of the baseline and all candidates (or on the saved times).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resdeploy import store
from resdeploy.backends import choose
from resdeploy.deploy import calibration, model_string
from resdeploy.deploy.candidates import candidate, pick_backend, source_for
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.judge import accuracy, hints, pairs
from resdeploy.measure import interleaved, one_run, prediction_files, results, summary
from resdeploy.records import (
    Artifact,
    Audit,
    BackendName,
    Check,
    Gate,
    Judged,
    Measurement,
    Predictions,
    Progress,
    Subject,
    Verdict,
)
from resdeploy.report import sentences
from resdeploy.verbs import float_fallback, judge_limits
from resdeploy.verbs.gate_options import GatePlan
from resdeploy.verbs.gate_refusals import is_saved, refuse_contradictions
from resdeploy.verbs.judge_limits import Evidence, compares_nothing
from resdeploy.verbs.saved_benches import judge_saved


@dataclass(frozen=True, kw_only=True)
class GateSide:
    """The baseline, or a candidate on one backend."""

    name: str  # tells it from the other candidates
    given: str  # as the command line names it
    source: Artifact | None  # None: saved predictions
    backend: BackendName | None
    predictions: Predictions | None  # None: accuracy is not looked at


@dataclass(frozen=True, kw_only=True)
class GateRun:
    """The result, and the model files that were run for it."""

    gate: Gate
    sources: tuple[Artifact, ...] = ()


def gate(plan: GatePlan, *, progress: Progress) -> GateRun:
    """Judges every candidate against the baseline.

    Raises:
        UsageError: no limit; a model without data; a limit that the sides given cannot be judged by; a candidate
            calibrated on synthetic images or on the evaluation images; predictions of different images; images one by
            one (`plan.sequential`) where there are none to be seen, or another limit of accuracy.
    """
    benches = [results.is_bench(Path(name)) for name in (plan.baseline, *plan.candidates)]
    refuse_contradictions(plan, benches)
    if all(benches):
        outcome = judge_saved(plan.baseline, plan.candidates, plan.limits, confidence=plan.confidence, seed=plan.seed)
        return GateRun(gate=outcome)
    if len(plan.backends) > 1 and not all(map(is_saved, (plan.baseline, *plan.candidates))):
        # `auto` beside the backend that it picks is one candidate, not two.
        picked = dict.fromkeys(choose.pick(name, "fp32", running=_runs(plan))[0] for name in plan.backends)
        plan = dataclasses.replace(plan, backends=tuple(picked))
    first = plan.update_baseline and not Path(plan.baseline).exists()
    baseline = None if first else _side(plan.baseline, plan.backends[0], plan, progress)
    candidates = _name_apart(
        [
            _side(given, name, plan, progress)
            for given in plan.candidates
            for name in (plan.backends if not is_saved(given) else plan.backends[:1])
        ]
    )
    if baseline is None:
        return _first_baseline(plan, candidates[0], progress)
    baseline, answered = _pair_answers(baseline, candidates, plan, progress)
    judged, notes = _judge(baseline, answered, plan, progress)
    candidates = [one.side for one in answered]
    outcome = Gate(
        baseline=_subject(baseline),
        judged=judged,
        confidence=plan.confidence,
        notes=notes,
    )
    if plan.update_baseline:
        outcome = _update(plan, outcome, candidates[0])
    models = [side.source for side in (baseline, *candidates) if side.source is not None]
    return GateRun(gate=outcome, sources=tuple(models))


def _side(given: str, backend: str, plan: GatePlan, progress: Progress) -> GateSide:
    """A model's file and, where there are images, its predictions; or saved predictions alone."""
    if is_saved(given):
        saved = prediction_files.load(Path(given))
        pairs.refuse_leak(saved)
        return GateSide(name=Path(given).stem, given=given, source=None, backend=None, predictions=saved)
    from resdeploy.measure import run_images  # it brings the image decoder, which saved predictions do not need

    request = _request(given, plan)
    name = pick_backend(request, backend, None, running=_runs(plan))
    source = source_for(request, name, None, calibration.CalibrationPlan(), progress=progress)
    predictions = None
    shown = candidate(source, name, batch_size=plan.batch_size, threads=plan.threads)
    float_fallback.warn(source, shown)
    if plan.data is not None and not plan.sequential:
        predictions = run_images.predict_test_split(shown, plan.data, skip_bad=plan.skip_bad, progress=progress)
        pairs.refuse_leak(predictions)
    return GateSide(name=model_string.stem(given), given=given, source=source, backend=name, predictions=predictions)


def _runs(plan: GatePlan) -> bool:
    """Whether anything is to run: sizes and fusion can be told of what is only built."""
    return plan.data is not None or plan.limits.of_runs


def _request(given: str, plan: GatePlan) -> Request:
    return Request(model=given, seed=plan.seed, override=plan.override, trust_engine=plan.trust_engine)


def _name_apart(sides: Sequence[GateSide]) -> list[GateSide]:
    """Names that tell the candidates apart: the stem, the backend where there are several, else all that was typed."""
    several = len({side.backend for side in sides}) > 1
    names = [f"{side.name} {side.backend}" if several and side.backend else side.name for side in sides]
    full = [f"{side.given} {side.backend}" if several and side.backend else side.given for side in sides]
    return [
        dataclasses.replace(side, name=name if names.count(name) == 1 else whole)
        for side, name, whole in zip(sides, names, full, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """A candidate beside its baseline on the same images, and the verdict on its answers."""

    side: GateSide
    pair: pairs.Pair | None  # None: accuracy is not looked at
    accuracy: Verdict


def _pair_answers(
    baseline: GateSide, candidates: Sequence[GateSide], plan: GatePlan, progress: Progress
) -> tuple[GateSide, list[_Answered]]:
    """The baseline with its answers, and the candidates with theirs, judged."""
    if plan.sequential:
        return _answer_in_order(baseline, candidates, plan, progress)
    answers = [
        None if baseline.predictions is None or side.predictions is None
        else pairs.match(baseline.predictions, side.predictions)
        for side in candidates
    ]  # fmt: skip
    verdicts = judge_limits.judge_answers(answers, plan.limits, confidence=plan.confidence)
    return baseline, [
        _Answered(side=side, pair=pair, accuracy=one)
        for side, pair, one in zip(candidates, answers, verdicts, strict=True)
    ]


def _answer_in_order(
    baseline: GateSide, candidates: Sequence[GateSide], plan: GatePlan, progress: Progress
) -> tuple[GateSide, list[_Answered]]:
    """Models answer images in random order until each candidate is decided."""
    from resdeploy.verbs import answer_in_order  # it brings the image decoder

    shown = [_runnable(side, plan) for side in (baseline, *candidates)]
    answers = answer_in_order.answer(shown[0], shown[1:], plan, progress=progress)
    longest = max((one.pair.baseline for one in answers), key=lambda seen: len(seen.labels))
    return dataclasses.replace(baseline, predictions=longest), [
        _Answered(side=dataclasses.replace(side, predictions=one.pair.candidate), pair=one.pair, accuracy=one.verdict)
        for side, one in zip(candidates, answers, strict=True)
    ]


def _runnable(side: GateSide, plan: GatePlan) -> interleaved.Candidate:
    """The built model of a side, as it is shown images."""
    assert side.source is not None
    assert side.backend is not None
    return candidate(side.source, side.backend, label=side.name, batch_size=plan.batch_size, threads=plan.threads)


def _judge(
    baseline: GateSide, answered: Sequence[_Answered], plan: GatePlan, progress: Progress
) -> tuple[tuple[Judged, ...], tuple[str, ...]]:
    """All checks of all candidates, and what must be known of the comparison."""
    candidates = [one.side for one in answered]
    # One candidate had the machine to itself already: to measure it again is what a longer --max-time does better.
    tries_again = len(candidates) > 1 and plan.limits.of_times
    of_times = judge_limits.confidence_of_attempt(plan.confidence) if tries_again else plan.confidence
    runs = _measure(baseline, candidates, plan, progress, confidence=of_times, seed=plan.seed)
    evidence = [_look_at(one.side, one.accuracy, runs.get(one.side.name), plan) for one in answered]
    verdicts = judge_limits.judge(evidence, plan.limits, confidence=of_times)
    if tries_again:
        verdicts = _try_again(baseline, candidates, verdicts, plan, progress, confidence=of_times)
    judged = []
    for one, verdict in zip(answered, verdicts, strict=True):
        answer = Judged(candidate=_subject(one.side), verdict=verdict)
        judged.append(answer if one.pair is None else _with_images(answer, one.side, one.pair, plan, progress))
    notes = (*_notes(baseline, candidates, plan.override), *_kernel_notes(baseline, runs))
    return tuple(judged), tuple(dict.fromkeys(notes))


def _kernel_notes(baseline: GateSide, runs: Mapping[str, tuple[Measurement | None, Measurement]]) -> tuple[str, ...]:
    """Of each candidate that was timed whether it executes what the baseline does, where that is known."""
    compared = [
        dataclasses.replace(summary.compare(before, after), baseline=baseline.name, candidate=name)
        for name, (before, after) in runs.items()
        if before is not None
    ]
    return tuple(note for one in compared if (note := sentences.kernels(one)) is not None)


def _try_again(
    baseline: GateSide,
    candidates: Sequence[GateSide],
    verdicts: Sequence[Verdict],
    plan: GatePlan,
    progress: Progress,
    *,
    confidence: float,
) -> tuple[Verdict, ...]:
    """The verdicts, with those whose times were left open from a second run of that candidate and its baseline only.

    Within `--max-time` each, in another random order of turns.
    """
    left = [side for side, one in zip(candidates, verdicts, strict=True) if judge_limits.is_open(one)]
    if not left:
        return tuple(verdicts)
    # A run of one candidate may end where its share of the error of all of them is kept, as in a run of them together.
    share = 1 - (1 - confidence) / len(left)
    seconds = []
    for side in left:
        run = _measure(baseline, [side], plan, progress, confidence=share, seed=plan.seed + 1)[side.name]
        seconds.append(Evidence(times=judge_limits.times_of_run(*run)))
    firsts = [one for one in verdicts if judge_limits.is_open(one)]
    judged = iter(judge_limits.judge_again(firsts, seconds, plan.limits, confidence=confidence))
    return tuple(next(judged) if judge_limits.is_open(one) else one for one in verdicts)


def _look_at(
    side: GateSide, accuracy: Verdict | None, run: tuple[Measurement | None, Measurement] | None, plan: GatePlan
) -> Evidence:
    """What the limits that were given need to know of a candidate."""
    limits, source = plan.limits, side.source
    return Evidence(
        accuracy=accuracy,
        times={} if run is None else judge_limits.times_of_run(*run),
        peak_rss_bytes=None if run is None else run[1].peak_rss_bytes,
        size_bytes=store.size_bytes(Path(source.path)) if source is not None and limits.size_mb is not None else None,
        audit=_audit(side, plan) if limits.fused else None,
    )


def _with_images(one: Judged, side: GateSide, pair: pairs.Pair, plan: GatePlan, progress: Progress) -> Judged:
    """With the images whose answers changed, the classes that lose, and the likely cause of a failure."""
    flips = pairs.flips(pair)
    one = _explain(one, side, pair, plan, progress)
    return dataclasses.replace(one, flips=flips, unchanged=pair.images - len(flips), classes=accuracy.class_drops(pair))


def _explain(one: Judged, side: GateSide, pair: pairs.Pair, plan: GatePlan, progress: Progress) -> Judged:
    """With the likely cause of a failure in the first note, where showing the images otherwise reveals it."""
    first, *others = one.verdict.checks
    if (
        first.name not in ("top1", "top5")
        or first.state != "fail"
        or side.source is None
        or side.backend is None
        or plan.data is None
        or hints.hints(pair)
    ):
        return one
    from resdeploy.verbs import misread_input

    if cause := misread_input.cause(_runnable(side, plan), pair, plan.data, progress=progress):
        first = dataclasses.replace(first, note=f"{first.note} {cause}.")
    return dataclasses.replace(one, verdict=dataclasses.replace(one.verdict, checks=(first, *others)))


def _notes(baseline: GateSide, candidates: Sequence[GateSide], override: PreprocessingOverride) -> list[str]:
    """What must be known of the comparison as a whole."""
    return [
        *(
            compares_nothing(side.name)
            for side in candidates
            if baseline.backend == side.backend and _content(baseline) == _content(side)
        ),
        *_notes_on_preprocessing(baseline, override),
        *_notes_on_differences(baseline, candidates),
        *(note for side in (baseline, *candidates) for note in _notes_on_images(side)),
    ]


def _notes_on_preprocessing(baseline: GateSide, override: PreprocessingOverride) -> list[str]:
    """That both sides saw images in another way than their files say."""
    asked = {name: value for name, value in dataclasses.asdict(override).items() if value is not None}
    if not asked or baseline.source is None:
        return []
    told = ", ".join(f"{name} {value}" for name, value in asked.items())
    return [f"both sides saw images as the command line says ({told}), whatever their files say"]


def _notes_on_differences(baseline: GateSide, candidates: Sequence[GateSide]) -> Iterator[str]:
    """Where stored answers were made otherwise than those that they are compared with."""
    for side in candidates:
        if baseline.predictions is None or side.predictions is None:
            continue
        differences = pairs.differences(baseline.predictions, side.predictions)
        if differences and (baseline.source is None or side.source is None):
            yield (
                f"{side.name} and its stored baseline were not made alike, and part of a drop may come from that: "
                + "; ".join(differences)
            )


def _notes_on_images(side: GateSide) -> Iterator[str]:
    """Images that are there more than once, and answers of a network that was never trained."""
    if side.predictions is None:
        return
    yield from (f"{side.predictions.data or side.name}: {note}" for note in side.predictions.repeats.notes)
    origin = side.predictions.origin
    if side.source is None and origin is not None and origin.weights == "random":
        yield f"{side.name}: predictions of random weights, which say nothing about accuracy"


def _content(side: GateSide) -> str:
    """What two equal sides share: what is in their files, and how a model says that images are seen."""
    if side.source is None:
        return store.digest(Path(side.given))
    return store.fingerprint((side.source.sha256, side.source.model))


def _audit(side: GateSide, plan: GatePlan) -> Audit | None:
    """The layers that the backend executes, held against the graph."""
    if side.source is None or side.backend is None:
        return None
    from resdeploy.verbs.audit_candidate import audit_candidate

    return audit_candidate(side.source, candidate(side.source, side.backend, threads=plan.threads))


def _measure(
    baseline: GateSide,
    candidates: Sequence[GateSide],
    plan: GatePlan,
    progress: Progress,
    *,
    confidence: float,
    seed: int,
) -> dict[str, tuple[Measurement | None, Measurement]]:
    """Each candidate, by its name, and its baseline, from one interleaved run, one image per query.

    It ends when all limits on times are decided at `confidence`; `seed` is of the order of turns.
    """
    if not plan.limits.of_runs:
        return {}
    table: dict[str, one_run.Row] = {}
    for k, side in enumerate(candidates):
        assert side.source is not None
        assert side.backend is not None
        table[f"candidate {k}"] = _row(f"candidate {k}", side.source, side.backend, plan)
        label = f"baseline {side.backend}"
        if plan.limits.of_times and label not in table:
            request = _request(baseline.given, plan)
            source = source_for(request, side.backend, None, calibration.CalibrationPlan(), progress=progress)
            table[label] = _row(label, source, side.backend, plan)
    outcomes = one_run.time_rows(
        list(table.values()),
        interleaved.Schedule(duration_s=plan.duration_s, seed=seed, max_time_s=plan.max_time_s),
        interleaved.Listener(progress=progress),
        questions=judge_limits.questions(
            [(f"baseline {side.backend}", f"candidate {k}") for k, side in enumerate(candidates)],
            plan.limits,
            confidence=confidence,
        ),
    )
    times = {outcome.label: interleaved.measurement_or_raise(outcome) for outcome in outcomes}
    return {
        side.name: (times.get(f"baseline {side.backend}"), times[f"candidate {k}"]) for k, side in enumerate(candidates)
    }


def _row(label: str, source: Artifact, backend: BackendName, plan: GatePlan) -> one_run.Row:
    return one_run.Row(
        source=source, candidate=candidate(source, backend, label=label, threads=plan.threads), baselines=()
    )


def _subject(side: GateSide) -> Subject:
    predictions, source = side.predictions, side.source
    subject = Subject(name=side.name, model=side.given)
    if source is not None:
        subject = dataclasses.replace(
            subject,
            sha256=source.sha256,
            weights=source.weights.source if source.weights else "",
            precision=source.precision,
            backend=side.backend or "",
        )
    if predictions is None:
        return subject
    subject = dataclasses.replace(
        subject,
        sha256=subject.sha256 or predictions.sha256,
        data=predictions.data,
        data_fingerprint=predictions.data_fingerprint,
        preprocessing_fingerprint=predictions.preprocessing_fingerprint,
        images=len(predictions.labels),
    )
    if predictions.origin is None:
        return subject
    told = {name: getattr(predictions.origin, name) for name in ("weights", "precision", "backend")}
    kept = {name: getattr(subject, name) or value for name, value in told.items()}
    return dataclasses.replace(subject, machine=predictions.origin.machine, tools=predictions.origin.tools, **kept)


def _first_baseline(plan: GatePlan, candidate: GateSide, progress: Progress) -> GateRun:
    """Stores the first baseline, unless the candidate breaks a limit that needs none."""
    assert candidate.predictions is not None
    limits = dataclasses.replace(plan.limits, drop_pp=None, top5_drop_pp=None, slowdown_pct=None, cpu_slowdown_pct=None)
    alone = dataclasses.replace(plan, limits=limits)
    measured = _measure(candidate, [candidate], alone, progress, confidence=plan.confidence, seed=plan.seed)
    run = measured.get(candidate.name)
    seen = _look_at(candidate, None, run, alone)
    (verdict,) = judge_limits.judge([seen], limits, confidence=plan.confidence)
    checks = verdict.checks
    good = all(check.state == "pass" for check in checks)
    if good:
        prediction_files.save(candidate.predictions, Path(plan.baseline))
    check = Check(
        name="baseline",
        limit=None,
        observed=None,
        interval=None,
        state="pass" if good else "inconclusive",
        note=f"There was no {plan.baseline}: the predictions of {candidate.name} are the baseline from now on."
        if good
        else f"There is no {plan.baseline}, and {candidate.name} does not become it: another limit does not pass.",
    )
    subject = _subject(candidate)
    judged = Judged(candidate=subject, verdict=Verdict(checks=(check, *checks)))
    models = () if candidate.source is None else (candidate.source,)
    return GateRun(gate=Gate(baseline=subject, judged=(judged,), confidence=plan.confidence), sources=models)


def _update(plan: GatePlan, judged: Gate, candidate: GateSide) -> Gate:
    """Stores the candidate as the new baseline if it passes, and says what was done."""
    assert candidate.predictions is not None
    if judged.verdict.state == "pass":
        prediction_files.save(candidate.predictions, Path(plan.baseline))
        note = f"{plan.baseline} was replaced by the predictions of {candidate.name}"
    else:
        note = f"{plan.baseline} was left as it is; remove it to accept {candidate.name} all the same"
    return dataclasses.replace(judged, notes=(*judged.notes, note))
