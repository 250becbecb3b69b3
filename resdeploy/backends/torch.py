"""PyTorch, eager, on the CPU: the reference that everything else is compared with.

Nothing is folded, fused or compiled, unless `Execution.compiled` asks for torch.compile: this is the network that
training saw. Only the memory layout is the fast one, channels last; it moves ResNet-50's FP32 logits by 2e-6 at a
magnitude of 7. FP16 and BF16 are casts of the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from resdeploy import packages
from resdeploy.backends import Tensor, installed_version, machine, no_check, no_preparation
from resdeploy.errors import MissingInput
from resdeploy.models import weights, zoo
from resdeploy.records import Artifact, Availability, Execution, Format, Layer, ModelSpec, Precision, Target, Weights

if TYPE_CHECKING:
    from torch import nn

    from resdeploy.backends import Arrays

VENDOR = "torch"
PACKAGES: tuple[str, ...] = ("torch",)
SOURCE: Format = "checkpoint"
FORMAT: Format = "checkpoint"
SUFFIXES: tuple[str, ...] = (".safetensors",)
TAG = b""
PROGRAM = FOREIGN = False
ACCEPTS: frozenset[Precision] = frozenset({"fp32", "fp16", "bf16"})
TARGET: Target | None = None
HEEDS = frozenset({"compiled"})
check, prepare = no_check, no_preparation


def available() -> Availability:
    """Whether the package is installed."""
    version = installed_version(VENDOR)
    if version is None:
        return Availability(ok=False, reason="the package torch is not installed", install=packages.install(VENDOR))
    return Availability(ok=True, version=version, devices=("CPU",))


def build(source: Artifact, execution: Execution, out: Path) -> Artifact:
    """A safetensors checkpoint of the same network, to run in the execution's precision.

    Raises:
        MissingInput: nothing says which network the checkpoint belongs to.
        FactoryRefused: the network is made by a factory that nobody typed.
        PickleRefused, MalformedInput, WeightsMismatch: the checkpoint is unsafe, damaged, or of another network.
    """
    spec = _spec(source)
    origin = source.weights or Weights(source=Path(source.path).name, sha256=source.sha256)
    artifact = weights.save(_network(source), spec, out, origin)
    return dataclasses.replace(artifact, precision=execution.precision, parent=source.sha256)


@contextlib.contextmanager
def open(built: Artifact, execution: Execution, *, trace: bool = False) -> Iterator[_Loaded]:  # noqa: A001
    """Loads the checkpoint; tracing needs no preparation.

    Raises:
        As `build`.
    """
    import torch

    threads = max(1, (execution.threads or machine.usable_cores()) // execution.streams)
    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[execution.precision]
    network = _network(built).to(dtype)
    # torch declares this overload for tensors only.
    network = cast("Any", network).to(memory_format=torch.channels_last)
    spec = _spec(built)
    shape = (execution.batch_size, *(execution.input_shape or spec.input_shape))
    # Traced runs hook the modules, which a compiled network does not call.
    if execution.compiled and not trace:
        network = cast("Any", torch.compile(network))
    yield _Loaded(network, dtype, shape, spec.classes, threads)


def _spec(source: Artifact) -> ModelSpec:
    spec = source.model or weights.spec_in(Path(source.path))
    if spec is None:
        raise MissingInput(
            f"nothing says which network {source.path} belongs to",
            cause="It has neither a sidecar nor our description inside",
            fix="Name the model and give the file with --weights",
        )
    return spec


def _network(source: Artifact) -> nn.Module:
    network = zoo.create(_spec(source))
    weights.load_into(network, Path(source.path))
    return network


class _Loaded:
    def __init__(self, network: nn.Module, dtype: Any, shape: tuple[int, ...], classes: int, threads: int) -> None:
        self.network, self.dtype = network, dtype
        self.inputs = {"input": Tensor(shape=shape, dtype="float32")}
        self.outputs = {"logits": Tensor(shape=(shape[0], classes), dtype="float32")}
        self.settings: Mapping[str, str] = {
            "num_threads": str(threads),
            "dtype": str(dtype).removeprefix("torch."),
            "memory_format": "channels_last",
            "mode": "torch.compile" if hasattr(network, "_orig_mod") else "eager",
        }

    def session(self) -> _Session:
        return _Session(self.network, self.dtype, self.inputs["input"].shape)

    def layers(self) -> Sequence[Layer]:
        """The modules that compute, in order, timed in one run of their own."""
        import torch

        layers: list[Layer] = []
        handles = []
        precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]

        def watch(name: str, module: nn.Module) -> None:
            starts: list[float] = []

            def after(*_: object) -> None:
                seconds = time.perf_counter() - starts.pop()
                kind = type(module).__name__
                layers.append(Layer(name=name, kind=kind, precision=precision, sources=(name,), time_s=seconds))

            handles.append(module.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())))
            handles.append(module.register_forward_hook(after))

        for name, module in self.network.named_modules():
            if not any(module.children()):
                watch(name, module)
        try:
            self.session().run()
        finally:
            for handle in handles:
                handle.remove()
        return layers


class _Session:
    def __init__(self, network: nn.Module, dtype: Any, shape: tuple[int, ...]) -> None:
        import torch

        self.torch, self.network = torch, network
        self.input = torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        self.logits: Any = None

    def put(self, inputs: Arrays) -> None:
        self.input.copy_(self.torch.from_numpy(inputs["input"]))

    def run(self) -> None:
        with self.torch.inference_mode():
            self.logits = self.network(self.input)

    def get(self) -> Arrays:
        return {"logits": self.logits.float().numpy()}

    def device_time_s(self) -> float | None:
        return None
