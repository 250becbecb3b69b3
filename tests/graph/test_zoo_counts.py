"""What `cost` counts of every network of the zoo, against the published figures and the closed forms of the facts."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from unittest import mock

import onnx
import pytest

torch = pytest.importorskip("torch")

from resdeploy.cost import counterfactuals  # noqa: E402
from resdeploy.graph import counts  # noqa: E402
from resdeploy.graph.canonical import form  # noqa: E402
from resdeploy.models import zoo  # noqa: E402
from resdeploy.records import Cost  # noqa: E402
from tests.graph import symbolic  # noqa: E402

FACTS = json.loads((Path(__file__).parents[1] / "counts.json").read_text())
KNOWN: dict[str, list[int]] = {**FACTS["imagenet"], **FACTS["imagenet_variants"], **FACTS["cifar"]}
CALLED = {  # in the facts
    "googlenet": "googlenet-aux",
    "inception_v3": "inception_v3-aux",
    "inception_v4": "inception_v4 (timm)",
    "resnet164": "postact164_bneck",
    "resnet1001": "postact1001_bneck",
    "preresnet110": "preact110_A",
    "preresnet164": "preact164_bneck_stride1x1",
    "preresnet1001": "preact1001_bneck_stride1x1",
}
# Not among the facts: placements of the activations and depths that He et al. 2016 did not publish; historic and wide
# networks have facts of their own, below.
WITHOUT = {
    *("preresnet18", "preresnet34", "basic101", "basic152", "basic50_outer", "alexnet2012", "googlenet2014"),
    *(name for name in zoo.ENTRIES if "_add" in name or "_only" in name),
}


def fact(name: str) -> str | None:
    """A zoo network's name among the facts."""
    if name in WITHOUT:
        return None
    if name in CALLED:
        return CALLED[name]
    if found := re.fullmatch(r"resnet(18|34)_([ac])", name):
        return f"resnet{found[1]}_option{found[2].upper()}"
    if found := re.fullmatch(r"preresnet(50|101|152|200)", name):
        return f"preact{found[1]}_3x3"
    if found := re.fullmatch(r"(resnet\d+)(_b)?", name):
        option = "B" if found[2] else "A"
        return f"{found[1]}_{option}" if zoo.find(name).cifar else name
    return name


LISTED = {name: key for name in zoo.ENTRIES if (key := fact(name)) is not None}


def graph(name: str, *, values: bool = False) -> onnx.ModelProto:
    spec = zoo.spec(name)
    with torch.device("meta"), mock.patch.object(torch.nn.init, "kaiming_normal_"):
        net = zoo.create(spec)
    return symbolic.graph(net, spec.input_shape, values=values)


@functools.cache
def counted(name: str) -> Cost:
    return counts.count(graph(name), zoo.spec(name))


def elements(found: Cost, op: str) -> int:
    return sum(layer.output_elements for layer in found.layers if layer.op == op)


@pytest.mark.parametrize("name", LISTED)
def test_counts_are_the_published_ones(name: str) -> None:
    """MACs, parameters and batch norm elements of every network that the facts list, the thousand-layer ones too."""
    found, norms = counted(name), FACTS["batch_norm_elements"].get(LISTED[name])
    running = 2 * sum(layer.params // 4 for layer in found.layers if layer.op == "BatchNormalization")
    assert [found.params_deployed - running, found.macs] == [found.params, found.macs] == KNOWN[LISTED[name]]
    assert found.unknown == ()
    if norms is not None:
        assert elements(found, "BatchNormalization") == norms


def test_the_facts_list_most_of_the_zoo() -> None:
    """A renamed network cannot drop out unnoticed, and no two stand for the same row."""
    assert len(LISTED) == len(set(LISTED.values())) == len(zoo.ENTRIES) - 13
    assert set(LISTED.values()) <= KNOWN.keys()


def test_networks_with_facts_of_their_own_have_them() -> None:
    """AlexNet on its two GPUs, GoogLeNet as in its paper, ResNet-50 in basic blocks of its outer widths."""
    historic, outer = FACTS["historic"], FACTS["bottleneck"]["outer"]
    known = {
        "alexnet2012": tuple(historic["alexnet_2012_grouped"][k] for k in ("params", "macs")),
        "googlenet2014": tuple(historic["googlenet_2014_original"][k] for k in ("params_no_aux", "macs_no_aux")),
        "basic50_outer": (outer["params"], outer["macs"]),
    }
    assert {name: (counted(name).params, counted(name).macs) for name in known} == known


@pytest.mark.parametrize("name", FACTS["he_table1_gmacs"])
def test_table_1_of_he_et_al_is_met(name: str) -> None:
    """1.8, 3.6, 3.8, 7.6, 11.3: of v1, whose first 1x1 has the stride; the paper truncates. VGG-16's is without FC."""
    v1 = f"{name}_v1" if f"{name}_v1" in zoo.ENTRIES else name
    macs = sum(layer.macs for layer in counted(v1).layers if name != "vgg16" or layer.op == "Conv")
    assert macs / 1e9 == pytest.approx(FACTS["he_table1_gmacs"][name], abs=0.1)


def test_the_stride_in_the_3x3_costs_the_same_in_every_depth() -> None:
    """v1.5 less v1: 3 x 77,070,336."""
    assert {counted(f"resnet{n}").macs - counted(f"resnet{n}_v1").macs for n in (50, 101, 152)} == {231_211_008}


def test_bottlenecks_of_v1_save_14_388_times() -> None:
    """Against the same basic blocks of the outer width, which are 13.574 times v1.5."""
    found = counterfactuals.compare_basic_blocks(graph("resnet50_v1"), zoo.spec("resnet50_v1"))
    known = FACTS["bottleneck"]["outer"]
    assert (found.outer_macs, found.outer_params) == (known["macs"], known["params"])
    assert found.outer_macs / found.own_macs == pytest.approx(known["ratio_macs_vs_r50_v1"], rel=1e-12)
    assert round(found.outer_macs / found.own_macs, 3) == 14.388


@pytest.mark.parametrize("name", FACTS["add_elements"])
def test_additions_have_their_published_elements(name: str) -> None:
    """One output element each."""
    assert elements(counted(name), "Add") == FACTS["add_elements"][name]


@pytest.mark.parametrize("name", FACTS["relu_elements"])
def test_relus_have_their_published_elements(name: str) -> None:
    """Calls, not modules: torchvision's networks call one module several times."""
    assert elements(counted(name), "Relu") == FACTS["relu_elements"][name]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet101", "resnet152"])
def test_the_published_parameters_of_folded_graphs_are_a_bias_for_each_batch_norm(name: str) -> None:
    """In the place of its four vectors, two of which are parameters."""
    norms = sum(layer.params // 4 for layer in counted(name).layers if layer.op == "BatchNormalization")
    params = counted(name).params
    assert params is not None
    assert params - norms == FACTS["folded_params"][name]


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_folded_graphs_hold_their_published_parameters(name: str) -> None:
    """As files; MACs as before."""
    found = counts.count(form.canonicalise(graph(name, values=True)), zoo.spec(name))
    assert found.params_deployed == FACTS["folded_params"][name]
    assert found.macs == KNOWN[name][1]
    assert not any(layer.op == "BatchNormalization" for layer in found.layers)
