"""The roofline by hand, and the table of GPUs against what their makers cannot both have printed."""

from __future__ import annotations

import pytest

from resdeploy.cost import gpus, json_parts, peak_graphs, roofline
from resdeploy.cost.cost import CostReport
from resdeploy.graph import counts
from resdeploy.records import Layer, Peaks, Roof

SHAPE = (16, 8, 2, 3)
# A convolution of it: 2 x 16 x 16 x 9 x 64 FLOPs; in FP32 it reads and writes 1,024 elements and has 2,304 weights.
FLOPS, MOVED = 2 * 16 * 16 * 9 * 64, 4 * (1024 + 1024 + 2304)


def machine(flops_s: float, bytes_s: float) -> Peaks:
    return Peaks(name="m", source="s", roofs={"fp32": Roof(rate=flops_s)}, bandwidth=Roof(rate=bytes_s))


def counted():
    return counts.count(peak_graphs.chain(*SHAPE), peak_graphs.spec(*SHAPE))


def test_the_slower_roof_bounds_a_layer() -> None:
    """Arithmetic at FLOPs over its rate, memory at bytes over its own, and at the ridge they are equal."""
    slow = roofline.roofline(counted(), machine(1e6, 1e9), "fp32").layers[0]
    assert (slow.flops, slow.moved_bytes) == (FLOPS, MOVED)
    assert slow.bound == "compute"
    assert slow.allowed_s == pytest.approx(FLOPS / 1e6)
    narrow = roofline.roofline(counted(), machine(1e12, 1e6), "fp32").layers[0]
    assert narrow.bound == "memory"
    assert narrow.allowed_s == pytest.approx(MOVED / 1e6)
    ridge = roofline.roofline(counted(), machine(FLOPS, MOVED), "fp32").layers[0]
    assert ridge.compute_s == ridge.memory_s == 1.0


def test_a_batch_multiplies_flops_and_activations_but_not_weights() -> None:
    """Which is why batches raise the intensity."""
    import dataclasses

    many = dataclasses.replace(counted(), batch_size=8)
    layer = roofline.roofline(many, machine(1.0, 1.0), "fp32").layers[0]
    assert (layer.flops, layer.moved_bytes) == (8 * FLOPS, 4 * (8 * 2048 + 2304))


def test_a_fused_kernel_is_one_row_and_foreign_kernels_are_kept_apart() -> None:
    """Times of layout changes are nobody's roof; a layer that no kernel names has no time, rather than another's."""
    kernels = [
        Layer(name="k0", kind="Conv", precision="fp32", time_s=2.0),
        Layer(name="copy", kind="Reorder", precision="fp32", time_s=0.5, role="reformat"),
        Layer(name="k1", kind="Conv", precision="fp32", time_s=3.0),
        Layer(name="again", kind="Conv", precision="fp32", time_s=0.25),
    ]
    layers = {"k0": ("conv0", "relu0"), "k1": ("conv1", "relu1", "pool"), "again": ("conv1",)}
    run = roofline.TracedRun(backend="b", kernels=tuple(kernels), layers_of=layers, p50_s=8.0)
    found = roofline.roofline(counted(), machine(FLOPS, 1e15), "fp32", run)
    assert [layer.name for layer in found.layers] == ["conv0", "conv1 + pool"]
    assert [layer.measured_s for layer in found.layers] == [2.0, 3.0]
    assert found.layers[0].reached == pytest.approx(0.5)
    assert found.other_s == 0.75
    assert found.reached == pytest.approx(found.allowed_s / 8.0)
    first = roofline.TracedRun(kernels=tuple(kernels[:1]), layers_of=layers)
    untimed = roofline.roofline(counted(), machine(1.0, 1.0), "fp32", first)
    assert untimed.layers[1].measured_s is None
    assert untimed.layers[1].reached is None


def test_operators_that_nobody_counted_make_the_time_a_lower_bound() -> None:
    """And a note says so, once a network; INT8 has operations and no floating-point ones."""
    import dataclasses

    partly = dataclasses.replace(counted(), unknown=("e (Einsum)", "f (Einsum)"))
    peaks = Peaks(name="m", source="s", roofs={p: Roof(rate=1.0) for p in ("fp32", "int8")}, bandwidth=Roof(rate=1.0))
    found = tuple(roofline.roofline(cost, peaks, p) for cost in (counted(), partly) for p in ("fp32", "int8"))
    document = json_parts.cost_document(CostReport(costs=(), peaks=peaks, rooflines=found), {})
    (note,) = (note for note in document["notes"] if "lower bound" in note)
    assert "2 operators" in note
    whole = json_parts.cost_document(CostReport(costs=(), peaks=peaks, rooflines=found[:2]), {})
    assert not any("lower" in note for note in whole["notes"])
    units = {row["of"]: row.get("unit") for row in document["roofs"]}
    assert units["arithmetic in fp32"] == "GFLOP/s"
    assert units["arithmetic in int8"] == "GOP/s"


@pytest.mark.parametrize("name", gpus.GPUS)
def test_a_gpus_roofs_are_dense_and_say_where_they_are_from(name: str) -> None:
    """Tensor cores since Turing do INT8 at twice FP16; a sparse figure beside a dense one would show as 1 or 4."""
    found = gpus.GPUS[name]
    assert found.roofs["int8"].rate / found.roofs["fp16"].rate == pytest.approx(2, rel=0.03)
    assert found.roofs["fp16"].rate > found.roofs["fp32"].rate
    if "bf16" in found.roofs:
        assert found.roofs["bf16"].rate == found.roofs["fp16"].rate
    else:
        assert found.missing["bf16"]
    assert "NVIDIA" in found.source
    (note,) = found.notes
    assert note == "its roofs are unverified: they were written down without its data sheet"
    assert not found.measured
