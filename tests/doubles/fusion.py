"""What the TensorRT double makes of an ONNX graph: what it refuses, its layers, and its answers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

WORDS = {"int8": "Int8", "fp16": "Half", "fp32": "Float"}
FORMATS = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "fp32": "Row major linear FP32",
}


def refusal(model: onnx.ModelProto, major: int, *, strongly_typed: bool) -> tuple[int, tuple[str, str], str] | None:
    """The number, name and type of the node that a version cannot read, and its words; None where it reads all."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    types = {t.name: t.data_type for t in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types |= {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    for number, node in enumerate(model.graph.node):
        who = (node.name, node.op_type)
        if major == 8 and opset > 17:
            return number, who, f"opset {opset} is newer than 17"
        if major == 8 and node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) > 1:
            return number, who, "axes as an input would be misread"
        pair = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if major == 8 and pair and types.get(node.input[1]) == TensorProto.FLOAT16:
            return number, who, "scales in FP16 are not supported"
        if strongly_typed and node.op_type in ("Conv", "Add", "Gemm", "QuantizeLinear"):
            kinds = {
                types[name] for name in node.input[:2] if types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16)
            }
            if len(kinds) > 1:
                return number, who, "operands of different types in a strongly typed network"
    return None


def layers(model: onnx.ModelProto, *, half: bool) -> list[dict[str, Any]]:
    """Layers in the words of the inspector before version 10, as simple fusion makes them."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    constants = {t.name for t in graph.initializer}

    def only(name: str, *kinds: str) -> onnx.NodeProto | None:
        found = readers[name]
        return found[0] if len(found) == 1 and found[0].op_type in kinds else None

    def read(name: str) -> tuple[str, str]:
        """The tensor behind a DequantizeLinear, and its type on the GPU."""
        maker = makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return maker.input[0], "int8"
        wide = types.get(name) == TensorProto.FLOAT and not half
        return name, "fp32" if wide else "fp16"

    def written(name: str) -> tuple[str, str]:
        found = readers[name]
        if found and all(node.op_type == "QuantizeLinear" for node in found):
            return found[0].output[0], "int8"
        return read(name)

    def tensor(found: tuple[str, str]) -> dict[str, Any]:
        return {"Name": found[0], "Dimensions": [1, 1, 1, 1], "Format/Datatype": FORMATS[found[1]]}

    made: list[dict[str, Any]] = []
    done: set[str] = set()
    weights = {
        name
        for name, maker in makers.items()
        if maker.input[0] in constants
        or (
            maker.input[0].endswith("/quantized")
            and makers.get(maker.input[0]) is not None
            and makers[maker.input[0]].input[0] in constants
        )
    }
    for node in graph.node:
        if node.name in done or any(name in weights for name in node.output):
            continue
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            source = makers.get(node.input[0])
            if node.op_type == "QuantizeLinear" and (
                source is None
                or source.op_type not in ("Conv", "Add", "Relu", "MaxPool", "GlobalAveragePool", "Flatten", "Pad")
            ):
                made.append(
                    _layer(
                        node.name,
                        "Reformat",
                        [tensor(read(node.input[0]))],
                        [tensor((node.output[0], "int8"))],
                        origin="QDQ",
                    )
                )
            continue
        if node.op_type != "Conv":
            inputs = [tensor(read(name)) for name in node.input if name not in constants and name not in weights]
            made.append(_layer(node.name, node.op_type, inputs, [tensor(written(node.output[0]))]))
            continue
        chain, inputs, last = [node], [tensor(read(node.input[0]))], node
        if (adder := only(last.output[0], "Add")) is not None and all(
            makers.get(name) is None
            or makers[name].op_type != "Conv"
            or name == last.output[0]
            or _before(graph, name, node)
            for name in adder.input
        ):
            chain.append(adder)
            inputs += [tensor(read(name)) for name in adder.input if name != last.output[0]]
            last = adder
        if (relu := only(last.output[0], "Relu")) is not None:
            chain.append(relu)
            last = relu
        pool = only(last.output[0], "MaxPool")
        if pool is not None and written(pool.output[0])[1] == "int8":  # ConvActPool
            chain.append(pool)
            last = pool
        done |= {part.name for part in chain}
        layer = _layer(
            " + ".join(part.name for part in chain), "CaskConvolution", inputs, [tensor(written(last.output[0]))]
        )
        kind = (
            "int8"
            if inputs[0]["Format/Datatype"] == FORMATS["int8"]
            else "fp16"
            if "FP16" in inputs[0]["Format/Datatype"]
            else "fp32"
        )
        made.append(
            layer | {"Weights": {"Type": WORDS[kind], "Count": 1}, "Activation": "RELU" if relu is not None else "NONE"}
        )
    return made


def _before(graph: onnx.GraphProto, name: str, node: onnx.NodeProto) -> bool:
    """Whether a tensor is made before a node runs: then that node, not the tensor's maker, takes the sum in."""
    order = [other.name for other in graph.node]
    maker = next(other for other in graph.node if name in other.output)
    return order.index(maker.name) < order.index(node.name)


def _layer(name: str, kind: str, inputs: list[Any], outputs: list[Any], origin: str = "") -> dict[str, Any]:
    extra = {"Origin": origin} if origin else {}
    return {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, **extra}


def schema(found: list[dict[str, Any]], bindings: dict[str, str], major: int) -> dict[str, Any]:
    """The layers as a version's inspector prints them; `bindings` are inputs and outputs with their types."""
    if major < 10:
        return {"Layers": found, "Bindings": list(bindings)}
    told = [
        layer | {"Metadata": "\x1e".join(f"[ONNX Layer: {p}]" for p in layer["Name"].split(" + "))} for layer in found
    ]
    if major < 11:
        return {"Layers": told, "Bindings": list(bindings)}
    for layer in told:
        for side in ("Inputs", "Outputs"):
            layer[side] = [
                {key: value for key, value in t.items() if key != "Format/Datatype"}
                | {"Format": t["Format/Datatype"], "Datatype": t["Format/Datatype"]}
                for t in layer[side]
            ]
    # A tensor's type is its `Datatype` in a layer, and its `DataType` here (strings of libnvinfer_lean 11.4).
    return {"Layers": told, "I/O Tensors": [{"Name": name, "DataType": kind} for name, kind in bindings.items()]}


def compute(engine: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The graph's outputs by ONNX Runtime."""
    import onnxruntime

    if "session" not in engine._own:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        data = engine._own["model"].SerializeToString()
        engine._own["session"] = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return engine._own["session"].run(None, feeds)
