"""The pytest plugin in real pytest runs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow  # each starts a pytest of its own
Pytest = Callable[..., "subprocess.CompletedProcess[str]"]
TEST = "def test_accuracy(resdeploy_gate):\n    found = resdeploy_gate({candidate!r}, baseline='base.npz', {options})\n"


@pytest.fixture
def run(tmp_path: Path, save_answers: Callable[[str, int], None]) -> Pytest:
    """Runs pytest on one test file in a folder with base, good (0.1 points worse) and bad (4 points) predictions."""
    for name, wrong in (("base", 0), ("good", 5), ("bad", 200)):
        save_answers(name, wrong)

    def go(test: str, *args: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_model.py").write_text(test)
        # By the entry point's own name; of other plugins that are installed none is loaded, which takes a second.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "resdeploy.pytest_plugin",
            "-p",
            "no:cacheprovider",
            *args,
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return go


def test_a_candidate_within_the_limit_passes_and_the_result_is_returned(run: Pytest) -> None:
    """The documented call, and its verdict for further assertions."""
    test = TEST.format(candidate="good.npz", options="max_drop=0.5")
    done = run(test + "    assert found.judged[0].verdict.checks[0].observed == 0.1\n")
    assert done.returncode == 0, done.stdout


def test_a_worse_candidate_fails_with_the_gates_own_words(run: Pytest) -> None:
    """The note of the check, and no traceback through our code."""
    done = run(TEST.format(candidate="bad.npz", options="max_drop=0.5"))
    assert done.returncode == 1
    assert "resdeploy gate: fail" in done.stdout
    assert "bad, top1: fail: On new images like these top-1 drops by at least" in done.stdout
    assert "Traceback" not in done.stdout
    assert "pytest_plugin.py" not in done.stdout


def test_what_cannot_be_decided_does_not_pass(run: Pytest) -> None:
    """Inconclusive is a failed test that says so, and how many images would decide."""
    done = run(TEST.format(candidate="good.npz", options="max_drop=0.1"))
    assert done.returncode == 1
    assert "resdeploy gate: inconclusive" in done.stdout


def test_what_cannot_be_decided_can_be_a_warning(run: Pytest) -> None:
    """`on_inconclusive="warn"`: the test goes on with the result, pytest tells the reasons; a fail stays a fail."""
    told = "max_drop=0.1, on_inconclusive='warn'"
    done = run(TEST.format(candidate="good.npz", options=told) + "    assert found.verdict.state == 'inconclusive'\n")
    assert done.returncode == 0, done.stdout
    assert "PytestWarning: resdeploy gate: inconclusive" in done.stdout
    assert "good, top1: inconclusive: " in done.stdout
    assert run(TEST.format(candidate="bad.npz", options=told)).returncode == 1
    done = run(TEST.format(candidate="good.npz", options="max_drop=0.5, on_inconclusive='pass'"))
    assert done.returncode == 1
    assert "on_inconclusive is 'pass'. Choose fail or warn" in done.stdout


def test_an_unknown_option_is_an_error(run: Pytest) -> None:
    """A misspelt limit must not be ignored: the test fails before anything is judged."""
    done = run(TEST.format(candidate="good.npz", options="max_drop=0.5, max_dorp=0.1"))
    assert done.returncode == 1
    assert "max_dorp" in done.stdout


def test_the_images_come_from_the_configuration(run: Pytest, tmp_path: Path) -> None:
    """A model needs images: named by the configuration file or the command line."""
    (tmp_path / "m.onnx").write_bytes(b"")
    test = TEST.format(candidate="m.onnx", options="max_drop=0.5")
    for arguments in (("--resdeploy-data", "digits"), ("-o", "resdeploy_data=digits")):
        done = run(test, *arguments)
        assert done.returncode == 1
        assert "Add --data DIR" not in done.stdout  # it went on to the model, which is empty
        assert "m.onnx" in done.stdout


def test_tests_that_do_not_ask_for_it_load_nothing(run: Pytest) -> None:
    """The plugin is found by every pytest run of the environment, so it must cost nothing there."""
    done = run(
        "import sys\n"
        "def test_x():\n"
        "    assert 'resdeploy.pytest_plugin' in sys.modules\n"
        "    assert not {'numpy', 'typer', 'pydantic', 'onnx', 'resdeploy.records'} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stdout


def test_the_entry_point_is_declared() -> None:
    """Pytest finds the plugin through the package's metadata."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert list(project["entry-points"]["pytest11"].values()) == ["resdeploy.pytest_plugin"]


def test_the_fixture_takes_every_option_of_the_command_that_judges() -> None:
    """What a team can say on the command line, a test can say too: all but where results go."""
    import inspect

    from resdeploy.cli.gate import gate as command
    from resdeploy.errors import UsageError
    from resdeploy.verbs import gate_options

    told = {"junit", "comment", "metrics", "report", "github", "fmt", "output", "wide", "quiet", "verbose"}
    named: dict[str, Any] = {
        name: 0.5 for name in inspect.signature(command).parameters if name not in told | {"baseline", "candidate"}
    }
    words = {"backend": "auto", "on_inconclusive": "warn", "channels": "bgr", "labels": ["a", "b"]}
    plan = gate_options.plan_of("a.npz", ["b.npz"], **{**named, **words, "mean": (0.1,), "std": (0.2,)})
    assert (plan.override.img_size, plan.override.mean, plan.override.std) == (0.5, (0.1,), (0.2,))
    assert (plan.override.channels, plan.override.labels) == ("BGR", ("a", "b"))
    with pytest.raises(UsageError, match="channels is 'grb'"):
        gate_options.plan_of("a.npz", ["b.npz"], channels="grb")  # type: ignore[arg-type]


def test_configured_images_are_not_for_saved_predictions_and_a_wrong_option_is_named(run: Pytest) -> None:
    """Predictions are of images of their own; a slip fails the test in one line."""
    assert run(TEST.format(candidate="good.npz", options="max_drop=0.5"), "--resdeploy-data", "digits").returncode == 0
    done = run(TEST.format(candidate="good.npz", options="max_dorp=0.5"))
    assert done.returncode == 1
    assert "max_dorp" in done.stdout
    assert "pytest_plugin.py" not in done.stdout
