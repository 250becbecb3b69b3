"""Prediction files: ours come back as they were, others' are read or refused with a reason."""

import json
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.data import datasets
from resdeploy.errors import MalformedInput, MissingInput, ResdeployError, UsageError
from resdeploy.measure import prediction_files
from resdeploy.records import Calibration, Origin, Predictions, Preprocessing, Repeats

SUFFIXES = (".npz", ".json", ".csv")


def ours(*, logits: bool = True) -> Predictions:
    """Everything a record can hold, with names that are hard to write down."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 7)).astype(np.float32)
    return Predictions(
        model="resnet56 int8",
        ids=("a/1.jpg", "=cmd|' /C calc'!A0", "-2.png", 'comma, quote " and\nnewline', "'quoted", "ünïcode"),
        labels=np.array([0, 1, 2, 3, 4, 6]),
        top=prediction_files.top_classes(scores),
        logits=scores if logits else None,
        data="cifar10:DIR",
        data_fingerprint="d" * 64,
        preprocessing_fingerprint="p" * 64,
        sha256="s" * 64,
        images=tuple(f"{k:016x}" for k in range(6)),
        unreadable=("broken.jpg",),
        classes=("cat", "dog"),
        origin=Origin(
            weights="resnet56.th",
            precision="int8",
            backend="openvino",
            machine="Xeon (avx2)",
            tools={"openvino": "2026.4"},
            preprocessing=Preprocessing(size=(32, 32)),
            calibration=Calibration(data="train", count=2, seed=1, method="mse", images=("a", "b")),
        ),
    )


def same(a: Predictions, b: Predictions) -> bool:
    for field in fields(Predictions):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray) and not (np.array_equal(x, y) and x.dtype == y.dtype):
            return False
        if not isinstance(x, np.ndarray) and x != y:
            return False
    return True


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("logits", [True, False])
def test_our_own_files_come_back_bit_for_bit(tmp_path: Path, suffix: str, *, logits: bool) -> None:
    """Every field, its type included, with hostile ids, in all three formats."""
    saved = ours(logits=logits)
    path = tmp_path / f"p{suffix}"
    prediction_files.save(saved, path)
    assert same(prediction_files.load(path), saved)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_of_a_file_count_once_where_it_tells_them_apart(tmp_path: Path, suffix: str) -> None:
    """The same bytes under two names, and under two labels; saved again, the file is the one without them."""
    saved = ours()
    twice = replace(
        saved,
        images=("x", "x", "y", "y", *saved.images[4:]),
        labels=np.array([0, 0, 2, 3, 4, 6]),
        repeats=Repeats(again=("b is a",)),
    )
    prediction_files.save(twice, tmp_path / f"twice{suffix}")
    found = prediction_files.load(tmp_path / f"twice{suffix}")
    assert found.ids == (saved.ids[0], *saved.ids[4:])
    assert found.labels.tolist() == [0, 4, 6]
    assert found.images == ("x", *saved.images[4:])
    assert saved.logits is not None
    np.testing.assert_array_equal(found.logits, saved.logits[[0, 4, 5]])
    assert found.data_fingerprint == datasets.fingerprint(found.ids, found.labels, found.images)
    assert found.repeats.again == ("b is a", f"{saved.ids[1]} is {saved.ids[0]}")
    assert found.repeats.contradicted == (f"{saved.ids[2]} is {saved.ids[3]}",)
    prediction_files.save(found, tmp_path / f"once{suffix}")
    assert same(prediction_files.load(tmp_path / f"once{suffix}"), found)
    prediction_files.save(replace(twice, images=(), repeats=Repeats()), tmp_path / f"unknown{suffix}")
    assert prediction_files.score(prediction_files.load(tmp_path / f"unknown{suffix}")).total == 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_predictions_without_ids_come_back_without(tmp_path: Path, suffix: str) -> None:
    """What a foreign file did not have is not made up."""
    saved = replace(ours(logits=False), ids=(), images=(), unreadable=(), classes=(), origin=None)
    prediction_files.save(saved, tmp_path / f"p{suffix}")
    assert same(prediction_files.load(tmp_path / f"p{suffix}"), saved)


def test_no_cell_of_a_csv_starts_a_formula(tmp_path: Path) -> None:
    """A spreadsheet runs cells that start with = + - @; ours carry an apostrophe there."""
    prediction_files.save(ours(logits=False), tmp_path / "p.csv")
    text = (tmp_path / "p.csv").read_text()
    assert "'=cmd" in text
    assert not any(cell.lstrip('"').startswith("=") for line in text.splitlines() for cell in line.split(","))


def test_a_numpy_file_of_another_tool(tmp_path: Path) -> None:
    """numpy.savez with predictions and labels, as anybody writes it; floats that are whole numbers too."""
    np.savez(tmp_path / "x.npz", predictions=np.array([1.0, 2.0, 0.0]), labels=[1, 2, 3], extra=[1])
    loaded = prediction_files.load(tmp_path / "x.npz")
    assert loaded.top.tolist() == [[1], [2], [0]]
    assert (loaded.model, loaded.ids, loaded.logits, loaded.data_fingerprint) == ("x", (), None, "")


def test_logits_of_another_tool_give_top5(tmp_path: Path) -> None:
    """Logits in any float type are ranked; ids may be numbers."""
    logits = np.random.default_rng(0).normal(size=(4, 9))
    (tmp_path / "x.json").write_text(
        json.dumps({"logits": logits.tolist(), "labels": [0, 1, 2, 3], "ids": [7, 8, 9, 10]})
    )
    loaded = prediction_files.load(tmp_path / "x.json")
    assert loaded.top.tolist() == np.argsort(-logits, axis=1)[:, :5].tolist()
    assert loaded.ids == ("7", "8", "9", "10")


def test_a_csv_of_another_tool(tmp_path: Path) -> None:
    """A byte order mark, spaces in the header, columns in any order, logits by number."""
    (tmp_path / "a.csv").write_text("\ufeffids, labels,predictions\nx,1,2\ny,0,0\n")
    assert prediction_files.load(tmp_path / "a.csv").top.tolist() == [[2], [0]]
    (tmp_path / "b.csv").write_text("labels,logits_1,logits_0\n1,0.5,-1e-3\n0,1,2\n")
    loaded = prediction_files.load(tmp_path / "b.csv")
    assert loaded.logits is not None
    assert loaded.logits.tolist() == np.array([[-1e-3, 0.5], [2, 1]], dtype=np.float32).tolist()
    assert loaded.top[:, 0].tolist() == [1, 0]


def test_equal_logits_rank_by_class() -> None:
    """Ties go to the lower class id, as numpy's argmax has it, also among the best five."""
    logits = np.array([[1, 1, 0, 1, 0, 0, 0]], dtype=np.float32)
    assert prediction_files.top_classes(logits).tolist() == [[0, 1, 3, 2, 4]]
    assert prediction_files.top_classes(logits[:, :3]).tolist() == [[0, 1, 2]]


def test_score_counts_by_hand() -> None:
    """Two of three right at first, all within five; Wilson's interval of 2/3 is 20.8 % to 93.9 %."""
    top = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [2, 0, 1, 3, 4]])
    score = prediction_files.score(replace(ours(), labels=np.array([0, 0, 2]), top=top, logits=None))
    assert (score.correct, score.total, score.top5) == (2, 3, 100.0)
    assert score.top1 == pytest.approx(66.667, abs=1e-3)
    assert [round(x, 1) for x in score.top1_ci95] == [20.8, 93.9]
    assert prediction_files.score(replace(ours(), labels=np.array([0, 0, 2]), top=top[:, :1], logits=None)).top5 is None


GOOD: dict[str, Any] = {"predictions": [0, 1, 2], "labels": [0, 1, 1]}
LOGITS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labels": None}, UsageError, "no labels; it has predictions"),
        ({"predictions": None}, UsageError, "no predictions or logits"),
        ({"predictions": [0, 1]}, MalformedInput, "lengths differ: 3 labels, 2 predictions"),
        ({"ids": ["a"]}, MalformedInput, "1 ids"),
        ({"ids": "abc"}, MalformedInput, "ids must be one text per image, and is of type str"),
        ({"ids": {"a": 0, "b": 1, "c": 2}}, MalformedInput, "ids must be one text per image"),
        ({"ids": [["a"], ["b"], ["c"]]}, MalformedInput, "2 axes"),
        ({"predictions": LOGITS}, MalformedInput, "predictions must be one class id per image"),
        ({"predictions": None, "logits": [0, 1, 2]}, MalformedInput, "logits must be images x classes"),
        ({"logits": [[1.0, float("nan"), 0.0], *LOGITS[1:]]}, MalformedInput, "not finite for 1 of 3 images"),
        ({"logits": [[1.0, 1e400, 0.0], *LOGITS[1:]]}, MalformedInput, "not finite"),
        ({"logits": LOGITS[::-1]}, MalformedInput, "predictions are not the largest logits for 2 images"),
        ({"logits": LOGITS, "labels": [1, 2, 3]}, MalformedInput, "class 3 occurs, but the logits know 3"),
        ({"labels": [0, -1, 1]}, MalformedInput, "below 0"),
        ({"labels": [0, 0.5, 1]}, MalformedInput, "no whole numbers"),
        ({"labels": [0, "cat", 1]}, MalformedInput, "labels are missing or are no whole numbers"),
        ({"labels": [0, None, 1]}, MalformedInput, "labels are missing"),
        ({"predictions": [], "labels": []}, MalformedInput, "empty"),
        ({"labels": [0, 10**30, 1]}, MalformedInput, "labels"),
    ],
)
def test_bad_arrays_are_refused_with_the_reason(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Missing, of other length, exchanged, not finite, contradicting."""
    document = {k: v for k, v in (GOOD | change).items() if v is not None}
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(error, match=says):
        prediction_files.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npz", b"PK\x03\x04 cut short"),
        ("x.npz", b""),
        ("x.json", b"[1, 2"),
        ("x.json", b"[]"),
        ("x.json", b"\xff\xfe\x00"),
        ("x.json", b"[" * 100_000),
        ("x.json", b'{"labels": {"a": 1}, "predictions": [1]}'),
        ("x.csv", b"labels,predictions\n1,2\n3\n"),
        ("x.csv", b"labels,labels,predictions\n1,2,3\n"),
        ("x.csv", b"labels,predictions\n1,two\n"),
        ("x.csv", b"labels,predictions\n1,\n"),
        ("x.csv", b"labels,predictions\n"),
        ("x.csv", b"labels,logits_0,logits_2\n1,0,0\n"),
        ("x.csv", b"# resdeploy {not json\nlabels,predictions\n1,1\n"),
        ("x.csv", b"\x00\xff\xfe"),
        ("x.csv", b""),
    ],
)
def test_damaged_files_are_one_of_our_errors(tmp_path: Path, name: str, content: bytes) -> None:
    """Whatever the parser says, the user meets one paragraph: malformed, or what is missing."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises((MalformedInput, UsageError)) as caught:
        prediction_files.load(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_truncation_of_our_file_is_refused(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, a file is refused or, where only rows of a CSV are gone, is a shorter valid one; never a crash."""
    path = tmp_path / f"p{suffix}"
    prediction_files.save(ours(), path)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:size])
        try:
            loaded = prediction_files.load(path)
        except ResdeployError:
            continue
        assert suffix == ".csv"
        assert len(loaded.labels) < 6 or loaded.images[-1] != ours().images[-1]


def test_pickled_arrays_are_not_run(tmp_path: Path) -> None:
    """An object array needs pickle: refused, and its code does not run."""

    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "x.npz", predictions=np.array([Canary()], dtype=object), labels=[1])
    with pytest.raises(MalformedInput, match=r"[Oo]bject arrays"):
        prediction_files.load(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb: its stated size is checked before any array is read."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", bytes(10_000_000))
    monkeypatch.setattr(prediction_files, "MAX_BYTES", 1_000_000)
    with pytest.raises(MalformedInput, match="unpacks to"):
        prediction_files.load(tmp_path / "x.npz")


def test_other_suffixes_and_absent_files_are_usage_errors(tmp_path: Path) -> None:
    """Exit 2, with the way out."""
    with pytest.raises(UsageError, match=r"not \.pkl"):
        prediction_files.load(tmp_path / "x.pkl")
    with pytest.raises(UsageError):
        prediction_files.save(ours(), tmp_path / "x.txt")
    with pytest.raises(MissingInput):
        prediction_files.load(tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []
