"""Pages of `resdeploy report` in Chromium: they ask for nothing, are accessible, and no name in them acts.

Screenshots of what is shown to people go to build/browser, to be looked at.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.report import page
from resdeploy.report.plain_text import inert
from tests.browser.chromium import Tab
from tests.report import realistic, test_render

SHOTS = Path(__file__).resolve().parents[2] / "build/browser"
WIDTHS = (400, 1000, 1600)
RUN_AXE = "axe.run(document).then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes.map(n => n.html)])))"
MARKUP = [
    "<script>hit = 1</script>",
    "<img src=http://example.com/x onerror='hit=1'>",
    '"><svg/onload=hit=1>',
    "{{7*7}}",
]


def saved(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((realistic.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def picture(name: str) -> str:
    """A photograph's stand-in, another for each name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((96, 72))
    content = io.BytesIO()
    image.save(content, "jpeg")
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def failing_gate() -> str:
    document = realistic.gate()
    return page.render_page([("gate.json", document)], {n: picture(n) for n in page.names_of_flipped([document])})


PAGES: dict[str, Callable[[], str]] = {
    "quickstart": lambda: page.render_page([("runs/quickstart/results.json", saved("quickstart"))]),
    "gate": failing_gate,
    "degradation": lambda: page.render_page([("degradation.json", saved("degradation"))]),
    "lesion": lambda: page.render_page([("lesion.json", saved("lesion-cifar10"))]),
    "everything": lambda: page.render_page([(f"{k}.json", d) for k, d in enumerate(realistic.all_documents())]),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_quiet_accessible_and_as_wide_as_the_window(name: str, tab: Tab, axe: str) -> None:
    """At three widths and in the dark: no request, no complaint of the browser, no violation, no scrolling sideways."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    file = SHOTS / f"{name}.html"
    file.write_text(PAGES[name](), encoding="utf-8")
    for width, dark in (*((width, False) for width in WIDTHS), (WIDTHS[1], True)):
        tab.open(file, width, dark=dark)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.screenshot(SHOTS / f"{name}-{'dark' if dark else width}.png")
        outside = [address for address in tab.requests if not address.startswith("data:")]
        assert outside == [file.as_uri()]
        assert tab.complaints == []
        tab.evaluate(axe)
        assert json.loads(tab.evaluate(RUN_AXE)) == []


@pytest.mark.parametrize("name", [*test_render.HOSTILE, *MARKUP])
def test_hostile_names_do_nothing(name: str, tab: Tab, tmp_path: Path) -> None:
    """No script of theirs runs, nothing is asked for, and what is shown is their text."""
    file = tmp_path / "page.html"
    documents = [(name, document) for document in test_render.all_documents(name)[:12]]
    file.write_text(page.render_page(documents, {name: picture("a")}), encoding="utf-8")
    tab.open(file, 1000)
    assert tab.evaluate("typeof hit") == "undefined"
    assert tab.evaluate("document.scripts.length") == 1
    assert tab.complaints == []
    assert {address for address in tab.requests if not address.startswith("data:")} == {file.as_uri()}
    shown = inert(name)
    assert tab.evaluate(f"document.body.innerText.includes({json.dumps(shown)})")


def test_what_the_policy_forbids_is_not_done(tab: Tab, tmp_path: Path) -> None:
    """A script, a handler and a picture that got into the page all the same, and eval."""
    file = tmp_path / "page.html"
    file.write_text(PAGES["gate"](), encoding="utf-8")
    tab.open(file, 1000)
    tab.evaluate("""
        const script = document.createElement("script");
        script.textContent = "hit = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='hit = 1'>");
        document.body.insertAdjacentHTML("beforeend", "<img src='http://localhost:9/x'>");
        new Promise((resolve) => setTimeout(resolve, 300));
    """)
    assert tab.evaluate("typeof hit") == "undefined"
    answer = tab.call("Runtime.evaluate", expression="eval('1')", allowUnsafeEvalBlockedByCSP=False)
    assert "EvalError" in json.dumps(answer)
    told = json.dumps(tab.complaints)
    assert told.count("Content Security Policy") >= 3


def test_tables_sort_by_the_keyboard(tab: Tab, tmp_path: Path) -> None:
    """Enter on a title: up, again: down; what has no value stays last; a screen reader is told by aria-sort."""
    file = tmp_path / "page.html"
    file.write_text(page.render_page([("a.json", realistic.bench())]), encoding="utf-8")
    tab.open(file, 1000)
    tab.evaluate("""
        table = document.querySelector("table.sortable");
        headings = [...table.tHead.rows[0].cells];
        column = headings.findIndex((cell) => cell.textContent.startsWith("p50"));
        headings[column].querySelector("button").focus();
    """)
    orders = {}
    for _ in range(2):
        tab.press("Enter", 13)
        values = tab.evaluate("[...table.tBodies[0].rows].map((row) => row.cells[column].dataset.key || '')")
        orders[tab.evaluate("headings[column].ariaSort")] = values
    assert orders.keys() == {"ascending", "descending"}
    up, down = orders["ascending"], orders["descending"]
    assert up[-1] == down[-1] == ""
    assert [float(each) for each in up[:-1]] == sorted(float(each) for each in up[:-1])
    assert down[:-1] == up[-2::-1]


def test_it_can_be_printed(tab: Tab, tmp_path: Path) -> None:
    """With what is folded away on the screen, which is folded again afterwards."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    file = tmp_path / "page.html"
    file.write_text(PAGES["gate"](), encoding="utf-8")
    tab.open(file, 1000)
    tab.evaluate("addEventListener('beforeprint', () => { seen = document.querySelectorAll('details[open]').length })")
    folded = tab.evaluate("document.querySelectorAll('details').length")
    tab.pdf(SHOTS / "gate.pdf")
    assert tab.evaluate("seen") == folded > 0
    assert tab.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert (SHOTS / "gate.pdf").read_bytes().startswith(b"%PDF")
