"""`resdeploy cache`, and commands that wait for another's lock or have no cache: words and status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resdeploy import cache, cli, locks, places, store, waiting
from resdeploy.errors import Locked, UsageError
from resdeploy.records import Artifact
from tests.cli.conftest import ROOT, Commands

runner = CliRunner()


def entry(name: str) -> Path:
    def make(path: Path) -> Artifact:
        path.write_bytes(name.encode() * 1000)
        return Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))

    return Path(cache.load_or_make(name, ".onnx", make).path)


def documented(*args: str) -> dict[str, Any]:
    done = runner.invoke(cli.app, ["cache", *args, "--format", "json"])
    return {"status": done.exit_code, **json.loads(done.stdout)}


def test_cache_says_where_it_is_and_what_it_holds() -> None:
    entry("a")
    told = documented()
    assert told["folder"] == str(places.cache_dir())
    (artifacts,) = (row for row in told["results"] if row["part"] == "artifacts")
    assert artifacts["entries"] == 1
    assert artifacts["size_bytes"] > 1000
    assert str(places.cache_dir()) in runner.invoke(cli.app, ["cache"]).stdout


def test_verify_lists_what_will_not_be_used_and_is_exit_5() -> None:
    path = entry("a")
    entry("b")
    assert documented("verify").items() >= {"status": 0, "checked": 2, "results": []}.items()
    path.write_bytes(b"changed")
    told = documented("verify")
    assert (told["status"], told["checked"]) == (5, 2)
    ((row),) = told["results"]
    assert (row["file"], row["state"]) == (str(path), "damaged")
    done = runner.invoke(cli.app, ["cache", "verify"])
    assert "is not the file its sidecar describes" in " ".join(done.stdout.split())
    assert "1 of 2 entries are whole and yours" in done.stderr


@pytest.mark.parametrize("options", [("--format", "json"), ("-o", "x.json"), ("-v",)])
@pytest.mark.parametrize("verb", ["verify", "clear"])
def test_an_option_before_the_verb_is_refused_and_not_ignored(verb: str, options: tuple[str, ...]) -> None:
    done = runner.invoke(cli.app, ["cache", *options, verb])
    assert isinstance(done.exception, UsageError)
    assert done.exception.fix == f"Write it after {verb}"


def test_clear_says_what_it_freed() -> None:
    entry("a")
    done = runner.invoke(cli.app, ["cache", "clear", "--older-than", "1"])
    assert "removed 0 files" in done.stderr
    done = runner.invoke(cli.app, ["cache", "clear"])
    assert done.exit_code == 0
    assert f"removed 3 files from {places.cache_dir()}" in done.stderr
    assert documented()["results"][0]["entries"] == 0


def test_a_second_run_of_a_folder_waits_and_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once would lose each other's steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text(
        'name = "p"\nmodel = "resnet20"\nbackends = ["onnxruntime"]\nprecisions = ["fp32"]\n'
    )
    with locks.hold(tmp_path / "runs/p/.lock", "it"):
        done = runner.invoke(cli.app, ["--lock-timeout", "0", "run", "p.toml"])
    assert isinstance(done.exception, Locked)
    assert str(done.exception).startswith(f"error[E-LOCKED]: the folder runs/p is in use by process {os.getpid()} on ")
    assert sorted(path.name for path in (tmp_path / "runs/p").iterdir()) == [".lock"]
    assert waiting.timeout_s() == waiting.TIMEOUT_S  # the option held for that command alone


NOBODY = """
import pwd, sys
from resdeploy.cli import main
from tests.shortly import time_shortly
pwd.getpwuid = {}.__getitem__
time_shortly()
main()
"""


@pytest.mark.parametrize("home", [True, False], ids=["read-only", "homeless"])
def test_without_home_or_a_cache_that_can_be_written_commands_work_and_say_so(
    tmp_path: Path, digits_onnx: Path, commands: Commands, home: bool
) -> None:
    """As in a container that runs as a number, or on a read-only file system: a bench only wants its journal there."""
    (tmp_path / "file").write_bytes(b"x")
    hidden = ("HOME", "RESDEPLOY_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    bare = {name: value for name, value in os.environ.items() if name not in hidden} | {"TMPDIR": str(tmp_path)}
    command = ["bench", str(digits_onnx), "--backend", "onnxruntime", "--duration", "0.1"]
    if home:
        done = commands.run(
            command, tmp_path, bare | {"RESDEPLOY_CACHE": f"{tmp_path}/file/cache", "HOME": f"{tmp_path}"}
        )
    else:
        bare["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
        nobody = [sys.executable, "-c", NOBODY, *command]
        done = subprocess.run(nobody, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written" if home else "there is no home folder to keep a cache in") == 1
    assert "kept for this command only" in done.stderr
    assert not list(tmp_path.glob("*resdeploy-*"))
