"""Networks whose activations stand before their convolutions: exported, quantized, run."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from resdeploy.backends import machine
from resdeploy.data import datasets
from resdeploy.graph import files, qdq_placement
from resdeploy.graph.canonical import form
from resdeploy.quantize import ptq
from resdeploy.records import Artifact, ModelSpec, Preprocessing, Target
from tests import quick
from tests.graph.conftest import torchscript as torchscript
from tests.graph.test_qdq_placement import quantized
from tests.quantize.test_ptq import calibration, here
from tests.sessions import session

pytest.importorskip("torch")

import torch

openvino = pytest.importorskip("openvino")

from resdeploy.models import preact, resnet  # noqa: E402

CIFAR20 = resnet.VARIANTS["resnet20"]
VARIANTS = {
    "preresnet20": preact.Variant(config=CIFAR20),
    "bottleneck": preact.Variant(config=dataclasses.replace(resnet.VARIANTS["resnet164"], depths=(2, 2, 2))),
    **{placement: preact.Variant(config=CIFAR20, placement=placement)
       for placement in ("bn_after_add", "relu_before_add", "relu_only")},
}  # fmt: skip
LAST = {"preresnet20": {f"layer{k}.2.add" for k in (1, 2, 3)}, "bottleneck": {f"layer{k}.1.add" for k in (1, 2, 3)}}
EVERY = {f"layer{k}.{n}.add" for k in (1, 2, 3) for n in range(3)}
# TensorRT: a sum that a batch norm alone reads stays float. A ReLU before the sum: it can be taken in nowhere.
UNFUSABLE: dict[str, dict[str, set[str]]] = {
    "preresnet20": {"tensorrt": LAST["preresnet20"]},
    "bottleneck": {"tensorrt": LAST["bottleneck"]},
    "bn_after_add": {"tensorrt": EVERY},
    "relu_before_add": {"tensorrt": EVERY, "tensorrt-rtx": EVERY, "openvino": EVERY, "onnxruntime": EVERY},
    "relu_only": {},
}


@functools.cache
def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return preact.PreActResNet(VARIANTS[name], classes=10).eval()


def spec(name: str) -> ModelSpec:
    preprocessing = Preprocessing(size=(32, 32))
    return ModelSpec(name=name, family="preresnet", classes=10, input_shape=(3, 32, 32), preprocessing=preprocessing)


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    """With natural statistics."""
    some = datasets.open_dataset("synthetic:32", need_labels=False)
    return next(iter(datasets.batches(some, Preprocessing(size=(32, 32)), 32))).inputs


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name -> the file that `export` makes."""

    @functools.cache
    def made(name: str) -> Artifact:
        out = tmp_path_factory.mktemp(name) / "fp32.onnx"
        return quick.export(network(name), spec(name), out)

    return made


def in_onnxruntime(opened: onnxruntime.InferenceSession, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return opened.run(None, {"input": x})[0]


def in_openvino(path: str | Path, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[dict[str, str]]]:
    """Logits, and what the executed graph says of its layers."""
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(x.shape))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    keys = ("layerType", "primitiveType", "originalLayersNames")
    layers = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    return compiled(x)[0], [{key: str(layer[key].value) for key in keys} for layer in layers]


def exact(name: str, x: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.no_grad():
        return copy.deepcopy(network(name)).double()(torch.from_numpy(x).double()).numpy()


@pytest.mark.parametrize("name", ["preresnet20", "bottleneck"])
def test_fp32_files_are_torch_in_both_runtimes(name: str, exported: Any, images: NDArray[np.float32]) -> None:
    """Within 1e-4 of the largest logit, with the batch norms that cannot be folded still there."""
    path = exported(name).path
    kinds = Counter(node.op_type for node in files.load_model(Path(path)).graph.node)
    assert kinds["BatchNormalization"] == kinds["Add"]  # one behind each sum; the others went into convolutions
    expected = exact(name, images)
    for found in (in_onnxruntime(session(path), images), in_openvino(path, images)[0]):
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["preresnet20", "bottleneck"])
@pytest.mark.parametrize("target", ["tensorrt", "openvino", "onnxruntime"])
def test_int8_files_are_close_to_torch_in_both_runtimes(
    name: str, target: Any, exported: Any, images: NDArray[np.float32], tmp_path: Path
) -> None:
    """Noise 15 dB and more under what distinguishes one image's logits from another's (the mean would flatter)."""
    out = tmp_path / "int8.onnx"
    asked = calibration(32, "percentile")
    quantized = ptq.quantize(
        exported(name),
        [images],
        ptq.FileOptions(portable=True),
        calibration=asked,
        target=target,
        out=out,
        run=here,
    )
    sums = quantized.checks["residual_adds"]
    assert sums - quantized.checks["fusable_adds"] == len(UNFUSABLE[name].get(target, ()))
    expected = exact(name, images)
    told = ((expected - expected.mean(axis=0)) ** 2).sum()
    computed = [in_onnxruntime(session(out, exactly=True), images)]
    if target != "tensorrt" or machine.cpu().vnni:  # a file for TensorRT has weights of full range
        computed += [in_onnxruntime(session(out), images), in_openvino(out, images)[0]]
    for found in computed:
        noise = ((found - expected) ** 2).sum()
        assert 10 * np.log10(told / noise) >= 15


@pytest.mark.parametrize("name", VARIANTS)
def test_the_sums_that_no_int8_kernel_takes_in_are_those_that_a_runtime_leaves_out(
    name: str, images: NDArray[np.float32], torchscript: Any, tmp_path: Path
) -> None:
    """The plan of each target by name; what OpenVINO and ONNX Runtime execute is what the plan says."""
    model = form.canonicalise(torchscript(network(name), (3, 32, 32), folded=False), whole=True)
    for target in get_args(Target):
        assert set(qdq_placement.plan(model, target).unfusable) == UNFUSABLE[name].get(target, set())
    sums = {node.name for node in model.graph.node if node.op_type == "Add"}
    onnx.save(quantized(model, "openvino"), tmp_path / "openvino.onnx")
    layers = in_openvino(tmp_path / "openvino.onnx", images)[1]
    kernels = [k for k in layers if k["layerType"] == "Convolution" and "I8" in k["primitiveType"]]
    inside = {node for kernel in kernels for node in kernel["originalLayersNames"].split(",")}
    assert sums - inside == UNFUSABLE[name].get("openvino", set())
    if name == "relu_before_add":
        return  # ONNX Runtime adds most of its activated branches in QLinearAdd: more than the plan promises
    onnx.save(quantized(model, "onnxruntime"), tmp_path / "onnxruntime.onnx")
    session(tmp_path / "onnxruntime.onnx", save=tmp_path / "optimised.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (kinds["QLinearAdd"], kinds["Add"]) == (len(sums), 0)
