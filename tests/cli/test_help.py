"""What `--help` prints, for every command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from resdeploy import cli
from resdeploy.cli import console


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with what is typed to get there."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


ROOT = typer.main.get_command(cli.app)
EVERY = dict(commands(ROOT)) | {(): ROOT}


def shown(path: tuple[str, ...], columns: int) -> str:
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli.app, [*path, "--help"], prog_name="resdeploy")
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_no_option_name_is_cut_and_no_word_broken(path: tuple[str, ...]) -> None:
    """At 80 columns: lines fit, every option is named whole, and all words are those of a wide terminal."""
    narrow, wide = shown(path, 80), shown(path, 100)
    assert max(map(len, narrow.splitlines())) <= 80
    for parameter in EVERY[path].params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert parameter.param_type_name == "argument" or re.search(rf"(?<!\S){re.escape(name)}(?=[\s,])", narrow)
    assert set(narrow.split()) - {"\\"} == set(wide.split()) - {"\\"}


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_examples_stand_one_a_line_and_can_be_copied(path: tuple[str, ...]) -> None:
    """Each begins with a program; a line that goes on ends in a backslash."""
    told = re.search(r"Examples?:\n((?:  .*\n)+)", shown(path, 80))
    assert told or path[:1] == ("cache",)  # whose own examples are of what is below it
    for example in re.sub(r" \\\n +", " ", told[1]).splitlines() if told else ():
        assert re.match(r"  (resdeploy|torchrun) ", example)
        assert "·" not in example


def test_commands_are_grouped_by_what_they_are_for() -> None:
    """Make, measure, judge, study; none is left over."""
    text = shown((), 80)
    panels = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    groups = ["All of it, from a profile", "Make a model", "Measure", "Judge", "Study", "This machine"]
    assert panels == ["Examples", *groups, "Options"]
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in ROOT.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["bench", "--bacth-size", "2"], "No such option: --bacth-size"),
        (["quantise"], "No such command 'quantise'"),
        (["bench", "--precision", "int7"], "Invalid value for '--precision': 'int7' is not one of"),
        (["bench", "--duration", "3s"], "Invalid value for '--duration': a number is expected, such as 0.5"),
    ],
)
def test_misuse_is_told_with_the_usage_and_no_word_broken(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2; on a terminal lines end between words."""
    wide = CliRunner().invoke(cli.app, arguments, prog_name="resdeploy")
    assert wide.exit_code == 2
    assert wide.stderr.startswith("Usage: resdeploy")
    assert told in wide.stderr
    monkeypatch.setattr(console, "_columns", lambda: 40)
    narrow = CliRunner().invoke(cli.app, arguments, prog_name="resdeploy")
    assert set(narrow.stderr.split()) <= set(wide.stderr.split())
    assert max(map(len, narrow.stderr.splitlines())) <= 40


def test_defaults_choices_and_what_is_required_are_told() -> None:
    """Choices beside the option where they are short, else in its text; ranges are told to who misses them."""
    text = " ".join(shown(("gate",), 100).split())
    assert "--on-inconclusive fail|warn " in text
    assert "--interpolation NAME How images are resized. One of nearest, bilinear, bicubic, lanczos." in text
    assert "[required]" in text
    assert "[default: 32]" in text
    assert "<=" not in text
