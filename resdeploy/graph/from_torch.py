"""Exports a torch module as a canonical ONNX file, and proves that both compute the same."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resdeploy import packages, store
from resdeploy.errors import MalformedInput
from resdeploy.graph import files, metadata
from resdeploy.graph.canonical import blanks, form
from resdeploy.records import Artifact, ModelSpec, Progress, Weights

if TYPE_CHECKING:
    import onnx
    import torch

# Opset asked of the exporter: its lowest; `portable` brings it to 17 exactly. Its own attempt at 17 fails.
EXPORTER_OPSET = 18
# Float32 rounding through 50 folded layers is 2.3e-5 of the largest logit on random weights (facts of ResNet-50).
MAX_REL_ERROR = 1e-4
# Through a thousand layers torch in float32 is itself that far from float64, and folding rounds once more a layer.
MAX_TIMES_TORCH = 4.0
MAX_ANY_ERROR = 1e-2  # chosen: whatever torch's own error is, logits of two digits are not the network's
TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "resdeploy")

Run = Callable[[Path, NDArray[np.float32]], NDArray[np.float32]]


def export(
    module: torch.nn.Module,
    spec: ModelSpec,
    out: Path,
    *,
    weights: Weights,
    parent: str | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Writes `module` as a canonical ONNX file at `out`, with `spec` inside; the sidecar is not yet written.

    Args:
        module: maps float32 (N, C, H, W) to (N, classes); exported in evaluation mode.
        spec: describes it; its input shape is the one traced.
        out: the file to write.
        weights: where the module's weights came from.
        parent: SHA-256 of the checkpoint, if there was one.
        progress: told the three steps.

    Raises:
        MalformedInput: torch cannot export the module, or the graph has no portable form.
        NotWritable, DiskFull: `out` cannot be written.
    """
    report = progress or (lambda _what, _done, _total: None)
    report("tracing", 0, 3)
    raw = _trace(module, spec)
    report("canonical form", 1, 3)
    model = form.canonicalise(raw, whole=True)
    metadata.attach(model, spec)
    report("writing", 2, 3)
    files.save_model(model, out)
    report("writing", 3, 3)
    return Artifact(
        path=str(out),
        format="onnx",
        precision="fp32",
        sha256=store.digest(out),
        parent=parent,
        model=spec,
        weights=weights,
        tools={name: importlib.metadata.version(name) for name in TOOLS},
    )


def blank_graph(module: torch.nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """The graph that `export` would write of a module made by `unfilled`, its weights blank; for counting alone.

    Raises:
        MalformedInput: as `export`.
    """
    program = _program(module, spec)
    for value in program.model.graph.initializers.values():
        stored: Any = value.const_value
        if stored.size > files.SMALL and not any(stored.raw.stride()):
            value.const_value = blanks.BlankTensor(blanks.proto(str(value.name), stored.dtype, stored.shape.numpy()))
    model = form.canonicalise(program.model_proto, whole=True)
    metadata.attach(model, spec)
    return model


def _trace(module: torch.nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    return _program(module, spec).model_proto


def _program(module: torch.nn.Module, spec: ModelSpec) -> torch.onnx.ONNXProgram:
    """The exporter's own graph, unoptimised: our folding is exact, and this is faster."""
    packages.need("onnxscript", "the export from torch to ONNX")
    import torch

    was_training = module.training
    module.eval()
    # Batch 2: the exporter treats 0 and 1 as special sizes.
    example = torch.zeros(2, *spec.input_shape, dtype=torch.float32)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=EXPORTER_OPSET,
                optimize=False,
                verbose=False,
            )
    except Exception as e:
        if failed := packages.failed_import(e):
            raise failed from e
        raise MalformedInput(
            f"torch cannot export {spec.name}: {type(e).__name__}: {next(iter(str(e).strip().splitlines()), '')}",
            cause="The model's forward has data-dependent Python code, or an operator without ONNX form",
            fix="Run torch.export.export on it to see where",
        ) from e
    finally:
        module.train(was_training)
    assert program is not None
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, logs and warns about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def verify(
    artifact: Artifact,
    module: torch.nn.Module,
    run: Run,
    samples: NDArray[np.float32],
    *,
    sizes: tuple[int, int] = (1, 3),
) -> Artifact:
    """Compares the file with the module in float64 at two batch sizes; returns the artifact with `checks`.

    Anything over `max_rel_error` is a wrong graph and not rounding.

    Args:
        artifact: of `export`.
        module: what it was exported from.
        run: runs the file in FP32: (path, inputs (N, C, H, W)) -> logits (N, classes). Given by the caller, since
            runtimes live above this room.
        samples: at least one real input, (N, C, H, W); repeated where a batch needs more.
        sizes: the batch sizes.

    Raises:
        MalformedInput: the largest difference is over that limit, or not finite.
    """
    batches = [np.ascontiguousarray(np.resize(samples, (n, *samples.shape[1:])), dtype=np.float32) for n in sizes]
    absolute, torch_fp32, largest = _compare_logits(Path(artifact.path), module, run, batches)
    relative, torch_fp32 = (error / largest if largest else error for error in (absolute, torch_fp32))
    limit = max_rel_error(torch_fp32)
    if not relative <= limit:
        raise MalformedInput(
            f"{artifact.path} is off from torch in float64 by {relative:.1e} of the largest logit",
            cause=f"Rounding stays under {limit:.0e}: the graph is wrong, or the weights too large for FP32",
            fix="Report the model with the versions in `resdeploy doctor`",
        )
    checks = {"max_abs_error": absolute, "max_rel_error": relative, "torch_fp32_rel_error": torch_fp32}
    checks |= {f"batch_size_{k}": float(size) for k, size in enumerate(sizes, 1)}
    return dataclasses.replace(artifact, checks={**artifact.checks, **checks})


def _compare_logits(
    path: Path, module: torch.nn.Module, run: Run, batches: Sequence[NDArray[np.float32]]
) -> tuple[float, float, float]:
    """How far the file, and torch in FP32, are off from torch in float64 at most, and the largest logit."""
    import torch

    with torch.no_grad():
        single = [_logits(module, torch.from_numpy(batch)) for batch in batches]
        reference = copy.deepcopy(module).double()
        exact = [_logits(reference, torch.from_numpy(batch).double()) for batch in batches]
    of_file, of_torch, largest = 0.0, 0.0, 0.0
    for batch, rounded, expected in zip(batches, single, exact, strict=True):
        logits = run(path, batch)
        if logits.shape != expected.shape:
            raise MalformedInput(
                f"{path} gives logits of shape {logits.shape}, torch {expected.shape}",
                cause="The exporter fixed a size that depends on the batch",
                fix="Report the model with the versions in `resdeploy doctor`",
            )
        # Not max(), which drops a NaN in its second place.
        of_file = float(np.maximum(of_file, np.abs(logits - expected).max()))
        of_torch = float(np.maximum(of_torch, np.abs(rounded - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    return of_file, of_torch, largest


def max_rel_error(torch_fp32: float) -> float:
    """How far from float64 a file may be, of the largest logit.

    1e-4, or four times what torch itself has in FP32 on the same images, which after some hundred layers can be more;
    1e-2 at most, beyond which FP32 does not compute the network.
    """
    return min(max(MAX_REL_ERROR, MAX_TIMES_TORCH * torch_fp32), MAX_ANY_ERROR)


def _logits(module: torch.nn.Module, batch: torch.Tensor) -> NDArray[np.floating]:
    """Logits in evaluation mode; the module's own mode is left as it is."""
    was_training = module.training
    module.eval()
    try:
        logits: NDArray[np.floating] = module(batch).numpy()
    finally:
        module.train(was_training)
    return logits
