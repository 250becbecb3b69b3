"""What a fusion audit says of a block that is not as was asked: the reason, and the next command.

A command is named only where it changes something: a file that was quantized for this runtime is not sent back to be
quantized for it. What then is left is the float file, which runtimes fuse best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resdeploy.graph.residual import ResidualBlock
from resdeploy.records import BlockAudit, Layer

WIDTH = {"int8": 1, "uint8": 1, "fp8": 1, "fp16": 2, "bf16": 2, "fp32": 4}
UNKNOWN = "unknown"
ON_CPUS = ("openvino", "onnxruntime")  # which have no kernels in FP16 for all of a CNN


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Why a block is not as was asked, and what to do; "" where that is not known."""

    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """Those for one audited model."""

    layers: Sequence[Layer]
    asked: str
    target: str | None  # whose fusion rules the runtime follows
    placed_for: str | None  # for which runtime the file's Q/DQ were placed; None: unknown
    against_graph: bool

    @property
    def place_anew(self) -> str:
        """What to do about Q/DQ that do not suit this runtime."""
        if self.target is None or self.target != self.placed_for:
            option = f" --target {self.target}" if self.target else ""
            return f"Quantize the FP32 file for this runtime: resdeploy quantize F.onnx{option} --calib-data DIR"
        if self.target in ON_CPUS:
            return "Its Q/DQ are placed for this runtime already: compare with the FP32 file by resdeploy bench"
        return (
            "Its Q/DQ are placed for this runtime already, and floats may move fewer bytes: audit and time "
            "resdeploy quantize F.onnx --precision fp16"
        )

    def for_silence(self, add: str) -> Finding:
        """No kernel names the sum."""
        steps = []
        if not any(layer.kind for layer in self.layers):
            steps.append("build with resdeploy build, which asks for detailed layer information")
        if not self.against_graph:
            steps.append("add --against F.onnx")
        remedy = "; ".join(steps)
        return Finding(
            reason=f"no kernel says that it computes {add}", remedy=remedy[:1].upper() + remedy[1:],
        )  # fmt: skip

    def for_unfused_sum(self, block: ResidualBlock, adder: Layer, *, rounded: bool) -> Finding:
        """The sum ran outside the block's convolutions.

        Args:
            block: whose sum it is.
            adder: the kernel that it ran in.
            rounded: the graph quantizes what the last convolution gives, before the sum.
        """
        if self.target == "onnxruntime" and adder.kind == "QLinearAdd":
            return Finding(
                reason="ONNX Runtime adds 8-bit tensors in a kernel of its own, QLinearAdd",
                remedy="OpenVINO and TensorRT have a fused one: --backend openvino or tensorrt",
            )
        if block.last_conv is None:
            return Finding(reason="its main branch does not end in a convolution, which alone could take the sum in")
        if all(port.precision == "int8" for port in adder.inputs) and adder.inputs and self.target == "tensorrt":
            return Finding(
                reason="both operands are quantized, so that the convolution ends before the sum",
                remedy=f"Q/DQ belongs on the skip branch alone. {self.place_anew}",
            )
        # TensorRT-RTX adds in floats, so that its kernel reads none in INT8; a pair on the skip alone it lets pass.
        if rounded and self.target == "tensorrt-rtx":
            return Finding(
                reason="the convolution's result is quantized before the sum, so that the convolution ends there",
                remedy=f"Q/DQ belongs on neither operand. {self.place_anew}",
            )
        return Finding(
            reason=f"its sum is a kernel of its own ({adder.kind or 'kind unknown'})",
            remedy=self.place_anew if self.asked == "int8" else "Another runtime may fuse it: compare with --backend",
        )

    def for_parts_apart(self, nodes: Sequence[str], unfinished: Sequence[str]) -> Finding:
        """Activations, or what convolutions leave to a later kernel, ran in kernels of their own."""
        if unfinished:
            return Finding(
                reason=f"the bias or scales of {', '.join(unfinished)} run in a kernel of their own",
                remedy=self.place_anew if self.asked == "int8" else "",
            )
        return Finding(
            reason=f"{', '.join(nodes)} runs as a kernel of its own",
            remedy="Look for another reader of the tensor before it: one output for two readers is not fused",
        )

    def for_width(self, adder: Layer, audit: BlockAudit) -> Finding:
        """A fused sum ran in another precision than asked."""
        if audit.precision in (audit.asked, UNKNOWN):
            return Finding()
        reason = self._width(adder, audit)
        if audit.asked == "int8":
            how = "The skip branch and what reads the sum are to be INT8"
            if self.target == "tensorrt-rtx":
                how = "This compiler adds in floats, and Q/DQ belongs on neither operand"
            return Finding(reason=reason, remedy=f"{how}. {self.place_anew}")
        if self.target in ON_CPUS:
            return Finding(
                reason=reason, remedy=f"This runtime computes no {audit.asked} on this machine: ask for fp32 or int8"
            )
        if audit.asked == "fp32":
            return Finding(reason=reason, remedy="Build the FP32 file: the graph given asks for floats of 32 bits")
        return Finding(
            reason=reason, remedy=f"Cast the graph itself: resdeploy quantize F.onnx --precision {audit.asked}"
        )

    def _width(self, adder: Layer, audit: BlockAudit) -> str:
        if adder.precision == audit.precision:
            return f"its kernel computes in {adder.precision}"
        words = [f"its kernel multiplies in {adder.precision}"]
        for port in (p for p in adder.inputs[1:] if widest([p.precision]) == audit.precision):
            makers = [x.name for x in self.layers if x.role == "qdq" and port.name in {p.name for p in x.outputs}]
            words.append(f"reads its skip in {audit.precision}{f' from {makers[0]}' if makers else ''}")
        for port in adder.outputs:
            if widest([port.precision]) == audit.precision:
                readers = [x.name for x in self.layers if port.name and port.name in {p.name for p in x.inputs}]
                words.append(f"writes its sum in {audit.precision}{f' for {readers[0]}' if readers else ''}")
        return ", ".join(words)


def widest(precisions: Sequence[str]) -> str:
    """The widest of these types; unknown where one is not a type that CNNs compute in, or there are none."""
    if not precisions or any(precision not in WIDTH for precision in precisions):
        return UNKNOWN
    return max(precisions, key=WIDTH.__getitem__).replace("uint8", "int8")
