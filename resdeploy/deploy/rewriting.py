"""Whether a file from elsewhere still computes the same in the canonical form, before anything is made of that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy import scratch, store
from resdeploy.backends.lane import Lane
from resdeploy.errors import BackendMissing, EnvironmentFailure, MalformedInput, OutputLost, UsageError
from resdeploy.records import Artifact, Execution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Of the largest logit. Rewriting is exact but for the order of sums, which moves FP32 logits by some 1e-6.
MAX_REL_ERROR = 1e-3


def refuse_other_function(source: Artifact, images: Sequence[NDArray[Any]]) -> tuple[str, ...]:
    """What a reader must know of the comparison; nothing where the file is in our form already, or was found the same.

    Args:
        source: an FP32 ONNX file.
        images: each (C, H, W), as the network takes them.

    Raises:
        OutputLost: the canonical form computes another function.
    """
    from resdeploy.graph import files
    from resdeploy.graph.canonical import form
    from resdeploy.graph.index import fixed_batch

    model = files.load_model(Path(source.path))
    if model.producer_name == "resdeploy" or not len(images):
        return ()
    canonical, batch = form.canonicalise(model), np.stack(images)
    try:
        with scratch.folder() as folder:
            files.save_model(canonical, path := folder / "canonical.onnx")
            expected = _logits(Path(source.path), fixed_batch(model), batch)
            found = _logits(path, fixed_batch(canonical), batch)
    except (BackendMissing, EnvironmentFailure, MalformedInput, UsageError) as e:
        return (f"the form that it was rewritten to was not compared with the file itself: {e.what}",)
    error = np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    if not error <= MAX_REL_ERROR and np.isfinite(expected).all():
        raise OutputLost(
            f"{source.path} computes something else once it is rewritten: off by {error:.1e} of the largest logit",
            cause="Some operator of it is not read as ONNX Runtime reads it; this is a defect of resdeploy",
            fix="Report it with the file; `resdeploy export F.onnx -o F17.onnx` shows the form",
        )
    return ()


def _logits(path: Path, batch_size: int, images: NDArray[Any]) -> NDArray[Any]:
    """From ONNX Runtime; a batch size of 0 is free."""
    execution = Execution(batch_size=batch_size or len(images), input_shape=images.shape[1:])
    artifact = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
    with Lane("onnxruntime") as lane:
        lane.open(artifact, execution, query=False)
        return lane.predict(images)
