"""The variants of a profile's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resdeploy.deploy.resume import Steps
from resdeploy.errors import OutputLost
from resdeploy.records import Artifact, Profile
from resdeploy.run import profile_run


def test_a_file_whose_output_is_lost_is_a_failed_row_with_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other variants go on."""
    fp32 = Artifact(path="a.onnx", format="onnx", precision="fp32", sha256="")

    def made(_making: profile_run.ProfileRun, one: profile_run.VariantPlan) -> str:
        if one.precision == "int8":
            raise OutputLost("lost")
        return one.precision

    monkeypatch.setattr(profile_run.ProfileRun, "variant", made)
    asked = Profile(name="p", precisions=("fp32", "int8"), backends=("onnxruntime",))
    steps = Steps(tmp_path, lambda _: None)
    making = profile_run.ProfileRun(profile=asked, steps=steps, progress=lambda *_: None, note=lambda _: None)
    told: Any = making.variants(fp32, None)
    variants, (failure,) = told
    assert variants == ("fp32",)
    assert (failure.error_code, failure.exit_status, failure.precision) == ("E-OUTPUT-LOST", 1, "int8")
    assert failure.message == "lost."  # the code stands beside it
