"""The fastest mixed-precision model within an accuracy budget: which layers stay in floats, and which result holds.

Candidates form a ladder from the most exact to the one with every layer in INT8. It is made without looking at the
images that judge: from what each layer costs alone (`quantize.sensitivity`, on the calibration images). Errors of
different layers are nearly independent, so their noise adds up, and a rung leaves in float those layers that give most
noise for the arithmetic they take until a given share of the noise is left.

The judging goes down the ladder and ends with the first candidate that is not shown to be within the budget. Such a
fixed sequence, its order chosen beforehand, keeps the chance of any wrong pass at `1 - confidence` without a
correction for the number of candidates (Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen, J. Stat. Plan.
Inference 99 (2001) 25-40). Of those that passed, measured latency decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from resdeploy.judge import accuracy
from resdeploy.measure import interleaved, summary
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Failure, Measurement, Mixed, Predictions, Progress, Sensitivity
from resdeploy.vocabulary import MAX_TIME_S

# Noise left, as a share of the noise of INT8 everywhere: halved from rung to rung, 3 dB of the logits each.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


def ladder(layers: Sequence[Sensitivity], macs: Mapping[str, int]) -> tuple[Mixed, ...]:
    """The candidates, the most exact first: FP16, INT8 with ever fewer layers in float, INT8.

    Args:
        layers: of every quantized layer; blocks are left out of account.
        macs: multiply-accumulates of each layer.
    """
    single = [layer for layer in layers if layer.kind != "block"]
    total = math.fsum(layer.noise for layer in single)
    first = sorted(single, key=lambda layer: -layer.noise / max(macs.get(layer.name, 1), 1))
    rungs = [Mixed(label="fp16", precision="fp16", keep_float=(), noise_share=0.0)]
    for share in (*SHARES, 1.0):
        kept: list[str] = []
        left = total
        for layer in first:
            if left <= share * total:
                break
            kept.append(layer.name)
            left -= layer.noise
        label = f"int8, {len(kept)} in fp32" if kept else "int8"
        names = {layer.name for layer in single if layer.name in kept}
        rung = Mixed(
            label=label,
            precision="int8",
            keep_float=tuple(layer.name for layer in single if layer.name in names),
            noise_share=max(left, 0.0) / total if total else 0.0,
        )
        # All layers in float would be no INT8 model.
        if len(kept) < len(single) and rung.keep_float not in [other.keep_float for other in rungs[1:]]:
            rungs.append(rung)
    return tuple(rungs)


def judge_rungs(
    rungs: Sequence[Mixed],
    baseline: Predictions,
    predict: Callable[[Mixed], Predictions],
    *,
    max_drop_pp: float,
    confidence: float,
) -> tuple[Mixed, ...]:
    """Down the ladder until one is not shown to be within the budget; the rest stays unjudged."""
    found: list[Mixed] = []
    for rung in rungs:
        if found and (found[-1].check is None or found[-1].check.state != "pass"):
            found.append(rung)
            continue
        verdict = accuracy.judge(baseline, predict(rung), max_drop_pp=max_drop_pp, confidence=confidence)
        found.append(replace(rung, check=next(check for check in verdict.checks if check.name == "top1")))
    return tuple(found)


def time_rungs(
    rungs: Sequence[Mixed],
    baseline: Candidate,
    built: Callable[[Mixed], Candidate],
    *,
    duration_s: float,
    seed: int,
    max_time_s: float = MAX_TIME_S,
    progress: Progress | None = None,
) -> tuple[Mixed, ...]:
    """Those within the budget timed in one interleaved run with FP32, and the fastest chosen.

    Where none is within the budget, the one with the least certain drop among those judged is chosen, untimed.
    """
    passed = [rung for rung in rungs if rung.check is not None and rung.check.state == "pass"]
    if not passed:
        best = min((rung for rung in rungs if rung.check is not None), key=_most_lost)
        return tuple(replace(rung, chosen=rung is best) for rung in rungs)
    rivals = [built(rung) for rung in passed]
    outcomes = interleaved.run(
        [baseline, *rivals],
        interleaved.Schedule(duration_s=duration_s, seed=seed, max_time_s=max_time_s),
        interleaved.Listener(progress=progress),
        questions=[interleaved.Question(baseline=baseline.label, candidate=rival.label) for rival in rivals],
    )
    times = {outcome.label: outcome for outcome in outcomes if isinstance(outcome, Measurement)}
    found = [_with_times(rung, times.get(rung.label), times.get(baseline.label)) for rung in rungs]
    measurable = [rung for rung in found if rung.summary is not None]
    if not measurable:
        interleaved.measurement_or_raise(next(outcome for outcome in outcomes if isinstance(outcome, Failure)))
    fastest = min(measurable, key=_p50_s)
    return tuple(replace(rung, chosen=rung is fastest) for rung in found)


def _with_times(rung: Mixed, measured: Measurement | None, fp32: Measurement | None) -> Mixed:
    if measured is None:
        return rung
    speedup = None if fp32 is None else summary.compare(fp32, measured)
    return replace(rung, summary=summary.summarise(measured), speedup=speedup)


def _p50_s(rung: Mixed) -> float:
    assert rung.summary is not None
    p50_s = rung.summary.latency_s["p50"]
    assert p50_s is not None
    return p50_s


def _most_lost(rung: Mixed) -> float:
    """The largest drop that the images leave possible, in points."""
    assert rung.check is not None
    return rung.check.interval[1] if rung.check.interval is not None else math.inf
