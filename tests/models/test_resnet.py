"""models/resnet.py against torchvision, published counts, and real CIFAR-10 weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from resdeploy.models import resnet, weights, zoo

# SHA-256 of "\n".join(f"{key}:{tuple(shape)}") over torchvision 0.28's state_dict, in its order.
STATE_DICTS = {
    "resnet18": "3e58b0798c806a0c85c69051b17197fc1f04ce3183cadef7665404b8f7fa72d1",
    "resnet34": "97e365907d64da749276fb6caac11d385df8bf9a9e206ca2b61fc2cb308af64f",
    "resnet50": "781bb16f43b8f96f5f2ada850a89ff3e7a89c845484027404ea1ba359f00987a",
    "resnet101": "708e8813e2eb34610a85dfcff9075a5955201e523cde7fbbeb489d8f147efead",
    "resnet152": "9e3321003337a84820c9f62956c320beec8a4cf299353de4281d05b5f24d39ad",
}
TORCHVISION = [p.name for p in zoo.PUBLISHED if p.weights == "imagenet1k_v1" and p.name in resnet.VARIANTS]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: threads that wait for each other cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_meta(name: str, **options: int) -> resnet.ResNet:
    # Where there are no values, drawing them takes most of the time.
    with torch.device("meta"), mock.patch.object(torch.nn.init, "kaiming_normal_"):
        return resnet.ResNet(resnet.VARIANTS[name], zoo.find(name).classes, **options).eval()


@pytest.mark.parametrize("name", STATE_DICTS)
def test_state_dict_has_torchvisions_keys_order_and_shapes(name: str) -> None:
    """Key for key, in order, with shapes: the digest of torchvision's own listing."""
    listing = "\n".join(f"{k}:{tuple(v.shape)}" for k, v in on_meta(name).state_dict().items())
    assert hashlib.sha256(listing.encode()).hexdigest() == STATE_DICTS[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_outputs_equal_torchvisions_bit_for_bit(name: str, torchvision) -> None:
    """The same weights, with BatchNorm statistics that are not 0 and 1, give the same logits and the same listing."""
    generator = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    ours = on_meta(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    normal = torch.randn(1_000_003, generator=generator)  # a prime: no filter repeats another
    state = {}
    for key, tensor in theirs.state_dict().items():
        if not tensor.is_floating_point():
            state[key] = torch.tensor(0)
        elif tensor.ndim > 1:
            std = (2 / tensor[0].numel()) ** 0.5
            start = int(torch.randint(len(normal), (), generator=generator))
            repeats = (start + tensor.numel()) // len(normal) + 1
            state[key] = std * normal.repeat(repeats)[start : start + tensor.numel()].view(tensor.shape)
        else:
            state[key] = torch.empty(tensor.shape).uniform_(0.2, 0.8, generator=generator)
    ours.load_state_dict(state, strict=True, assign=True)
    theirs.load_state_dict(state, strict=True, assign=True)
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        expected, got = theirs.eval()(x), ours(x)
    assert expected.isfinite().all()
    assert expected.std() > 0
    assert torch.equal(got, expected)


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_stride_in_the_3x3_costs_the_same_231_million_macs_at_every_depth(depth: int) -> None:
    """v1.5 does 3 x 77,070,336 MACs more than v1, with the same parameters."""
    new, old = f"resnet{depth}", f"resnet{depth}_v1"
    assert zoo.find(new).macs - zoo.find(old).macs == 3 * 77_070_336
    assert [p.shape for p in on_meta(new).parameters()] == [p.shape for p in on_meta(old).parameters()]


def test_option_a_pads_channels_on_both_sides_of_every_second_pixel() -> None:
    """Against the definition by hand, on an odd-sized map."""
    x = torch.arange(2 * 4 * 5 * 5, dtype=torch.float32).reshape(2, 4, 5, 5)
    y = resnet.PadShortcut(4, 8, 2)(x)
    expected = np.zeros((2, 8, 3, 3), np.float32)
    expected[:, 2:6] = x.numpy()[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]]
    np.testing.assert_array_equal(y.numpy(), expected)


def test_a_plain_net_is_its_residual_twin_without_the_additions() -> None:
    """Same tensors; additions 8 against none in the traced graphs of ResNet-18 (A) and plain-18."""
    import operator

    def additions(net: torch.nn.Module) -> int:
        return sum(node.target is operator.add for node in torch.fx.symbolic_trace(net).graph.nodes)

    plain, residual = on_meta("plain18"), on_meta("resnet18_a")
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in residual.state_dict().items()}
    assert (additions(residual), additions(plain)) == (8, 0)


def test_resnet50_calls_49_relus_that_are_49_modules() -> None:
    """Each ReLU call of the trace is another module, so that each has a name of its own in an export."""
    graph = torch.fx.symbolic_trace(on_meta("resnet50")).graph
    relus = [node.target for node in graph.nodes if node.op == "call_module" and "relu" in str(node.target)]
    assert len(relus) == len(set(relus)) == 49


@pytest.mark.parametrize("name", ["resnet152", "resnext50_32x4d", "wide_resnet50_2", "resnet1202", "resnet110_b"])
def test_random_networks_stay_within_fp16_at_any_depth(name: str) -> None:
    """No activation of an untrained net comes within a factor 100 of FP16's largest number, none dies."""
    spec = zoo.spec(name, input_shape=(3, 64, 64) if zoo.find(name).classes == 1000 else (3, 8, 8))
    net = zoo.create(spec)
    peaks: list[float] = []
    for module in net.modules():
        module.register_forward_hook(lambda _m, _i, out: peaks.append(float(out.abs().max())))
    with torch.no_grad():
        logits = net(torch.randn(1, *spec.input_shape, generator=torch.Generator().manual_seed(0)))
    assert max(peaks) < torch.finfo(torch.float16).max / 100
    assert min(peaks) > 0.01
    assert logits.std() > 0.1


@pytest.mark.parametrize(("name", "file"), [("resnet20", "resnet20-12fca82f.th"), ("resnet56", "resnet56-4bfd9763.th")])
def test_real_cifar_weights_load_strictly_and_classify(name: str, file: str, shared: Path) -> None:
    """Published weights reach over 75 % top-1 on 400 real images (81 % and 83 % on all 10,000 of these JPEGs)."""
    from PIL import Image

    net = zoo.create(zoo.spec(name))
    weights.load_into(net, shared / "data" / "weights" / file)
    spec = zoo.spec(name).preprocessing
    assert spec is not None
    assert (spec.resize, spec.size) == (None, (32, 32))
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    images, labels = [], []
    for label, folder in enumerate(sorted((shared / "data" / "cifar10" / "test").iterdir())):
        for path in sorted(folder.glob("*.jpg"))[:40]:
            pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
            images.append(((pixels - mean) / std).transpose(2, 0, 1))
            labels.append(label)
    with torch.no_grad():
        found = net(torch.from_numpy(np.stack(images))).argmax(1)
    assert len(labels) == 400
    assert float((found == torch.tensor(labels)).float().mean()) > 0.75
