#!/bin/sh
# OpenVINO: a network in FP16, compiled with f16 asked for, is computed in BF16 on CPUs that have BF16 and no FP16.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6, CPython 3.11, Linux x86-64. To be seen on a CPU with avx512_bf16 and neither
#   avx512_fp16 nor amx_fp16 (AMD Zen 4, Intel Cooper Lake).
# A good guess: FP16 is refused, or computed in FP32, as on CPUs with neither, which holds all that FP16 can say.
# What happens: INFERENCE_PRECISION_HINT=f16 is taken without a word, the compiled model answers bf16 to the same property, and its
#   convolutions run as brgconv_avx512_bf16; without a hint too. BF16 keeps 8 significant bits where FP16 keeps 11.
# What it means: the accuracy of an FP16 file that was judged on one CPU is not that of the next, and is worse where one would expect the
#   fallback to be exact. Only the executed graph tells; who wants the file's own precision asks for f32.
#
# Seen:
#   asked f16     answers bf16  computed in bf16, largest error 0.0017 of the largest logit (FP16 rounds by 0.0005)
#   asked nothing answers bf16  computed in bf16, largest error 0.0017 of the largest logit (FP16 rounds by 0.0005)
#   asked f32     answers f32   computed in f32
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
cat > finding.py <<'PYTHON'
import pathlib
import sys

import numpy as np
import onnx
import openvino
from onnx import helper, numpy_helper

flags = set(pathlib.Path("/proc/cpuinfo").read_text().split())
if "avx512_bf16" not in flags or flags & {"avx512_fp16", "amx_fp16"}:
    print("not to be seen here: this takes a CPU with avx512_bf16 and without FP16")
    sys.exit(77)

random = np.random.default_rng(0)
first = (random.normal(size=(32, 3, 3, 3)) / 5).astype(np.float16)
second = (random.normal(size=(10, 32, 3, 3)) / 17).astype(np.float16)
half = onnx.TensorProto.FLOAT16
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["x", "first"], ["a"], "conv1"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "second"], ["c"], "conv2"),
        helper.make_node("GlobalAveragePool", ["c"], ["y"], "pool"),
    ],
    "graph",
    [helper.make_tensor_value_info("x", half, [1, 3, 32, 32])],
    [helper.make_tensor_value_info("y", half, [1, 10, 1, 1])],
    [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
image = random.normal(size=(1, 3, 32, 32)).astype(np.float16)
core = openvino.Core()


def text(info, name):
    return info[name].astype(str)


def run(asked):
    """(what the compiled model says, in what its convolutions run, the logits)"""
    settings = {} if asked is None else {"INFERENCE_PRECISION_HINT": asked}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    kernels = {text(info, "primitiveType").rpartition("_")[2] for info in infos if text(info, "layerType") == "Convolution"}
    says = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return says, kernels, compiled(image)[0].astype(np.float64).ravel()


exact = run("f32")
seen = {}
for asked in ("f16", None, "f32"):
    says, kernels, logits = run(asked)
    error = np.abs(logits - exact[2]).max() / np.abs(exact[2]).max()
    known = f", largest error {error:.4f} of the largest logit (FP16 rounds by {2**-11:.4f})" if error else ""
    print(f"asked {asked or 'nothing':7s} answers {says:5s} computed in {' and '.join(sorted(kernels))}{known}")
    seen[asked] = says, kernels, error > 2**-11
expected = {"f16": ("bf16", {"bf16"}, True), None: ("bf16", {"bf16"}, True), "f32": ("f32", {"f32"}, False)}
if seen != expected:
    sys.exit("changed: no longer as described at the head of this file")
PYTHON
"$folder/venv/bin/python" finding.py
