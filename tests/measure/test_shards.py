"""Evaluations in shards: together what one process finds, bit for bit, and nothing that is not one evaluation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from resdeploy import store
from resdeploy.data import datasets
from resdeploy.errors import MalformedInput, UsageError
from resdeploy.measure import prediction_files, run_images, shards
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Artifact, Execution, ModelSpec, Origin, Partial, Predictions, Preprocessing, Shard
from resdeploy.verbs.merge import merge

SPEC = Preprocessing(size=(6, 6))
SUFFIXES = (".npz", ".json", ".csv")


def quiet(_what: str, _done: int, _total: int) -> None:
    """No progress is wanted."""


@pytest.fixture
def mixing(tmp_path: Path) -> Candidate:
    """A classifier whose logits take in the whole batch: in another one every image has others."""
    weights = np.random.default_rng(1).normal(size=(108, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["own"]),
        helper.make_node("ReduceMean", ["own"], ["mean"], axes=[0]),
        helper.make_node("Sub", ["own", "mean"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mixing",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path = tmp_path / "mixing.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model = ModelSpec(name="mixing", family="f", classes=3, input_shape=(3, 6, 6), preprocessing=SPEC)
    artifact = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=model)
    return Candidate(label="row", backend="onnxruntime", artifact=artifact, execution=Execution(batch_size=24))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four batches of 32 and 8 images; copies, contradictions and damage on both sides of every cut."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    for k in range(136):
        path = data / "abc"[k // 48] / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(path)
    (data / "a/047.png").write_bytes((data / "a/001.png").read_bytes())
    (data / "c/135.png").write_bytes((data / "c/100.png").read_bytes())
    (data / "c/130.png").write_bytes((data / "a/002.png").read_bytes())
    for damaged in ("a/000.png", "a/032.png", "b/063.png", "b/064.png"):
        (data / damaged).write_bytes(b"no image")
    return data


def test_shards_are_one_process_bit_for_bit(mixing: Candidate, folder: Path, tmp_path: Path) -> None:
    """Two and three of them: files equal byte by byte, of a model that answers otherwise in other batches."""
    one = run_images.predict_test_split(mixing, str(folder), skip_bad=True, progress=quiet)
    prediction_files.save(one, tmp_path / "one.npz")
    assert len(one.ids) == 136 - 4 - 2 - 2
    assert one.repeats.contradicted == ("a/002.png is c/130.png",)
    for count in (2, 3):
        files = []
        for number in range(count, 0, -1):
            shard = Shard(number=number, count=count)
            found = run_images.predict_test_split(mixing, str(folder), shard=shard, skip_bad=True, progress=quiet)
            files.append(tmp_path / f"part{number}{SUFFIXES[number % 3]}")
            prediction_files.save(found, files[-1])
        merge(files, tmp_path / "all.npz")
        assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    rest = datasets.open_dataset(str(folder)).subset(range(40, 136))  # a cut inside a batch
    other = run_images.predict(mixing, rest, SPEC)
    assert one.logits is not None
    assert other.logits is not None
    places = [[each.ids.index(f"b/{k:03}.png") for k in range(66, 90)] for each in (one, other)]
    assert not np.allclose(one.logits[places[0]], other.logits[places[1]])


@pytest.mark.parametrize(("images", "batch_size"), [(360, 32), (97, 32), (96, 32), (7, 1)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_divide_the_whole_batches(images: int, batch_size: int, count: int) -> None:
    """Every image once, in order; each shard begins with a batch, and none has two batches more than another."""
    every = datasets.open_dataset("digits").subset(range(images))
    parts = [shards.cut(every, Shard(number=k, count=count), batch_size) for k in range(1, count + 1)]
    assert sum((part.ids for part in parts), ()) == every.ids
    assert all(len(part) % batch_size == 0 for part in parts[:-1])
    batches = [-(-len(part) // batch_size) for part in parts]
    assert max(batches) - min(batches) <= 1


def test_more_shards_than_batches_are_refused(mixing: Candidate) -> None:
    """With the most that there can be."""
    with pytest.raises(UsageError, match="12 batches of 32") as caught:
        shards.cut(datasets.open_dataset("digits", split="test"), Shard(number=13, count=13), 32)
    assert "--shard 12/12" in caught.value.fix


def test_damage_in_a_shard_is_of_its_own_images(mixing: Candidate, folder: Path) -> None:
    """Without --skip-bad a shard ends as an evaluation does; those without a damaged image do not."""
    with pytest.raises(MalformedInput, match="1 of 32 images"):
        run_images.predict_test_split(mixing, str(folder), shard=Shard(number=1, count=3), progress=quiet)


@pytest.mark.parametrize(("text", "number", "count"), [("1/1", 1, 1), ("2/3", 2, 3), ("12/12", 12, 12), ("auto", 2, 4)])
def test_a_shard_is_numbered_from_one_on_or_by_torchrun(
    text: str, number: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks begin at 0 and shards at 1."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert shards.parse(text) == Shard(number=number, count=count)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/2/3", "-1/2", "a/b", "", "1/0", "1 / 2", "auto"])
def test_what_is_no_shard_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 with the way to write one."""
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="--shard") as caught:
        shards.parse(text)
    assert re.search(r"1/\d", caught.value.fix)


def part(number: int, **fields: Any) -> Predictions:
    """One of three shards of six images."""
    ids = (f"{2 * number - 2}.png", f"{2 * number - 1}.png")
    known: dict[str, Any] = {
        "model": "m",
        "ids": ids,
        "labels": np.array([0, 1]),
        "top": np.array([[0, 1], [1, 0]]),
        "logits": np.array([[1, 0], [0, 1]], np.float32),
        "data": "d",
        "data_fingerprint": f"{number}",
        "preprocessing_fingerprint": "p" * 64,
        "sha256": "s" * 64,
        "images": tuple(f"{name:>016}" for name in ids),
        "origin": Origin(backend="openvino", precision="fp32", machine="Xeon (amx)", tools={"numpy": "2.4"}),
        "partial": Partial(shard=Shard(number=number, count=3), images=6, listing="l" * 64, batch_size=32, threads=2),
    }
    return Predictions(**known | fields)


def partial(number: int, **fields: Any) -> Partial:
    """The same with something else in it."""
    whole = part(number).partial
    assert whole is not None
    return dataclasses.replace(whole, **fields)


def origin(**fields: Any) -> Origin:
    """The same with something else in it."""
    whole = part(1).origin
    assert whole is not None
    return dataclasses.replace(whole, **fields)


def put_together(*parts: Predictions) -> Predictions:
    """Merged, under names in the order given."""
    return shards.merge({Path(f"{k}.npz"): each for k, each in enumerate(parts)})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sha256": "t" * 64}, "model ssss.* and tttt"),
        ({"partial": partial(2, listing="k" * 64)}, "data 6 images, llll.* and 6 images, kkkk"),
        ({"partial": partial(2, images=7)}, "data 6 images.* and 7 images"),
        ({"partial": partial(2, shard=Shard(number=2, count=4))}, "shards 3 and 4"),
        ({"partial": partial(2, batch_size=8)}, "batch size 32 and 8"),
        ({"partial": partial(2, threads=4)}, "threads 2 and 4"),
        ({"preprocessing_fingerprint": "q" * 64}, "preprocessing pppp.* and qqqq"),
        ({"classes": ("a", "b")}, "classes"),
        ({"logits": None}, "logits 2 and none"),
        ({"origin": origin(backend="onnxruntime")}, "backend openvino and onnxruntime"),
        ({"origin": origin(precision="fp16")}, "precision fp32 and fp16"),
        ({"origin": origin(machine="Epyc (avx2)")}, r"machine Xeon \(amx\) and Epyc \(avx2\)"),
        ({"origin": origin(tools={"numpy": "2.3"})}, r"numpy 2\.4 and 2\.3"),
        ({"origin": origin(tools={})}, r"numpy 2\.4 and -"),
    ],
)
def test_parts_of_different_evaluations_are_refused(fields: dict[str, Any], words: str) -> None:
    """Whatever the bits depend on: both files and both values are named."""
    with pytest.raises(UsageError, match=rf"0\.npz and 1\.npz are not of one evaluation: {words}"):
        put_together(part(1), part(2, **fields), part(3))


def test_where_images_lie_is_no_difference() -> None:
    """Machines may have them in different folders: names, labels and classes are what must agree."""
    assert put_together(part(1), part(3, data="/mnt/d"), part(2)).ids == tuple(f"{k}.png" for k in range(6))


@pytest.mark.parametrize(
    ("numbers", "what", "fix"),
    [
        ((1, 3), "shard 2/3 is missing", "--data d --shard 2/3 "),
        ((2,), "shards 1/3, 3/3 are missing", "--shard 1/3 "),
        ((1, 2, 3, 2), "shard 2/3 is there 2 times: 1.npz, 3.npz", "one of them"),
    ],
)
def test_every_shard_is_there_once(numbers: tuple[int, ...], what: str, fix: str) -> None:
    """Which are missing is said with the command that repeats the first; which is there twice, with its files."""
    with pytest.raises(UsageError) as caught:
        put_together(*map(part, numbers))
    assert caught.value.what == what
    assert fix in caught.value.fix


def test_a_part_that_lost_images_is_refused() -> None:
    """All images are there, read or named as unreadable."""
    short = dataclasses.replace(part(2), ids=("2.png",), images=("2",), labels=np.array([0]), top=np.array([[0, 1]]))
    short = dataclasses.replace(short, logits=np.array([[1, 0]], np.float32))
    with pytest.raises(MalformedInput, match="5 images, and the data set 6"):
        put_together(part(1), short, part(3))
    named = dataclasses.replace(short, unreadable=("3.png: no image",))
    assert put_together(part(1), named, part(3)).unreadable == ("3.png: no image",)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_part_is_only_read_as_one_and_a_whole_is_no_part(suffix: str, tmp_path: Path) -> None:
    """Whoever judges predictions is told to merge first; whoever merges, that there is nothing to merge."""
    prediction_files.save(part(2), tmp_path / f"part{suffix}")
    prediction_files.save(dataclasses.replace(part(2), partial=None), tmp_path / f"whole{suffix}")
    assert prediction_files.load_part(tmp_path / f"part{suffix}").partial == part(2).partial
    assert prediction_files.load(tmp_path / f"whole{suffix}").partial is None
    with pytest.raises(UsageError, match="is shard 2/3 of an evaluation") as caught:
        prediction_files.load(tmp_path / f"part{suffix}")
    assert "resdeploy merge PART... -o" in caught.value.fix
    with pytest.raises(UsageError, match="is no shard"):
        prediction_files.load_part(tmp_path / f"whole{suffix}")


def test_nothing_is_written_of_what_cannot_be_merged(tmp_path: Path) -> None:
    """The same file twice, a merged one given again, a missing shard: the output stays as it was."""
    for number in (1, 2, 3):
        prediction_files.save(part(number), tmp_path / f"{number}.npz")
    one, two, three = (tmp_path / f"{number}.npz" for number in (1, 2, 3))
    out = tmp_path / "all.npz"
    with pytest.raises(UsageError, match="named twice"):
        merge([one, two, three, one], out)
    with pytest.raises(UsageError, match="missing"):
        merge([one, two], out)
    assert not out.exists()
    merge([one, two, three], out)
    kept = out.read_bytes()
    with pytest.raises(UsageError, match="no shard"):
        merge([one, two, three, out], out)
    assert out.read_bytes() == kept
