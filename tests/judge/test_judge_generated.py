"""Compilers that generate kernels name a convolution in several: the audit of what TensorRT-RTX tells, all by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from resdeploy.backends import inspector, rtx_layers
from resdeploy.graph import intent
from resdeploy.judge import fusion
from resdeploy.records import Audit, Check, Target
from tests.doubles import rtx_log

PLANE = rtx_log.SIZE**2


def audited(
    kernels: Sequence[rtx_log.Kernel],
    model: onnx.ModelProto | None,
    asked: str,
    placed_for: Target | None = None,
    target: Target = "tensorrt",
) -> Audit:
    found = inspector.parse(rtx_layers.read(rtx_log.log(kernels)), "log")
    graph = None if model is None else intent.of(model)
    return fusion.judge(
        "small", found.layers, intent=graph, asked=asked, bindings=found.bindings, placed_for=placed_for,  # type: ignore[arg-type]
        target=target,
    )  # fmt: skip


def checks(result: Audit) -> dict[str, tuple[str, float | None, float | None]]:
    return {check.name: (check.state, check.observed, check.limit) for check in result.verdict.checks}


def check(result: Audit, name: str) -> Check:
    return next(found for found in result.verdict.checks if found.name == name)


@pytest.mark.parametrize("graph", [rtx_log.graph(), None], ids=["against the graph", "alone"])
def test_a_kernel_that_prepares_a_convolution_is_not_its_home(graph: onnx.ModelProto | None) -> None:
    """The stem is named by the cast before it, and its activation too; events between streams are no kernels."""
    result = audited(rtx_log.HALF, graph, "fp16")
    assert result.verdict.state == "pass", result.verdict.checks
    assert {state for state, *_ in checks(result).values()} == {"pass"}
    (block,) = result.blocks
    assert block.inside == {"bias": True, "activation": True, "sum": True} if graph else block.fused
    assert result.kernels == 5
    assert not any("name none" in note for note in result.notes)


def test_what_kernels_move_is_counted_in_bytes() -> None:
    """By hand: the image in floats, then six channels in two bytes each, the sum's kernel with two operands."""
    result = audited(rtx_log.HALF, rtx_log.graph(), "fp16")
    tensor = 6 * PLANE * 2
    assert result.activation_bytes == 3 * PLANE * 4 + (1 + 2 + 2 + 3 + 2) * tensor
    assert (result.blocks[0].kernels, result.blocks[0].activation_bytes) == (2, 5 * tensor)


def test_scales_per_channel_leave_all_but_the_product_to_later_kernels() -> None:
    result = audited(rtx_log.PER_CHANNEL, rtx_log.graph("skip"), "int8")
    assert checks(result) == {
        "residual blocks fused": ("fail", 0, 1),
        "residual adds in int8": ("fail", 0, 1),
        "convolutions in the precision asked for": ("pass", 4, 4),
        "INT8 convolutions that write INT8": ("fail", 0, 4),
        "Q/DQ left over as kernels": ("pass", 0, 0),
        "biases inside their convolution": ("fail", 0, 4),
        "activations inside their convolution": ("fail", 0, 2),
    }
    (block,) = result.blocks
    assert block.inside == {"bias": False, "activation": False, "sum": False, "requantization": False}
    assert block.conv_precisions == ("int8", "int8")
    assert block.executed_as == (
        "one [int8 -> fp32]", "one.relu [fp32 -> int8]", "two [int8 -> fp32]", "add + add.relu [fp32 -> int8]",
    )  # fmt: skip
    assert block.kernels == 4
    assert block.activation_bytes == 6 * PLANE * (5 + 5 + 5 + 6)


def test_one_scale_a_tensor_fuses_the_sum_and_leaves_quantizers() -> None:
    """The sum is asked for in FP16, as its operands are; each quantizer is a kernel, the one at the input no fault."""
    result = audited(rtx_log.PER_TENSOR, rtx_log.graph("no skip"), "int8")
    assert checks(result) == {
        "residual blocks fused": ("pass", 1, 1),
        "residual adds in the precision asked for": ("pass", 1, 1),
        "convolutions in the precision asked for": ("pass", 4, 4),
        "INT8 convolutions that write INT8": ("fail", 0, 4),
        "Q/DQ left over as kernels": ("fail", 3, 0),
        "biases inside their convolution": ("pass", 4, 4),
        "activations inside their convolution": ("pass", 2, 2),
    }
    (block,) = result.blocks
    assert (block.precision, block.asked) == ("fp16", "fp16")
    assert block.inside == {"bias": True, "activation": True, "sum": True, "requantization": False}
    assert block.kernels == 4


def test_a_float_sum_asks_for_the_type_of_its_operands() -> None:
    assert intent.of(rtx_log.graph("no skip")).asked["add"] == "fp16"
    assert intent.of(rtx_log.graph("no skip", half=False)).asked["add"] == "fp32"


def test_kernels_without_a_word_of_what_they_run_are_no_pass() -> None:
    """Their names spell their operations: those that only move or quantize are known, of others nothing is."""
    bare = [(kind, name, reads, writes, "") for kind, name, reads, writes, _ in rtx_log.PER_TENSOR if kind == "kgen"]
    named = [kernel for kernel in rtx_log.PER_TENSOR if kernel[0] != "kgen"]
    graph = rtx_log.graph("no skip")
    assert check(audited([*bare, *named], graph, "int8"), "Q/DQ left over as kernels").observed == 3
    odd: rtx_log.Kernel = ("kgen", "__myl_Fused", "q:x", "h:y", "")
    left = check(audited([odd, *named], graph, "int8"), "Q/DQ left over as kernels")
    assert (left.state, left.note) == ("inconclusive", "not known: __myl_Fused_myl0_0")
    moves: rtx_log.Kernel = ("kgen", "__myl_TranMove", "q:x", "q:y", "")
    assert check(audited([moves, *named], graph, "int8"), "Q/DQ left over as kernels").state == "pass"


def test_a_kernel_that_adds_a_bias_and_quantizes_does_not_only_quantize() -> None:
    """Of a convolution without an activation, beside whose name it has a quantizer's alone."""
    names = {"stem.relu stem stem.relu.out/Q": "stem stem.relu.out/Q"}
    kernels = [(*kernel[:4], names.get(kernel[4], kernel[4])) for kernel in rtx_log.PER_CHANNEL]
    result = audited(kernels, rtx_log.graph("skip"), "int8")
    assert check(result, "Q/DQ left over as kernels").observed == 0
    assert check(result, "biases inside their convolution").observed == 0


def test_an_activation_in_the_kernel_of_what_reads_it_takes_none_of_its_own() -> None:
    """The last activation of a pre-activation network, with the pooling behind it; alone it would be one."""
    last = ("correlation", "two", "h:c h:b", "h:d0", "two add")
    with_reader = [*rtx_log.HALF[:5], last, ("kgen", "__myl_ReluMean", "h:d0", "h:head.out", "add.relu head")]
    assert audited(with_reader, rtx_log.graph(), "fp16").verdict.state == "pass"
    alone = [*rtx_log.HALF[:5], last, ("kgen", "__myl_Relu", "h:d0", "h:d", "add.relu"), rtx_log.HALF[-1]]
    (block,) = audited(alone, rtx_log.graph(), "fp16").blocks
    assert (block.fused, block.reason) == (False, "add.relu runs as a kernel of its own")


def test_a_convolution_that_two_kernels_compute_is_not_known() -> None:
    twice = [*rtx_log.HALF, ("correlation", "stem_again", "h:a", "h:z", "stem")]
    result = audited(twice, rtx_log.graph(), "fp16")
    assert check(result, "convolutions in the precision asked for").note == "not known: stem"
    assert result.verdict.state == "inconclusive"


def test_a_file_for_this_runtime_is_not_sent_back_to_be_quantized_for_it() -> None:
    model = rtx_log.graph("skip")
    (strange,) = audited(rtx_log.PER_CHANNEL, model, "int8").blocks
    assert "--target tensorrt " in strange.remedy
    (own,) = audited(rtx_log.PER_CHANNEL, model, "int8", placed_for="tensorrt").blocks
    assert "--target" not in own.remedy
    assert "--precision fp16" in own.remedy


def test_where_int8_gains_nothing_fp16_is_advised_although_every_sum_is_inside() -> None:
    """Said of the form of INT8 that is meant for TensorRT-RTX, whose convolutions never write INT8, and of no other."""
    model = rtx_log.graph("no skip")
    own = audited(rtx_log.PER_TENSOR, model, "int8", "tensorrt-rtx", "tensorrt-rtx")
    assert (own.blocks[0].fused, own.blocks[0].remedy) == (True, "")
    advice = [note for note in own.notes if note.endswith("resdeploy quantize F.onnx --precision fp16")]
    assert len(advice) == 1
    other = audited(rtx_log.PER_TENSOR, model, "int8", "tensorrt", "tensorrt-rtx")
    assert not set(advice) & set(other.notes)
    assert not any(
        "fp16" in note for note in audited(rtx_log.HALF, rtx_log.graph(), "fp16", None, "tensorrt-rtx").notes
    )


def test_a_sum_of_two_quantized_operands_is_told_where_pairs_belong_on_rtx() -> None:
    """It adds in floats, so that no operand of the kernel is INT8; what the graph quantizes before the sum tells.

    Seen of 1.7.1.116 (tests/rtx/test_fixed_graphs.py): a pair on the main operand ends the convolution, one on the skip
    does not.
    """
    (block,) = audited(rtx_log.BOTH, rtx_log.graph("both"), "int8", "tensorrt", "tensorrt-rtx").blocks
    assert block.fused is False
    assert block.reason == "the convolution's result is quantized before the sum, so that the convolution ends there"
    assert block.remedy.startswith("Q/DQ belongs on neither operand. Quantize the FP32 file for this runtime")
    assert "--target tensorrt-rtx" in block.remedy
    (block,) = audited(rtx_log.ON_SKIP, rtx_log.graph("skip"), "int8", "tensorrt", "tensorrt-rtx").blocks
    assert (block.fused, block.precision) == (True, "fp16")
    assert block.remedy.startswith("This compiler adds in floats, and Q/DQ belongs on neither operand. Quantize")


def test_a_generated_kernel_that_names_a_quantizer_called_after_a_convolution_does_not_convolve() -> None:
    """`conv2.out/Q` comes first in its words, and leads back to no convolution: conv2 has its kernel."""

    def renamed(text: str) -> str:
        return text.replace("two", "conv2").replace("stem.relu.out/DQ conv2.out/Q", "conv2.out/Q stem.relu.out/DQ")

    model = rtx_log.graph("both")
    for node in model.graph.node:
        node.name = node.name.replace("two", "conv2")
    kernels: list[rtx_log.Kernel] = [(*kernel[:4], renamed(kernel[4])) for kernel in rtx_log.BOTH]
    result = audited(kernels, model, "int8", target="tensorrt-rtx")
    assert checks(result)["convolutions in the precision asked for"] == ("pass", 4, 4)
    assert result.blocks[0].fused is False


def test_an_activation_of_five_nodes_in_one_kernel_is_one_activation() -> None:
    """GELU as exporters write it, inside its convolution, and as a kernel behind it."""
    model = rtx_log.graph()
    gelu = [
        helper.make_node("Div", ["one.out", "root2"], ["g1"], "g.div"),
        helper.make_node("Erf", ["g1"], ["g2"], "g.erf"),
        helper.make_node("Add", ["g2", "unit"], ["g3"], "g.add"),
        helper.make_node("Mul", ["one.out", "g3"], ["g4"], "g.mul"),
        helper.make_node("Mul", ["g4", "half"], ["one.relu.out"], "g.half"),
    ]
    at = next(i for i, node in enumerate(model.graph.node) if node.name == "one.relu")
    nodes = [*model.graph.node[:at], *gelu, *model.graph.node[at + 1 :]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in {"root2": 2**0.5, "unit": 1, "half": 0.5}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float16), name))
    words = "g.half g.mul g.add g.div g.erf"
    fused = ("runtime_fusion", "__myl_CorrDivCastErfCastAddMulMul", "h:b", "h:c", f"{words} one")
    inside = audited([*rtx_log.HALF[:3], fused, *rtx_log.HALF[4:]], model, "fp16")
    assert checks(inside)["activations inside their convolution"] == ("pass", 2, 2)
    assert inside.verdict.state == "pass"
    apart = (("correlation", "one", "h:b", "h:c0", "one"), ("kgen", "__myl_DivErfAddMulMul", "h:c0", "h:c", words))
    found = check(
        audited([*rtx_log.HALF[:3], *apart, *rtx_log.HALF[4:]], model, "fp16"), "activations inside their convolution"
    )
    assert (found.state, found.observed, found.note) == ("fail", 1, "a kernel of its own: g.half")
