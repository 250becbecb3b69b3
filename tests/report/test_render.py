"""Documents to text: the contract's keys, and names that are inert in every form."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest

from resdeploy.cache import Doubt, Part
from resdeploy.cost import json_parts
from resdeploy.cost.cost import CostReport
from resdeploy.errors import UnknownName
from resdeploy.models import zoo
from resdeploy.records import (
    Answer,
    Answered,
    Artifact,
    Audit,
    Availability,
    BackendName,
    Block,
    BlockAudit,
    Change,
    Check,
    ClassDrop,
    Comparison,
    Cost,
    Execution,
    Failure,
    Fault,
    Flip,
    Gate,
    Judged,
    Layer,
    LayerCost,
    Lesion,
    Manifest,
    Measurement,
    Mixed,
    Origin,
    Partial,
    Predictions,
    PruneOutcome,
    PruneSide,
    Score,
    Sensitivity,
    Shard,
    Subject,
    Summary,
    Verdict,
    Verified,
)
from resdeploy.report import documents, evaluations, mixed, packaged_folder, pruning, render
from resdeploy.report.plain_text import inert
from resdeploy.report.rows import LATENCIES
from resdeploy.report.table_columns import TABLES

ENVIRONMENT = {
    "os": "Debian", "kernel": "Linux 6", "machine": "x86_64", "python": "CPython 3.11", "memory_bytes": 8_000_000_000,
    "packages": {"openvino": "2026.4"},
    "cpu": {"model": "Xeon", "isa": ["avx2"], "vnni": False, "amx": False, "bf16": False,
            "usable_cores": 2, "logical_cores": 4, "quota_cores": None},
}  # fmt: skip
HOSTILE = [
    "<script>alert(1)</script>",
    '=cmd|"/c calc"!A1',
    "@SUM(1+1)",
    "\x1b[31mred\x1b]0;title\x07",
    "::set-output name=a::b",
    "a\n::error::b\r\n##[error]x",
    "a|b`c`[x](http://e)![y](z)",
    "\u202egnp.exe",
    "\udc80",
    "[bold]x[/bold]",
]


def summary(name="resnet50", *, p99=None, valid=True, warnings=(), notes=()):
    block = Block(put_s=(0.0,) * 3, run_s=(0.01, 0.011, 0.012), get_s=(0.0,) * 3, started_s=0.0, wall_s=0.033)
    m = Measurement(
        label=name, model=name, backend="openvino", precision="int8", batch_size=1, scenario="single-stream",
        sha256="ab", execution=Execution(), blocks=(block, block), size_bytes=25_000_000, params=25, macs=4_089,
        weights=name, calibration=name, settings={"HINT": name}, notes=notes,
    )  # fmt: skip
    latency = dict.fromkeys(LATENCIES, 0.011) | {"p99": p99}
    return Summary(
        measurement=m, latency_s=latency, end_to_end_p50_s=0.012, p50_ci95_s=(0.010, 0.012), throughput_ips=90.9,
        valid=valid, warnings=warnings, samples_s=(0.010, 0.011, 0.012) * 2,
    )  # fmt: skip


def failed(name="resnet50"):
    return Failure(
        label=name, model=name, backend="torch", precision="fp32", batch_size=1,
        error_code="E-BACKEND-CRASH", exit_status=7, message=f"{name} died of SIGSEGV.",
    )  # fmt: skip


def faster(name="b", ci=(2.9, 3.1), speedup=3.0, **fields):
    known = {"baseline": "a", "candidate": name, "speedup": speedup, "speedup_ci95": ci, "speedup_ci99": ci, "pairs": 8}
    return Comparison(**known | fields)


def predicted(name="resnet50"):
    labels = np.zeros(2, np.int64)
    return Predictions(
        model=name, ids=("a", "b"), labels=labels, top=labels[:, None], logits=None, data=name, data_fingerprint="d",
        preprocessing_fingerprint="p", sha256="s", unreadable=(f"{name}: truncated",),
    )  # fmt: skip


def of_a_shard(name):
    origin = Origin(backend="openvino", precision="int8")
    partial = Partial(shard=Shard(number=2, count=3), images=6, listing="l", batch_size=32, threads=2)
    return dataclasses.replace(predicted(name), origin=origin, partial=partial)


def scored(name="resnet50"):
    return Score(model=name, top1=97.5, top5=None, correct=351, total=360, top1_ci95=(95.3, 98.7))


def verdict(name="accuracy", interval=(-math.inf, 0.4)):
    check = Check(
        name=name, limit=0.5, observed=0.1, interval=interval, state="pass", unit="pp", note=f"{name} is fine"
    )
    return Verdict(checks=(check,))


def gated(name="m", judged=None):
    subject = Subject(
        name=name, model=name, sha256="ab", weights=name, backend="openvino", precision="int8", machine=name,
        tools={"openvino": "1"}, data=name, data_fingerprint="d", preprocessing_fingerprint="p", images=9,
    )  # fmt: skip
    one = Judged(
        candidate=subject,
        verdict=judged or verdict(name),
        flips=(Flip(image=name, label=3, baseline=3, candidate=4),),
        unchanged=8,
        classes=(ClassDrop(label=3, name=name, images=9, lost=1, gained=0, p_adjusted=1.0),),
    )
    found = Gate(baseline=subject, judged=(one,), confidence=0.95, notes=(f"made on {name}",))
    return documents.gate(found, ENVIRONMENT)


def changed(name):
    return Change(
        subject=name, quantity="time per image", unit="ms", before=10.0, after=11.0, change=10.0, interval=(9.0, 11.0),
        change_unit="%", finding=name,
    )  # fmt: skip


def all_documents(name):
    layer = LayerCost(
        name=f"{name}.conv",
        op="Conv",
        params=10,
        macs=300,
        output_shape=(1, 8, 4, 4),
        output_elements=128,
        block="b",
        stage=name,
    )
    cost = Cost(
        model=name, params=None, params_deployed=10, input_shape=(3, 8, 8), layers=(layer, layer), unknown=(name,)
    )
    row = documents.RunRow(outcome=summary(name), score=scored(name), comparison=faster(name), verdict=verdict(name))
    tried = Sensitivity(name=name, kind="Conv", layers=(name,), images=4, changed=1, signal=1.0, noise=0.0)
    searched = Mixed(
        label=name,
        precision="int8",
        keep_float=(name,),
        noise_share=0.5,
        check=verdict(name).checks[0],
        summary=summary(name),
        speedup=faster(name),
        chosen=True,
    )
    survey: dict[BackendName, Availability] = {
        "torch": Availability(ok=False, reason=name, install=name, devices=(name,))
    }
    return [
        documents.bench([summary(name, warnings=(name,), notes=(name,)), failed(name)], [faster(name)], ENVIRONMENT),
        evaluations.evaluation([(name, predicted(name), scored(name), "openvino", "int8")], ENVIRONMENT),
        gated(name),
        json_parts.cost_document(CostReport(costs=(cost,)), ENVIRONMENT, per_layer=True),
        documents.models(zoo.ENTRIES.values(), ENVIRONMENT),
        documents.predict(answered(name), ENVIRONMENT),
        packaged_folder.written(manifest(name), name, ENVIRONMENT),
        packaged_folder.verified(verified(name), name, ENVIRONMENT),
        documents.doctor(survey, ENVIRONMENT, {name: True}),
        documents.audit(audited(name), ENVIRONMENT),
        mixed.sensitivity(name, [tried], ENVIRONMENT),
        mixed.search(name, [searched], [tried], ENVIRONMENT),
        documents.run(name, [row, documents.RunRow(outcome=failed(name))], verdict(name), ENVIRONMENT),
        pruned(name, cost),
        documents.compare([changed(name)], [name], ENVIRONMENT),
        evaluations.shard(name, of_a_shard(name), ENVIRONMENT),
        documents.cache(name, [Part(name=name, entries=2, size_bytes=3_000_000)], ENVIRONMENT),
        documents.cache_verify(2, [Doubt(file=name, state="damaged", why=name)], ENVIRONMENT),
    ]


def manifest(name):
    source = Artifact(path=name, format="onnx", precision="int8", sha256="0" * 64)
    return Manifest(
        schema_version=1, kind="python", runtime="openvino", batch_size=1, threads=None, source=source, gate="pass",
        files={name: "1" * 64}, versions={name: name},
    )  # fmt: skip


def verified(name):
    fault = Fault(file=name, what=name, why=name)
    return Verified(manifest=manifest(name), source=name, images=12, changed=3, faults=(fault,))


def answered(name):
    answer = Answer(image=name, classes=(3, 1), names=(name, name), probabilities=(0.75, 0.125))
    return Answered(
        model=name, backend="openvino", precision="int8", answers=(answer,), prepare_s=0.002, answer_s=0.004
    )  # fmt: skip


def audited(name):
    layer = Layer(name=name, kind=name, precision="int8", sources=(name,), time_s=1e-3)
    block = BlockAudit(
        name=name, fused=None, precision="unknown", asked="int8", conv_precisions=("int8",), executed_as=(name,),
        reformats=(name,), time_s=1e-3, reason=name, remedy=name,
    )  # fmt: skip
    return Audit(
        subject=name, asked="int8", verdict=verdict(name), blocks=(block,), layers=(layer,), superfluous=(layer,),
        notes=(name,),
    )  # fmt: skip


def pruned(name, cost):
    lesion = Lesion(block=name, divergence=0.1, drop_pp=0.2, interval_pp=(-0.1, 0.5), flips=3)
    before, after = (PruneSide(cost=cost, timing=t, score=scored(name)) for t in (summary(name), failed(name)))
    outcome = PruneOutcome(
        artifact=Artifact(path=name, format="onnx", precision="fp32", sha256=name), removed=(name,), lesions=(lesion,),
        path=(lesion,), tuned=lesion, before=before, after=after, comparisons=(faster(name),), verdict=verdict(name),
    )  # fmt: skip
    return pruning.prune_document(outcome, ENVIRONMENT)


def study_documents(name):
    """Those whose modules import torch."""
    pytest.importorskip("torch")
    from resdeploy.study import degradation, lesion
    from resdeploy.train.loop import Plan

    lesions = lesion.NetworkLesions(
        model=name, error=16.6, single=(lesion.Deleted(block=name, shortcut=name, error=17.0),), several=(),
        shuffled=(), notes=(name,),
    )  # fmt: skip
    means = degradation.NetworkMeans(
        model=name, depth=20, seeds=3, train_loss=0.1, train_loss_ci95=(0.0, 0.2), train_error=3.0, test_error=4.0
    )
    budget = degradation.DegradationPlan(data=name, depths=(20, 56), seeds=3, training=Plan(epochs=1))
    difference = degradation.Difference(of=name, value=2.0, ci95=(-math.inf, 3.0))
    of_depths = degradation.DegradationReport(plan=budget, trainings=(), networks=(means,), differences=(difference,))
    of_blocks = lesion.LesionReport(plan=lesion.LesionPlan(data=name), networks=(lesions,))
    return [
        lesion.lesion_document(of_blocks, ENVIRONMENT),
        degradation.degradation_document(of_depths, ENVIRONMENT),
    ]


EVERY = pytest.mark.parametrize(
    "documents_of", [all_documents, pytest.param(study_documents, marks=pytest.mark.slow)], ids=["all", "study"]
)


@EVERY
def test_every_document_parses_and_has_the_keys_that_stay(documents_of):
    """schema_version, command, environment and results; numbers are numbers; every command has its table."""
    found = {d["command"]: json.loads(render.render(d, "json")) for d in documents_of("m")}
    studies = {command for command in TABLES if command.startswith("study ")}
    assert found.keys() == (studies if documents_of is study_documents else TABLES.keys() - studies)
    for document in found.values():
        assert document["schema_version"] == 1
        assert document["environment"] == ENVIRONMENT
        assert isinstance(document["results"], list)


def test_bench_rows_have_the_contracts_keys_whether_measured_or_not():
    """A CI job may read the same keys of a row that failed: they are null."""
    document = json.loads(render.render(documents.bench([summary(), failed()], [faster()], ENVIRONMENT), "json"))
    keys = {"model", "backend", "precision", "batch_size", "scenario", "latency_ms", "p50_ci95_ms", "throughput_ips",
            "params", "macs", "weights", "calibration", "settings", "valid", "notes", "warnings",
            "samples_ms"}  # fmt: skip
    good, bad = document["results"]
    assert keys <= good.keys()
    assert keys <= bad.keys()
    assert set(good["latency_ms"]) == {"p50", "p90", "p95", "p99", "mean", "std", "min", "max"}
    assert good["latency_ms"]["p50"] == 11.0
    assert good["latency_ms"]["p99"] is None
    assert good["p50_ci95_ms"] == [10.0, 12.0]
    assert good["samples_ms"] == [10.0, 11.0, 12.0, 10.0, 11.0, 12.0]
    assert (good["weights"], good["calibration"], good["settings"]) == ("resnet50", "resnet50", {"HINT": "resnet50"})
    assert bad["latency_ms"].keys() == good["latency_ms"].keys()
    assert (bad["valid"], bad["error"]["code"]) == (False, "E-BACKEND-CRASH")
    assert {"baseline", "candidate", "speedup", "speedup_ci95"} <= document["comparisons"][0].keys()


def test_eval_gate_and_cost_have_the_contracts_keys():
    """Percent in eval, an open interval's end null in gate, MACs and FLOPs both in cost."""
    _, evaluated, gated, counted, *_ = (json.loads(render.render(d, "json")) for d in all_documents("m"))
    row = evaluated["results"][0]
    assert (row["top1"], row["correct"], row["total"], row["top1_ci95"]) == (97.5, 351, 360, [95.3, 98.7])
    assert "top5" in row
    assert gated["verdict"] == "pass"
    check = gated["checks"][0]
    assert {"name", "state", "observed", "limit", "interval"} <= check.keys()
    assert check["interval"] == [None, 0.4]
    cost = counted["results"][0]
    assert (cost["params"], cost["macs"], cost["flops"], cost["input_shape"]) == (None, 600, 1200, [3, 8, 8])
    assert [(s["stage"], s["layers"], s["macs"]) for s in cost["stages"]] == [("m", 2, 600)]


@pytest.mark.parametrize("form", ["table", "md"])
def test_what_a_reader_must_know_of_a_row_is_printed(form):
    """FP16 computed in FP32 stands under the table of `bench` and of `run`, beside the row's label."""
    known = summary("a", notes=("computed in FP32",))
    rows = [documents.RunRow(outcome=known), documents.RunRow(outcome=failed("b"))]
    for document in (documents.bench([known], [], ENVIRONMENT), documents.run("p", rows, verdict(), ENVIRONMENT)):
        assert "- a: computed in FP32" in render.render(document, form)


@pytest.mark.parametrize(
    ("comparison", "finding"),
    [
        (faster(), "faster"),
        (faster(speedup=0.5, ci=(0.4, 0.6)), "slower"),
        (faster(speedup=1.1, ci=(0.9, 1.3)), "undecided"),
        (faster(speedup=1.001, ci=(0.99, 1.01)), "equal within 2 %"),
        (faster(invalid=("why",)), "no claim: INVALID"),
        (faster(ci=None), "undecided"),
        (faster(pairs=7), "undecided"),
    ],
)
def test_a_comparison_says_what_was_found(comparison, finding):
    """Only a valid interval that leaves out 1 is a claim, and the table shows it."""
    document = documents.bench([summary()], [comparison], ENVIRONMENT)
    assert document["comparisons"][0]["finding"] == finding
    assert finding in render.render(document)


@EVERY
@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_inert(documents_of, name, form):
    """No control character, CI command or direction override leaves in any form of any document."""
    for document in documents_of(name):
        text = render.render(document, form, color=False)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
        assert "##[" not in text
        assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]
        text.encode()


@EVERY
@pytest.mark.parametrize("name", HOSTILE)
def test_json_gives_hostile_names_back_unchanged(documents_of, name):
    """Escapes are JSON's own, so a program reads what was there."""
    for document in documents_of(name):
        assert json.loads(render.render(document, "json")) == json.loads(json.dumps(document))


def test_csv_has_each_rows_speed_up_beside_its_times():
    """The last comparison of a row, which is with FP32 on its own backend; none for the row compared with."""
    found = [faster("b", speedup=1.5, baseline="r"), faster("b", ci=(2.8, 3.2))]
    document = documents.bench([summary("a"), summary("b")], found, ENVIRONMENT)
    first, second = csv.DictReader(io.StringIO(render.render(document, "csv")))
    assert first["comparison.speedup"] == first["comparison.baseline"] == ""
    assert (second["comparison.baseline"], second["comparison.speedup"]) == ("a", "3.0")
    assert (second["comparison.speedup_ci99.low"], second["comparison.speedup_ci99.high"]) == ("2.8", "3.2")
    assert second["comparison.verdict"] == found[-1].verdict
    assert "comparison" not in render.render(document, "table")


@EVERY
@pytest.mark.parametrize("name", [*HOSTILE, " =1+1", "-1+1", "+1", "\t=1", "＝1"])
def test_csv_cells_are_no_formulas(documents_of, name):
    """Text that a spreadsheet would compute gets an apostrophe; numbers stay numbers."""
    for document in documents_of(name):
        rows = list(csv.reader(io.StringIO(render.render(document, "csv"))))
        assert len({len(row) for row in rows}) == 1
        for cell in (cell for row in rows[1:] for cell in row):
            if cell.strip()[:1] in tuple("=+-@＝＋－＠"):
                float(cell)


@EVERY
def test_markdown_cells_hold_no_markup(documents_of):
    """Tags, code and links are escaped, and a pipe opens no cell: every row has as many as its header."""
    for name in HOSTILE:
        for document in documents_of(name):
            lines = [line for line in render.render(document, "md").splitlines() if line.startswith("|")]
            assert not [line for line in lines if re.search(r"(?<!\\)[<`!]|\]\(", line.replace(r"\](", ""))]
    document = documents.bench([summary("a|b")], [], ENVIRONMENT)
    header, _, row = render.render(document, "md").splitlines()[:3]
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", header))


def test_a_name_that_is_longer_than_a_line_is_whole_all_the_same():
    """On a line of its own, in a pipe and on a terminal; all other lines fit."""
    document = documents.bench([summary("n" * 200), failed()], [faster()], ENVIRONMENT)
    for width in (None, 80):
        lines = render.render(document, width=width).splitlines()
        assert "n" * 200 in lines
        assert all(len(line) <= (width or 120) for line in lines if "n" * 200 not in line)
    assert max(map(len, render.render(document, wide=True).splitlines())) > 300
    assert "\x1b" not in render.render(document)
    assert "\x1b[" in render.render(gated(), color=True)


def test_kernels_of_a_comparison_are_told_under_the_table_and_in_its_row():
    """In `bench` and in `run`; what is not known is null, and no line."""
    for kernels, line in (("2 more Reorder", "- b does not execute what a does: 2 more Reorder"), (None, None)):
        compared = faster(kernels=kernels)
        row = documents.RunRow(outcome=summary("b"), comparison=compared)
        for document in (
            documents.bench([summary("b")], [compared], ENVIRONMENT),
            documents.run("p", iter([row]), verdict(), ENVIRONMENT),
        ):
            assert document["comparisons"][0]["kernels"] == kernels
            text = render.render(document)
            assert (line in text) if line else ("execute" not in text)


def test_the_run_table_has_one_row_a_model_that_a_person_understands():
    """Accuracy, drop, time, throughput, size, speed-up, each with its interval, and a verdict; a crash is a row."""
    row = documents.RunRow(
        outcome=summary("r20"), score=scored(), comparison=faster(), verdict=verdict("top1", interval=(-0.2, 0.4))
    )
    document = documents.run("quick", [row, documents.RunRow(outcome=failed("r56"))], verdict(), ENVIRONMENT)
    text = render.render(document, wide=True)
    line = next(line for line in text.splitlines() if line.lstrip().startswith("r20 "))
    for cell in ("97.50", "+0.10 [-0.20, +0.40]", "11", "90.9", "25.0", "3.00x [2.90, 3.10]", "pass"):
        assert cell in line
    assert "r56: r56 died of SIGSEGV." in text
    assert "Verdict: PASS" in text
    assert "Xeon (2 usable cores, without VNNI), openvino 2026.4" in text


def test_what_is_true_of_all_rows_is_said_once():
    """Other load on the machine is one line, however many rows."""
    rows = [summary("a", warnings=("others worked", "only a")), summary("b", warnings=("others worked",))]
    assert documents.bench(rows, [], ENVIRONMENT)["notes"] == ["all rows: others worked", "a: only a"]


def test_counters_that_cannot_be_read_are_said_once_and_counted_ones_are_in_the_rows():
    """One note however many rows, of `bench` and of `run`, none of them a row's; numbers where there are some."""
    without = [
        dataclasses.replace(one, measurement=dataclasses.replace(one.measurement, uncounted="no counters: do this"))
        for one in (summary("a"), summary("b"))
    ]
    rows = [documents.RunRow(outcome=one) for one in without]
    for document in (documents.bench(without, [], ENVIRONMENT), documents.run("p", rows, None, ENVIRONMENT)):
        assert document["notes"] == ["no counters: do this"]
        assert [(row["instructions_per_image"], row["notes"]) for row in document["results"]] == [(None, [])] * 2
    counted = dataclasses.replace(summary(), instructions_per_image=2e6, cycles_per_image=1e6)
    compared = faster(instructions_ratio=1.5, instructions_ratio_ci99=(1.4, 1.6))
    document = documents.bench([counted], [compared], ENVIRONMENT)
    assert document["notes"] == []
    (row,), (comparison,) = document["results"], document["comparisons"]
    assert (row["instructions_per_image"], row["cycles_per_image"]) == (2e6, 1e6)
    assert (comparison["instructions_ratio"], comparison["instructions_ratio_ci99"]) == (1.5, [1.4, 1.6])
    assert "1.50x [1.40, 1.60]" in render.render(document)


def test_rows_bear_the_names_of_their_files():
    """Two files of one network are told apart by them; a document that an older release saved shows its networks."""
    rows = [
        dataclasses.replace(row, measurement=dataclasses.replace(row.measurement, label=label))
        for row, label in ((summary(), "r50.int8 openvino b1"), (summary(), "r50.high openvino int8 b8 t2"))
    ]
    document = documents.bench([*rows, failed("r18 torch b1")], [], ENVIRONMENT)
    assert [row["name"] for row in document["results"]] == ["r50.int8", "r50.high", "r18"]
    first = [line.split()[:1] for line in render.render(document).splitlines()]
    assert all([name] in first for name in ("r50.int8", "r50.high", "r18"))
    for row in document["results"]:
        del row["name"]
    assert "resnet50" in render.render(document)


def test_nan_is_refused_rather_than_written():
    """JSON has no NaN; a document that holds one is a defect that must show."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        render.to_json({"x": math.nan})


def test_lists_of_numbers_take_one_line_and_strings_are_left_alone():
    """Samples do not fill a screen; a string that looks like an array keeps its blanks."""
    text = render.to_json({"samples": [1, 2.5, -3e-7], "text": "[  1, 2  ]"})
    assert '"samples": [1, 2.5, -3e-07]' in text
    assert json.loads(text)["text"] == "[  1, 2  ]"


def test_an_unknown_format_is_named_with_the_known_ones():
    """Exit 2 with the choices."""
    with pytest.raises(UnknownName, match="table, json, csv, md"):
        render.render(gated(), "yaml")


def test_plain_names_stay_as_they_are():
    """Nothing is changed that needs no change."""
    for name in ("resnet50", "timm:resnet50.a1_in1k", "layer1.0/conv2", "Größe 1"):
        assert inert(name) == name


@pytest.mark.parametrize("command", TABLES)
def test_no_two_columns_of_a_table_have_one_title(command: str) -> None:
    """A reader could not tell them apart."""
    for table in TABLES[command]:
        titles = [column.title for column in table.columns]
        assert len(set(titles)) == len(titles), table.key
