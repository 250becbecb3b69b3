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


def test_two_candidates_one_of_them_hostile(folder: Path) -> None:
    """One a line; the name with commands in it is a name, and the gate fails for what it holds."""
    names = "good.npz\nbad one; touch canary; $(touch canary).npz\n"
    assert act(folder, baseline="base.npz", candidate=names, max_drop="0.5") == (1, "fail")
    assert not (folder / "canary").exists()
    assert ET.parse(folder / "resdeploy-gate.xml").getroot().get("tests") == "2"


def test_what_could_not_be_run_is_an_error(folder: Path) -> None:
    """No such file: the command's own status, and no verdict that somebody could take for one."""
    assert act(folder, baseline="no.npz", candidate="good.npz", max_drop="0.5") == (2, "error")


def test_no_input_is_pasted_into_a_script() -> None:
    """Expressions stand in `env`, `if` and outputs only."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


def test_the_comment_is_found_again_by_its_mark() -> None:
    """The mark that the script looks for is the one that the report writes."""
    from resdeploy.report import ci

    assert ci.MARK in COMMENT["run"]
