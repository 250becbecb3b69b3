"""Compilers that generate kernels name a convolution in several: the audit of what TensorRT-RTX tells, all by hand."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest

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
) -> Audit:
    found = inspector.parse(rtx_layers.read(rtx_log.log(kernels)), "log")
    graph = None if model is None else intent.of(model)
    return fusion.judge(
        "small", found.layers, intent=graph, asked=asked, bindings=found.bindings, placed_for=placed_for,  # type: ignore[arg-type]
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
