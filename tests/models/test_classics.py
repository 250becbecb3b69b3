"""models/classics.py, inception.py and preact.py against torchvision's, timm's and the paper's own definitions."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from resdeploy.models import checkpoint, preact, zoo

OTHERS = [p.name for p in zoo.PUBLISHED if p.file and zoo.find(p.name).family in ("alexnet", "vgg", "inception")]


def quick(name: str) -> dict[str, bool]:
    """Torchvision's own initialisation takes long, and AlexNet has none."""
    return {} if name == "alexnet" else {"init_weights": False}


def filled(state: dict, dtype: torch.dtype) -> dict:
    """Values for every tensor, statistics of batch norms among them that are not 0 and 1; no two filters alike."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(1_000_003, generator=generator, dtype=dtype)
    values = {}
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            values[key] = torch.tensor(0)
        elif tensor.ndim > 1:
            start = int(torch.randint(len(normal), (), generator=generator))
            repeats = (start + tensor.numel()) // len(normal) + 1
            some = normal.repeat(repeats)[start : start + tensor.numel()].view(tensor.shape)
            values[key] = some * (2 / tensor[0].numel()) ** 0.5
        else:
            values[key] = torch.empty(tensor.shape, dtype=dtype).uniform_(0.2, 0.8, generator=generator)
    return values


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module, state: dict, size: int, dtype: torch.dtype) -> None:
    ours.load_state_dict(checkpoint.fit(state, ours, "the state"), strict=True, assign=True)
    theirs.load_state_dict(state, strict=True, assign=True)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)
    with torch.no_grad():
        got, expected = ours.eval()(x), theirs.eval()(x)
    assert expected.isfinite().all()
    assert expected.std() > 0
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", OTHERS)
def test_names_and_shapes_are_torchvisions(name: str, torchvision) -> None:
    """All but those of the auxiliary classifiers, which are built on request."""
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, **quick(name)).state_dict()
        ours = zoo.create(zoo.spec(name)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items() if not k.startswith(checkpoint.AUXILIARY)
    }


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg16_bn", "googlenet", "inception_v3"])
def test_torchvisions_state_loads_strictly_and_gives_the_same_logits(name: str, torchvision) -> None:
    """Bit for bit: in float64, VGG in float32 since its linear layers would need a gigabyte.

    GoogLeNet's and Inception's files hold auxiliary classifiers too, which are left out; what is missing is not.
    """
    large = name.startswith("vgg")
    dtype, size = (torch.float32, 64) if large else (torch.float64, 96)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, **quick(name))
        ours = zoo.create(zoo.spec(name))
    state = filled(theirs.state_dict(), dtype)
    assert_same(ours, theirs, state, size, dtype)


def test_inception_v4_is_timms(torchvision) -> None:
    """The same names, shapes and logits as timm's, whose checkpoint is the published one."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs, ours = timm.create_model("inception_v4"), zoo.create(zoo.spec("inception_v4"))
    state = filled(theirs.state_dict(), torch.float64)
    assert list(state) == list(ours.state_dict())
    assert_same(ours, theirs, state, 96, torch.float64)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pixels_reach_googles_networks_as_torchvision_hands_them_over(name: str) -> None:
    """Its published files come with `transform_input`, which undoes the ImageNet normalisation: -1 to 1 remains."""
    seen = zoo.spec(name, weights="imagenet1k_v1").preprocessing
    assert seen is not None
    pixel = 0.3
    for k, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        theirs = (pixel - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
        assert (pixel - seen.mean[k]) / seen.std[k] == pytest.approx(theirs, rel=1e-12)


def steps(net: torch.nn.Module, unit: str) -> str:
    """What one unit computes, in order, as the paper's figure 4 draws it."""
    graph = torch.fx.symbolic_trace(net.get_submodule(unit)).graph
    words = []
    for node in graph.nodes:
        if node.op == "call_module":
            words.append("".join(c for c in str(node.target).rpartition(".")[2] if c.isalpha()))
        elif node.op == "call_function":
            words.append("add")
    return " ".join(words)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("resnet110", "conv bn relu conv bn add relu"),
        ("resnet110_bn_after_add", "conv bn relu conv add bn relu"),
        ("resnet110_relu_before_add", "conv bn relu conv bn relu add"),
        ("resnet110_relu_only", "relu conv bn relu conv bn add"),
        ("preresnet110", "bn relu conv bn relu conv add"),
        ("preresnet164", "bn relu conv bn relu conv bn relu conv add"),
    ],
)
def test_units_are_those_of_figure_4(name: str, drawn: str) -> None:
    """Traced, not read off the code."""
    with torch.device("meta"):
        net = zoo.create(zoo.spec(name))
    assert steps(net, "layer2.3") == drawn


def test_the_first_unit_takes_its_activation_from_the_stem() -> None:
    """The paper's appendix; under ImageNet's stem a pool stands between, and the unit keeps its own."""
    with torch.device("meta"):
        assert steps(zoo.create(zoo.spec("preresnet110")), "layer1.0") == "conv bn relu conv add"
        assert steps(zoo.create(zoo.spec("preresnet18")), "layer1.0") == "bn relu conv bn relu conv add"


@pytest.mark.parametrize("name", ["preresnet1001", "resnet110_bn_after_add", "vgg19", "inception_v4", "googlenet2014"])
def test_untrained_networks_carry_a_signal_within_fp16(name: str) -> None:
    """Exported and quantized untrained, they must neither die nor overflow."""
    spec = zoo.spec(name, input_shape=(3, 8, 8) if zoo.find(name).cifar else (3, 96, 96))
    if name == "vgg19":
        spec = zoo.spec(name, input_shape=(3, 32, 32))
    net = zoo.create(spec)
    peaks: list[float] = []
    for module in net.modules():
        module.register_forward_hook(lambda _m, _i, out: peaks.append(float(out.abs().max())))
    with torch.no_grad():
        logits = net(torch.randn(1, *spec.input_shape, generator=torch.Generator().manual_seed(0)))
    assert max(peaks) < torch.finfo(torch.float16).max / 100
    assert min(peaks) > 1e-3
    assert logits.std() > 0.01


def test_all_placements_are_in_the_zoo() -> None:
    """At both depths that the paper's table 2 has."""
    found = {(v.placement, sum(v.config.depths)) for v in preact.VARIANTS.values() if v.config.stem == "cifar"}
    assert {(placement, units) for placement in preact.STEPS for units in (54,)} <= found
