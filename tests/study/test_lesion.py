"""Lesions: deleting a block is exactly what zeroing its last batch normalisation is, and nothing is computed twice."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from scipy.stats import kendalltau

from resdeploy.data.datasets import choose, open_dataset
from resdeploy.deploy import networks
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError, WeightsMismatch
from resdeploy.models import resnet, weights, zoo
from resdeploy.records import Preprocessing, Weights
from resdeploy.study import lesion
from resdeploy.train.images import Samples, load, normalise

SIGHT = Preprocessing(size=(8, 8), channels="L", mean=(0.3,), std=(0.4,))


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Sixty images of handwriting."""
    return load(choose(open_dataset("digits", split="test"), 60, 0), SIGHT)[0]


def network(name: str) -> resnet.ResNet:
    """Statistics of real images, so that no channel is dead."""
    torch.manual_seed(4)
    net = zoo.create(zoo.spec(name, classes=10, preprocessing=SIGHT), seed=4).train()
    net(torch.randn(64, 1, 8, 8))
    assert isinstance(net, resnet.ResNet)
    return net.eval()


def error(net: torch.nn.Module, samples: Samples) -> float:
    with torch.no_grad():
        found = net(normalise(samples.pixels, SIGHT)).argmax(1)
    return 100 * int((found != samples.labels).sum()) / len(samples)


@pytest.mark.parametrize("name", ["resnet20", "resnet20_b"])
def test_deleting_a_block_equals_zeroing_its_last_bn_exactly(samples: Samples, name: str) -> None:
    """Every block of both kinds of shortcut: the same logits bit for bit, and the study's error is theirs."""
    net = network(name)
    patient = lesion.Patient(net, samples, SIGHT)
    whole, single = patient.delete_each(lambda *_: None)
    assert whole == error(net, samples)
    assert [one.block for one in single] == list(resnet.blocks_of(net))
    assert {one.shortcut for one in single} == {"identity", "change"}
    for one in single:
        zeroed = copy.deepcopy(net)
        last = resnet.blocks_of(zeroed)[one.block].bn2
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        assert one.error == error(zeroed, samples)
        if one.shortcut == "identity":
            cut = copy.deepcopy(net)
            resnet.remove_blocks(cut, [one.block])
            x = normalise(samples.pixels, SIGHT)
            with torch.no_grad():
                assert torch.equal(cut(x), zeroed(x))


def test_a_plain_network_loses_whole_blocks(samples: Samples) -> None:
    """Only those that keep the shape; deleting one equals leaving the module out."""
    net = network("plain20")
    patient = lesion.Patient(net, samples, SIGHT)
    _, single = patient.delete_each(lambda *_: None)
    names = [n for n in resnet.blocks_of(net) if n not in ("layer2.0", "layer3.0")]
    assert [one.block for one in single] == names
    for one in single:
        cut = copy.deepcopy(net)
        stage, _, key = one.block.partition(".")
        setattr(cut.get_submodule(stage), key, torch.nn.Identity())
        assert one.error == error(cut, samples)


def test_random_choices_are_seeded_and_of_the_size_asked_for(samples: Samples) -> None:
    """Deleting all k of k is one fixed network; swaps stay within a stage and keep the shape-changing blocks."""
    net = network("resnet20")
    patient = lesion.Patient(net, samples, SIGHT)
    assert patient.keeping == tuple(n for n in resnet.blocks_of(net) if n not in ("layer2.0", "layer3.0"))
    (point,) = patient.delete_several([7], 2, 0, lambda *_: None)
    cut = copy.deepcopy(net)
    resnet.remove_blocks(cut, patient.keeping)
    assert point.errors == (error(cut, samples),) * 2
    swapped = patient.shuffle([1, 3], 2, 0, lambda *_: None)
    assert swapped == patient.shuffle([1, 3], 2, 0, lambda *_: None)
    assert swapped[0].tau is not None
    assert swapped[0].tau < 1


def test_kendalls_tau_is_scipys() -> None:
    """All permutations of five."""
    for order in itertools.permutations(range(5)):
        assert lesion.kendall(order) == pytest.approx(kendalltau(range(5), order).statistic)


def test_a_network_that_cannot_be_studied_is_refused_before_the_first_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained, or another network's weights: no image is read for those that are named before it."""
    spec = zoo.spec("resnet20", classes=10, preprocessing=SIGHT)
    whose = Weights(source="w")
    for name in ("trained", "wrong"):
        weights.save(zoo.create(spec), spec, tmp_path / f"{name}.safetensors", whose)
    others = {
        "trained": networks.Network(spec=spec, weights=whose, path=tmp_path / "trained.safetensors"),
        "untrained": networks.Network(spec=spec, weights=whose, path=None),
        "wrong": networks.Network(spec=zoo.spec("resnet32"), weights=whose, path=tmp_path / "wrong.safetensors"),
    }
    monkeypatch.setattr(networks, "resolve", lambda request: others[request.model])
    monkeypatch.setattr(lesion, "load_to_judge", lambda *_, **__: pytest.fail("images were read"))
    for second, error in (("untrained", UsageError), ("wrong", WeightsMismatch)):
        requests = [Request(model=name) for name in ("trained", second)]
        with pytest.raises(error):
            lesion.study_lesions(requests, lesion.LesionPlan(data="digits"), progress=lambda *_: None)
