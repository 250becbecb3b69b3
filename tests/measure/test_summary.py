"""Statistics of a measurement: percentiles, throughput, validity, speed-ups."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from resdeploy.measure import summary
from resdeploy.records import Block, Execution, Measurement, Replay


def measured(blocks, *, label="m", batch_size=1, streams=1, put_s=0.0, wall_s=None, processes=1, **of_blocks):
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
                started_s=float(of_blocks["started_s"][number]) if "started_s" in of_blocks else 0.0,
                wall_s=wall_s if wall_s is not None else sum(times),
                process=number * processes // len(blocks),
                **{name: values[number] for name, values in of_blocks.items() if name != "started_s"},
            )
            for number, times in enumerate(blocks)
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
    ],
)
def test_each_way_to_be_unsteady_is_named_with_a_remedy(spoil, word):
    """Valid all the same: the times are of this machine, and the reason is in the warnings."""
    found = summary.summarise(measured(spoil(np.array(noisy(0.01))).tolist()))
    assert found.valid
    assert any(word in warning and ";" in warning for warning in found.unsteady), found.warnings
    assert set(found.unsteady) <= set(found.warnings)


def test_too_few_turns_and_kept_results_make_a_row_invalid():
    """What makes a figure wrong, with its remedy."""
    few = summary.summarise(measured(noisy(0.01)[:4]))
    assert not few.valid
    assert any("4 blocks" in warning and ";" in warning for warning in few.warnings)
    replays = tuple(Replay(fresh_s=(0.01,) * 20, replayed_s=(0.005,) * 20) for _ in range(2))
    kept = summary.summarise(dataclasses.replace(measured(noisy(0.01)), replays=replays))
    assert not kept.valid
    assert any("keeps results" in warning for warning in kept.warnings)


def test_a_disturbed_run_is_unsteady():
    """Another program on the machine, or throttling: the reason is said."""
    disturbed = dataclasses.replace(measured(noisy(0.01)), disturbances=("other processes took 50%",))
    found = summary.summarise(disturbed)
    assert found.unsteady == found.warnings == ("other processes took 50%",)
    assert found.valid


def test_a_true_speed_up_is_found_with_an_interval_that_holds_it():
    """30 ms against 10 ms is 3x in eight pairs of processes, and the interval says faster."""
    slow = measured(noisy(0.03, seed=1), label="slow", processes=8)
    fast = measured(noisy(0.01, seed=2), label="fast", processes=8)
    found = summary.compare(slow, fast)
    assert (found.baseline, found.candidate, found.pairs) == ("slow", "fast", 8)
    assert found.speedup_ci95 is not None
    assert found.speedup_ci99 is not None
    (low, high), (outer_low, outer_high) = found.speedup_ci95, found.speedup_ci99
    assert outer_low < low < 3 < high < outer_high
    assert low <= found.speedup <= high
    assert found.verdict == "faster"
    back = summary.compare(fast, slow)
    assert back.speedup == pytest.approx(1 / found.speedup)
    assert back.verdict == "slower"


def test_two_equal_models_are_called_equal():
    """Equal up to noise of 1 %: none of 20 is called different, and nearly all equal within 2 %."""
    verdicts = [
        summary.compare(
            measured(noisy(0.01, seed=2 * n), processes=8), measured(noisy(0.01, seed=2 * n + 1), processes=8)
        ).verdict
        for n in range(20)
    ]
    assert set(verdicts) <= {"equal", "undecided"}
    assert verdicts.count("equal") >= 18


def test_seven_pairs_of_processes_decide_nothing():
    """However large the ratio: what a restart changes is not known."""
    found = summary.compare(measured(noisy(0.03), processes=7), measured(noisy(0.01), processes=7))
    assert found.verdict == "undecided"


def test_an_undecided_comparison_says_how_long_it_would_take():
    """Half as wide takes four times as long: the interval must leave out 1, or be within what is called equal."""
    rng = np.random.default_rng(3)
    settled = [0.01 * np.exp(rng.normal(0, 0.014, 16)) for _ in range(2)]
    sides = [measured([[one] * 9 for one in side], processes=16, started_s=range(16)) for side in settled]
    found = summary.compare(*sides)
    assert found.verdict == "undecided"
    assert found.speedup_ci99 is not None
    low, high = found.speedup_ci99
    band = np.log(1.02)
    room = max(abs(np.log(found.speedup)), band - abs(np.log(found.speedup)))
    pairs = np.ceil(16 * (np.log(high / low) / 2 / room) ** 2)
    assert found.needed_s == pytest.approx(pairs / 16 * (15 + 9 * settled[1][-1]), rel=0.01)


def test_turns_in_which_threads_waited_for_a_core_are_left_out():
    """Half of the turns, on both sides alike, took as long again and threads waited: the quiet ones are judged."""
    busy = np.arange(64) % 8 < 4
    waits = np.where(busy, 0.6, 0.001).tolist()

    def side(query_s, seed, factor):
        times = np.array(noisy(query_s, blocks=64, seed=seed)) * np.where(busy, factor, 1)[:, None]
        return measured(times.tolist(), processes=8, waited=waits)

    found = summary.compare(side(0.01, 1, 1.5), side(0.03, 2, 4.0))  # the longer query is hit harder
    assert 1 / found.speedup == pytest.approx(3, rel=0.01)
    assert found.pairs == 8
    blind = summary.compare(
        *(
            dataclasses.replace(m, blocks=tuple(dataclasses.replace(b, waited=None) for b in m.blocks))
            for m in (side(0.01, 1, 1.5), side(0.03, 2, 4.0))
        )
    )
    assert 1 / blind.speedup > 4


def test_where_no_turn_is_quiet_all_are_judged():
    """Threads that wait for each other all the time are no other load, and a busy machine has no quiet turns."""
    waits = [0.5] * 64
    found = summary.compare(
        measured(noisy(0.03, blocks=64), processes=8, waited=waits), measured(noisy(0.01, blocks=64), processes=8)
    )
    assert found.speedup == pytest.approx(3, rel=0.01)


def test_cpu_time_is_compared_too():
    """One process settles at 20 ms of CPU time a query and the other at 30: 1.5, however long they took."""
    base = measured(noisy(0.01, blocks=64), processes=8, cpu_s=[60 * 0.02] * 64)
    rng = np.random.default_rng(0)
    more = measured(noisy(0.01, blocks=64), processes=8, cpu_s=(60 * 0.03 * rng.normal(1, 0.01, 64)).tolist())
    found = summary.compare(base, more)
    assert found.cpu_ratio == pytest.approx(1.5, rel=0.01)
    assert found.cpu_ratio_ci99 is not None
    assert found.cpu_ratio_ci99[0] < 1.5 < found.cpu_ratio_ci99[1]
    assert summary.compare(measured(noisy(0.01)), measured(noisy(0.01))).cpu_ratio is None


def test_instructions_are_compared_where_they_were_counted():
    """3 million a query of 4 images against 2: 1.5, with its interval; a block without them leaves the row without."""
    base = measured(noisy(0.01, blocks=64), processes=8, batch_size=4, instructions=[60 * 2_000_000] * 64)
    rng = np.random.default_rng(0)
    counted = [round(60 * 3_000_000 * factor) for factor in rng.normal(1, 0.001, 64)]
    more = measured(
        noisy(0.01, blocks=64), processes=8, batch_size=4, instructions=counted, cycles=[60 * 1_000_000] * 64
    )
    found = summary.compare(base, more)
    assert found.instructions_ratio == pytest.approx(1.5, rel=0.001)
    assert found.instructions_ratio_ci99 is not None
    assert 1.49 < found.instructions_ratio_ci99[0] < 1.5 < found.instructions_ratio_ci99[1] < 1.51
    row = summary.summarise(more)
    assert row.instructions_per_image == pytest.approx(750_000, rel=0.001)
    assert row.cycles_per_image == 250_000
    assert summary.summarise(base).cycles_per_image is None
    partly = measured(noisy(0.01, blocks=64), processes=8, instructions=[None, *counted[1:]])
    assert summary.summarise(partly).instructions_per_image is None
    assert summary.compare(measured(noisy(0.01)), more).instructions_ratio is None


def test_other_load_beside_one_side_alone_makes_a_comparison_invalid():
    """20 % of the cores beside one and 1 % beside the other; the same beside both is no fault."""
    rng = np.random.default_rng(0)

    def side(share):
        others = (share + rng.normal(0, 0.02, 64)).tolist()
        return measured(noisy(0.01, blocks=64), processes=8, others=others)

    found = summary.compare(side(0.01), side(0.2))
    assert found.verdict == "INVALID"
    assert not found.valid
    assert "other processes took" in found.invalid[0]
    assert summary.compare(side(0.2), side(0.2)).valid
    stolen = summary.compare(
        measured(noisy(0.01, blocks=64), processes=8, withheld=[0.0] * 64),
        measured(noisy(0.01, blocks=64), processes=8, withheld=rng.normal(0.1, 0.01, 64).tolist()),
    )
    assert "the hypervisor or a quota" in stolen.invalid[0]


def test_batches_compare_by_image():
    """A batch of 8 in 40 ms is twice as fast as one image in 10 ms."""
    found = summary.compare(measured(noisy(0.01)), measured(noisy(0.04), batch_size=8))
    assert found.speedup == pytest.approx(2, rel=0.02)


def test_offline_compares_wall_time_an_image():
    """Two sessions that each take 10 ms side by side are twice one: their latencies are equal."""
    one = measured(noisy(0.01))
    two = measured(noisy(0.01), streams=2, wall_s=60 * 0.01 / 2)
    assert summary.compare(one, two).speedup == pytest.approx(2, rel=0.02)


def test_a_wandering_side_makes_a_claim_and_a_wrong_one_none():
    """Drift of 20 % widens the interval; results that are kept take the comparison away."""
    drifting = (np.array(noisy(0.01)) * np.linspace(1, 1.2, 16)[:, None]).tolist()
    slow, fast = measured(noisy(0.05), processes=8), measured(drifting, processes=8)
    found = summary.compare(slow, fast)
    assert found.speedup > 4
    assert found.verdict == "faster"
    replays = tuple(Replay(fresh_s=(0.01,) * 20, replayed_s=(0.005,) * 20) for _ in range(2))
    kept = summary.compare(slow, dataclasses.replace(fast, replays=replays))
    assert kept.verdict == "INVALID"
    assert "keeps results" in kept.invalid[0]
