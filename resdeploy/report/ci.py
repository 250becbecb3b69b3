"""The gate's document for CI: JUnit XML, Markdown for a comment, GitHub annotations, OpenMetrics.

Names come from files that strangers made: every text goes through `render.inert` first, and then through the escapes
of its own language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from resdeploy.report.plain_text import inert
from resdeploy.report.render import markdown, render

Document = Mapping[str, Any]
Row = Mapping[str, Any]

MARK = "<!-- resdeploy gate -->"  # by which a job finds its comment again
SHOWN = 50  # flipped images in a comment
LONGEST = 65_000  # characters in a comment: GitHub refuses more than 65,536
ANNOTATIONS = 10  # of one kind, which is all that GitHub shows of a step


def junit(document: Document) -> str:
    """JUnit XML as Jenkins, GitLab and GitHub's reporters read it: a suite per candidate, a case per limit.

    A limit that is exceeded is a `failure`; one that could not be decided is an `error`, JUnit's word for "not judged",
    or `skipped` where the job was told to go on (`--on-inconclusive warn`): whoever reads the file fails for an error.
    """
    from xml.etree import ElementTree as ET

    root = ET.Element("testsuites", name="resdeploy gate")
    undecided = "skipped" if document["on_inconclusive"] == "warn" else "error"
    totals = {"tests": 0, "failures": 0, "errors": 0}
    for candidate in document["candidates"]:
        checks = [check for check in document["checks"] if check["candidate"] == candidate["name"]]
        counts = {
            "tests": len(checks),
            "failures": sum(check["state"] == "fail" for check in checks),
            "errors": sum(check["state"] == "inconclusive" for check in checks) if undecided == "error" else 0,
        }
        name = inert(candidate["name"])
        suite = ET.SubElement(root, "testsuite", {"name": name, **{key: str(n) for key, n in counts.items()}})
        properties = ET.SubElement(suite, "properties")
        for key, value in _facts(document, candidate):
            ET.SubElement(properties, "property", name=key, value=inert(value))
        for check in checks:
            case = ET.SubElement(suite, "testcase", classname=f"resdeploy.gate.{name}", name=inert(check["name"]))
            note = inert(check["note"])
            if check["state"] != "pass":
                kind = "failure" if check["state"] == "fail" else undecided
                ET.SubElement(case, kind, type=check["state"], message=note).text = note
            else:
                ET.SubElement(case, "system-out").text = note
        if text := _report_text(document, candidate["name"]):
            ET.SubElement(suite, "system-out").text = text
        totals = {key: totals[key] + n for key, n in counts.items()}
    for key, n in totals.items():
        root.set(key, str(n))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _report_text(document: Document, candidate: str) -> str:
    """What was looked at and not judged: no test case, since nothing could have failed."""
    own = [row for row in document["reported"] if row["candidate"] == candidate]
    return "\n".join(inert(f"{row['name']} (reported, not judged): {row['note']}") for row in own)


def _facts(document: Document, candidate: Row) -> Iterator[tuple[str, str]]:
    for role, side in (("baseline", document["baseline"]), ("candidate", candidate)):
        for key in ("model", "sha256", "backend", "precision", "weights", "machine", "data", "data_fingerprint"):
            if side[key]:
                yield f"{role}.{key}", str(side[key])


def junit_error(message: str) -> str:
    """JUnit XML of a gate that ended before its verdict: one case, an `error` with the reason."""
    from xml.etree import ElementTree as ET

    counts = {"tests": "1", "failures": "0", "errors": "1"}
    root = ET.Element("testsuites", {"name": "resdeploy gate", **counts})
    case = ET.SubElement(
        ET.SubElement(root, "testsuite", {"name": "resdeploy gate", **counts}),
        "testcase",
        classname="resdeploy.gate",
        name="judged",
    )
    ET.SubElement(case, "error", type="error", message=inert(message)).text = inert(message)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def comment(document: Document) -> str:
    """Markdown for a pull request and for GitHub's step summary: the verdict first, long tables folded away."""
    verdict = document["verdict"]
    sign = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}[verdict]
    short = {**document, "flips": [], "classes": [], "flipped": [], "notes": [], "verdict": None, "environment": {}}
    parts = [MARK, f"### {sign} resdeploy gate: {verdict.upper()}", _quieten(render(short, "md")).strip()]
    if document["notes"]:
        parts.append("\n".join(f"- {_quieten(markdown(note))}" for note in document["notes"]))
    details = {**short, "checks": [], "reported": [], "flips": document["flips"], "classes": document["classes"]}
    details |= {"flipped": document["flipped"][:SHOWN], "environment": document["environment"]}
    if document["flips"]:
        tables = _quieten(render(details, "md")).strip()
        parts.append(f"<details><summary>Classes and images that changed</summary>\n\n{tables}\n\n</details>")
    text = "\n\n".join(parts) + "\n"
    if len(text) > LONGEST:  # long names, many candidates: the verdict must get there all the same
        text = "\n\n".join([*parts[:2], "The checks are too long for a comment: `--format json` has them all."]) + "\n"
    return text


def _quieten(text: str) -> str:
    """Escaped Markdown in which GitHub finds nobody to mention, no issue to refer to, no emoji and no address."""
    text = re.sub(r"([@#]|\bGH-)(?=\w)", r"\1<!-- -->", text, flags=re.IGNORECASE)
    text = re.sub(r":(?=[\w+-]+:)", ":<!-- -->", text)  # an emoji's name
    return re.sub(r"(?i)(www|:)(?=\.|//)", r"\1<!-- -->", text)


def commands(document: Document) -> str:
    """GitHub's workflow commands: an error for each failed limit, a warning for each that is inconclusive.

    Source of the escapes: docs.github.com, workflow commands for GitHub Actions; actions/toolkit, command.ts.
    """
    lines: list[str] = []
    for state, command in (("fail", "error"), ("inconclusive", "warning")):
        checks = [check for check in document["checks"] if check["state"] == state]
        for check in checks[:ANNOTATIONS]:
            title = _property(f"resdeploy gate, {check['candidate']}, {check['name']}")
            lines.append(f"::{command} title={title}::{_data(check['note'])}")
    if not lines:
        names = ", ".join(candidate["name"] for candidate in document["candidates"])
        lines.append(f"::notice title=resdeploy gate::{_data(document['verdict'].upper() + ': ' + names)}")
    return "\n".join(lines) + "\n"


def error_command(message: str) -> str:
    """GitHub's workflow command for a gate that ended before its verdict."""
    return f"::error title=resdeploy gate::{_data(message)}\n"


def _data(text: str) -> str:
    quiet = re.sub(":(?=:)", ": ", inert(text))  # inside a command `::` ends its properties
    return quiet.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def metrics(document: Document) -> str:
    """OpenMetrics text, which GitLab compares between branches (`artifacts:reports:metrics`)."""
    samples: dict[str, list[str]] = {}
    for check in (*document["checks"], *document["reported"]):
        if check["observed"] is None:
            continue
        # Of an accuracy the drop is observed, not the accuracy.
        what = f"{check['name']}_drop" if check["name"] in ("top1", "top5") else check["name"]
        unit = "" if check["unit"] == check["name"] else check["unit"].replace("%", "percent")
        name = re.sub(r"\W", "_", f"resdeploy_gate_{what}_{unit}").strip("_")
        label = inert(check["candidate"]).replace("\\", "\\\\").replace('"', '\\"')
        samples.setdefault(name, []).append(f'{name}{{candidate="{label}"}} {check["observed"]!r}')
    lines = [line for name, values in samples.items() for line in (f"# TYPE {name} gauge", *values)]
    return "\n".join([*lines, "# EOF"]) + "\n"
