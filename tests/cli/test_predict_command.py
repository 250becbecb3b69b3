"""`resdeploy predict`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from resdeploy import cli
from tests.verbs.test_predict import CLASSES, PIXELS, expected, linear


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command with a model and a folder of images, but for what a test adds."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    linear(tmp_path / "m.onnx")
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return ["predict", str(tmp_path / "m.onnx"), str(tmp_path / "photos"), "--backend", "onnxruntime"]


def test_each_image_is_answered_by_name_with_probabilities(asked: list[str], tmp_path: Path) -> None:
    """The softmax in float64, in percent, likeliest first; the document has the model and the times."""
    done = CliRunner().invoke(cli.app, [*asked, "--top", "2", "--format", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    logits = expected(PIXELS)
    shares = 100 * np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for number, (row, share) in enumerate(zip(document["results"], shares, strict=True)):
        first, second = np.argsort(-share)[:2]
        assert (row["image"], row["class"]) == (str(tmp_path / "photos" / f"{number}.png"), first)
        assert [each["name"] for each in row["top"]] == [CLASSES[first], CLASSES[second]]
        np.testing.assert_allclose([each["probability"] for each in row["top"]], share[[first, second]], rtol=1e-4)
    assert (document["model"], document["backend"], document["precision"]) == ("linear", "onnxruntime", "fp32")
    assert min(document["ms_per_image"].values()) > 0
    shown = CliRunner().invoke(cli.app, asked)
    assert all(name in shown.stdout for name in {CLASSES[k] for k in logits.argmax(axis=1)})
    assert "to read and prepare it" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("image", "content", "kind"),
    [("gone.png", None, "UsageError"), ("bad.png", b"no picture", "MalformedInput")],
)
def test_an_image_that_is_none_is_named(
    image: str, content: bytes | None, kind: str, asked: list[str], tmp_path: Path
) -> None:
    """And nothing is answered."""
    if content is not None:
        (tmp_path / image).write_bytes(content)
    done = CliRunner().invoke(cli.app, [*asked, str(tmp_path / image)])
    assert type(done.exception).__name__ == kind
    assert image in str(done.exception)
    assert not done.stdout
