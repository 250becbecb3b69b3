"""ONNX Runtime in this process on one thread: small graphs gain nothing from threads that wait busily."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime


def session(
    model: onnx.ModelProto | bytes | str | Path, *, exactly: bool = False, save: Path | None = None
) -> onnxruntime.InferenceSession:
    """Opens a model or a file.

    Args:
        model: the graph, its bytes, or where they are.
        exactly: every node as it stands: no fusion, no integer kernels, which saturate on CPUs without VNNI.
        save: where to write the graph that ONNX Runtime makes of it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if exactly:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = str(save)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
