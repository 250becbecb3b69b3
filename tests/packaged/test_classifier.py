"""The packaged module: it sees and answers what `eval` does, to the bit, where resdeploy is not installed."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

import resdeploy
from resdeploy import api
from resdeploy.data import loading, preprocess
from resdeploy.packaged import classifier
from resdeploy.records import Preprocessing
from resdeploy.vocabulary import Interpolation
from tests.packaged.networks import LABELS, network

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((41, 67), (90, 50), (48, 48))]
SHORTER = Preprocessing(size=(32, 28), resize=37)
WAYS = [
    dataclasses.replace(how, interpolation=interpolation)
    for interpolation in get_args(Interpolation)
    for how in (SHORTER, Preprocessing(size=(32, 28), resize=37, channels="BGR", resize_mode="squash"))
]
WAYS += [Preprocessing(size=(32, 32), resize=40, channels="L", mean=(0.4,), std=(0.3,))]
WAYS += [Preprocessing(size=(33, 30), resize=40, dtype="uint8", channels="BGR")]


def file_of(pixels: np.ndarray, form: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("how", WAYS, ids=lambda how: f"{how.interpolation} {how.channels} {how.dtype}")
def test_the_input_is_that_of_eval_to_the_bit(how: Preprocessing) -> None:
    """Of JPEG and PNG files in colour, grey, with transparency and for print, and of pixels."""
    known = json.loads(json.dumps(dataclasses.asdict(how)))
    kinds = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1")]
    for pixels in PICTURES:
        raws: list[Any] = [pixels, pixels[:, :, 0], *(file_of(pixels, *kind) for kind in kinds)]
        for raw in raws:
            ours = classifier.preprocess(classifier.decode(raw), known)
            theirs = preprocess.apply(loading.decode(raw), how)
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            assert ours.tobytes() == theirs.tobytes()


SITE = ("numpy", "PIL", "pillow", "onnxruntime", "openvino")
PROBE = """
import sys
sys.path[:0] = sys.argv[1:3]
import numpy as np
from classifier import Classifier
assert "resdeploy" not in sys.modules
try:
    import resdeploy
except ImportError:
    model = Classifier(threads=1)
    np.save(sys.argv[3], model.logits(sys.argv[4:]))
    print(model.predict(sys.argv[4], top=2))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the module needs, and without resdeploy."""
    folder = tmp_path_factory.mktemp("site")
    for entry in Path(np.__file__).parents[1].iterdir():
        if entry.name.startswith(SITE):
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.mark.parametrize(
    ("how", "runtime"),
    [
        (WAYS[5], "onnxruntime"),
        (WAYS[5], "openvino"),
        (WAYS[-1], "openvino"),
        pytest.param(WAYS[-1], "onnxruntime", marks=pytest.mark.acceptance),
    ],
    ids=["float32", "float32 openvino", "uint8 openvino", "uint8"],
)
def test_logits_are_those_of_eval_to_the_bit(
    how: Preprocessing, runtime: Any, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that finds numpy, Pillow and the runtimes alone; the last query is filled up."""
    pytest.importorskip(runtime)
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{number}.png" for number in range(len(PICTURES))]
    for path, pixels in zip(paths, PICTURES, strict=True):
        Image.fromarray(pixels).save(path)
    model = network(tmp_path / "m.onnx", how)
    api.package(model, tmp_path / "served", backend=runtime, batch_size=2)
    command = [sys.executable, "-I", "-S", "-c", PROBE, str(tmp_path / "served"), str(site), str(tmp_path / "l.npy")]
    done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with api.load(model, backend=runtime, batch_size=2, threads=1) as predictor:
        logits = predictor.logits(paths)
    assert np.load(tmp_path / "l.npy").tobytes() == logits.tobytes()
    assert done.stdout.startswith(f"[[('{LABELS[logits[0].argmax()]}', ")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    folder, how = tmp_path_factory.mktemp("served"), Preprocessing(size=(8, 8))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RESDEPLOY_CACHE", str(folder / "cache"))
        api.package(network(folder / "m.onnx", how), folder / "served", backend="onnxruntime", threads=1)
    return folder / "served"


def test_the_page_in_the_folder_says_what_runs(served: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its Python, on an image of that name."""
    page = (served / "README.md").read_text(encoding="utf-8")
    assert "$" not in page
    (code,) = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    Image.fromarray(PICTURES[0][:8, :8]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(served))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (2, 4)
    assert sum(share for _, share in names["model"].predict("photo.jpg")[0]) == pytest.approx(1)
    importlib.invalidate_caches()
    del sys.modules["classifier"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([], "no images"),
        (np.zeros((8, 8, 3), np.float32), "float32 of shape"),
        (np.zeros((9, 8, 3), np.uint8), "9x8 pixels"),
        (b"no picture", "no JPEG or PNG"),
        (file_of(PICTURES[0], "JPEG")[:900], "no JPEG or PNG"),
    ],
    ids=["none", "normalised", "another size", "no picture", "cut short"],
)
def test_what_is_no_image_is_said(image: object, words: str, served: Path) -> None:
    """And the classifier answers on."""
    model = classifier.Classifier(served)
    with pytest.raises(ValueError, match=words):
        model.predict(image)
    assert len(model.predict(PICTURES[0][:8, :8])[0]) == 4


def test_the_module_imports_nothing_of_resdeploy() -> None:
    """It is copied as it is."""
    text = (Path(resdeploy.__file__).parent / "packaged/classifier.py").read_text(encoding="utf-8")
    assert "from resdeploy" not in text
    assert "import resdeploy" not in text
