"""Limits on what is counted: size, memory, fusion."""

from __future__ import annotations

import pytest

from resdeploy.errors import UsageError
from resdeploy.judge import counted, fusion
from resdeploy.records import Audit, Check, State, Verdict


def test_a_file_of_the_limit_passes_and_one_byte_more_fails() -> None:
    """Megabytes are millions of bytes; the limit itself is within."""
    assert counted.check_size(25_000_000, max_mb=25).state == "pass"
    over = counted.check_size(25_000_001, max_mb=25)
    assert over.state == "fail"
    assert over.observed == pytest.approx(25.000001)
    assert "over the limit of 25 MB" in over.note


def test_memory_that_nobody_tells_is_not_a_pass() -> None:
    """0 means that the system keeps no peak: inconclusive, never within."""
    assert counted.check_memory(90_000_000, max_mb=80).state == "fail"
    assert counted.check_memory(70_000_000, max_mb=80).state == "pass"
    unknown = counted.check_memory(0, max_mb=80)
    assert (unknown.state, unknown.observed) == ("inconclusive", None)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    """Nothing, less than nothing, not a number, everything."""
    for judged in (counted.check_size, counted.check_memory):
        with pytest.raises(UsageError, match="no limit"):
            judged(1, max_mb=limit)


def audited(*states: State) -> Audit:
    checks = (
        Check(name=f"{k}", limit=9.0, observed=3.0, interval=None, state=state, note="its sum is a kernel of its own")
        for k, state in enumerate(states)
    )
    return Audit(
        subject="r20", asked="int8", verdict=Verdict(checks=tuple(checks)), blocks=(), layers=(), superfluous=()
    )


def test_the_audits_checks_are_the_gates_with_their_states() -> None:
    """A sum that is a kernel of its own fails; what the runtime does not tell stays undecided."""
    found = counted.check_fusion(audited("pass", "fail", "inconclusive"))
    assert [(check.name, check.state) for check in found] == [
        ("fused: 0", "pass"),
        ("fused: 1", "fail"),
        ("fused: 2", "inconclusive"),
    ]
    assert found[1].note == "its sum is a kernel of its own."


def test_a_backend_that_tells_no_layers_is_not_a_pass() -> None:
    """Nothing was looked at: inconclusive."""
    for asked in (None, "fp32", "int8"):
        states = [check.state for check in counted.check_fusion(fusion.judge("x", (), asked=asked))]
        assert states
        assert set(states) == {"inconclusive"}
