"""What of a table stands where, in how many columns."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from resdeploy.report import render
from resdeploy.report.cells import Column, Table
from resdeploy.report.layout import arrange
from resdeploy.report.plain_text import fold
from resdeploy.report.table_columns import TABLES
from tests.report import realistic

SNAPSHOTS = Path(__file__).parent / "snapshots"
TABLE = Table(
    "results",
    (
        Column("file", "file", role="name"),
        Column("backend", "backend", role="common"),
        Column("a main number", "main", "number", ci="main_ci"),
        Column("a secondary number", "second", "number", rank=1),
        Column("the least", "least", "number", rank=2),
        Column("because", "why", role="reason"),
    ),
)


def row(file: str, backend: str = "openvino", why: str | None = None) -> dict[str, Any]:
    return {"file": file, "backend": backend, "main": 1.5, "main_ci": [1, 2], "second": 3, "least": 4, "why": why}


def titles(width: int | None, *rows: dict[str, Any]) -> list[str]:
    return [" ".join(strip.title) for strip in arrange(TABLE, rows, width).strips]


def test_what_all_rows_share_stands_above_the_table() -> None:
    """A row that failed has no value there and does not differ; where two differ it is a column."""
    shared = arrange(TABLE, [row("a"), row("b"), row("c") | {"backend": None}], 80)
    assert shared.above == "backend openvino"
    assert "backend" not in titles(80, row("a"), row("b"))
    assert titles(80, row("a"), row("b", "torch"))[:2] == ["file", "backend"]


def test_columns_are_left_out_from_the_least_on_and_named() -> None:
    """Of rows without reasons, as many as do not fit; None is all the room there is."""
    every = ["file", "a main number", "a secondary number", "the least"]
    assert titles(None, row("a")) == titles(80, row("a")) == every
    assert titles(34, row("a")) == every  # titles wrap first
    assert titles(33, row("a")) == every[:3]
    assert arrange(TABLE, [row("a")], 33).left_out == ("the least",)
    assert titles(20, row("a")) == every[:2]


def test_an_interval_goes_before_its_number() -> None:
    """Where its rank says so; the title that announces it goes with it."""
    table = Table(
        "results", (Column("file", "file", role="name"), Column("p50 [95 %]", "main", "ms", "main_ci", ci_rank=1))
    )
    shown = [arrange(table, [row("a")], width).strips[1] for width in (80, 12)]
    assert [(strip.title, strip.cells) for strip in shown] == [
        (["p50 [95 %]"], [["1.5 [1, 2]"]]),
        (["p50"], [["1.5"]]),
    ]


def test_a_long_name_stands_above_its_row() -> None:
    """Once for the rows that bear it."""
    long = "resnet50.a1_in1k.int8.effort-high"
    found = arrange(TABLE, [row(long), row(long, "torch"), row("a")], 38)
    assert found.headings == (long, long, "a")
    assert titles(38, row(long), row("a", "torch")) == ["backend", "a main number", "a secondary number"]


def test_reasons_stand_below_with_the_rows_that_they_are_of() -> None:
    """One that is of all rows says so, and none is a column."""
    assert arrange(TABLE, [row("a", why="it broke"), row("b")], 80).below == ("a: it broke",)
    assert arrange(TABLE, [row("a", why="it broke"), row("b", why="it broke")], 80).below == ("all: it broke",)


@pytest.mark.parametrize("width", [1, 7, 20])
def test_lines_break_between_words_alone(width: int) -> None:
    """All words are there, in order; a line is longer only where it is one word, and an interval is one word."""
    text = "no word of these sixty is ever broken [0.4994, 0.5274], incomprehensibilities included"
    words = re.findall(r"\[[^\]]*\],?|\S+", text)
    lines = fold(text, width)
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or line in words for line in lines)


def text_of(document: dict[str, Any], width: int) -> str:
    return f"resdeploy {document['command']}\n\n{render.render(document, width=width)}"


@pytest.mark.parametrize("width", [80, 100, 120])
def test_every_commands_output_fits_breaks_no_word_and_is_as_it_was(width: int) -> None:
    """Words are those of the output that has all the room there is; what has changed on purpose: UPDATE_SNAPSHOTS=1."""
    made = realistic.all_documents()
    assert {document["command"] for document in made} == TABLES.keys()
    for document in made:
        narrow, wide = render.render(document, width=width), render.render(document, wide=True)
        assert max(map(len, narrow.splitlines())) <= width, document["command"]
        said = set(re.sub("No room for: .*? --wide shows all", "", " ".join(narrow.split())).split())
        said -= {"─" * n for n in range(width + 1)} | {"."}
        assert said <= set(wide.split()), (document["command"], said - set(wide.split()))
    text = "\n".join(text_of(document, width) for document in made)
    file = SNAPSHOTS / f"{width}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_what_there_is_no_room_for_is_said_and_wide_shows_it() -> None:
    """In one sentence for all tables of the document; JSON and CSV have everything in any case."""
    document = realistic.bench()
    assert "--wide shows all" in render.render(document, width=80)
    assert "No room" not in render.render(document, wide=True)
    for form in ("json", "csv"):
        assert render.render(document, form, width=80) == render.render(document, form, wide=True)
    header = render.render(document, "csv").splitlines()[0].split(",")
    assert {"label", "model", "name", "latency_ms.p99", "peak_rss_bytes", "load_s", "state"} <= set(header)
    assert len(json.loads(render.render(document, "json"))["results"]) == 5


def test_the_verdict_comes_first() -> None:
    """Then a sentence for each limit, in the form for people and in Markdown."""
    for form in ("table", "md"):
        lines = render.render(realistic.gate(), form).splitlines()
        assert lines[0] == "Verdict: FAIL"
        assert "loses 0.21 points of top-1" in lines[2]
