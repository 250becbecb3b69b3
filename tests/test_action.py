"""The composite GitHub Action: its script run by bash as the runner does, with inputs that try to break out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
JUDGE = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "gate")
COMMENT = ACTION["runs"]["steps"][-1]


def act(folder: Path, **inputs: str) -> tuple[int, str]:
    """Exit status of the step and the verdict it gives out."""
    defaults = {name: spec.get("default", "") for name, spec in ACTION["inputs"].items()}
    given = {**defaults, **{name.replace("_", "-"): value for name, value in inputs.items()}}
    environment = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: given[m[1]], value)
        for name, value in JUDGE["env"].items()
    }
    (folder / "resdeploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m resdeploy "$@"\n')
    (folder / "resdeploy").chmod(0o755)
    (folder / "script.sh").write_text(JUDGE["run"])
    environment |= {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNNER_TEMP": str(folder),
        "GITHUB_OUTPUT": str(folder / "outputs"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "RESDEPLOY_CACHE": os.environ["RESDEPLOY_CACHE"],
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "script.sh"]  # as GitHub runs `shell: bash`
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    outputs = (folder / "outputs").read_text()
    return done.returncode, outputs.strip().removeprefix("verdict=")


@pytest.fixture
def folder(tmp_path: Path, save_answers: Callable[[str, int], None]) -> Path:
    for name, wrong in (("base", 0), ("good", 5), ("bad one; touch canary; $(touch canary)", 200)):
        save_answers(name, wrong)
    return tmp_path


def test_a_pass_writes_every_output(folder: Path) -> None:
    """JUnit, JSON, the comment and the step summary, and the verdict as an output."""
    assert act(folder, baseline="base.npz", candidate="good.npz", max_drop="0.5") == (0, "pass")
    assert ET.parse(folder / "resdeploy-gate.xml").getroot().get("failures") == "0"
    assert (folder / "resdeploy-gate.json").exists()
    comment = (folder / "resdeploy-gate.md").read_text()
    assert (folder / "summary.md").read_text() == comment
    assert comment.startswith("<!-- resdeploy gate -->")


def test_the_page_is_written_and_uploaded_where_it_is_asked_for(folder: Path) -> None:
    """Under a name that the step has looked at; another word than true or false is no way to leave it out."""
    pytest.importorskip("jinja2")
    judged = {"baseline": "base.npz", "candidate": "good.npz", "max_drop": "0.5"}
    assert act(folder, **judged, name="int8", report="true") == (0, "pass\nreport=resdeploy-gate-int8")
    assert "Verdict: PASS" in (folder / "resdeploy-gate-int8.html").read_text()
    (upload,) = (step for step in ACTION["runs"]["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "${{ steps.gate.outputs.report }}.html"
    assert "steps.gate.outputs.report" in upload["if"]
    (folder / "outputs").unlink()
    assert act(folder, **judged, report="True") == (2, "error")


def test_two_candidates_one_of_them_hostile(folder: Path) -> None:
    """One a line; the name with commands in it is a name, and the gate fails for what it holds."""
    names = "good.npz\nbad one; touch canary; $(touch canary).npz\n"
    assert act(folder, baseline="base.npz", candidate=names, max_drop="0.5") == (1, "fail")
    assert not (folder / "canary").exists()
    assert ET.parse(folder / "resdeploy-gate.xml").getroot().get("tests") == "2"


def test_further_options_reach_the_gate_one_a_line(folder: Path) -> None:
    """Those it has are taken, one it lacks ends it, and none is a command."""
    judged = {"baseline": "base.npz", "candidate": "good.npz", "max_drop": "0.5"}
    assert act(folder, **judged, options="--confidence=0.9\n--seed=1\n") == (0, "pass")
    assert '"confidence": 0.9' in (folder / "resdeploy-gate.json").read_text()
    for wrong in ("--no-such=1", "--confidence=0.9\n--seed=1; touch canary\n"):
        (folder / "outputs").unlink()
        assert act(folder, **judged, options=wrong) == (2, "error")
    assert not (folder / "canary").exists()


def test_a_gate_that_could_not_decide_fails_the_job_or_warns(folder: Path) -> None:
    """Either way the output says inconclusive, never pass; a fail fails, and another word is refused."""
    close = {"baseline": "base.npz", "candidate": "good.npz", "max_drop": "0.1"}
    for given, expected in (
        ({**close}, (3, "inconclusive")),
        ({**close, "on_inconclusive": "warn"}, (0, "inconclusive")),
        ({**close, "options": "--on-inconclusive=warn"}, (0, "inconclusive")),
        ({**close, "on_inconclusive": "warn", "max_drop": "0.5"}, (0, "pass")),
        ({**close, "on_inconclusive": "warn", "max_drop": "0.01"}, (1, "fail")),
        ({**close, "on_inconclusive": "pass"}, (2, "error")),
    ):
        (folder / "outputs").unlink(missing_ok=True)
        assert act(folder, **given) == expected


def test_what_could_not_be_run_is_an_error(folder: Path) -> None:
    """No such file: the command's own status, and no verdict that somebody could take for one."""
    assert act(folder, baseline="no.npz", candidate="good.npz", max_drop="0.5") == (2, "error")


def test_no_input_is_pasted_into_a_script() -> None:
    """Expressions stand in `env`, `if` and outputs only."""
    scripts = [step for step in ACTION["runs"]["steps"] if "uses" not in step]
    assert len(scripts) == 3
    for step in scripts:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


GH = """#!/bin/sh
# A GitHub with one comment of each mark: prints its number where the filter asks for that mark.
echo "$@" >> calls
case "$*" in *--paginate*"gate -->"*) echo 11 ;; *--paginate*"gate: int8 -->"*) echo 22 ;; esac
"""


@pytest.mark.parametrize(
    ("name", "call", "mark"),
    [
        ("", "PATCH repos/o/r/issues/comments/11 ", "<!-- resdeploy gate -->"),
        ("int8", "PATCH repos/o/r/issues/comments/22 ", "<!-- resdeploy gate: int8 -->"),
        ("fp16", "POST repos/o/r/issues/7/comments ", "<!-- resdeploy gate: fp16 -->"),
    ],
)
def test_each_named_gate_keeps_a_comment_of_its_own(folder: Path, name: str, call: str, mark: str) -> None:
    """Found again by its mark, or made anew; the files of a named gate have its name."""
    assert act(folder, baseline="base.npz", candidate="good.npz", max_drop="0.5", name=name)[0] == 0
    own = f"resdeploy-gate-{name}" if name else "resdeploy-gate"
    assert (folder / f"{own}.xml").exists()
    assert comment_on(folder, name) == 0
    assert call in (folder / "calls").read_text().splitlines()[-1]
    assert (folder / f"{own}.comment.md").read_text().startswith(f"{mark}\n<!-- resdeploy gate -->\n\n### ✅")


def comment_on(folder: Path, name: str) -> int:
    (folder / "gh").write_text(GH)
    (folder / "gh").chmod(0o755)
    (folder / "comment.sh").write_text(COMMENT["run"])
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder), "NUMBER": "7", "NAME": name}
    environment["GITHUB_REPOSITORY"] = "o/r"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "comment.sh"]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def test_a_gate_that_could_not_be_run_replaces_the_comment_of_a_pass(folder: Path) -> None:
    """Yesterday's PASS does not stay below today's error."""
    act(folder, baseline="base.npz", candidate="good.npz", max_drop="0.5")
    (folder / "outputs").unlink()
    assert act(folder, baseline="no.npz", candidate="good.npz", max_drop="0.5") == (2, "error")
    assert comment_on(folder, "") == 0
    body = (folder / "resdeploy-gate.comment.md").read_text()
    assert "could not be run" in body
    assert "PASS" not in body


def test_a_failed_installation_replaces_the_comment_of_a_pass(folder: Path) -> None:
    """The judging step never ran, so nothing is there to show; the step that comments is not tied to its output."""
    assert "steps.gate" not in COMMENT["if"]
    assert comment_on(folder, "") == 0
    assert "could not be run" in (folder / "resdeploy-gate.comment.md").read_text()


def test_a_verdict_outlives_a_lost_output(folder: Path) -> None:
    """The step summary cannot be written: the comment says that something is lost, and keeps what was judged."""
    (folder / "summary.md").mkdir()
    assert act(folder, baseline="base.npz", candidate="good.npz", max_drop="0.5") == (6, "error")
    assert comment_on(folder, "") == 0
    body = (folder / "resdeploy-gate.comment.md").read_text()
    assert body.index("an output was lost (exit 6)") < body.index("PASS")


@pytest.mark.parametrize("switch", ["require_fused", "update_baseline"])
def test_a_switch_that_is_neither_true_nor_false_is_refused(folder: Path, switch: str) -> None:
    """Passed over, it would leave the limit out and the job green."""
    for word in ("True", "yes", "1"):
        (folder / "outputs").unlink(missing_ok=True)
        given = {"baseline": "base.npz", "candidate": "good.npz", "max_drop": "0.5", switch: word}
        assert act(folder, **given) == (2, "error")


def test_a_name_that_is_more_than_a_name_is_refused(folder: Path) -> None:
    """It would become a part of a path and of a program of jq."""
    for name in ("../x", 'a")) or true', "a b", "$(touch canary)"):
        (folder / "outputs").unlink(missing_ok=True)
        assert act(folder, baseline="base.npz", candidate="good.npz", max_drop="0.5", name=name) == (2, "error")
        assert comment_on(folder, name) == 2
