"""A folder that is served without resdeploy: whole or not there, with its chain of hashes; and what is amiss in one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from resdeploy import api, store
from resdeploy.errors import IntegrityError, MalformedInput, MissingInput, NotWritable, ResdeployError, UsageError
from resdeploy.records import Manifest, Preprocessing
from resdeploy.verbs import verify_package
from tests.packaged.networks import LABELS, move_a_weight, network

HOW = Preprocessing(size=(20, 24), resize=26)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its package for each runtime."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RESDEPLOY_CACHE", str(folder / "cache"))
        network(folder / "m.onnx", HOW)
        for runtime in ("onnxruntime", "openvino"):
            api.package(folder / "m.onnx", folder / runtime, backend=runtime, batch_size=2, threads=1)
        api.package(folder / "m.onnx", folder / "triton", for_="triton", backend="openvino", batch_size=2)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of both packages beside one of the model, for a test to spoil."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(made / "cache"))
    shutil.copytree(made, tmp_path / "all", ignore=shutil.ignore_patterns("cache"))
    return tmp_path / "all"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_manifest_has_every_file_and_the_chain_of_hashes(made: Path, runtime: str) -> None:
    """As `sha256sum` prints them; the source by its own, and the versions of what runs it."""
    manifest = store.read(Manifest, made / runtime / "manifest.json")
    files = {path.name: path for path in (made / runtime).iterdir() if path.name != "manifest.json"}
    assert manifest.files == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert manifest.source.sha256 == hashlib.sha256((made / "m.onnx").read_bytes()).hexdigest()
    assert manifest.source.path == "m.onnx"
    pinned = dict(line.split("==") for line in files["requirements.txt"].read_text().split())
    assert pinned.keys() == {"numpy", "pillow", runtime}
    assert pinned.items() <= manifest.versions.items()


def as_json(change: Callable[[Any], object], name: str = "spec.json") -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return spoil


def seen(**changes: object) -> Callable[[Path], None]:
    return as_json(lambda spec: spec["preprocessing"].update(changes))


def longer(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text() + "\n# more\n")

    return spoil


FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "channels": (seen(channels="BGR"), "spec.json", "channels BGR, where the source has RGB"),
    "mean": (seen(mean=[0.5, 0.5, 0.5]), "spec.json", "mean (0.5, 0.5, 0.5), where"),
    "std": (seen(std=[0.229, 0.225, 0.224]), "spec.json", "std (0.229, 0.225, 0.224), where"),
    "interpolation": (seen(interpolation="bicubic"), "spec.json", "bicubic, where the source has bilinear"),
    "resize": (seen(resize=30), "spec.json", "resize 30, where the source has 26"),
    "size": (seen(size=[20, 20]), "spec.json", "size (20, 20), where the source has (20, 24)"),
    "weights": (lambda folder: move_a_weight(folder / "model.onnx"), "model.onnx", "other values of kernel"),
    "labels": (as_json(lambda spec: spec["labels"].reverse()), "spec.json", "class 0 is 'elk', not 'bird'"),
    "module": (longer("classifier.py"), "classifier.py", "was not run"),
    "missing": (lambda folder: (folder / "classifier.py").unlink(), "classifier.py", "no such file"),
    "file": (longer("README.md"), "README.md", "not the one that was packaged"),
    "spec": (as_json(lambda spec: spec.update(mean=1)), "spec.json", "mean: there is no such key"),
    "threads": (as_json(lambda spec: spec.update(threads=7)), "spec.json", "threads 7, where"),
}
SILENT = {
    "labels",
    "module",
    "missing",
    "file",
    "spec",
    "threads",
}  # which change no logits here, or cannot be replayed


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_named(what: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any image is replayed, and although the manifest was made to agree."""
    spoil, file, words = FAULTS[what]
    monkeypatch.setattr(verify_package, "replay", lambda *_: verify_package.Replayed())
    folder = copied / "onnxruntime"
    spoil(folder)
    (found,) = api.verify_package(folder).faults
    assert (found.file, found.what) == (file, what)
    assert words in found.why
    if what not in ("missing", "file"):
        now = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        as_json(lambda manifest: manifest["files"].update({file: now}), "manifest.json")(folder)
        assert [each.what for each in api.verify_package(folder).faults] == [what]


@pytest.mark.parametrize("what", [*sorted(FAULTS), "config", "names"])
def test_a_fault_in_a_repository_of_triton_is_named(what: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, wherever the file lies; and its own files."""
    more = {
        "config": (longer("config.pbtxt"), "config.pbtxt", "lines"),
        "names": (longer("labels.txt"), "labels.txt", ""),
    }
    spoil, file, words = (FAULTS | more)[what]
    monkeypatch.setattr(verify_package, "replay", lambda *_: verify_package.Replayed())
    path = min((copied / "triton").rglob(file))
    spoil(path.parent)
    (found,) = api.verify_package(copied / "triton").faults
    assert found.file == path.relative_to(copied / "triton").as_posix()
    assert found.what == {"names": "labels"}.get(what, what)
    assert words in found.why


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "triton"])
def test_a_good_package_answers_as_its_source(runtime: str, copied: Path) -> None:
    """On images of many sizes, and moved elsewhere with the source named."""
    found = api.verify_package(copied / runtime)
    assert (found.faults, found.images, found.changed) == ((), verify_package.MADE_IMAGES, 0)


def test_replayed_images_find_what_no_file_tells(copied: Path, tmp_path: Path) -> None:
    """OpenVINO's weights, which have no names: the logits of a folder's images are others, and so is the file."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(LABELS):
        (tmp_path / "data" / name).mkdir(parents=True)
        picture = Image.fromarray(rng.integers(0, 256, (30, 40 + number, 3), np.uint8))
        picture.save(tmp_path / "data" / name / "0.png")
    weights = copied / "openvino/model.bin"
    values = np.frombuffer(weights.read_bytes(), np.float32).copy()
    values[np.isfinite(values) & (np.abs(values) > 0.5) & (np.abs(values) < 2)] *= 1.25
    weights.write_bytes(values.tobytes())
    found = api.verify_package(copied / "openvino", data=str(tmp_path / "data"))
    assert [(each.file, each.what) for each in found.faults] == [("model.bin", "weights"), ("all of it", "logits")]
    assert (found.images, found.changed) == (4, 4)


@pytest.mark.acceptance
@pytest.mark.parametrize("what", sorted(FAULTS.keys() - SILENT))
def test_a_fault_that_changes_answers_is_seen_in_them(what: str, copied: Path) -> None:
    """Whatever the files say: by the logits of images, or because they cannot be replayed."""
    FAULTS[what][0](copied / "onnxruntime")
    assert {each.what for each in api.verify_package(copied / "onnxruntime").faults} & {"logits", "replay"}


def test_another_source_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a source that is nowhere, or a name that leads elsewhere, is asked for."""
    monkeypatch.setattr(verify_package, "replay", lambda *_: verify_package.Replayed())
    move_a_weight(copied / "m.onnx")
    assert [each.what for each in api.verify_package(copied / "onnxruntime").faults] == ["weights", "source"][::-1]
    as_json(lambda manifest: manifest["source"].update(path="../all/m.onnx"), "manifest.json")(copied / "onnxruntime")
    with pytest.raises(UsageError, match="not beside it"):
        api.verify_package(copied / "onnxruntime")
    (copied / "m.onnx").unlink()
    with pytest.raises(UsageError, match=r"resdeploy package F\.onnx --verify"):
        api.verify_package(copied / "openvino")


def test_what_is_no_package_is_refused(copied: Path) -> None:
    with pytest.raises(MissingInput, match="is no package"):
        api.verify_package(copied)
    (copied / "openvino/manifest.json").write_text("{}")
    with pytest.raises(MalformedInput, match=r"manifest\.json"):
        api.verify_package(copied / "openvino")


def verdict_on(folder: Path, sha256: str, state: object = "pass") -> Path:
    document = {
        "schema_version": 1,
        "command": "gate",
        "results": [],
        "candidates": [{"sha256": sha256, "verdict": state}],
    }
    (folder / "gate.json").write_text(json.dumps(document))
    return folder / "gate.json"


def test_a_verdict_goes_along(copied: Path) -> None:
    """Into the folder, its page and its manifest, where it is on this file."""
    sha256 = hashlib.sha256((copied / "m.onnx").read_bytes()).hexdigest()
    made = api.package(copied / "m.onnx", copied / "new", backend="onnxruntime", gate=verdict_on(copied, sha256))
    assert made.gate == "pass"
    assert "Gate: pass" in (copied / "new/README.md").read_text()
    assert json.loads((copied / "new/gate.json").read_text())["candidates"][0]["sha256"] == sha256
    for sha, state, error in (("0" * 64, "pass", UsageError), (sha256, "good", MalformedInput)):
        with pytest.raises(error):
            api.package(copied / "m.onnx", copied / "newer", gate=verdict_on(copied, sha, state))
    assert not (copied / "newer").exists()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": "resnet20"}, UsageError, "takes an ONNX file"),
        ({"output": "onnxruntime"}, NotWritable, "there already"),
        ({"backend": "torch"}, UsageError, "not in torch"),
    ],
)
def test_what_cannot_be_packaged_is_refused(
    given: dict[str, Any], error: type[ResdeployError], words: str, copied: Path
) -> None:
    """And nothing is left behind."""
    before = sorted(copied.iterdir())
    options: dict[str, Any] = {"model": copied / "m.onnx", "backend": "onnxruntime"} | given
    options["output"] = copied / options.get("output", "new")
    with pytest.raises(error, match=words):
        api.package(**options)
    assert sorted(copied.iterdir()) == before


def test_a_file_that_does_not_say_how_it_sees_is_refused(copied: Path) -> None:
    """With the command that writes it into the file; a record that was changed ends as everywhere."""
    model = onnx.load(copied / "m.onnx")
    del model.metadata_props[:]
    onnx.save(model, copied / "bare.onnx")
    with pytest.raises(UsageError, match=r"resdeploy export .*bare\.onnx --mean"):
        api.package(copied / "bare.onnx", copied / "new", backend="onnxruntime")
    (copied / "m.onnx.json").write_text((Path(__file__).parents[2] / "tests/counts.json").read_text())
    with pytest.raises((MalformedInput, IntegrityError)):
        api.package(copied / "m.onnx", copied / "new", backend="onnxruntime")
