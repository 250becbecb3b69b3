#!/bin/sh
# ONNX Runtime and OpenVINO: a model that is loaded, compiled and answering follows the file under it.
#
# Versions: onnxruntime 1.32.0, openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6, CPython 3.11, Linux x86-64. torch 2.13 writes such files
#   by default: its exporter puts the weights of even a 4 KB network into FILE.onnx.data.
# A good guess: once a session exists, the weights have been read, and what happens to the file is another model's business.
# What happens: external data stay mapped into memory, in ONNX Runtime without an option against it, in OpenVINO by its default
#   ENABLE_MMAP. Where the data file is overwritten in place, as `cp new.data model.data` does it, those weights that the
#   runtime did not repack (here the constant of a Mul; convolutions are repacked) change the answers of the running model. In
#   OpenVINO, what is overwritten between read_model and compile_model is compiled, without a word.
#   Nothing of this happens where the file is replaced by a rename, or in OpenVINO with ENABLE_MMAP=False.
# What it means: a digest taken before loading says nothing about what is served, and updating a model by `cp` under a running
#   server serves a mixture of two models.
#
# Seen:
#   onnxruntime      Conv  overwritten while running: same answers
#   onnxruntime      Mul   overwritten while running: other answers
#   openvino         Conv  overwritten while running: same answers; before compiling: other answers
#   openvino         Mul   overwritten while running: other answers; before compiling: other answers
#   openvino no mmap Conv  overwritten while running: same answers; before compiling: same answers
#   openvino no mmap Mul   overwritten while running: same answers; before compiling: same answers
#   replaced by a rename: same answers in all
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
cat > finding.py <<'PYTHON'
import os
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import helper, numpy_helper

KERNELS = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
SCALES = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)
IMAGE = np.ones((1, 3, 8, 8), np.float32)


def write(operator):
    """A model of one operator, its constant in model.data."""
    for name in ("model.onnx", "model.data"):
        if os.path.exists(name):
            os.remove(name)
    constant, shape = (KERNELS, [1, 16, 6, 6]) if operator == "Conv" else (SCALES, [1, 3, 8, 8])
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(constant, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    onnx.checker.check_model("model.onnx", full_check=True)


def negate(rename):
    """Another model's weights in the place of the old ones: the same size, every sign turned."""
    data = -np.fromfile("model.data", np.float32)
    if rename:
        data.tofile("new.data")
        os.replace("new.data", "model.data")
        return
    with open("model.data", "r+b") as file:
        file.write(data.tobytes())


def in_onnxruntime(operator, rename):
    """(the answers of a running session change where the file does,)"""
    write(operator)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    first = session.run(None, {"x": IMAGE})[0]
    negate(rename)
    return (not np.array_equal(first, session.run(None, {"x": IMAGE})[0]),)


def in_openvino(operator, rename, mapped):
    """(those of a running model change, those of a model that is compiled afterwards)"""
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": mapped})
    write(operator)
    running = core.compile_model(core.read_model("model.onnx"), "CPU")
    first = running(IMAGE)[0].copy()
    negate(rename)
    later = running(IMAGE)[0].copy()
    write(operator)
    model = core.read_model("model.onnx")
    negate(rename)
    compiled = core.compile_model(model, "CPU")(IMAGE)[0].copy()
    return not np.array_equal(first, later), not np.array_equal(first, compiled)


def all_of_them(rename):
    operators = ("Conv", "Mul")
    return (
        {("onnxruntime", operator): in_onnxruntime(operator, rename) for operator in operators}
        | {("openvino", operator): in_openvino(operator, rename, True) for operator in operators}
        | {("openvino no mmap", operator): in_openvino(operator, rename, False) for operator in operators}
    )


WORDS = {True: "other answers", False: "same answers"}
seen, renamed = all_of_them(False), all_of_them(True)
for (runtime, operator), changes in seen.items():
    before = f"; before compiling: {WORDS[changes[1]]}" if len(changes) > 1 else ""
    print(f"{runtime:16s} {operator:4s}  overwritten while running: {WORDS[changes[0]]}{before}")
quiet = not any(any(changes) for changes in renamed.values())
print(f"replaced by a rename: {'same answers in all' if quiet else 'other answers'}")
expected = {
    ("onnxruntime", "Conv"): (False,),
    ("onnxruntime", "Mul"): (True,),
    ("openvino", "Conv"): (False, True),
    ("openvino", "Mul"): (True, True),
    ("openvino no mmap", "Conv"): (False, False),
    ("openvino no mmap", "Mul"): (False, False),
}
if seen != expected or not quiet:
    sys.exit("changed: no longer as described at the head of this file")
PYTHON
"$folder/venv/bin/python" finding.py
