"""models/checkpoint.py: every wrapping that is met in practice, and files that must be refused."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from resdeploy.errors import (  # noqa: E402
    MalformedInput,
    MissingInput,
    PickleRefused,
    ResdeployError,
    UnsafeInput,
    WeightsMismatch,
)
from resdeploy.models import weights, zoo  # noqa: E402

SPEC = zoo.spec("resnet20")
State = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> State:
    """The weights that each file of these tests holds in some form: not those of a fresh network."""
    net = zoo.create(SPEC, seed=1)
    return {k: v * 0.5 + 0.25 if v.is_floating_point() else v for k, v in net.state_dict().items()}


def loads_as(path: Path, expected: State, *, tolerance: float = 0.0) -> None:
    net = zoo.create(SPEC, seed=2)
    weights.load_into(net, path)
    found = net.state_dict()
    assert list(found) == list(expected)
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype, key
        torch.testing.assert_close(tensor, expected[key], rtol=tolerance, atol=0, msg=key)


def refused(path: Path, kind: type[ResdeployError]) -> Any:
    """Loading fails with that error, exit status 4, and the network is as before."""
    net = zoo.create(SPEC)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(kind) as failure:
        weights.load_into(net, path)
    assert failure.type is kind
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert failure.value.exit_status == (2 if kind is MissingInput else 4)
    return failure.value


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": dict,
    "ordered": OrderedDict,
    "state_dict": lambda s: {"epoch": 3, "best_acc1": torch.tensor(0.5), "state_dict": s, "optimizer": {"lr": 0.1}},
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1])), "epoch": 1},
    "nested": lambda s: {"model": {"state_dict": s}},
    "data-parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "compiled data-parallel": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "data-parallel compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "a compiled stage": lambda s: {re.sub(r"^layer2\.", "layer2._orig_mod.", k): v for k, v in s.items()},
    "twice data-parallel": lambda s: {f"module.module.{k}": v for k, v in s.items()},
    "Lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "callbacks": {}},
    "torchvision's EMA": lambda s: {
        "model": {k: v * 0 for k, v in s.items()},
        "model_ema": {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}},
    },
    "timm's EMA": lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "state_dict_ema": s},
    "EMA not used": lambda s: {"state_dict_ema": None, "model_ema": {}, "state_dict": s},
    "akamaster's names": lambda s: {re.sub(r"^fc\.", "linear.", k): v for k, v in s.items()},
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "parameters": lambda s: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_loads_exactly(wrapping: str, zipped: bool, state: State, tmp_path: Path) -> None:
    """Whatever training scripts put around a state dict, the tensors arrive bit for bit."""
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    loads_as(tmp_path / "w.pth", state)


@pytest.mark.parametrize("wrapping", ["bare", "data-parallel compiled", "no counters", "akamaster's names"])
def test_safetensors_load_exactly_under_any_suffix(wrapping: str, state: State, tmp_path: Path) -> None:
    """The content tells the format: safetensors in a .pth, a pickle in a .safetensors."""
    content = WRAPPINGS[wrapping](state)
    save_file({k: v.clone() for k, v in content.items()}, tmp_path / "w.pth")
    loads_as(tmp_path / "w.pth", state)
    torch.save(content, tmp_path / "w.safetensors")
    loads_as(tmp_path / "w.safetensors", state)


@pytest.mark.parametrize("container", ["pickle", "safetensors"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float64", 0.0)])
def test_other_float_types_become_float32(
    dtype: str, tolerance: float, container: str, state: State, tmp_path: Path
) -> None:
    """Half-precision files (torchvision's wide V1 files) are upcast; the error is that type's rounding."""
    other = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in state.items()}
    save = save_file if container == "safetensors" else torch.save
    save(other, tmp_path / "w.bin")
    loads_as(tmp_path / "w.bin", state, tolerance=tolerance)


def test_missing_counters_load_even_with_metadata_that_promises_them(state: State, tmp_path: Path) -> None:
    """torch's own strict loading refuses a version-2 `_metadata` without them; nothing of inference needs them."""
    saved = zoo.create(SPEC).state_dict()
    for key in list(saved):
        saved[key] = state[key]
        if key.endswith("num_batches_tracked"):
            del saved[key]
    assert hasattr(saved, "_metadata")
    torch.save(saved, tmp_path / "w.pth")
    loads_as(tmp_path / "w.pth", state)


def test_hugging_face_names_are_translated(tmp_path: Path) -> None:
    """ResNetForImageClassification's names, written out by its source's structure, load into ResNet-50 and -18."""
    for name in ("resnet18", "resnet50"):
        spec = zoo.spec(name, classes=5)
        ours = zoo.create(spec, seed=3).state_dict()
        theirs = {}
        for key, tensor in ours.items():
            parts = key.split(".")
            part = "normalization" if "bn" in key or "downsample.1" in key else "convolution"
            if key.startswith("layer"):
                inner = "shortcut" if parts[2] == "downsample" else f"layer.{int(parts[2][-1]) - 1}"
                stem = f"resnet.encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}.{inner}.{part}"
            else:
                stem = "classifier.1" if parts[0] == "fc" else f"resnet.embedder.embedder.{part}"
            theirs[f"{stem}.{parts[-1]}"] = tensor
        assert len(theirs) == len(ours)
        save_file(theirs, tmp_path / "model.safetensors")
        net = zoo.create(spec, seed=4)
        weights.load_into(net, tmp_path / "model.safetensors")
        assert all(torch.equal(v, ours[k]) for k, v in net.state_dict().items())


def test_projection_shortcuts_of_other_cifar_projects_are_translated(tmp_path: Path) -> None:
    """`layer2.0.shortcut.0/1` and `linear` are our option B's `downsample` and `fc`."""
    spec = zoo.spec("resnet20_b")
    ours = zoo.create(spec, seed=3).state_dict()
    renamed = {k.replace("downsample", "shortcut").replace("fc.", "linear."): v for k, v in ours.items()}
    torch.save(renamed, tmp_path / "w.pth")
    net = zoo.create(spec, seed=4)
    weights.load_into(net, tmp_path / "w.pth")
    assert all(torch.equal(v, ours[k]) for k, v in net.state_dict().items())


class Canary:
    """Unpickled by an unsafe loader, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle0", "pickle2", "pickle4"])
def test_a_payload_is_refused_and_not_run(form: str, state: State, tmp_path: Path) -> None:
    """The canary is alive: plain pickle runs it. No form of it runs here, whatever else the file holds."""
    canary, path = tmp_path / "dead", tmp_path / "w.pth"
    document = {"state_dict": state, "extra": Canary(canary)}
    if form.startswith("pickle"):
        with path.open("wb") as file:
            pickle.dump(Canary(canary), file, protocol=int(form[-1]))
        pickle.loads(path.read_bytes())
        assert canary.is_dir()
        canary.rmdir()
    else:
        torch.save(document, path, _use_new_zipfile_serialization=form == "zip")
        torch.load(path, weights_only=False)
        assert canary.is_dir()
        canary.rmdir()
    error = refused(path, MalformedInput if form == "pickle0" else PickleRefused)
    assert not canary.exists()
    if form in ("zip", "legacy"):
        assert "mkdir" in error.cause
        assert "weights_only" not in str(error)  # never advice to load it unsafely


@pytest.mark.parametrize(
    "content", [np.float64(0.5), Path("x"), torch.nn.Linear(2, 2)], ids=["numpy", "path", "module"]
)
def test_objects_that_are_not_plain_values_are_refused_by_name(content: Any, state: State, tmp_path: Path) -> None:
    """Harmless or not, they need code to be made; the message says what and how to save without."""
    torch.save({"state_dict": state, "extra": content}, tmp_path / "w.pth")
    error = refused(tmp_path / "w.pth", PickleRefused)
    assert any(word in error.cause for word in ("numpy", "pathlib", "torch.nn"))
    assert "state_dict()" in error.fix


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0, 1, 20, 300, 0.5, 0.99])
def test_truncated_checkpoints_are_malformed(keep: float, zipped: bool, state: State, tmp_path: Path) -> None:
    """Wherever the copy stopped."""
    torch.save(state, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    refused(tmp_path / "w.pth", MalformedInput)


@pytest.mark.parametrize("keep", [9, 100, 0.5, 0.999])
def test_truncated_safetensors_are_malformed(keep: float, state: State, tmp_path: Path) -> None:
    """In the header as well as in the data."""
    save_file(state, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    refused(tmp_path / "w.safetensors", MalformedInput)
    with pytest.raises(MalformedInput):
        weights.spec_in(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"\x08\x08\x12\x07pytorch and other things", "torch.save"),
    ],
)
def test_other_files_are_recognised_for_what_they_are(content: bytes, word: str, tmp_path: Path) -> None:
    """The cause names the usual accidents."""
    (tmp_path / "w.pth").write_bytes(content)
    assert word in refused(tmp_path / "w.pth", MalformedInput).cause


def test_a_zip_that_is_no_checkpoint_and_a_torchscript_program_are_malformed(tmp_path: Path) -> None:
    """Both begin as torch's files do."""
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("a.txt", "b")
    refused(tmp_path / "w.zip", MalformedInput)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "w.pt")
    assert "TorchScript" in refused(tmp_path / "w.pt", MalformedInput).what


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """torch.save stores its members as they are, so the file's size bounds the reader's memory."""
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert len(torch.load(tmp_path / "w.pth", weights_only=True)["w"]) == 100_000  # torch itself unpacks it
    assert refused(tmp_path / "w.pth", UnsafeInput).what.startswith(f"{tmp_path / 'w.pth'} has")


@pytest.mark.parametrize("document", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"epoch": 1}}, torch.zeros(2)])
def test_a_file_without_weights_is_malformed(document: Any, tmp_path: Path) -> None:
    """It loads, but holds no table of tensors."""
    torch.save(document, tmp_path / "w.pth")
    assert "holds no weights" in refused(tmp_path / "w.pth", MalformedInput).what


def test_a_missing_file_is_a_missing_input(tmp_path: Path) -> None:
    """Also a folder in its place."""
    refused(tmp_path / "none.pth", MissingInput)
    refused(tmp_path, MissingInput)


def test_what_does_not_fit_is_listed_by_key_and_shape(state: State, tmp_path: Path) -> None:
    """Missing, unexpected and reshaped tensors, all at once."""
    wrong = dict(state)
    del wrong["layer1.0.conv1.weight"]
    wrong["head.weight"] = torch.zeros(4, 2)
    wrong["bn1.bias"] = torch.zeros(17)
    wrong["layer2.0.conv1.weight"] = torch.zeros(32, 16, 3, 3, dtype=torch.int8)
    torch.save(wrong, tmp_path / "w.pth")
    message = str(refused(tmp_path / "w.pth", WeightsMismatch))
    assert "missing layer1.0.conv1.weight 16x16x3x3" in message
    assert "unexpected head.weight 4x2" in message
    assert "bn1.bias is 17, the model's 16" in message
    assert "layer2.0.conv1.weight is torch.int8" in message


def test_a_long_list_is_cut_after_a_dozen_and_counted(tmp_path: Path) -> None:
    """ResNet-56's weights in a ResNet-20: 12 named, the rest a number."""
    bigger = zoo.create(zoo.spec("resnet56")).state_dict()
    torch.save(bigger, tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth", WeightsMismatch).what
    extra = len(bigger) - len(zoo.create(SPEC).state_dict())
    assert message.count("unexpected") == 12
    assert f"and {extra - 12} more" in message


def test_another_number_of_classes_is_said_as_such(tmp_path: Path) -> None:
    """One sentence with both numbers and the option, not a list of shapes."""
    torch.save(zoo.create(zoo.spec("resnet20", classes=7)).state_dict(), tmp_path / "w.pth")
    error = refused(tmp_path / "w.pth", WeightsMismatch)
    assert "is for 7 classes, the model has 10" in error.what
    assert "--classes 7" in error.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nan_and_infinity_are_named(value: float, dtype: str, state: State, tmp_path: Path) -> None:
    """A diverged training is not deployed."""
    spoilt = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in state.items()}
    spoilt["layer3.2.bn2.running_var"] = spoilt["layer3.2.bn2.running_var"].clone()
    spoilt["layer3.2.bn2.running_var"][5] = value
    torch.save(spoilt, tmp_path / "w.pth")
    error = refused(tmp_path / "w.pth", MalformedInput)
    assert "layer3.2.bn2.running_var" in error.what
