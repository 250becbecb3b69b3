"""What TensorRT is given to build from: a lowered graph, a timing cache, and an engine to refit only where it fits."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resdeploy import cache, places, scratch, store
from resdeploy.backends import origin
from resdeploy.errors import MalformedInput, UsageError
from resdeploy.records import Artifact, Execution

# The parser of 8.6 gives a node's number alone.
NUMBERED = re.compile(r"node #(\d+)")


@contextlib.contextmanager
def prepare(
    source: Artifact, execution: Execution, version: str, major: int, device: str
) -> Iterator[tuple[Artifact, Execution]]:
    """The ONNX file lowered for this TensorRT, as long as the context is open, and the shared timing cache.

    Raises:
        MalformedInput: the parser refuses a node, which is named.
        UsageError: `source` is not what the engine to be refitted was built for.
    """
    if execution.engine.refit_from is not None:
        _refuse_misfit(source, Path(execution.engine.refit_from))
    options = dataclasses.replace(execution.engine, timing_cache=_timing_cache(execution, version, device))
    execution = dataclasses.replace(execution, engine=options)
    with lowered_for(source, major) as lowered_source:
        yield lowered_source, execution


@contextlib.contextmanager
def lowered_for(
    source: Artifact, major: int, *, examine: Callable[[Any], object] = lambda _: None
) -> Iterator[Artifact]:
    """The ONNX file lowered for a major version of TensorRT, as long as the context is open.

    Args:
        source: the file.
        major: the version.
        examine: looks at the graph as it will be built, and may refuse it.

    Raises:
        MalformedInput: the graph cannot be lowered; or, from within the context, the parser refuses a node, which is
            then named as `source` has it.
    """
    from resdeploy.graph import cast, files, for_tensorrt

    model = files.load_model(Path(source.path))
    lowered = for_tensorrt.lower(model, major)
    examine(lowered)
    with scratch.folder() as folder:
        lowered_source = source
        if lowered is not model:
            path = folder / "lowered.onnx"
            files.save_model(lowered, path)
            in_fp32 = cast.nodes_in_fp32(lowered) if source.precision == "int8" else ()
            notes = (f"in FP32, scales or weights do not fit FP16: {', '.join(in_fp32)}",) if in_fp32 else ()
            lowered_source = dataclasses.replace(source, path=str(path), notes=(*source.notes, *notes))
        try:
            yield lowered_source
        except MalformedInput as e:
            what = NUMBERED.sub(
                lambda m: for_tensorrt.node_at(lowered, int(m[1])), e.what.replace(lowered_source.path, source.path)
            )
            raise MalformedInput(what, cause=e.cause, fix=e.fix) from e


def _refuse_misfit(source: Artifact, path: Path) -> None:
    """Refuses weights of which TensorRT does not promise to notice that they are not the engine's.

    `REFIT_IDENTICAL`, which --strip-weights alone sets, leaves undefined what other weights give. What the record of
    the engine does not tell, and an engine without one, is TensorRT's to judge.
    """
    engine = store.load(path, trusted=True)  # nothing of it is run: one with host code is refused below
    origin.refuse_unknown(path, trusted=False)
    if engine is None:
        return
    if engine.precision != source.precision:
        raise UsageError(
            f"{path} was built in {engine.precision}, and {source.path} is {source.precision}",
            fix="Name the ONNX file that the engine was built from",
        )
    if engine.tools.get("refit") == "identical" and engine.parent != source.sha256:
        raise UsageError(
            f"{path} takes back the weights that it was built with alone, and {source.path} is another file",
            fix="Name the ONNX file that it was built from, or build it with --strip-weights --refit to take others",
        )
    if "version_compatible" in engine.tools:
        raise UsageError(
            f"{path} is version-compatible, and such an engine is not refitted",
            fix="Build it whole: resdeploy build F.onnx --backend tensorrt --version-compatible",
        )


def _timing_cache(execution: Execution, version: str, device: str) -> str | None:
    """The file that all builds of this TensorRT for this GPU share; "" among the options turns it off."""
    chosen = execution.engine.timing_cache
    if chosen is not None:
        return chosen or None
    name = re.sub(r"[^\w.]+", "-", f"timing-{version}-{device}").strip("-")
    return str((places.writable_cache(cache.TENSORRT) / f"{name}.cache").absolute())
