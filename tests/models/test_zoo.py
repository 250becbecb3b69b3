"""models/zoo.py: names, descriptions, seeded creation."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from resdeploy.errors import UnknownName, UsageError
from resdeploy.models import zoo
from resdeploy.records import Preprocessing


def test_the_zoo_is_listed_without_torch() -> None:
    """Importing the table and describing a model loads neither torch nor pydantic."""
    code = (
        "import sys; from resdeploy.models import zoo; zoo.spec('resnet50', classes=7, weights='imagenet1k_v2'); "
        "zoo.ENTRIES; print(sorted({'torch', 'pydantic', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["resnet5", "ResNet50", "wide_resnet50", "plain3"])
def test_an_unknown_name_is_answered_with_near_ones(name: str) -> None:
    """The message names a model that exists, and the command that lists all."""
    with pytest.raises(UnknownName) as failure:
        zoo.find(name)
    assert failure.value.exit_status == 2
    assert any(near in failure.value.cause for near in zoo.ENTRIES)
    assert "resdeploy models" in failure.value.fix


def test_nonsense_has_no_near_names() -> None:
    """Nothing is suggested where nothing is near."""
    with pytest.raises(UnknownName) as failure:
        zoo.spec("qqqq")
    assert failure.value.cause == ""


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet18", "resnet56_b", "plain34", "preresnet164", "vgg11", "googlenet"]
)
@pytest.mark.parametrize(("classes", "shape"), [(None, None), (3, None), (7, (1, 64, 48)), (2, (4, 40, 40))])
def test_spec_counts_what_create_makes(name: str, classes: int | None, shape: tuple[int, int, int] | None) -> None:
    """Other classes, sizes and channels: the spec's arithmetic equals the network's parameters and logits' shape."""
    torch = pytest.importorskip("torch")
    spec = zoo.spec(name, classes=classes, input_shape=shape)
    with torch.device("meta"), torch.no_grad():  # shapes alone
        net = zoo.create(spec)
        logits = net(torch.zeros(2, *spec.input_shape))
    assert not net.training
    assert spec.params == sum(p.numel() for p in net.parameters())
    assert logits.shape == (2, spec.classes)


def test_one_seed_is_one_network_and_the_global_generator_is_left_alone() -> None:
    """Equal seeds give equal tensors, others do not, and torch's own random numbers go on as if nothing happened."""
    torch = pytest.importorskip("torch")
    spec = zoo.spec("resnet20")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    create: Any = zoo.create
    first, again, other = create(spec, seed=1), create(spec, seed=1), create(spec, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


@pytest.mark.parametrize(
    ("name", "weights", "resize"),
    [
        ("resnet50", "random", 256),
        ("resnet50", "imagenet1k_v1", 256),
        ("resnet50", "imagenet1k_v2", 232),
        ("resnet50", "IMAGENET1K_V2", 232),
        ("resnext101_64x4d", "imagenet1k_v1", 232),
        ("resnet18", "some/file.pth", 256),
        ("resnet20", "random", None),
    ],
)
def test_preprocessing_is_that_of_the_published_evaluation(name: str, weights: str, resize: int | None) -> None:
    """torchvision's V1 files want 256, its V2 files and the late 64x4d 232; CIFAR is never resized."""
    seen = zoo.spec(name, weights=weights).preprocessing
    assert seen is not None
    assert seen.resize == resize
    assert seen.size == ((32, 32) if resize is None else (224, 224))
    assert (seen.mean, seen.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("row", [p for p in zoo.PUBLISHED if p.file], ids=lambda p: p.file)
def test_published_rows_equal_torchvisions_own_metadata(row: zoo.Published, torchvision) -> None:
    """File, accuracies, resize, parameters and GFLOPS are those in torchvision's enums."""
    theirs = torchvision.models.get_model_weights(row.name)[row.weights.upper()]
    figures = theirs.meta["_metrics"]["ImageNet-1K"]
    assert theirs.url == f"https://download.pytorch.org/models/{row.file}"
    assert (row.top1, row.top5) == (figures["acc@1"], figures["acc@5"])
    assert [row.resize] == theirs.transforms().resize_size
    entry = zoo.find(row.name)
    # torchvision counts Inception's auxiliary classifier among the parameters, and GoogLeNet's two it does not.
    auxiliary = {"inception_v3": 3_326_696}.get(row.name, 0)
    assert entry.params + auxiliary == theirs.meta["num_params"]
    assert round(entry.macs / 1e9, 3) == pytest.approx(theirs.meta["_ops"], abs=0.0011)


def test_figures_of_papers_are_of_the_data_that_they_stand_for() -> None:
    """ImageNet's 2012 validation images; larger crops than the listed MACs are of are marked, and centre crops too."""
    found = {row.name: row for row in zoo.PUBLISHED if not row.file}
    assert (found["alexnet2012"].top1, found["alexnet2012"].top5) == (59.3, 81.8)
    assert {row.name for row in zoo.PUBLISHED if row.crop} == {"preresnet152", "preresnet200"}
    assert {row.name for row in found.values() if row.one_crop} == {f"resnet{n}_v1" for n in (50, 101, 152)}
    assert all(row.one_crop for row in zoo.PUBLISHED if row.file)


def test_preprocessing_follows_the_input() -> None:
    """Half the size is resized half; one channel is grey; four channels are nobody's."""
    half = zoo.spec("resnet50", input_shape=(3, 112, 112)).preprocessing
    assert half == Preprocessing(size=(112, 112), resize=128)
    grey = zoo.spec("resnet20", input_shape=(1, 8, 8)).preprocessing
    assert grey is not None
    assert (grey.channels, len(grey.mean), grey.size) == ("L", 1, (8, 8))
    assert zoo.spec("resnet20", input_shape=(4, 8, 8)).preprocessing is None


def test_given_preprocessing_decides_the_input_shape() -> None:
    """Size and channels are read off it."""
    seen = Preprocessing(size=(8, 8), channels="L", mean=(0.3,), std=(0.4,))
    spec = zoo.spec("resnet20", preprocessing=seen, labels=("a", "b"))
    assert (spec.input_shape, spec.preprocessing, spec.classes) == ((1, 8, 8), seen, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": 0},
        {"classes": 3, "labels": ("a", "b")},
        {"input_shape": (3, 0, 32)},
        {"input_shape": (3, 32, 32), "preprocessing": Preprocessing(size=(24, 24))},
        {"input_shape": (1, 32, 32), "preprocessing": Preprocessing(size=(32, 32))},
    ],
)
def test_contradictions_are_usage_errors(wrong: dict) -> None:
    """Nothing is guessed where two options exclude each other."""
    with pytest.raises(UsageError) as failure:
        zoo.spec("resnet20", **wrong)
    assert failure.value.fix
