"""Random networks in hundreds of spellings, and the quickstart's network in those of both of torch's exporters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resdeploy.graph import from_torch
from resdeploy.graph.canonical import form
from resdeploy.models import zoo
from resdeploy.records import Target
from tests import quick
from tests.spellings import OPSETS, anonymous, assert_one_form, in_int8, respell

pytestmark = pytest.mark.acceptance

torch = pytest.importorskip("torch")


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), opset=st.sampled_from(OPSETS))
def test_every_spelling_of_random_networks_is_one_graph(seed: int, opset: int) -> None:
    """The full run of `tests/graph/canonical/test_spellings.py`."""
    assert_one_form(seed, opset)


def test_the_quickstarts_network_is_one_int8_file_in_fourteen_spellings(tmp_path: Path) -> None:
    """ResNet-20 of 16 x 16 images by torch's dynamo exporter, by its older one, and respelled: equal but for names."""
    torch.manual_seed(0)
    net = zoo.create(zoo.spec("resnet20")).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean)
    older = quick.torchscript(net, (3, 16, 16), folded=False)
    spec = dataclasses.replace(zoo.spec("resnet20"), input_shape=(3, 16, 16))
    exported = [from_torch._trace(net, spec), older]
    plain = form.canonicalise(older)
    spelled = [*exported, *(respell(plain, seed, 10 + seed) for seed in range(12))]
    for model in spelled:
        assert anonymous(form.canonicalise(model)) == anonymous(plain)
    for target in get_args(Target):
        assert len({in_int8(model, target, tmp_path) for model in spelled}) == 1
