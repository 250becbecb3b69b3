"""CPU seconds to count a graph of 10,000 nodes, inference of its shapes included.

    python benchmarks/cost_speed.py --output benchmarks/results/cost-speed.json

Two graphs: a chain of 5,000 convolutions and activations, and residual blocks (two convolutions, two activations, an
addition) with Q/DQ pairs before each convolution. The target is under 2 s for each: fails above.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resdeploy import store
from resdeploy.graph import counts
from resdeploy.measure import environment
from resdeploy.records import ModelSpec

NODES = 10_000
LIMIT_S = 2.0
ROUNDS = 7
CHANNELS, SIZE = 16, 8
MACS = SIZE * SIZE * CHANNELS * CHANNELS * 9  # of one convolution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, model in (("chain", chain()), ("quantized residual blocks", blocks())):
        times = [seconds(model) for _ in range(ROUNDS)]
        rows.append({"graph": name, "nodes": len(model.graph.node), "cpu_s": float(np.median(times)), "runs_s": times})
        print(json.dumps(rows[-1]), flush=True)
    ok = all(row["cpu_s"] < LIMIT_S for row in rows)
    if options.output:
        document = {"command": "benchmarks/cost_speed.py", "environment": environment.capture()}
        store.write_json(options.output, {**document, "limit_s": LIMIT_S, "ok": ok, "results": rows})
    sys.exit(not ok)


def seconds(model: onnx.ModelProto) -> float:
    """CPU seconds of one count, whose result is checked: every convolution is in it."""
    spec = ModelSpec(name="deep", family="x", classes=CHANNELS, input_shape=(CHANNELS, SIZE, SIZE), preprocessing=None)
    start = time.process_time()
    counted = counts.count(model, spec)
    elapsed = time.process_time() - start
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    assert (counted.macs, counted.unknown) == (convolutions * MACS, ())
    return elapsed


class Writer:
    """Nodes after each other, each with weights of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        scale, zero = np.array(0.1, np.float32), np.array(0, np.uint8)
        self.held = [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(zero, "zero")]

    def emit(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def conv(self, data: str) -> str:
        weight = numpy_helper.from_array(np.zeros((CHANNELS, CHANNELS, 3, 3), np.float32), f"w{len(self.nodes)}")
        self.held.append(weight)
        return self.emit("Conv", data, weight.name, pads=[1, 1, 1, 1])

    def pair(self, data: str) -> str:
        return self.emit("DequantizeLinear", self.emit("QuantizeLinear", data, "scale", "zero"), "scale", "zero")

    def model(self, output: str) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        shape = ("batch", CHANNELS, SIZE, SIZE)
        inputs, outputs = ([value(name, TensorProto.FLOAT, shape)] for name in ("input", output))
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain() -> onnx.ModelProto:
    writer, at = Writer(), "input"
    while len(writer.nodes) < NODES:
        at = writer.emit("Relu", writer.conv(at))
    return writer.model(at)


def blocks() -> onnx.ModelProto:
    writer, at = Writer(), "input"
    while len(writer.nodes) < NODES:
        skip = writer.pair(at)
        main = writer.conv(writer.pair(writer.emit("Relu", writer.conv(skip))))
        at = writer.emit("Relu", writer.emit("Add", main, skip))
    return writer.model(at)


if __name__ == "__main__":
    main()
