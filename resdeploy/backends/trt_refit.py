"""Putting an ONNX file's weights into an engine that was built without them, or to take others: TensorRT 10 and later.

A stripped engine keeps its kernels and leaves its weights out (`BuilderFlag.STRIP_PLAN`): what is shipped is small, and
here it is completed without being tuned again. What comes out is a whole engine, which every verb runs as any other.
8.6 refits too, but only weight by weight through names that its parser chose; there, building again is the way.
"""

from __future__ import annotations

import time
from typing import Any

from resdeploy.backends.trt_builder import Built, capabilities, parser_errors
from resdeploy.errors import BackendCrash, MalformedInput, UsageError
from resdeploy.records import Artifact


def refit(trt: Any, log: Any, plan: bytes, origin: str, source: Artifact) -> Built:
    """An engine with the weights of `source`.

    Args:
        trt: the tensorrt module.
        log: an `ILogger` with `errors`.
        plan: the engine, built with --strip-weights or --refit on this GPU by this version.
        origin: its file, for errors.
        source: an ONNX file of the same graph, lowered for this version.

    Raises:
        UsageError: this version has no such refitter; the engine was not built to be refitted.
        MalformedInput: the graph is not the engine's: weights are missing or of another size.
        BackendCrash: the engine cannot be loaded, or TensorRT gives up.
    """
    start_s = time.perf_counter()
    if not capabilities(trt)["refitting from ONNX"]:
        raise UsageError(f"TensorRT {trt.__version__} does not refit from ONNX files", fix="Build the engine again")
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendCrash(
            f"TensorRT {trt.__version__} cannot load {origin}",
            cause=" | ".join(log.errors[-3:]) or "An engine of another TensorRT version or GPU, or a damaged file",
            fix="Build it again here: resdeploy build F.onnx --backend tensorrt --strip-weights",
        )
    _put_weights(trt, log, engine, origin, source.path)
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)  # set by default on engines that were built stripped
    whole = engine.serialize_with_config(config)
    return Built(plan=bytes(whole), facts={"refit_s": time.perf_counter() - start_s}, notes=())


def _put_weights(trt: Any, log: Any, engine: Any, origin: str, onnx_path: str) -> None:
    """Puts the ONNX file's weights into the loaded engine."""
    try:
        refitter = trt.Refitter(engine, log)
    except TypeError as e:  # how the bindings say that there is none
        raise UsageError(
            f"{origin} was not built to be refitted", fix="Build it with --strip-weights, or with --refit"
        ) from e
    parser = trt.OnnxParserRefitter(refitter, log)
    complete = parser.refit_from_file(onnx_path)
    missing = list(refitter.get_missing_weights())
    if not complete or missing:
        problems = parser_errors(parser)
        problems += [f"no weights for {', '.join(missing[:6])}"] if missing else []
        raise MalformedInput(
            f"the weights of {onnx_path} do not fit {origin}: {'; '.join(problems) or 'TensorRT does not say why'}",
            fix="Name the ONNX file that the engine was built from; after --refit, one of the same graph",
        )
    if not refitter.refit_cuda_engine():
        raise BackendCrash(
            f"TensorRT could not refit {origin}", cause=" | ".join(log.errors[-3:]), fix="Build it again"
        )
