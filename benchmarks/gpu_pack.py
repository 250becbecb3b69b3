"""What the GPU suite needs, made small enough to travel: graphs without their weights, and real images.

    python benchmarks/gpu_pack.py --out gpu-suite [--shared ../shared] [--networks resnet50,...]

Large initialisers are left out and described by shape, seed and deviation; `fill` makes them again with numpy, the same
on every machine. The INT8 graphs keep their Q/DQ scales, which were calibrated on exactly these weights. Only the CIFAR
nets travel with their real weights, and with test images to measure agreement on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy import store
from resdeploy.deploy import export, lower
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.records import Artifact, Precision

IMAGENET = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152")
CIFAR = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
LARGE = 4096  # values; biases, scales and zero points stay
IMAGES, CIFAR_IMAGES = 32, 1000
SEED_KEY = "resdeploy.seeded"


def deviation(shape: tuple[int, ...]) -> float:
    """He et al. 2015, equation 10: the fan-in keeps activations of one size through the network."""
    return float(np.sqrt(2.0 / np.prod(shape[1:]))) if len(shape) > 1 else 0.01


def seeded(name: str, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """The weight of that name: normal, from a seed of the name's own."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return (rng.standard_normal(shape, np.float32) * np.float32(spread)).astype(np.float32)


def give_seeded_weights(model: onnx.ModelProto) -> None:
    """Replaces each large weight by its seeded one, in place; the last convolution of a block a fifth as large.

    Without batch normalisation a sum of branches grows with depth: a smaller last convolution keeps it finite in FP16.
    """
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims) >= LARGE and tensor.data_type == onnx.TensorProto.FLOAT:
            shape = tuple(tensor.dims)
            last = tensor.name.endswith(("conv3.weight", "conv2.weight")) and "layer" in tensor.name
            spread = deviation(shape) * (0.2 if last else 1.0)
            tensor.CopyFrom(numpy_helper.from_array(seeded(tensor.name, shape, spread), tensor.name))


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without what `seeded` makes again; which tensors those are is in its metadata."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    left: dict[str, list[float]] = {}
    for tensor in light.graph.initializer:
        if np.prod(tensor.dims) < LARGE:
            continue
        name = tensor.name.removesuffix("/weight") + ".weight" if tensor.name.endswith("/weight") else tensor.name
        last = name.endswith(("conv3.weight", "conv2.weight")) and "layer" in name
        left[tensor.name] = [zlib.crc32(name.encode()), deviation(tuple(tensor.dims)) * (0.2 if last else 1.0)]
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    entry = light.metadata_props.add()
    entry.key, entry.value = SEED_KEY, json.dumps(left)
    return light


def fill(model: onnx.ModelProto) -> onnx.ModelProto:
    """Puts the seeded weights back, in the type that each tensor has."""
    left = json.loads(next(p.value for p in model.metadata_props if p.key == SEED_KEY))
    for tensor in model.graph.initializer:
        if tensor.name in left:
            seed, spread = left[tensor.name]
            rng = np.random.Generator(np.random.PCG64(int(seed)))
            values = (rng.standard_normal(tuple(tensor.dims), np.float32) * np.float32(spread)).astype(np.float32)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
    kept = [p for p in model.metadata_props if p.key != SEED_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


def lowered(source: Artifact, precision: Precision, calibration: str, out: Path) -> Artifact:
    plan = CalibrationPlan(data=calibration, samples=64)
    return lower.lower(source, precision, "tensorrt", plan, out, progress=quiet)


def pack_network(name: str, out: Path, img_size: int | None) -> list[dict[str, Any]]:
    """One ImageNet network in three precisions, without weights."""
    work = out / f".{name}.onnx"
    source = export.to_onnx(
        Request(model=name, override=PreprocessingOverride(img_size=img_size)), work, progress=quiet
    )
    model = onnx.load(work)
    give_seeded_weights(model)
    onnx.save(model, work)
    source = dataclasses.replace(source, sha256=store.digest(work), checks={})
    rows: list[dict[str, Any]] = []
    for precision in ("fp32", "fp16", "int8"):
        path = work if precision == "fp32" else out / f".{name}.{precision}.onnx"
        made = source if precision == "fp32" else lowered(source, precision, "synthetic:16", path)
        light = strip(onnx.load(path))
        (out / f"{name}.{precision}.onnx").write_bytes(light.SerializeToString())
        rows.append(
            {"network": name, "precision": precision, "seeded": True, "classes": 1000, "notes": list(made.notes)}
        )
        for left in (path, store.sidecar(path)):
            if precision != "fp32":
                left.unlink(missing_ok=True)
    for left in (work, store.sidecar(work)):
        left.unlink(missing_ok=True)
    return rows


def pack_cifar(name: str, weights: Path, data: Path, out: Path) -> list[dict[str, Any]]:
    """One CIFAR net in three precisions, with its trained weights."""
    work = out / f"{name}.fp32.onnx"
    source = export.to_onnx(Request(model=name, weights=str(weights)), work, progress=quiet)
    rows: list[dict[str, Any]] = []
    for precision in ("fp32", "fp16", "int8"):
        if precision != "fp32":
            lowered(source, precision, str(data / "train"), out / f"{name}.{precision}.onnx")
        store.sidecar(out / f"{name}.{precision}.onnx").unlink()
        rows.append({"network": name, "precision": precision, "seeded": False, "classes": 10, "notes": []})
    return rows


def inputs(folder: str, size: int, count: int) -> dict[str, Any]:
    """Pixels of real images as the networks see them, (N, H, W, 3) uint8, with the means and deviations of channels."""
    from resdeploy.data import datasets, loading
    from resdeploy.models import zoo

    spec = zoo.spec("resnet50" if size > 32 else "resnet20").preprocessing
    assert spec is not None
    if size > 32 and spec.size != (size, size):
        spec = dataclasses.replace(spec, size=(size, size), resize=max(size, spec.resize or size))
    images = datasets.open_dataset(folder, split="test", need_labels=False)
    images = datasets.choose(images, min(count, len(images)), 0)
    pixels = loading.load_pixels(images, spec)
    return {"pixels": pixels.values, "mean": np.array(spec.mean), "std": np.array(spec.std)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-suite"))
    parser.add_argument(
        "--shared", type=Path, default=Path("../shared"), help="real weights and images; left out if absent"
    )
    parser.add_argument("--networks", default=",".join((*IMAGENET, *CIFAR)))
    parser.add_argument("--img-size", type=int, help="of the ImageNet networks, for a quick try")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    data = args.shared / "data"
    for name in args.networks.split(","):
        if name not in CIFAR:
            rows += pack_network(name, args.out, args.img_size)
        elif data.is_dir():
            rows += pack_cifar(name, data / "weights" / CIFAR[name], data / "cifar10", args.out)
        print(f"packed {name}")
    if data.is_dir():
        size = args.img_size or 224
        np.savez_compressed(args.out / "imagenet.npz", **inputs(str(data / "imagenet-samples"), size, IMAGES))
        np.savez_compressed(args.out / "cifar10.npz", **inputs(str(data / "cifar10"), 32, CIFAR_IMAGES))
    (args.out / "suite.json").write_text(json.dumps({"rows": rows, "img_size": args.img_size or 224}, indent=1))
    total = sum(path.stat().st_size for path in args.out.iterdir() if path.is_file())
    print(f"{len(rows)} graphs, {total / 1e6:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
