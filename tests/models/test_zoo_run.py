"""benchmarks/zoo.py: what a run that is resumed keeps, and what it measures again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import zoo
from resdeploy.backends import machine
from resdeploy.errors import BackendCrash
from resdeploy.measure import environment

OLD = {
    "environment": {"cpu": {"model": "another machine's"}},
    "results": [
        {"model": "resnet20", "ok": True, "int8": {}},
        {"model": "resnet32", "ok": True},
        {"model": "resnet44", "ok": False, "failure": "it died"},
    ],
}


def resumed(monkeypatch: pytest.MonkeyPatch, path: Path, *options: str, failing: str = "") -> dict[str, Any]:
    """The rows after four small networks were asked for, `measured` where this run measured them."""

    def measure(name: str, *, quantize: bool) -> dict[str, Any]:
        if name == failing:
            raise BackendCrash("it died again")
        return {"model": name, "ok": True, "measured": True} | ({"int8": {}} if quantize else {})

    names = ["resnet20", "resnet32", "resnet44", "resnet56"]
    monkeypatch.setattr(zoo, "measure", measure)
    monkeypatch.setattr(environment, "capture", lambda: {"cpu": {"model": "this machine's"}})
    monkeypatch.setattr(sys, "argv", ["zoo.py", *names, "--output", str(path), "--resume", *options])
    with pytest.raises(SystemExit) as ended:
        zoo.main()
    assert ended.value.code == bool(failing)
    return {row["model"]: row for row in json.loads(path.read_text())["results"]}


def test_a_resumed_run_measures_what_is_missing_or_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Good rows stay, on the machine they were measured on, although older files name it but once."""
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps(OLD))
    rows = resumed(monkeypatch, path)
    here = machine.cpu().model
    assert {name: row.get("measured", False) for name, row in rows.items()} == {
        "resnet20": False, "resnet32": False, "resnet44": True, "resnet56": True,
    }  # fmt: skip
    assert [row["cpu"] for row in rows.values()] == ["another machine's", "another machine's", here, here]
    assert "failure" not in rows["resnet44"]


def test_rows_without_int8_are_not_complete_under_quantize(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are measured again; what fails is a row that the next run tries again."""
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps(OLD))
    rows = resumed(monkeypatch, path, "--quantize", failing="resnet56")
    assert "measured" not in rows["resnet20"]
    assert rows["resnet32"]["int8"] == rows["resnet44"]["int8"] == {}
    assert "it died again" in rows["resnet56"]["failure"]
    assert resumed(monkeypatch, path, "--quantize")["resnet56"]["ok"]


def test_there_must_be_a_file_to_resume(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--resume` alone is refused in a sentence."""
    monkeypatch.setattr(sys, "argv", ["zoo.py", "--resume"])
    with pytest.raises(SystemExit):
        zoo.main()
    assert "--output" in capsys.readouterr().err.splitlines()[-1]
