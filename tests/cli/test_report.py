"""`resdeploy report`, and the pages of `gate`: what is written, what is refused, and that nothing is left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from resdeploy import cli
from resdeploy.errors import ResdeployError
from tests.report import realistic

runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*args: str) -> tuple[int, str]:
    done = runner.invoke(cli.app, ["report", *args])
    assert isinstance(done.exception, ResdeployError), done.output
    return done.exception.exit_status, str(done.exception)


def test_results_of_several_commands_become_one_page(folder: Path) -> None:
    """In their order; without -o it is report.html."""
    for name in ("bench", "audit"):
        Path(f"{name}.json").write_text(json.dumps(getattr(realistic, name)()))
    done = runner.invoke(cli.app, ["report", "bench.json", "audit.json"])
    assert done.exit_code == 0, done.output
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 0 < page.index("resdeploy bench</h2>") < page.index("resdeploy audit mobilenetv3_small_100.int8</h2>")


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (None, 2, "there is no file bad.json"),
        ("no JSON", 4, "bad.json is not a result that resdeploy has saved"),
        ('{"command": "bench"}', 4, "bad.json is not a result that resdeploy has saved"),
        ('{"command": "nonsense", "results": []}', 4, "bad.json is not a result that resdeploy has saved"),
        ('{\n  "schema_version": 1,\n  "command": "bench",\n  "results": [1, 2', 4, "cut short"),
        ('{"command": "bench", "results": [{"throughput_ips": "fast"}]}', 4, "bad.json is not as a command of"),
        ('{"command": "bench", "results": [], "environment": [1]}', 4, "bad.json is not as a command of"),
    ],
)
def test_what_is_no_result_is_refused(folder: Path, content: str | None, status: int, says: str) -> None:
    """With its status, whatever else is given; nothing is written."""
    Path("good.json").write_text(json.dumps(realistic.compare()))
    if content is not None:
        Path("bad.json").write_text(content)
    before = sorted(folder.iterdir())
    found, told = refused("good.json", "bad.json", "-o", "page.html")
    assert found == status
    assert says in told
    assert sorted(folder.iterdir()) == before


def test_a_page_never_takes_the_place_of_a_result_and_pictures_need_a_gate(folder: Path) -> None:
    Path("good.json").write_text(json.dumps(realistic.compare()))
    assert "written twice" in refused("good.json", "-o", "good.json")[1]
    assert "none of the results is a gate's" in refused("good.json", "--images", "digits")[1]


def test_without_jinja2_it_is_exit_6_with_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work, of a gate too."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else sys)
    status, told = refused("good.json")
    assert status == 6
    assert "pip install" in told
    assert "jinja2" in told
    gate = ["gate", "--baseline", "a.npz", "--candidate", "b.npz", "--max-drop", "1", "--report", "g.html"]
    done = runner.invoke(cli.app, gate)
    assert getattr(done.exception, "exit_status", None) == 6
    assert list(folder.iterdir()) == []


def test_a_gate_writes_its_page_and_shows_what_flipped(folder: Path) -> None:
    """`--report` at once, or `report --images` of its JSON later."""
    ids = [f"a/{k}.png" for k in range(300)]
    (folder / "images/a").mkdir(parents=True)
    for name in ids[:20]:
        Image.new("RGB", (16, 16)).save(folder / "images" / name)
    labels = np.zeros(300, np.int64)
    for name, wrong in (("base", 0), ("bad", 20)):
        answers = np.where(np.arange(300) < wrong, 1, labels)
        np.savez(folder / f"{name}.npz", predictions=answers, labels=labels, ids=ids)
    args = ["--baseline", "base.npz", "--candidate", "bad.npz", "--max-drop", "1", "--format", "json", "-o", "g.json"]
    done = runner.invoke(cli.app, ["gate", *args, "--report", "g.html", "--no-github"])
    assert done.exit_code == 1, done.output
    page = (folder / "g.html").read_text()
    assert "Verdict: FAIL" in page
    assert "<img" not in page
    assert runner.invoke(cli.app, ["report", "g.json", "--images", "images"]).exit_code == 0
    assert (folder / "report.html").read_text().count('<img src="data:image/png;base64,') == 20
    (folder / "others/b").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(folder / "others/b/x.png")
    status, told = refused("g.json", "--images", "others")
    assert status == 2
    assert "others has none of the 20 images that flipped, such as a/0.png" in told
