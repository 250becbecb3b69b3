"""Documents as an HTML page: whole, first the verdict, names inert, nothing asked of anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from resdeploy.errors import UsageError
from resdeploy.report import page
from resdeploy.report.plain_text import inert
from tests.report import realistic, test_render

VOID = {"meta", "img"}
# Whatever a name holds, the page has no other elements and attributes.
ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "nav", "section", "p", "strong", "a"),
    *("ul", "li", "div", "figure", "figcaption", "svg", "text", "path", "circle", "polyline", "polygon", "table"),
    *("caption", "thead", "tbody", "tr", "th", "td", "span", "details", "summary", "img", "script"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "id", "class", "href", "role", "aria-labelledby"),
    *("aria-label", "tabindex", "scope", "data-key", "src", "alt", "xmlns", "viewbox", "font-family", "font-size"),
    *("font-weight", "fill", "fill-opacity", "x", "y", "dy", "cx", "cy", "r", "d", "points", "stroke", "stroke-width"),
    *("stroke-opacity", "stroke-dasharray", "text-anchor", "transform"),
}


class Page(HTMLParser):
    """Elements, attributes and texts of a page whose elements are closed in the order in which they are opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def text_of(self, tag: str) -> list[str]:
        return [text for owner, text in self.texts if owner == tag]


@pytest.fixture(scope="module")
def every() -> list[dict[str, Any]]:
    return realistic.all_documents()


def test_every_commands_document_is_a_whole_page_of_its_own(every: list[dict[str, Any]]) -> None:
    """Nothing but known elements; the policy has the hashes of style and script; nothing leads out; ids are unique."""
    for document in every:
        text = page.render_page([("a.json", document)])
        assert len(text.encode()) < page.LARGEST
        read = Page(text)
        assert {tag for tag, _ in read.elements} <= ELEMENTS
        assert {name for _, attributes in read.elements for name in attributes} <= ATTRIBUTES
        (policy,) = (a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
        for kind in ("style", "script"):
            (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}';" in str(policy)
        assert "default-src 'none'" in str(policy)
        assert "unsafe" not in str(policy)
        assert not any("src" in attributes or "href" in attributes for _, attributes in read.elements)
        ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
        assert len(set(ids)) == len(ids)


def test_the_verdict_comes_first_then_the_answers(every: list[dict[str, Any]]) -> None:
    """Before any table or chart; several results begin with a list of verdicts."""
    assert any(document.get("verdict") for document in every)
    for document in every:
        texts = [text for _, text in Page(page.render_page([("a.json", document)])).texts[2:]]  # title and style
        first = [f"Verdict: {document['verdict'].upper()}"] if document.get("verdict") else []
        said = [*first, *map(inert, document.get("answers") or ())]
        assert texts[1 : 1 + len(said)] == said
    read = Page(page.render_page([(f"{k}.json", document) for k, document in enumerate(every)]))
    assert read.text_of("strong") == [document["verdict"].upper() for document in every if document.get("verdict")]
    targets = [str(attributes["href"])[1:] for tag, attributes in read.elements if tag == "a"]
    assert len(targets) == len(every)
    assert set(targets) <= {attributes.get("id") for _, attributes in read.elements}


def test_tables_have_what_the_terminals_tables_have_and_the_numbers_to_sort_by() -> None:
    """Cells as they are written there, each number beside it as it is in the JSON; the ends of intervals unrounded."""
    document = realistic.bench()
    read = Page(page.render_page([("a.json", document)]))
    keys = {float(str(attributes["data-key"])) for _, attributes in read.elements if "data-key" in attributes}
    row = document["results"][1]
    assert {row["latency_ms"]["p50"], row["throughput_ips"], row["size_bytes"], 2.41} <= keys
    cells = read.text_of("td")
    assert "17.1 [16.81, 17.39]" in cells
    assert repr(row["p50_ci95_ms"][0]) in cells
    assert "faster" in cells


def test_charts_are_told_in_words() -> None:
    """Of every dot its name, value and interval; a limit is named."""
    read = Page(page.render_page([("a.json", realistic.gate())]))
    labels = [str(attributes["aria-label"]) for tag, attributes in read.elements if tag == "svg"]
    (accuracy,) = (label for label in labels if label.startswith("top1: observed (pp)"))
    assert f"{realistic.INT8}: 0.21 [-0.18, 0.6], limit 0.5" in accuracy
    invalid = page.render_page([("a.json", realistic.bench())])  # of the second runtime
    (speed,) = re.findall('aria-label="(speed-up[^"]*)"', invalid)
    assert f"{realistic.INT8} openvino b1: 2.41x [2.35, 2.48]" in speed
    assert "onnxruntime" not in speed
    assert {attributes["role"] for tag, attributes in read.elements if tag == "svg"} == {"img"}


@pytest.mark.parametrize(
    "name", [*test_render.HOSTILE, '"><img src=x onerror=alert(1)>', "</script><script>alert(1)", "{{7*7}}"]
)
def test_hostile_names_are_text(name: str) -> None:
    """In every place where a name stands: no element, no attribute, no control character; no formula in a cell."""
    for document in test_render.all_documents(name)[:12]:
        text = page.render_page([(name, document)], {name: "data:image/png;base64,AAAA"})
        read = Page(text)
        assert {tag for tag, _ in read.elements} <= ELEMENTS
        assert {key for _, attributes in read.elements for key in attributes} <= ATTRIBUTES
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
        cells = [said for tag, said in read.texts if tag in ("td", "th")]
        assert not [cell for cell in cells if cell[0] in "=@"]
        if document["command"] != "models":
            assert any(inert(name) in said for _, said in read.texts), document["command"]


def test_a_long_result_is_cut_until_the_page_is_small_enough_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are left out are counted; what no page can hold is refused."""
    document = realistic.compare()
    document["results"] = document["results"][:1] * 300
    monkeypatch.setattr(page, "LARGEST", 60_000)
    text = page.render_page([("a.json", document)])
    assert len(text) <= page.LARGEST
    assert "250 more: the JSON has them all" in Page(text).text_of("p")
    with pytest.raises(UsageError, match=r"larger than 0\.06 MB.*Give fewer results"):
        page.render_page([("a.json", {**document, "notes": ["long" * 60_000]})])


def test_flipped_images_are_shown_where_they_are_given() -> None:
    """Those that the gate names, each with what became of it; others are not on the page."""
    document = realistic.gate()
    first, *_ = page.names_of_flipped([document])
    read = Page(page.render_page([("a.json", document)], {first: "data:image/png;base64,AAAA", "other": "data:x"}))
    pictures = [attributes for tag, attributes in read.elements if tag == "img"]
    assert pictures == [{"src": "data:image/png;base64,AAAA", "alt": first}] * 2
    assert any("cassette player became golf ball, labelled cassette player" in said for _, said in read.texts)


def test_committed_results_of_long_runs_are_pages(every: list[dict[str, Any]]) -> None:
    """Older documents, too, which lack what is written today."""
    for name in ("lesion-digits", "prune-resnet56", "readme-run"):
        document = json.loads((Path(realistic.RESULTS) / f"{name}.json").read_text())
        assert Page(page.render_page([(name, document)])).text_of("h1")
