"""The gate's outputs for CI: valid where there is a schema, and inert whatever the names are.

`junit-10.xsd` is the schema of Jenkins' xUnit plugin (github.com/jenkinsci/xunit-plugin, org/jenkinsci/plugins/xunit/
types/model/xsd/junit-10.xsd; MIT licence, in the file), taken from the source distribution of pytest 9.0.2.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import xmlschema

from resdeploy.records import Check, Reported, State, Verdict
from resdeploy.report import ci, render
from tests.report.test_render import HOSTILE, gated

SCHEMA = Path(__file__).with_name("junit-10.xsd")
NAMES = [*HOSTILE, "@maintainer", "see #1", "www.example.org", "]]>", "&amp;", "\x00\ufffe", 'a="b"', "%0A::error::x"]


def check(state: State, name: str = "top1", limit: float | None = 0.5) -> Check:
    note = f"{name} was looked at"
    return Check(name=name, limit=limit, observed=0.1, interval=(-0.1, 0.4), state=state, unit="points", note=note)


def three_states(name: str = "m"):
    """Passed, failed, not decided, one of a whole without a limit of its own, and one that is only reported."""
    checks = (check("pass"), check("fail", "slowdown"), check("inconclusive", "memory"), check("pass", "seen", None))
    reported = Reported(name=name, observed=1.0, unit="classes", note=f"{name} was not judged")
    return gated(name, Verdict(checks=checks, reported=(reported,)))


@pytest.fixture(scope="module")
def schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(SCHEMA)


@pytest.mark.parametrize("name", ["resnet50", *NAMES])
def test_junit_is_what_jenkins_reads(schema: xmlschema.XMLSchema, name: str) -> None:
    """It validates against Jenkins' schema and holds no character that XML forbids, whatever the names are."""
    text = ci.junit(three_states(name))
    schema.validate(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", text)


def test_the_schema_refuses_what_is_not_junit(schema: xmlschema.XMLSchema) -> None:
    """The validation above can fail: a case without a name, a suite with an unknown child."""
    for wrong in ("<testsuites><testsuite name='a'/></testsuites>", "<testsuite><b/></testsuite>"):
        assert not schema.is_valid(wrong)


def test_junit_tells_a_failure_from_what_could_not_be_judged() -> None:
    """A limit exceeded is a failure, an undecided one an error; what was only reported is no test case."""
    suite = ET.fromstring(ci.junit(three_states())).find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
    }
    found = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert found == {"top1": ["system-out"], "slowdown": ["failure"], "memory": ["error"], "seen": ["system-out"]}
    assert suite.findtext("system-out") == "m (reported, not judged): m was not judged"
    properties = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert properties["candidate.sha256"] == "ab"
    assert properties["baseline.data_fingerprint"] == "d"


def test_junit_of_a_job_that_goes_on_skips_what_was_not_decided(schema: xmlschema.XMLSchema) -> None:
    """An error would fail the job in the reader of the file, though the gate exits 0."""
    text = ci.junit({**three_states(), "on_inconclusive": "warn"})
    schema.validate(text)
    root = ET.fromstring(text)
    assert (root.get("failures"), root.get("errors")) == ("1", "0")
    found = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert found["memory"] == ["skipped"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_makes_a_workflow_command_of_its_own(name: str) -> None:
    """Every line is one of ours: `::error`, `::warning` or `::notice`, and no text breaks out of it."""
    for document in (three_states(name), gated(name)):
        lines = ci.commands(document).splitlines()
        assert lines
        for line in lines:
            command = re.fullmatch(r"::(error|warning|notice) title=([^:\n]*)::(.*)", line)
            assert command, line
            assert "::" not in command[3]
            assert not re.search(r"%(?!25|0A|0D|3A|2C)", line)


def test_commands_say_what_failed_and_what_was_not_decided() -> None:
    """An error, then a warning; a pass is one notice."""
    kinds = [line.split(" ")[0] for line in ci.commands(three_states()).splitlines()]
    assert kinds == ["::error", "::warning"]
    assert ci.commands(gated()) == "::notice title=resdeploy gate::PASS: m\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_comment_holds_no_markup_mention_or_link_of_strangers(name: str) -> None:
    """The only tags are ours; nobody is mentioned, no issue referred to, no address linked, no command run."""
    text = ci.comment(three_states(name))
    tags = re.findall(r"(?<!\\)<[^>]*>", text)
    assert set(tags) <= {ci.MARK, "<!-- -->", "<details>", "<summary>", "</summary>", "</details>"}
    assert not re.search(r"[@#]\w", text.replace("### ", ""))
    assert not re.search(r"://|www\.", text)
    assert not re.search(r"(?<!\\)\]\(|(?<!\\)`|(?<!\\)!\[", text)
    assert not [line for line in text.splitlines() if line.startswith("::")]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)


def test_a_comment_starts_with_the_verdict_and_stays_short() -> None:
    """The verdict is the heading; of 5,000 flipped images fifty are listed, so that GitHub takes the comment."""
    document = gated("m" * 60)
    document["flipped"] = document["flipped"] * 5000
    text = ci.comment(document)
    assert text.splitlines()[2] == "### ✅ resdeploy gate: PASS"
    assert len(text) < 65_536


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_openmetrics_text(name: str) -> None:
    """A type line, one sample a line, `# EOF`: names cannot add lines or end a label."""
    lines = ci.metrics(three_states(name)).splitlines()
    assert lines[-1] == "# EOF"
    for line in lines[:-1]:
        assert re.fullmatch(r'# TYPE \w+ gauge|\w+\{candidate="(?:[^"\\\n]|\\[\\"n])*"\} -?[\d.e+-]+', line), line


def test_a_person_sees_the_first_flips_and_how_many_more() -> None:
    """Twenty rows, then a count; the JSON has all of them."""
    document = gated()
    document["flipped"] = document["flipped"] * 500
    text = render.render(document)
    assert "480 more: --format json lists them all" in text
    assert text.count("right to wrong") == 21  # twenty rows and the title of a column


def test_a_comment_too_long_for_github_keeps_the_verdict() -> None:
    """Names of any length: a comment that GitHub would refuse is cut to what matters."""
    text = ci.comment(three_states("m" * 9000))
    assert len(text) < 65_536
    assert text.splitlines()[2] == "### ❌ resdeploy gate: FAIL"
    assert "--format json" in text
