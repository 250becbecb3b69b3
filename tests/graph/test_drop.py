"""Removing residual branches from a graph equals setting the last batch normalisation of the branch to zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from resdeploy.errors import UsageError
from resdeploy.graph import counts, drop, files
from resdeploy.models import resnet, zoo
from tests import quick
from tests.sessions import session


@pytest.fixture(scope="module", params=["resnet20", pytest.param("resnet50", marks=pytest.mark.acceptance)])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, torch.nn.Module, Path]:
    """A network with statistics and gammas that are not those of initialisation, and its ONNX file."""
    name = request.param
    spec = zoo.spec(name, classes=7, input_shape=(3, 32, 32))
    net = zoo.create(spec, seed=3)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                assert module.running_mean is not None
                module.running_mean.normal_(0, 0.2)
    path = tmp_path_factory.mktemp("drop") / "net.onnx"
    quick.export(net, spec, path)
    return name, net, path


def run(model: onnx.ModelProto, path: Path, x: np.ndarray) -> np.ndarray:
    files.save_model(model, path)
    opened = session(path)
    return opened.run(None, {"input": x})[0]


def test_without_blocks_the_graph_is_the_network_with_their_last_bn_at_zero(
    exported: tuple[str, torch.nn.Module, Path], tmp_path: Path
) -> None:
    """Torch in float64 with gamma = beta = 0 is the oracle, for one block, several, neighbours, and a whole stage."""
    name, net, path = exported
    model = files.load_model(path)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    names = drop.removable_blocks(model)
    assert isinstance(net, resnet.ResNet)
    assert names == tuple(n for n, b in resnet.blocks_of(net).items() if b.downsample is None)
    for chosen in (names[:1], names[-1:], names[1:4], names):
        oracle = zoo.create(zoo.spec(name, classes=7, input_shape=(3, 32, 32))).double()
        oracle.load_state_dict(net.state_dict())
        assert isinstance(oracle, resnet.ResNet)
        for block in (resnet.blocks_of(oracle)[n] for n in chosen):
            last = block.bn3 if isinstance(block, resnet.Bottleneck) else block.bn2
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
        with torch.no_grad():
            expected = oracle(torch.from_numpy(x).double()).numpy()
        found = run(drop.remove(model, chosen), tmp_path / "cut.onnx", x)
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_a_removed_block_leaves_nothing_behind(exported: tuple[str, torch.nn.Module, Path]) -> None:
    """Fewer nodes, weights and multiply-accumulates: those of the block, and no node that nobody reads."""
    name, _, path = exported
    model = files.load_model(path)
    spec = zoo.spec(name, classes=7, input_shape=(3, 32, 32))
    block = drop.removable_blocks(model)[0]
    cut = drop.remove(model, [block])
    before, after = counts.count(model, spec), counts.count(cut, spec)
    own = [layer for layer in before.layers if layer.block == block]
    assert before.macs - after.macs == sum(layer.macs for layer in own) > 0
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers if layer.block != block]
    read = {t for node in cut.graph.node for t in node.input} | {o.name for o in cut.graph.output}
    assert all(set(node.output) & read for node in cut.graph.node)
    assert {t.name for t in cut.graph.initializer} <= read
    assert len(model.graph.node) == len(files.load_model(path).graph.node)


def test_a_block_that_changes_the_shape_keeps_its_shortcut(
    exported: tuple[str, torch.nn.Module, Path], tmp_path: Path
) -> None:
    """Its main branch goes; what the shortcut makes goes through the ReLU."""
    name, net, path = exported
    oracle = zoo.create(zoo.spec(name, classes=7, input_shape=(3, 32, 32))).double()
    oracle.load_state_dict(net.state_dict())
    assert isinstance(oracle, resnet.ResNet)
    block = resnet.blocks_of(oracle)["layer2.0"]
    last = block.bn3 if isinstance(block, resnet.Bottleneck) else block.bn2
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    x = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = oracle(torch.from_numpy(x).double()).numpy()
    found = run(drop.remove(files.load_model(path), ["layer2.0"]), tmp_path / "cut.onnx", x)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_unknown_blocks_are_refused_by_name(exported: tuple[str, torch.nn.Module, Path]) -> None:
    """And the names that exist are given."""
    model = files.load_model(exported[2])
    with pytest.raises(UsageError, match=r"layer9\.1") as caught:
        drop.remove(model, ["layer9.1"])
    assert "layer1.1" in caught.value.fix
