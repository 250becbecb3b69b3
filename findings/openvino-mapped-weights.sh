#!/bin/sh
# OpenVINO: a compiled model follows the file under it.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6, CPython 3.11, Linux x86-64.
# A good guess: read_model or, at the latest, compile_model has read the weights; what happens to the file afterwards is
#   another model's business.
# What happens: with ENABLE_MMAP (the default) the external data of an ONNX file, and the .bin of an IR, stay mapped.
#   Overwritten in place, as `cp new.data model.data` does it,
#   - between read_model and compile_model the new weights are compiled, without a word;
#   - after compile_model those weights that the plugin did not repack (here the constant of a Mul; convolutions are
#     repacked) change the answers of the running model.
#   With ENABLE_MMAP=False, or where the file is replaced by a rename, nothing of this happens.
# What it means: a digest taken before read_model says nothing about what is served, and updating a model by `cp` under a
#   running server gives a mixture of two models.
#
# Seen:
#   Conv mapped: overwritten before compiling: other answers; overwritten while running: same answers
#   Conv read:   overwritten before compiling: same answers; overwritten while running: same answers
#   Mul  mapped: overwritten before compiling: other answers; overwritten while running: other answers
#   Mul  read:   overwritten before compiling: same answers; overwritten while running: same answers
#   renamed over instead: same answers in all four
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
cat > finding.py <<'PYTHON'
import os
import sys

import numpy as np
import onnx
import openvino
from onnx import helper, numpy_helper

WEIGHTS = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
SCALES = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)
IMAGE = np.ones((1, 3, 8, 8), np.float32)


def write(operator):
    """A model of one operator, its constant in model.data."""
    for name in ("model.onnx", "model.data"):
        if os.path.exists(name):
            os.remove(name)
    constant, shape = (WEIGHTS, [1, 16, 6, 6]) if operator == "Conv" else (SCALES, [1, 3, 8, 8])
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


def changed(operator, mapped, rename):
    """Whether the answers change where the file does: before compiling, and while the compiled model is in use."""
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": mapped})

    def answers(compiled):
        return compiled(IMAGE)[0].copy()

    write(operator)
    running = core.compile_model(core.read_model("model.onnx"), "CPU")
    first = answers(running)
    negate(rename)
    later = answers(running)
    write(operator)
    model = core.read_model("model.onnx")
    negate(rename)
    compiled = answers(core.compile_model(model, "CPU"))
    return not np.array_equal(first, compiled), not np.array_equal(first, later)


seen = {(operator, mapped): changed(operator, mapped, False) for operator in ("Conv", "Mul") for mapped in (True, False)}
words = {True: "other answers", False: "same answers"}
for (operator, mapped), (before, running) in seen.items():
    how = "mapped:" if mapped else "read:  "
    print(f"{operator:4s} {how} overwritten before compiling: {words[before]}; overwritten while running: {words[running]}")
renamed = [any(changed(operator, mapped, True)) for operator, mapped in seen]
print(f"renamed over instead: {'other answers' if any(renamed) else 'same answers in all four'}")
expected = {
    ("Conv", True): (True, False),
    ("Conv", False): (False, False),
    ("Mul", True): (True, True),
    ("Mul", False): (False, False),
}
if seen != expected or any(renamed):
    sys.exit("changed: no longer as described at the head of this file")
PYTHON
"$folder/venv/bin/python" finding.py
