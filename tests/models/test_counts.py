"""Parameters and MACs of every network of the zoo and of its literature, against published and independent counts."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("torch")

import torch
from torch.utils.flop_counter import FlopCounterMode

from resdeploy.models import classics, inception, preact, resnet, zoo
from tests.graph.test_zoo_counts import LISTED

FACTS = json.loads((Path(__file__).parents[1] / "counts.json").read_text())
KNOWN: dict[str, list[int]] = {**FACTS["imagenet"], **FACTS["imagenet_variants"], **FACTS["cifar"]}
DEEP = re.compile(r"1202|1001")  # take seconds to build and to count: see the test of their growth


def build(make, **options):  # a network without values: where there are none, drawing them takes most of the time
    with torch.device("meta"), mock.patch.object(torch.nn.init, "kaiming_normal_"):
        return make(**options)


def params(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def macs(net: torch.nn.Module, size: int) -> int:
    """Half the FLOPs that torch counts; modules that count none are left out to save time."""
    for module in list(net.modules()):
        for child, found in list(module.named_children()):
            if isinstance(found, torch.nn.BatchNorm2d | torch.nn.ReLU | torch.nn.LocalResponseNorm):
                setattr(module, child, torch.nn.Identity())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, 3, size, size, device="meta"))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def published(name: str) -> tuple[torch.nn.Module, int]:
    """A network of the facts by the name it has there, and its input size."""
    name, _, mode = name.partition("|")
    if name.startswith(("googlenet", "inception_v3")):
        make = classics.GoogLeNet if name.startswith("googlenet") else inception.InceptionV3
        net = build(make, aux="+aux" in name).train(mode == "train")
        return net, 224 if name.startswith("googlenet") else 299
    if name == "inception_v4 (timm)":
        return build(inception.InceptionV4).eval(), 299
    if name in classics.VARIANTS:
        return build(classics.VARIANTS[name]).eval(), 224
    if found := re.fullmatch(r"(pre|post)act(\d+)_(bneck)?(?:_?stride)?([A-B]|[13]x[13])?(_c100)?", name):
        return _activated(found)
    plain = name.replace("_optionA", "_a").replace("_optionC", "_c").replace("_A", "").replace("_B", "_b")
    known = {**resnet.VARIANTS, "plain1202": replace(resnet.VARIANTS["resnet1202"], shortcut="none")}
    config = known[plain]
    cifar = config.stem == "cifar"
    return build(resnet.ResNet, config=config, classes=10 if cifar else 1000).eval(), 32 if cifar else 224


def _activated(found: re.Match[str]) -> tuple[torch.nn.Module, int]:
    kind, depth, bottleneck, how, hundred = found.groups()
    imagenet = how in ("1x1", "3x3") and not bottleneck
    if bottleneck:
        config = replace(resnet.VARIANTS["resnet164"], depths=((int(depth) - 2) // 9,) * 3)
    elif imagenet:
        config = preact.VARIANTS[f"preresnet{depth}"].config
    else:
        config = resnet.VARIANTS[f"resnet{depth}{'_b' if how == 'B' else ''}"]
    config = replace(config, stride_in_1x1=how != "3x3")
    classes = 1000 if imagenet else 100 if hundred else 10
    make: Any = functools.partial(preact.PreActResNet, preact.Variant(config=config))
    if kind == "post":
        make = functools.partial(resnet.ResNet, config)
    return build(make, classes=classes).eval(), 224 if imagenet else 32


@functools.cache
def counted(name: str) -> list[int]:
    """Parameters, and MACs by torch's own counter."""
    net, size = published(name)
    return [params(net), macs(net, size)]


@pytest.mark.parametrize("name", [name for name in KNOWN if not DEEP.search(name)])
def test_parameters_and_multiply_accumulates_are_the_published_ones(name: str) -> None:
    """Variants in print up to 200 layers: options A to C, v1 and v1.5, pre- and post-activation, auxiliaries."""
    assert counted(name) == KNOWN[name]


@pytest.mark.parametrize(
    ("deep", "shallow", "deeper", "units"),
    [
        ("resnet1202_A", "resnet20_A", "resnet32_A", (3, 5, 200)),
        ("resnet1202_B", "resnet20_B", "resnet32_B", (3, 5, 200)),
        ("plain1202", "plain20", "plain32", (3, 5, 200)),
        ("preact1202_A", "preact20_A", "preact32_A", (3, 5, 200)),
        ("preact1202_B", "preact20_B", "preact32_B", (3, 5, 200)),
        ("preact1001_bneck_stride1x1", "preact110_bneck_stride1x1", "preact164_bneck_stride1x1", (12, 18, 111)),
        ("preact1001_bneck_stride3x3", "preact110_bneck_stride3x3", "preact164_bneck_stride3x3", (12, 18, 111)),
        ("preact1001_bneck_c100", "preact110_bneck_c100", "preact164_bneck_c100", (12, 18, 111)),
        ("postact1001_bneck", "postact110_bneck", "postact164_bneck", (12, 18, 111)),
    ],
)
def test_a_thousand_layers_cost_what_their_blocks_do(deep: str, shallow: str, deeper: str, units) -> None:
    """Both grow by a constant a block, so two shallow networks give those of the deep one."""
    few, more, many = units
    grown = [
        low + (high - low) * (many - few) // (more - few)
        for low, high in zip(counted(shallow), counted(deeper), strict=True)
    ]
    assert grown == KNOWN[deep]
    assert params(published(deep)[0]) == KNOWN[deep][0]


def test_the_networks_before_2015_have_their_published_counts() -> None:
    """AlexNet grouped as on its two GPUs, and not; GoogLeNet as in its paper, with and without auxiliaries."""
    historic = FACTS["historic"]
    grouped, whole = build(classics.AlexNet2012), build(classics.AlexNet2012, groups=1)
    known = historic["alexnet_2012_grouped"]
    assert [params(grouped), macs(grouped, 227)] == [known["params"], known["macs"]]
    known = historic["alexnet_96_256_384_ungrouped"]
    assert [params(whole), macs(whole, 227)] == [known["params"], known["macs"]]
    known = historic["googlenet_2014_original"]
    plain, aux = build(classics.GoogLeNet, paper=True).eval(), build(classics.GoogLeNet, paper=True, aux=True).train()
    assert [params(plain), params(aux)] == [known["params_no_aux"], known["params_with_aux"]]
    at_rest = macs(plain, 224)
    assert [at_rest, macs(aux, 224) - at_rest] == [known["macs_no_aux"], known["aux_macs"]]


def test_every_row_of_the_zoo_is_a_network_and_every_network_a_row() -> None:
    """The table and the code cannot drift apart."""
    assert set(zoo.ENTRIES) == {*resnet.VARIANTS, *preact.VARIANTS, *classics.VARIANTS}


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_the_zoos_row_is_what_its_network_has(name: str) -> None:
    """Parameters of all; MACs are those of the facts, of the others by torch's own counter."""
    entry = zoo.find(name)
    net = build(zoo.create, spec=zoo.spec(name))
    assert params(net) == entry.params
    if name in LISTED:  # `graph/test_zoo_counts.py` counts this very network, and a test above its like
        assert [entry.params, entry.macs] == KNOWN[LISTED[name]]
    else:
        assert macs(net, entry.size) == entry.macs
