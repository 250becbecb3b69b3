"""Networks that are not ours, through the exporters that others use: are they read, computed, counted and quantized?

    python benchmarks/foreign.py --output benchmarks/results/foreign.json
    python benchmarks/foreign.py light_resnet50 densenet121             # some of them
    python benchmarks/foreign.py --output F --resume --minutes 20       # only what F lacks, beginning nothing later

Two kinds. The topologies that the onnx package ships for its tests (`light_*`, once of its model zoo: Caffe2's and
CNTK's spellings), with random weights in the place of their constants; and the smallest network of timm's families,
untrained, through torch.onnx's older exporter (`torchscript`), its newer one (`dynamo`), and our export (`ours`).

For each: the largest difference of an output of the canonical file in FP32, over the largest output, from ONNX Runtime
on the file as it was, or from torch in float64; the multiply-accumulates of the file, and of hooks on the torch
module's convolutions and linear layers; how many convolutions and products `quantize` would make INT8, and why not the
others; or what was refused. Fails where an error is over 1e-4 (`from_torch.max_rel_error`), where counts differ, and
where anything ends but in a refusal.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from resdeploy import store
from resdeploy.errors import ResdeployError
from resdeploy.graph import counts, files, from_torch, metadata, qdq_placement
from resdeploy.graph.canonical import form
from resdeploy.measure import environment
from resdeploy.records import ModelSpec, Weights

LIGHT = (
    *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19"),
    "zfnet512",
)
# The smallest network of each family, and the size of image that it is traced at: small, for agreement alone matters.
TIMM = {
    "seresnet18": 64, "skresnet18": 64, "resnest14d": 64, "regnetx_002": 64, "mobilenetv3_small_050": 64,
    "ghostnet_050": 64, "efficientnet_lite0": 64, "tf_efficientnet_lite0": 64, "repvgg_a0": 64, "convnext_atto": 64,
    "nf_regnet_b0": 64, "nf_resnet26": 64, "resnetv2_50x1_bit": 64, "resnetv2_50d_gn": 64, "dpn68": 64,
    "densenet121": 64, "nasnetalarge": 96, "pnasnet5large": 96,
}  # fmt: skip
EXPORTERS = ("torchscript", "dynamo", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*(f"light_{name}" for name in LIGHT), *TIMM])
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--resume", action="store_true", help="Keep what --output has, and try what it lacks or failed."
    )
    parser.add_argument("--minutes", type=float, default=math.inf)
    options = parser.parse_args()
    start, rows = time.monotonic(), dict[str, dict[str, Any]]()
    if options.resume and options.output.is_file():
        rows = {key(row): row for row in json.loads(options.output.read_bytes())["results"] if row["ok"]}
    for name, exporter in wanted(options.names):
        if key({"model": name, "exporter": exporter}) in rows or time.monotonic() - start > 60 * options.minutes:
            continue
        row = {"model": name, "exporter": exporter} | look_at(name, exporter)
        rows[key(row)] = row
        print(json.dumps(row), flush=True)
        if options.output:  # after each, so that nothing is lost
            store.write_json(options.output, {"environment": environment.capture(), "results": list(rows.values())})
    failed = [key(row) for row in rows.values() if not row["ok"]]
    print(f"{len(rows)} files, {len(failed)} failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


def wanted(names: list[str]) -> list[tuple[str, str]]:
    light = [(name, "onnx") for name in names if name.startswith("light_")]
    return light + [(name, exporter) for exporter in EXPORTERS for name in names if not name.startswith("light_")]


def key(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['exporter']}"


def look_at(name: str, exporter: str) -> dict[str, Any]:
    """One row: what becomes of a network, or why nothing."""
    start = time.perf_counter()
    try:
        row = of_light(name) if exporter == "onnx" else of_timm(name, exporter)
    except ResdeployError as e:
        row = {"ok": e.exit_status != 7, "refused": str(e)}
    except Exception as e:  # torch's exporter, or a defect of ours: both are to be seen
        row = {"ok": False, "failure": f"{type(e).__name__}: {str(e)[:300]}"}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def of_light(name: str) -> dict[str, Any]:
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    raw = with_random_weights(onnx.load(folder / f"{name}.onnx"))
    image = next(v for v in raw.graph.input if v.name not in {t.name for t in raw.graph.initializer})
    shape = [d.dim_value for d in image.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    spec = ModelSpec(name=name, family="light", classes=1000, input_shape=(shape[1], shape[2], shape[3]))
    return described(raw, run(raw, x), x, spec, counts.count(raw, spec).macs, 0.0)


def with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The constants of a `light` file are shapes that ConstantOfShape fills; here they are filled with numbers."""
    random = np.random.default_rng(0)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    positive = {n.input[4] for n in model.graph.node if n.op_type == "BatchNormalization"}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in stored:
            kept.append(node)
            continue
        shape = [int(d) for d in stored[node.input[0]]]
        fan_in = max(1, math.prod(shape[1:]))
        array = random.normal(0, math.sqrt(2 / fan_in) if len(shape) > 1 else 0.2, shape)
        array = np.abs(array) + 0.5 if node.output[0] in positive else array
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.ir_version = 8  # before 4, constants had to be inputs too
    return model


def of_timm(name: str, exporter: str) -> dict[str, Any]:
    import timm

    size = TIMM[name]
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False).eval()
    for module in net.modules():  # a fresh norm is the identity, which hides mistakes
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    spec = ModelSpec(name=f"timm:{name}", family="timm", classes=1000, input_shape=(3, size, size))
    raw = exported(net, spec, exporter)
    macs = hooked_macs(net, x[:1])
    with torch.no_grad():
        single = net(torch.from_numpy(x)).numpy()
        exact = net.double()(torch.from_numpy(x).double()).numpy()
    return described(raw, exact, x, spec, macs, float(np.abs(single - exact).max() / np.abs(exact).max()))


def exported(net: torch.nn.Module, spec: ModelSpec, exporter: str) -> onnx.ModelProto:
    example = torch.zeros(2, *spec.input_shape)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = Path(folder) / "m.onnx"
        if exporter == "ours":
            from_torch.export(net, spec, out, weights=Weights(source="random", seed=0))
        elif exporter == "dynamo":
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(net, (example,), out, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            axes = {"x": {0: "n"}}
            torch.onnx.export(net, (example,), out, dynamo=False, input_names=["x"], dynamic_axes=axes)
        return files.load_model(out)


def hooked_macs(net: torch.nn.Module, x: NDArray[np.float32]) -> int:
    """By forward hooks: the taps of a filter for each output of a convolution, or the inputs of a linear layer."""
    total = 0

    def count(module: Any, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        net(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    return total


def described(
    raw: onnx.ModelProto, exact: NDArray[Any], x: NDArray[np.float32], spec: ModelSpec, macs: int, torch_error: float
) -> dict[str, Any]:
    """A row: the canonical form of a file beside what it should compute and cost."""
    model = form.canonicalise(raw)
    metadata.attach(model, spec)
    found = run(model, x)
    error = float(np.abs(found.reshape(exact.shape) - exact).max() / np.abs(exact).max())
    plan = qdq_placement.plan(model, "openvino")
    named = {node.name: node.op_type for node in model.graph.node}
    quantized = collections.Counter(named[site.node] for site in plan.weights)
    counted = {"original": counts.count(raw, spec).macs, "canonical": counts.count(model, spec).macs}
    return {
        "ok": error <= from_torch.max_rel_error(torch_error) and set(counted.values()) == {macs},
        "fp32_rel_error": error,
        "torch_fp32_rel_error": torch_error,
        "macs": macs,
        "macs_counted": counted,
        "convolutions": sum(op == "Conv" for op in named.values()),
        "quantized": dict(quantized),
        "in_float": dict(collections.Counter(plan.kept_float.values())),
        "residual_adds": len(plan.blocks),
        "fusable": len(plan.blocks) - len(plan.unfusable),
        "operators": dict(collections.Counter(named.values())),
    }


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: NDArray[Any] = opened.run(None, {opened.get_inputs()[0].name: x})[0]
    return logits


if __name__ == "__main__":
    main()
