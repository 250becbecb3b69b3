"""cost/counterfactuals.py against closed forms, published counts, and the networks that it talks about."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from unittest import mock

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from resdeploy.cost import conventions, counterfactuals, json_parts  # noqa: E402
from resdeploy.cost.cost import CostReport  # noqa: E402
from resdeploy.errors import UsageError  # noqa: E402
from resdeploy.graph import counts, from_torch  # noqa: E402
from resdeploy.models import resnet, zoo  # noqa: E402
from resdeploy.report import render  # noqa: E402
from tests.graph.test_intent import TARGETS, quantized  # noqa: E402

FACTS = json.loads((Path(__file__).parents[1] / "counts.json").read_text())


def compared(model, name: str) -> counterfactuals.BasicCounterfactual:
    spec = zoo.spec(name)
    return counterfactuals.compare_basic_blocks(model, spec)


def test_every_identity_block_saves_exactly_288_17ths_and_costs_17_18ths(ours) -> None:
    """(a) and (b), block by block of ResNet-50, in MACs and weights, against the published counts of each stage."""
    found = compared(ours("resnet50"), "resnet50")
    assert len(found.blocks) == 16
    for block in found.blocks:
        if block.identity:
            for kind in ("macs", "weights"):
                own, outer, quarter = (getattr(getattr(block, s), kind) for s in ("own", "outer", "quarter"))
                assert (Fraction(outer, own), Fraction(own, quarter)) == (Fraction(288, 17), Fraction(17, 18))
    for published in FACTS["bottleneck"]["stages"]:
        stage = published["stage"].rpartition("/")[2]
        blocks = [b for b in found.blocks if b.stage == stage]
        first, second = blocks[0], blocks[1]
        assert (second.own.weights, second.own.macs) == tuple(
            published["bottleneck"][k] for k in ("conv_params", "macs")
        )
        assert (second.own.learnable - second.own.weights) == published["bottleneck"]["bn_params"]
        assert (first.own.weights, first.own.macs) == tuple(
            published["bottleneck_first_v15"][k] for k in ("conv_params", "macs_v15")
        )
        for side, key in (("outer", "basic_outer"), ("quarter", "basic_r34")):
            for block, suffix in ((second, ""), (first, "_first")):
                size = getattr(block, side)
                known = published[key + suffix]
                assert (size.weights, size.macs) == (known["conv_params"], known["macs"])
        totals = published["stage_totals"]
        assert sum(b.own.macs for b in blocks) == totals["bottleneck_macs_v15"]
        assert sum(b.quarter.macs for b in blocks) == totals["basic34_macs"]
        assert sum(b.outer.macs for b in blocks) == totals["basic_outer_macs"]
        assert sum(b.outer.weights for b in blocks) == totals["basic_outer_conv_params"]
        assert sum(b.quarter.learnable for b in blocks) == totals["basic34_params"]


def test_the_whole_counterfactuals_are_the_networks_that_the_zoo_builds(ours) -> None:
    """Counted from ResNet-50's graph, both are what the real networks have; one of them is ResNet-34."""
    found = compared(ours("resnet50"), "resnet50")
    outer, narrow = zoo.find("basic50_outer"), zoo.find("resnet34")
    assert (found.outer_macs, found.outer_params) == (outer.macs, outer.params)
    assert (found.quarter_macs, found.quarter_params) == (narrow.macs, narrow.params)
    known = FACTS["bottleneck"]["outer"]
    assert (outer.macs, outer.params) == (known["macs"], known["params"])
    assert round(found.outer_macs / found.own_macs, 3) == 13.574


@pytest.mark.parametrize("target", TARGETS)
def test_a_quantized_file_has_the_counterfactuals_of_its_original(ours, target) -> None:
    """Blocks, MACs and parameters, wherever the target's Q/DQ pairs stand."""
    whole = ours("resnet50")
    assert compared(quantized(whole, target), "resnet50") == compared(whole, "resnet50")


@pytest.mark.acceptance
def test_standing_batch_norms_and_exporters_arithmetic_change_nothing(ours, torchscript) -> None:
    """The same blocks, MACs and parameters from TorchScript's file with its batch norms, and from torch's raw graph."""
    spec = zoo.spec("resnet50", input_shape=(3, 64, 64))
    net = zoo.create(spec)
    expected = counterfactuals.compare_basic_blocks(ours("resnet50"), spec)
    for model in (torchscript(net, spec.input_shape, folded=False), from_torch._trace(net, spec)):
        assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 53
        found = counterfactuals.compare_basic_blocks(model, spec)
        own, known = ([dataclasses.replace(b, stage="") for b in c.blocks] for c in (found, expected))
        assert own == known  # the raw graph's node names tell no stage
        assert dataclasses.replace(found, blocks=()) == dataclasses.replace(expected, blocks=())


def test_deeper_and_grouped_networks_too(ours, torchscript) -> None:
    """ResNet-101 from a foreign exporter's file: its real counterfactuals' MACs; its parameters are not guessed."""
    from resdeploy.graph import metadata

    model = torchscript(zoo.create(zoo.spec("resnet101")), (3, 224, 224))
    spec = metadata.spec_of(model, Path("foreign.onnx"))
    found = counterfactuals.compare_basic_blocks(model, spec)
    wide = dataclasses.replace(resnet.VARIANTS["basic101"], width=256)
    with torch.device("meta"), mock.patch.object(torch.nn.init, "kaiming_normal_"):
        net = resnet.ResNet(wide).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, 3, 224, 224, device="meta"))
    assert 2 * found.outer_macs == counter.get_total_flops()
    assert found.quarter_macs == zoo.find("basic101").macs
    assert (found.own_params, found.outer_params) == (None, None)


def test_the_report_states_both_apart(ours) -> None:
    """288/17 in (a) only, 17/18 in (b) only."""
    document = json_parts.cost_document(CostReport(costs=(), basic=(compared(ours("resnet50"), "resnet50"),)), {})
    wide, narrow = document["against_outer_width"], document["against_quarter_width"]
    assert {row["block_ratio_exact"] for row in wide[:-1]} == {"288/17"}
    assert {row["block_share_exact"] for row in narrow[:-1]} == {"17/18"}
    assert [row["scope"] for row in wide] == ["layer1", "layer2", "layer3", "layer4", "network"]
    assert wide[-1]["params_ratio"] == pytest.approx(13.37528113593159, abs=1e-12)
    assert narrow[-1]["basic_params"] == 21_797_672


def test_tables_show_both_answers_and_other_tools_count(ours) -> None:
    """In every form; the exact ratios stand in the tables, fvcore's figure beside ours."""
    spec = zoo.spec("resnet50")
    counted = counts.count(ours("resnet50"), spec)
    fvcore = conventions.CONVENTIONS["fvcore"].apply(counted)
    report = CostReport(costs=(counted,), tool_counts=(fvcore,), basic=(compared(ours("resnet50"), "resnet50"),))
    document = json_parts.cost_document(report, {}, per_layer=True)
    for form in ("table", "md"):
        shown = render.render(document, form)
        assert all(text in shown for text in ("288/17", "17/18", "13.574x", "4,111,512,576"))
    assert json.loads(render.render(document, "json"))["results"][0]["macs"] == 4_089_184_256
    assert "4089184256" in render.render(document, "csv")


def test_inception_modules_with_and_without_their_reductions(ours) -> None:
    """All nine of GoogLeNet 2014, each large kernel's branch and the module, against table 1's arithmetic."""
    spec = zoo.spec("googlenet2014")
    model = ours("googlenet2014")
    compared = counterfactuals.compare_naive_modules(model, spec)
    assert len(compared.reductions) == 18
    found = {m.name: m for m in compared.modules}
    for name, known in FACTS["inception_modules"].items():
        module = found[f"inception{name}"]
        assert (module.own.weights, module.own.macs) == (known["weights"], known["macs"])
        assert (module.naive.weights, module.naive.macs) == (known["naive_weights"], known["naive_macs"])
        three, five = (r for r in compared.reductions if r.module == f"inception{name}")
        assert (three.direct.weights, three.reduced.weights) == (known["b3_direct_w"], known["b3_reduced_w"])
        assert (five.direct.macs, five.reduced.macs) == (known["b5_direct_macs"], known["b5_reduced_macs"])
        assert (five.direct.weights, five.reduced.weights) == (known["b5_direct_w"], known["b5_reduced_w"])


def test_networks_without_either_say_so(ours) -> None:
    """ResNet-18 has no bottlenecks; ResNet-50 has no Inception modules, its own 1x1 belong to residual blocks."""
    for compare, name in (
        (counterfactuals.compare_basic_blocks, "resnet18"),
        (counterfactuals.compare_naive_modules, "resnet50"),
    ):
        spec = zoo.spec(name)
        with pytest.raises(UsageError, match=name):
            compare(ours(name), spec)
