"""pytest plugin: `def test_accuracy(resdeploy_gate): resdeploy_gate("int8.onnx", baseline="fp32.onnx", max_drop=0.5)`.

Found by pytest through its entry point, which pyproject.toml names. Importing it imports nothing of resdeploy or its
dependencies, so that test runs which never ask for the fixture pay nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from os import PathLike
    from typing import Unpack

    from resdeploy.records import Gate
    from resdeploy.verbs.gate_options import GateOptions

# name of the argument: name on the command line, help
OPTIONS = {
    "data": ("--resdeploy-data", "Images that resdeploy_gate judges models on, where a test names none."),
    "backend": ("--resdeploy-backend", "Backend that resdeploy_gate runs models on, where a test names none."),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--resdeploy-data` and `--resdeploy-backend`, and `resdeploy_data`, `resdeploy_backend` in the configuration."""
    group = parser.getgroup("resdeploy")
    for name, (option, text) in OPTIONS.items():
        group.addoption(option, default=None, help=text)
        parser.addini(f"resdeploy_{name}", text)


def _setting(config: pytest.Config, name: str) -> str | None:
    return config.getoption(OPTIONS[name][0]) or config.getini(f"resdeploy_{name}") or None


@pytest.fixture
def resdeploy_gate(request: pytest.FixtureRequest) -> Callable[..., Gate]:
    """Judges candidates against a baseline; the test fails unless every limit is shown to be kept.

    `resdeploy_gate(candidate, *more, baseline=..., max_drop=..., data=...)` takes the limits and options of `resdeploy
    gate` by their names: `max_drop`, `max_top5_drop`, `max_slowdown`, `max_cpu_slowdown`, `max_size`, `max_memory`,
    `require_fused`, `sequential`, `confidence`, `backend`, `batch_size`, `threads`, `duration`, `max_time`, `seed`,
    `skip_bad`, `update_baseline`, `trust_engine`, and how images become the input: `img_size`, `resize`,
    `interpolation`, `mean=(0.5, 0.5, 0.5)`, `std`, `channels`, `labels`. It returns the `resdeploy.records.Gate`. An
    inconclusive verdict fails the test too, in its own words: a gate that could not judge has not passed. With
    `on_inconclusive="warn"` it is a pytest warning of the same words instead.
    """

    def judge(
        candidate: str | PathLike[str],
        *more: str | PathLike[str],
        baseline: str | PathLike[str],
        **options: Unpack[GateOptions],
    ) -> Gate:
        __tracebackhide__ = True
        from resdeploy.errors import ResdeployError
        from resdeploy.verbs import gate, gate_options, gate_refusals

        sides = [str(baseline), str(candidate), *map(str, more)]
        if options.get("backend") is None and (backend := _setting(request.config, "backend")) is not None:
            options["backend"] = backend
        # Saved predictions are of images of their own: the configured ones are for models.
        if options.get("data") is None and not all(map(gate_refusals.is_saved, sides)):
            options["data"] = _setting(request.config, "data")
        try:
            plan = gate_options.plan_of(sides[0], sides[1:], **options)
            outcome = gate.gate(plan, progress=lambda _what, _done, _total: None).gate
        except (ResdeployError, TypeError) as e:
            pytest.fail(f"resdeploy_gate: {e}", pytrace=False)
        state = outcome.verdict.state
        if state == "inconclusive" and plan.on_inconclusive == "warn":
            warnings.warn(pytest.PytestWarning("\n".join(_reasons(outcome))), stacklevel=2)
        elif state != "pass":
            pytest.fail("\n".join(_reasons(outcome)), pytrace=False)
        return outcome

    return judge


def _reasons(outcome: Gate) -> Iterable[str]:
    yield f"resdeploy gate: {outcome.verdict.state}"
    for one in outcome.judged:
        for check in one.verdict.checks:
            if check.state != "pass":
                yield f"{one.candidate.name}, {check.name}: {check.state}: {check.note}"
    yield from outcome.notes
