"""The pair of workflows in docs/examples: what each may do, and the second one's script against a made-up GitHub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
GATE, COMMENT = (yaml.safe_load((ROOT / f"docs/examples/{name}.yml").read_text()) for name in ("gate", "gate-comment"))
ON = True  # what YAML 1.1 makes of the key `on`
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
needs_unzip = pytest.mark.skipif(shutil.which("unzip") is None, reason="GitHub's runners have unzip")


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_workflow_that_runs_strangers_code_may_only_read() -> None:
    """On `pull_request`, which gives forks no secret and no right to write."""
    assert GATE[ON] == "pull_request"
    assert GATE["permissions"] == {"contents": "read"}
    assert not [job for job in GATE["jobs"].values() if "permissions" in job]
    assert "secrets." not in (ROOT / "docs/examples/gate.yml").read_text()
    (checkout,) = [step for step in steps(GATE) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"] == {"persist-credentials": False}


def test_the_workflow_that_writes_runs_nothing_of_the_fork() -> None:
    """No checkout, no action, no clone, nothing unpacked; only the artifact is read and only comments are written."""
    assert COMMENT[ON] == {"workflow_run": {"workflows": [GATE["name"]], "types": ["completed"]}}
    assert COMMENT["permissions"] == {}
    (job,) = COMMENT["jobs"].values()
    assert job["permissions"] == {"actions": "read", "pull-requests": "write"}
    (step,) = job["steps"]
    assert "uses" not in step
    assert not re.search(r"\bgit\b|\bclone\b|checkout|run download|\bpip\b|\beval\b|\bsource\b", step["run"])
    assert all(call == "-p" for call in re.findall(r"\bunzip (\S+)", step["run"]))


def test_both_are_pinned_and_paste_nothing_into_a_script() -> None:
    """Actions by commit; expressions stand in `env`, `if`, `with` and concurrency only."""
    for step in (*steps(GATE), *steps(COMMENT)):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step.get("uses", f"none@{40 * '0'}"))
        assert "${{" not in step.get("run", "")


def test_the_example_gives_the_action_inputs_that_it_has() -> None:
    """And the second workflow finds the comment by the mark that the gate writes."""
    (given,) = [step["with"] for step in steps(GATE) if "resdeploy@" in step.get("uses", "")]
    assert given.keys() <= ACTION["inputs"].keys()
    from resdeploy.report import ci

    assert f'mark="{ci.MARK}"' in steps(COMMENT)[0]["run"]


HEAD = "abc o/fork topic"
GH = """#!/bin/sh
# A GitHub with a run of one artifact, pull request 7, and perhaps a comment of ours.
echo "$@" >> calls
for argument; do case "$argument" in body=@*) cp "${argument#body=@}" written ;; esac; done
case "$*" in
  *runs/5/artifacts*) echo "$ARTIFACT" ;;
  *artifacts/9/zip*) cat artifact.zip ;;
  *pulls/7\\ *) echo "$SEEN" ;;
  *--paginate*) echo "$OURS" ;;
esac
"""


def comment(
    folder: Path,
    *,
    number: str = "7\n",
    said: str | None = "PASS",
    seen: str = f"open {HEAD}",
    ours: str = "",
    artifact: str = "9",
) -> int:
    """Exit status of the step; what it writes is in `written`, its calls in `calls`."""
    with zipfile.ZipFile(folder / "artifact.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("number", number)
        if said is not None:
            archive.writestr("resdeploy-gate.md", said)
    (folder / "gh").write_text(GH)
    (folder / "gh").chmod(0o755)
    (folder / "comment.sh").write_text(steps(COMMENT)[0]["run"])
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder), "GITHUB_REPOSITORY": "o/r"}
    environment |= {"RUN": "5", "URL": "https://run", "HEAD": HEAD, "SEEN": seen, "OURS": ours, "ARTIFACT": artifact}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "comment.sh"]  # as GitHub runs `shell: bash`
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


@needs_unzip
@pytest.mark.parametrize(
    ("ours", "call"), [("", "POST repos/o/r/issues/7/comments"), ("11", "PATCH repos/o/r/issues/comments/11")]
)
def test_the_comment_is_made_or_brought_up_to_date(tmp_path: Path, ours: str, call: str) -> None:
    """It begins with the mark and says where it is from; a mention in it is none."""
    assert comment(tmp_path, said="### PASS\n@everybody, m@ail\n", ours=ours) == 0
    assert call in (tmp_path / "calls").read_text().splitlines()[-1]
    text = (tmp_path / "written").read_text()
    assert text.startswith(
        "<!-- resdeploy gate -->\n\nSaid by [the run on this pull request](https://run):\n\n### PASS"
    )
    assert "@<!-- -->everybody, m@<!-- -->ail" in text


@needs_unzip
@pytest.mark.parametrize(
    "seen",
    ["open abd o/fork topic", "open abc o/other topic", "open abc o/fork main", f"closed {HEAD}", "open abc ? topic"],
)
def test_a_number_of_another_head_is_not_written_to(tmp_path: Path, seen: str) -> None:
    """Another commit, fork or branch, or a pull request that is closed: a notice, and no comment anywhere."""
    assert comment(tmp_path, seen=seen) == 0
    assert not (tmp_path / "written").exists()


@needs_unzip
@pytest.mark.parametrize("number", ["", "0", "7/../../issues/1", "7\n8", "$(touch canary)", "7?x=1", "9" * 100])
def test_a_number_that_is_none_goes_nowhere(tmp_path: Path, number: str) -> None:
    """It would become a part of an address."""
    assert comment(tmp_path, number=number) == 1
    assert len((tmp_path / "calls").read_text().splitlines()) == 2  # the artifact was looked for and read
    assert not (tmp_path / "canary").exists()


@needs_unzip
def test_a_gate_that_could_not_be_run_is_said_and_a_flood_is_cut(tmp_path: Path) -> None:
    """No Markdown in the artifact replaces an older pass; megabytes of it are not too long for GitHub."""
    assert comment(tmp_path, said=None, ours="11") == 0
    assert "could not be run" in (tmp_path / "written").read_text()
    assert comment(tmp_path, said="@a" * 2_000_000) == 0
    assert 60_000 < len((tmp_path / "written").read_text()) < 65_536


@needs_unzip
def test_a_run_without_an_artifact_is_no_error(tmp_path: Path) -> None:
    """The gate never came to its upload."""
    assert comment(tmp_path, artifact="") == 0
    assert not (tmp_path / "written").exists()
