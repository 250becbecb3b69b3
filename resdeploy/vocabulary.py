"""The words that records use: names of precisions, formats, scenarios, and default numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from resdeploy.registered_backends import BackendName

Precision = Literal["fp32", "fp16", "bf16", "int8"]
# Of a model's file. A compiled one is named after its backend, but for TensorRT's, which all call an engine.
Format = Literal["checkpoint", "onnx", "engine", BackendName]
Target = Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
Effort = Literal["normal", "high"]
Arithmetic = Literal["fp32", "bf16"]  # what a network is watched in while it calibrates

# As MLPerf Inference names them; its fourth, server, would need arrivals at random times.
Scenario = Literal["single-stream", "multi-stream", "offline"]
# What a time covers: the inputs on the device already, in host memory, or in JPEG files.
Scope = Literal["compute", "host", "jpeg"]
State = Literal["pass", "fail", "inconclusive"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
# What a profile is carried out in, in this order; a step makes one or more files.
Step = Literal["train", "export", "prune", "quantize", "build", "audit", "eval", "bench"]
PackageKind = Literal["python", "triton"]  # what `package` writes a folder for
Runtime = Literal["openvino", "onnxruntime"]  # that such a folder is served by, in the order in which `auto` looks
OnInconclusive = Literal["fail", "warn"]  # what a gate that could not decide does to the job that asked

# Work over two seconds reports (what, done, total); only the command line draws.
Progress = Callable[[str, int, int], None]

STEPS: tuple[Step, ...] = get_args(Step)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of one value

# pydantic reads this from a plain dataclass: unknown keys are an error, not ignored.
STRICT = {"extra": "forbid"}

LR = 0.1  # peak learning rate of a training from random weights
# Likewise from weights with something to learn anew, a new last layer or the work of blocks that are gone: a tenth of
# it, "to make progress while not clobbering the initialization" (Girshick et al. 2014, arXiv:1311.2524, section 2.3).
ADAPTING_LR = 0.01
# Likewise from weights that know the classes already: measured, docs/training.md.
FINE_TUNING_LR = 0.003
QAT_LR = 3e-5  # likewise, of the weights and biases of an INT8 file
# What separate runs differ by anyway, in percent. Chosen, not measured: above criterion's 1 %, which is for runs that
# follow each other at once, while these may be days apart. Who knows his machine says --noise.
NOISE_PCT = 3.0
# A difference of up to so large a share of the time is called none. Chosen: half of what users ask gates for most.
EQUAL_WITHIN = 0.02
MAX_TIME_S = 120.0  # longest that one comparison may take
