"""models/foreign.py with the real timm and torchvision, and factories in real files."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from resdeploy.errors import EnvironmentFailure, FactoryRefused, PackageMissing, UnknownName, UsageError  # noqa: E402
from resdeploy.models import foreign, weights, zoo  # noqa: E402
from resdeploy.records import Preprocessing  # noqa: E402


@pytest.fixture(scope="session")
def timm(torchvision: ModuleType) -> ModuleType:
    """timm imports torchvision, hence that fixture first."""
    return pytest.importorskip("timm")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a module `mymodels`, and an import system that forgets it afterwards."""
    (tmp_path / "mymodels.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            def tiny():
                return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))

            def grey():
                return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

            def dense():
                return nn.Conv2d(3, 4, 1)

            class Two(nn.Module):
                def forward(self, x):
                    return {"logits": x}

            def raises():
                raise ValueError("no such depth")

            def text():
                return "a network"
            """
        )
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('half written')\n")
    (tmp_path / "needs.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    names = ("tiny", "grey", "dense", "Two", "raises", "text", "tinny", "")
    monkeypatch.setattr(foreign, "_permitted", {f"mymodels:{name}" for name in names})
    foreign.permit("mymodel:tiny", "broken:tiny", "needs:tiny", ":tiny")
    yield tmp_path
    for name in ("mymodels", "broken", "needs"):
        sys.modules.pop(name, None)


def test_a_factory_of_the_current_folder_is_measured(here: Path) -> None:
    """Classes and parameters are found by building and running it; preprocessing nobody knows stays unknown."""
    spec = zoo.spec("mymodels:tiny")
    assert (spec.family, spec.classes, spec.params, spec.preprocessing) == (
        "mymodels",
        6,
        3 * 4 * 9 + 4 + 4 * 6 + 6,
        None,
    )
    assert spec.input_shape == (3, 224, 224)
    create: Any = zoo.create
    net = create(spec, seed=1)
    assert not net.training
    assert torch.equal(net[0].weight, create(spec, seed=1)[0].weight)
    assert not torch.equal(net[0].weight, create(spec, seed=2)[0].weight)


def test_a_factory_that_nobody_typed_is_not_imported(here: Path) -> None:
    """Neither described nor built: the module is not looked for."""
    spec = zoo.spec("mymodels:tiny")
    sys.modules.pop("mymodels")
    foreign._permitted.clear()
    for refused in (lambda: zoo.spec("mymodels:tiny"), lambda: zoo.create(spec)):
        with pytest.raises(FactoryRefused):
            refused()
    assert "mymodels" not in sys.modules
    foreign.permit("timm:resnet18", "torchvision:resnet18", "resnet20")
    assert foreign.permitted_factories() == ()


@pytest.mark.parametrize(
    "name",
    ["timm:hf-hub:user/net", "timm:hf_hub:user/net", "timm:local-dir:/net", "timm:resnet18/../x", "torchvision:"],
)
def test_nothing_but_a_packages_own_model_is_asked_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a hub nor a folder: the package, which is not there, is not even imported."""
    for package in foreign.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnknownName):
        zoo.spec(name)


def test_a_factorys_input_is_asked_for_where_the_usual_one_fails(here: Path) -> None:
    """The error says what the network said and names the option; with it, all is well."""
    with pytest.raises(UsageError) as failure:
        zoo.spec("mymodels:grey")
    assert "--img-size" in failure.value.fix
    seen = Preprocessing(size=(8, 8), channels="L", mean=(0.5,), std=(0.5,))
    assert zoo.spec("mymodels:grey", preprocessing=seen).input_shape == (1, 8, 8)
    assert zoo.spec("mymodels:grey", input_shape=(1, 8, 8), labels=("a", "b")).labels == ("a", "b")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("mymodels:tinny", UnknownName, "tiny"),
        ("mymodel:tiny", UnknownName, "mymodel"),
        ("broken:tiny", EnvironmentFailure, "half written"),
        ("needs:tiny", EnvironmentFailure, "a_package_that_nobody_has"),
        ("mymodels:raises", UsageError, "no such depth"),
        ("mymodels:text", UsageError, "str"),
        ("mymodels:dense", UsageError, "not a classifier"),
        ("mymodels:Two", UsageError, "dict"),
        ("mymodels:", UnknownName, "mymodels:"),
        (":tiny", UnknownName, "tiny"),
    ],
)
def test_each_way_a_factory_fails_has_its_error(name: str, kind: type[Exception], said: str, here: Path) -> None:
    """The stranger's own message is in ours."""
    with pytest.raises(kind) as failure:
        zoo.spec(name)
    assert failure.type is kind
    assert said in str(failure.value)


def test_a_factory_with_other_classes_than_asked_for_is_a_usage_error(here: Path) -> None:
    """It cannot be told how many to make."""
    with pytest.raises(UsageError, match="gives 6 values and not 9"):
        zoo.spec("mymodels:tiny", classes=9)


def test_the_global_generator_is_left_alone(here: Path) -> None:
    """Describing a model draws no random numbers of the caller's."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zoo.spec("mymodels:tiny")
    assert torch.equal(torch.rand(3), expected)


def test_timm_tells_preprocessing_as_its_own_transform_does(timm: ModuleType) -> None:
    """Resize, crop, interpolation, mean and std equal those of the transform timm itself builds."""
    import timm.data

    spec = zoo.spec("timm:resnet18")
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(timm.create_model("resnet18")))
    resize, crop, _, normalise = theirs.transforms
    seen = spec.preprocessing
    assert seen is not None
    assert (seen.resize, seen.size) == (resize.size, tuple(crop.size))
    assert seen.interpolation == resize.interpolation.value == "bicubic"
    assert seen.mean == pytest.approx(normalise.mean.tolist())
    assert seen.std == pytest.approx(normalise.std.tolist())
    assert (spec.classes, spec.params) == (1000, 11_689_512)


def test_a_timm_net_takes_classes_and_channels(timm: ModuleType) -> None:
    """In the description and in the network alike."""
    spec = zoo.spec("timm:resnet10t", classes=4, input_shape=(1, 64, 64))
    net = zoo.create(spec)
    assert spec.params == sum(p.numel() for p in net.parameters())
    with torch.no_grad():
        assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 4)


def test_timm_and_torchvision_resnets_take_the_zoos_weights(timm: ModuleType, tmp_path: Path) -> None:
    """Their key names are ours: one checkpoint, three sources of the network, the same logits."""
    spec = zoo.spec("resnet18", classes=4, input_shape=(3, 64, 64))
    ours, path = zoo.create(spec, seed=3), tmp_path / "w.safetensors"
    weights.save(ours, spec, path, weights.resolve("random", spec)[1])
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in ("timm:resnet18", "torchvision:resnet18"):
        net = zoo.create(zoo.spec(name, classes=4, input_shape=(3, 64, 64)))
        weights.load_into(net, path)
        with torch.no_grad():
            torch.testing.assert_close(net(x), ours(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("asked", "resize"), [("imagenet1k_v1", 256), ("imagenet1k_v2", 232), ("random", 256)])
def test_torchvision_tells_preprocessing_and_labels(asked: str, resize: int, torchvision: ModuleType) -> None:
    """Of the weights that were asked for."""
    spec = zoo.spec("torchvision:mobilenet_v2", weights=asked)
    assert spec.preprocessing == Preprocessing(size=(224, 224), resize=resize)
    assert (spec.classes, spec.params, spec.labels[0]) == (1000, 3_504_872, "tench")
    assert zoo.spec("torchvision:mobilenet_v2", classes=10).labels == ()


def test_torchvisions_weights_have_their_url_by_name(torchvision: ModuleType) -> None:
    """Through the same hash-checked download as the zoo's."""
    url = foreign.torchvision_url("torchvision:mobilenet_v2", "imagenet1k_v2")
    assert url == "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth"
    assert foreign.torchvision_url("torchvision:alexnet", "imagenet1k_v2") is None
    with pytest.raises(UnknownName):
        weights.resolve("imagenet1k_v2", zoo.spec("torchvision:squeezenet1_1"))


@pytest.mark.parametrize(("name", "near"), [("torchvision:resnet5", "resnet50"), ("timm:resnet500", "resnet50")])
def test_unknown_names_are_answered_with_near_ones(name: str, near: str, timm: ModuleType) -> None:
    """From the package's own list."""
    with pytest.raises(UnknownName) as failure:
        zoo.spec(name)
    assert near in failure.value.cause


def test_a_timm_tag_that_does_not_exist_is_said_in_timms_words(timm: ModuleType) -> None:
    """The name is known, its tag is not."""
    with pytest.raises(UsageError) as failure:
        zoo.spec("timm:resnet18.nonsense")
    assert "nonsense" in failure.value.cause


def test_torchvision_takes_three_channels_and_only_classifies(torchvision: ModuleType) -> None:
    """Both are said before anything is exported."""
    with pytest.raises(UsageError, match="3 channels"):
        zoo.spec("torchvision:resnet18", input_shape=(1, 64, 64))


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_package_that_is_missing_is_named_with_its_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without it: no finder finds it."""
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)

    class Hide:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hide, *sys.meta_path])
    with pytest.raises(PackageMissing) as failure:
        zoo.spec(f"{package}:resnet18")
    assert f"pip install {package}" in failure.value.fix
    assert failure.value.exit_status == 6


def test_a_package_that_fails_to_import_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision beside another torch raises RuntimeError; the error repeats what it said."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentFailure) as failure:
        zoo.spec("timm:resnet18")
    assert failure.type is EnvironmentFailure
    assert "operator torchvision::nms does not exist" in failure.value.cause
