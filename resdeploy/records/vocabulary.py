"""The words that records are written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Format = Literal["checkpoint", "onnx", "openvino", "engine"]
BackendName = Literal["tensorrt", "openvino", "onnxruntime", "torch", "null"]
Target = Literal["tensorrt", "openvino", "onnxruntime"]
Effort = Literal["normal", "high"]
Arithmetic = Literal["fp32", "bf16"]  # what a network is watched in while it calibrates
# As MLPerf Inference names them; its fourth, server, would need arrivals at random times.
Scenario = Literal["single-stream", "multi-stream", "offline"]
# What a time covers: the inputs on the device already, in host memory, or in JPEG files.
Scope = Literal["compute", "host", "jpeg"]
State = Literal["pass", "fail", "inconclusive"]

# Work over two seconds reports (what, done, total); only the command line draws.
Progress = Callable[[str, int, int], None]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of one value

# pydantic reads this from a plain dataclass: unknown keys are an error, not ignored.
STRICT = {"extra": "forbid"}
