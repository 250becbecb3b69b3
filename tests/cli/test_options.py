"""What the verbs' options are, and that advice names only those."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import resdeploy
from resdeploy import pytest_plugin
from resdeploy.cli import app
from resdeploy.measure import entrant, interleaved

VERBS = vars(typer.main.get_command(app))["commands"]
# A verb with verbs of its own (`study`) stands for those.
COMMANDS = {n: c for verb, command in VERBS.items() for n, c in getattr(command, "commands", {verb: command}).items()}
OPTIONS = {verb: {name for p in c.params for name in (*p.opts, *p.secondary_opts)} for verb, c in COMMANDS.items()}
SOURCES = sorted(Path(resdeploy.__file__).parent.rglob("*.py"))
DOCKERS = {"--gpus", "--nproc-per-node", "--shm-size", "--python"}  # options of `docker run`, `torchrun` and `uv pip`
TRTEXEC = {"--exportLayerInfo", "--exportProfile", "--profilingVerbosity"}  # options of `trtexec`
PYTESTS = {option for option, _ in pytest_plugin.OPTIONS.values()}  # options of `pytest`


def named_in(source: Path) -> set[str]:
    """Every `--option` in a string of this file, docstrings included."""
    tree = ast.parse(source.read_text())
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {name for text in texts for name in re.findall(r"(?<![\w-])--[a-z][A-Za-z0-9-]*", text)}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_advice_names_only_options_that_exist(source: Path) -> None:
    """An option that an error, a warning or a note recommends belongs to some verb."""
    known = set().union(*OPTIONS.values()) | {"--version", "--help", "--lock-timeout"} | DOCKERS | TRTEXEC | PYTESTS
    assert named_in(source) <= known


def test_the_search_for_advice_finds_it() -> None:
    """The test above would see a wrong name: right ones are found where they are known to be."""
    found = {str(path.relative_to(SOURCES[0].parent)): named_in(path) for path in SOURCES}
    assert {"--mean", "--std", "--resize"} <= found["deploy/model_files.py"]
    assert "--duration" in found["measure/summary.py"]


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_can_be_verbose(verb: str) -> None:
    """-v means the same everywhere."""
    assert {"-v", "--verbose"} <= OPTIONS[verb]


@pytest.mark.parametrize("verb", ["export", "quantize", "bench", "eval", "gate"])
def test_a_foreign_file_can_be_told_how_it_sees(verb: str) -> None:
    """A file that does not say how images become its input can be used by every verb that needs to know."""
    assert {"--img-size", "--resize", "--interpolation", "--mean", "--std"} <= OPTIONS[verb]


@pytest.mark.parametrize("verb", ["bench", "cost"])
def test_the_queries_after_which_a_row_ends_are_the_harness_own(verb: str) -> None:
    """`--help` cannot load the constants, and so states their product."""
    (duration,) = (param for param in COMMANDS[verb].params if param.name == "duration")
    assert f"about {interleaved.BLOCKS * entrant.MAX_QUERIES:,} queries" in duration.help


@pytest.mark.parametrize("value", ["0.5", "1.0"])
@pytest.mark.parametrize(
    "command",
    [
        ["gate", "--baseline", "a", "--candidate", "b", "--max-drop", "1"],
        ["prune", "no.onnx", "--data", "digits", "-o", "out.onnx"],
        ["quantize", "no.onnx", "--max-drop", "1", "--data", "digits"],
    ],
    ids=lambda command: command[0],
)
def test_a_confidence_that_no_verdict_can_have_is_refused_at_once(command: list[str], value: str) -> None:
    """A coin's one half and certainty are outside the range of every verb that judges."""
    done = CliRunner().invoke(app, [*command, "--confidence", value])
    assert done.exit_code == 2
    assert "Invalid value for '--confidence'" in done.output
