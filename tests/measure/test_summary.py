"""Statistics of a measurement: percentiles, throughput, validity, speed-ups."""

from __future__ import annotations

import numpy as np
import pytest

from resdeploy.measure import summary
from resdeploy.records import Block, Execution, Measurement


def measured(blocks, *, label="m", batch_size=1, streams=1, put_s=0.0, wall_s=None):
    return Measurement(
        label=label,
        model="m",
        backend="null",
        precision="fp32",
        batch_size=batch_size,
        scenario="single-stream" if streams == 1 else "offline",
        sha256="0" * 64,
        execution=Execution(batch_size=batch_size, streams=streams),
        blocks=tuple(
            Block(
                put_s=(put_s,) * len(times),
                run_s=tuple(times),
                get_s=(0.0,) * len(times),
                started_s=0.0,
                wall_s=wall_s if wall_s is not None else sum(times),
            )
            for times in blocks
        ),
    )


def noisy(median_s, *, blocks=16, queries=60, noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    return [(median_s * rng.normal(1, noise, queries)).tolist() for _ in range(blocks)]


def test_percentiles_are_order_statistics_of_all_times():
    """Against sorting by hand: p99 of 1 to 1000 ms is the 990th."""
    times = np.random.default_rng(0).permutation(np.arange(1, 1001)) / 1000
    found = summary.summarise(measured(times.reshape(20, 50).tolist())).latency_s
    assert {name: found[name] for name in ("p50", "p90", "p95", "p99", "min", "max")} == {
        "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "min": 0.001, "max": 1.0,
    }  # fmt: skip
    assert found["mean"] == pytest.approx(0.5005)
    assert found["std"] == pytest.approx(np.std(times, ddof=1))


@pytest.mark.parametrize(
    ("queries", "known"), [(63, []), (64, ["p90"]), (661, ["p90", "p95"]), (662, ["p90", "p95", "p99"])]
)
def test_a_percentile_without_the_samples_it_needs_is_null_with_a_warning(queries, known):
    """MLPerf's numbers: 64 queries for p90, 662 for p99."""
    (times,) = noisy(0.01, blocks=1, queries=queries)
    found = summary.summarise(measured(np.array_split(times, 10)))
    assert [name for name in ("p90", "p95", "p99") if found.latency_s[name] is not None] == known
    for name in {"p90", "p95", "p99"} - set(known):
        assert any(warning.startswith(f"{name} needs ") for warning in found.warnings)


def test_throughput_is_images_over_wall_time():
    """Copies and gaps count: 10 queries of 4 images in 2 s of wall time are 20 images/s."""
    assert summary.summarise(measured([[0.1] * 10], batch_size=4, wall_s=2.0)).throughput_ips == pytest.approx(20)


def test_end_to_end_includes_the_copies():
    """Latency is compute alone, end to end adds host to device and back."""
    found = summary.summarise(measured([[0.010] * 5] * 9, put_s=0.005))
    assert found.latency_s["p50"] == 0.010
    assert found.end_to_end_p50_s == pytest.approx(0.015)


def test_the_median_lies_in_its_interval_and_one_block_has_none():
    """Blocks are what is resampled, so a single one gives no interval."""
    found = summary.summarise(measured(noisy(0.01)))
    assert found.p50_ci95_s is not None
    low, high = found.p50_ci95_s
    assert found.latency_s["p50"] is not None
    assert low <= found.latency_s["p50"] <= high
    assert summary.summarise(measured([[0.01, 0.02]])).p50_ci95_s is None


def test_a_clean_run_is_valid():
    """1 % of normal noise is nothing to doubt."""
    found = summary.summarise(measured(noisy(0.01)))
    assert found.valid
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda t: t * np.linspace(1, 1.05, 16)[:, None], "drifted"),
        (lambda t: t * np.where(np.arange(16) == 0, 1.2, 1)[:, None], "first block"),
        (lambda t: t * np.where(np.arange(60) % 3 == 0, 1.3, 1), "two groups"),
        (lambda t: t * np.where(np.arange(60) % 20 == 0, 3, 1), "far from the rest"),
        (lambda t: 0.01 + (t - 0.01) * 25, "spread"),
        (lambda t: t[:4], "4 blocks"),
    ],
)
def test_each_way_to_be_unstable_is_named_with_a_remedy(spoil, word):
    """Not valid, and the reason is in the warnings."""
    found = summary.summarise(measured(spoil(np.array(noisy(0.01))).tolist()))
    assert not found.valid
    assert any(word in warning and ";" in warning for warning in found.warnings), found.warnings


def test_a_disturbed_run_is_invalid():
    """Another program on the machine, or throttling: no speed is claimed, and the reason is said."""
    import dataclasses

    disturbed = dataclasses.replace(measured(noisy(0.01)), disturbances=("other processes took 50%",))
    found = summary.summarise(disturbed)
    assert found.warnings == ("other processes took 50%",)
    assert not found.valid


def test_a_true_speed_up_is_found_with_an_interval_that_holds_it():
    """30 ms against 10 ms is 3x, and the interval says faster."""
    slow, fast = measured(noisy(0.03, seed=1), label="slow"), measured(noisy(0.01, seed=2), label="fast")
    found = summary.compare(slow, fast)
    assert (found.baseline, found.candidate) == ("slow", "fast")
    assert found.speedup_ci95 is not None
    low, high = found.speedup_ci95
    assert low < 3 < high
    assert low <= found.speedup <= high
    assert found.different
    assert summary.compare(fast, slow).speedup == pytest.approx(1 / found.speedup)


def test_two_equal_models_show_no_difference():
    """Equal up to noise: at most 5 % of pairs may be called different."""
    wrong = sum(
        summary.compare(measured(noisy(0.01, seed=2 * n)), measured(noisy(0.01, seed=2 * n + 1))).different
        for n in range(20)
    )
    assert wrong <= 1


def test_batches_compare_by_image():
    """A batch of 8 in 40 ms is twice as fast as one image in 10 ms."""
    found = summary.compare(measured(noisy(0.01)), measured(noisy(0.04), batch_size=8))
    assert found.speedup == pytest.approx(2, rel=0.02)


def test_offline_compares_wall_time_an_image():
    """Two sessions that each take 10 ms side by side are twice one: their latencies are equal."""
    one = measured(noisy(0.01))
    two = measured(noisy(0.01), streams=2, wall_s=60 * 0.01 / 2)
    assert summary.compare(one, two).speedup == pytest.approx(2, rel=0.02)


def test_an_unstable_side_makes_no_claim():
    """However large the ratio, an invalid side is no difference found."""
    drifting = (np.array(noisy(0.01)) * np.linspace(1, 1.2, 16)[:, None]).tolist()
    found = summary.compare(measured(noisy(0.05)), measured(drifting))
    assert found.speedup > 4
    assert not found.valid
    assert not found.different
