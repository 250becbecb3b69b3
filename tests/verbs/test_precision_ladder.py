"""The ladder of mixed models, the order of judging, and the choice by measured latency."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.errors import BackendCrash
from resdeploy.measure import interleaved
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import (
    Artifact,
    Block,
    Check,
    Execution,
    Failure,
    Measurement,
    Mixed,
    Predictions,
    Sensitivity,
)
from resdeploy.verbs import precision_ladder


def layer(name: str, noise: float, kind: str = "Conv") -> Sensitivity:
    return Sensitivity(name=name, kind=kind, layers=(name,), images=10, changed=0, signal=1.0, noise=noise)


layers = st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 10**6)), min_size=1, max_size=30)


@given(layers)
def test_rungs_are_nested_and_keep_their_promise(found: list[tuple[float, int]]) -> None:
    """Each has all the float layers of the next, no more noise than its share, and none is all float."""
    tried = [layer(f"l{i}", noise) for i, (noise, _) in enumerate(found)]
    macs = {f"l{i}": count for i, (_, count) in enumerate(found)}
    half, *mixes = precision_ladder.ladder([*tried, layer("block", 5.0, "block")], macs)
    assert (half.precision, half.keep_float) == ("fp16", ())
    assert (mixes[-1].label, mixes[-1].keep_float, mixes[-1].noise_share) == ("int8", (), 1.0)
    total = sum(trial.noise for trial in tried)
    for before, after in itertools.pairwise(mixes):
        assert set(before.keep_float) > set(after.keep_float)
    for mix in mixes:
        assert len(mix.keep_float) < len(tried)
        left = sum(trial.noise for trial in tried if trial.name not in mix.keep_float)
        assert mix.noise_share == pytest.approx(left / total, abs=1e-6)
        assert [name for name in macs if name in mix.keep_float] == list(mix.keep_float)


def test_noise_for_little_arithmetic_goes_first() -> None:
    """Of two layers of the same noise, the one of fewer multiplications is left in float."""
    mixes = precision_ladder.ladder([layer("big", 1.0), layer("small", 1.1)], {"big": 100, "small": 1})
    assert ("small",) in [mix.keep_float for mix in mixes]


def test_a_network_without_noise_has_one_int8_model() -> None:
    """Nothing to gain from leaving a layer in float."""
    mixes = precision_ladder.ladder([layer("a", 0.0), layer("b", 0.0)], {})
    assert [mix.label for mix in mixes] == ["fp16", "int8"]


def predictions(lost: int, images: int = 1000) -> Predictions:
    """That many of them wrong, all labels 0."""
    top = np.zeros((images, 1), np.int64)
    top[:lost] = 1
    return Predictions(
        model="m",
        ids=tuple(map(str, range(images))),
        labels=np.zeros(images, np.int64),
        top=top,
        logits=None,
        data="d",
        data_fingerprint="",
        preprocessing_fingerprint="",
        sha256="",
    )


def mix(label: str, **fields: Any) -> Mixed:
    return Mixed(label=label, precision="int8", keep_float=(), noise_share=1.0, **fields)


def test_judging_goes_down_the_ladder_and_ends_with_the_first_that_is_not_shown_to_pass() -> None:
    """The third loses too much: it is judged, the fourth never runs."""
    lost = {"a": 0, "b": 1, "c": 60, "d": 0}
    ran: list[str] = []

    def predict(candidate: Mixed) -> Predictions:
        ran.append(candidate.label)
        return predictions(lost[candidate.label])

    found = precision_ladder.judge_mixes(
        [mix(name) for name in lost], predictions(0), predict, max_drop_pp=1.0, confidence=0.95
    )
    assert ran == ["a", "b", "c"]
    assert [candidate.check and candidate.check.state for candidate in found] == ["pass", "pass", "fail", None]


def check(state: str, most: float = 0.1) -> Check:
    return Check(name="top1", limit=0.3, observed=0.0, interval=(-0.1, most), state=state)  # type: ignore[arg-type]


def candidate(of: Mixed | None) -> Candidate:
    artifact = Artifact(path="x.onnx", format="onnx", precision="int8", sha256="")
    return Candidate(label="fp32" if of is None else of.label, backend="null", artifact=artifact, execution=Execution())


def measurement(label: str, run_s: float) -> Measurement:
    block = Block(put_s=(0.0,) * 9, run_s=(run_s,) * 9, get_s=(0.0,) * 9, started_s=0.0)
    return Measurement(
        label=label,
        model="m",
        backend="null",
        precision="int8",
        batch_size=1,
        scenario="single-stream",
        sha256="",
        execution=Execution(),
        blocks=(block,) * 8,
    )


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float | None]], list[str]]:
    """Replaces the measuring by known times (None: it fails); the list says what was measured."""

    def known(run_s: dict[str, float | None]) -> list[str]:
        asked: list[str] = []

        def run(candidates: list[Candidate], *_: object, **__: object) -> tuple[Measurement | Failure, ...]:
            asked.extend(one.label for one in candidates)
            return tuple(
                measurement(one.label, seconds)
                if (seconds := run_s[one.label]) is not None
                else Failure(
                    label=one.label,
                    model="m",
                    backend="null",
                    precision="int8",
                    batch_size=1,
                    error_code=BackendCrash.code,
                    exit_status=7,
                    message="it died",
                )
                for one in candidates
            )

        monkeypatch.setattr(interleaved, "run", run)
        return asked

    return known


def test_the_fastest_within_the_budget_is_chosen(times: Callable[[dict[str, float | None]], list[str]]) -> None:
    """Measured latency decides, not the mix; what failed the budget is not even timed."""
    asked = times({"fp32": 4e-3, "fp16": 4e-3, "some": 1e-3, "more": 2e-3})
    mixes = [mix("fp16", check=check("pass")), mix("some", check=check("pass")), mix("more", check=check("pass"))]
    mixes += [mix("int8", check=check("inconclusive"))]
    found = precision_ladder.time_mixes(mixes, candidate(None), candidate, duration_s=1.0, seed=0)
    assert asked == ["fp32", "fp16", "some", "more"]
    assert [one.label for one in found if one.chosen] == ["some"]
    assert found[1].speedup is not None
    assert found[1].speedup.speedup == pytest.approx(4.0)
    assert found[3].summary is None


def test_without_any_within_the_budget_the_least_doubtful_is_kept_untimed(
    times: Callable[[dict[str, float | None]], list[str]],
) -> None:
    """Nobody measures what will not be used."""
    asked = times({})
    mixes = [mix("a", check=check("inconclusive", 0.9)), mix("b")]
    found = precision_ladder.time_mixes(mixes, candidate(None), candidate, duration_s=1.0, seed=0)
    assert [one.label for one in found if one.chosen] == ["a"]
    assert asked == []


def test_a_candidate_that_cannot_be_timed_is_not_chosen(
    times: Callable[[dict[str, float | None]], list[str]],
) -> None:
    """It fails; where all fail, the failure is the result."""
    mixes = [mix("a", check=check("pass")), mix("b", check=check("pass"))]
    times({"fp32": 1e-3, "a": 2e-3, "b": None})
    found = precision_ladder.time_mixes(mixes, candidate(None), candidate, duration_s=1.0, seed=0)
    assert [one.label for one in found if one.chosen] == ["a"]
    times({"fp32": 1e-3, "a": None, "b": None})
    with pytest.raises(BackendCrash, match="it died"):
        precision_ladder.time_mixes(mixes, candidate(None), candidate, duration_s=1.0, seed=0)
