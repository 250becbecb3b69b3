"""Options that the asked kind of training would leave unheeded are refused, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError
from resdeploy.verbs import train

pytest.importorskip("torch")


def refusal(folder: Path, **options: Any) -> UsageError:
    """The error of training a network that does not exist."""
    weights = str(options.pop("weights", "random"))
    how = train.TrainOptions(**{"data": "digits", "epochs": 1, **options})
    out = folder / ("out.onnx" if how.qat else "out.safetensors")
    with pytest.raises(UsageError) as caught:
        train.train(
            Request(model="no-such-network", weights=weights), how, out, progress=lambda *_: None, watch=lambda _: None
        )
    assert not list(folder.iterdir())
    return caught.value


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--resume", {"resume": True}),
        ("--hold-out", {"hold_out": 0.1}),
        ("--accumulate", {"accumulate": 2}),
        ("--recipe paper", {"recipe": "paper"}),
        ("--precision bf16", {"precision": "bf16"}),
        ("--strict", {"strict": True}),
    ],
)
def test_what_quantization_aware_training_has_not_is_refused(
    tmp_path: Path, option: str, given: dict[str, object]
) -> None:
    """By the option's name; the same option is taken without --qat."""
    given = {"weights": "w.th", **given}
    assert refusal(tmp_path, qat=True, **given).what == f"{option} does not go with --qat"
    assert "no-such-network" in refusal(tmp_path, **given).what


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--effort", {"effort": "high"}),
        ("--target", {"target": "openvino"}),
        ("--portable", {"portable": False}),
    ],
)
def test_what_only_an_int8_file_has_is_refused_without_qat(
    tmp_path: Path, option: str, given: dict[str, object]
) -> None:
    """Also where the value is the default one; the same option is taken with --qat."""
    found = refusal(tmp_path, **given)
    assert found.what.startswith(option)
    assert "--qat" in found.fix
    assert "no-such-network" in refusal(tmp_path, qat=True, **given).what


def test_strict_needs_an_accuracy_to_compare_with(tmp_path: Path) -> None:
    """Random weights have none: a check that saw nothing must not pass, and is refused before the training."""
    assert "--strict" in refusal(tmp_path, strict=True).what


def test_one_process_trains_an_int8_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun's would all write the same one; a network may be trained by several."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun started 2" in refusal(tmp_path, qat=True).what
    assert "no-such-network" in refusal(tmp_path).what
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "no-such-network" in refusal(tmp_path, qat=True).what
