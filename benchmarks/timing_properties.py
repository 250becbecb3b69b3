"""How often the rules of `bench` are right, by simulation: synthetic clocks through the real run and its statistics.

    python benchmarks/timing_properties.py                     # writes benchmarks/results/timing-properties.json
    python benchmarks/timing_properties.py --noise bench.json  # also with the noise of a saved `resdeploy bench`
    python benchmarks/timing_properties.py --scale 0.05        # a quick look

Every clock is run by `measure.interleaved.run` itself: its warm-up, order, processes, looks and rules.
Only the lane is synthetic: a query takes `base x process x turn x block x query`, each factor log-normal about 1,
times what a pattern does. A turn is shared by all models of a run, a block is one model's own. Noise is
estimated from the raw times of a real run.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy import stats, store
from resdeploy.backends.lane import Opened
from resdeploy.measure import environment, interleaved, summary
from resdeploy.records import Artifact, Block, Execution, Measurement, ModelSpec, Replay

RESULT = Path(__file__).parent / "results" / "timing-properties.json"
BASE_S = 0.02
DURATION_S = 3.0  # the default of `bench`
MOST_BLOCKS = 4000  # turns of a run, beyond which they repeat
SETUP_S = 0.5  # of each process: loading, beside what the run itself does to warm up
QUIET = environment.Snapshot(clock_s=0, cores=2, busy_s=0, own_s=0, stolen_s=0, throttled=0, throttled_s=0)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviations of the logarithm of a time."""

    process: float = 0.0
    turn: float = 0.0
    block: float = 0.001
    query: float = 0.005


@dataclass(frozen=True, kw_only=True)
class When:
    """Where a query stands in the run of its model."""

    block: int  # timed blocks before this one
    elapsed_s: float  # of timed queries
    chance: float  # uniform in 0 to 1


Pattern = Callable[[When], float]  # a factor of the time

PATTERNS: dict[str, Pattern] = {
    "bimodal": lambda when: 1.05 if when.chance < 0.3 else 1.0,
    "drift": lambda when: 1 + 0.01 * when.elapsed_s / DURATION_S,  # 1 % over the run
    "slow-first": lambda when: 1.05 if when.block == 0 else 1.0,
    "outliers": lambda when: 3.0 if when.chance < 0.05 else 1.0,  # 5 % of the queries
}


class Clock:
    """One model on a synthetic machine; makes its lanes."""

    def __init__(
        self, rng: np.random.Generator, noise: Noise, base_s: float, pattern: Pattern | None, turns: np.random.Generator
    ) -> None:
        self.rng, self.noise, self.base_s, self.pattern = rng, noise, base_s, pattern
        self.turns = np.exp(noise.turn * turns.standard_normal(MOST_BLOCKS))
        self.blocks, self.elapsed_s = 0, 0.0


class SyntheticLane:
    """A lane that computes nothing and says how long that took."""

    def __init__(self, clocks: dict[str, Clock], machine: list[float]) -> None:
        self.clocks, self.machine = clocks, machine  # the second holds the machine's time, in seconds

    def __enter__(self) -> SyntheticLane:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def start(self, artifact: Artifact, execution: Execution) -> None:
        pass

    def open(self, artifact: Artifact, execution: Execution, trace: bool = False) -> Opened:
        assert artifact.model is not None
        self.clock = self.clocks[artifact.model.name]
        self.process = float(np.exp(self.clock.noise.process * self.clock.rng.standard_normal()))
        self.machine[0] += SETUP_S
        return Opened(load_s=0.0, first_s=0.0, inputs={}, outputs={}, settings={})

    def block(self, queries: int = 1, *, warmup: int = 0, seconds: float = 0.0) -> Block:
        clock = self.clock
        factor = clock.base_s * self.process * clock.turns[clock.blocks % MOST_BLOCKS]
        factor *= np.exp(clock.noise.block * clock.rng.standard_normal())
        times: list[float] = []
        spent = 0.0
        while len(times) < queries or spent < seconds:
            time_s = factor * np.exp(clock.noise.query * clock.rng.standard_normal())
            if clock.pattern is not None:
                elapsed = clock.elapsed_s + (spent if warmup else 0.0)
                time_s *= clock.pattern(When(block=clock.blocks, elapsed_s=elapsed, chance=clock.rng.random()))
            times.append(float(time_s))
            spent += times[-1]
        if warmup:  # of all blocks only the timed ones have a warm-up of their own
            clock.blocks, clock.elapsed_s = clock.blocks + 1, clock.elapsed_s + spent
        started_s = self.machine[0] + warmup * clock.base_s
        self.machine[0] = started_s + spent
        none = (0.0,) * len(times)
        return Block(put_s=none, run_s=tuple(times), get_s=none, started_s=started_s, wall_s=spent)

    def replay(self, queries: int, seconds: float) -> Replay:
        fresh, again = (self.block(queries, seconds=seconds).run_s for _ in range(2))
        return Replay(fresh_s=fresh, replayed_s=again)

    def layers(self) -> tuple[()]:
        return ()

    def peak_rss_bytes(self) -> int:
        return 0


def bare_candidates(file: Path, names: Sequence[str]) -> list[interleaved.Candidate]:
    """Candidates that are nothing but a name: what they are is the lane's to know."""
    candidates = []
    for name in names:
        spec = ModelSpec(name=name, family="f", classes=10, input_shape=(3, 8, 8))
        artifact = Artifact(path=str(file), format="onnx", precision="fp32", sha256="0" * 64, model=spec)
        candidates.append(interleaved.Candidate(label=name, backend="null", artifact=artifact, execution=Execution()))
    return candidates


def run(file: Path, clocks: Sequence[Clock], seed: int, *, asked: bool = False) -> tuple[Measurement, ...]:
    """One interleaved run of these clocks, with the defaults of `bench`; `asked`: which of the first two is faster."""
    synthetic: Any = SyntheticLane  # not a Lane, but it does what one does
    named = {f"m{n}": clock for n, clock in enumerate(clocks)}
    machine = [0.0]
    outcomes = interleaved.run(
        bare_candidates(file, list(named)),
        interleaved.Schedule(duration_s=DURATION_S, seed=seed, kernels=False),
        questions=[interleaved.Question(baseline="m0", candidate="m1")] if asked else [],
        open_lane=lambda _: synthetic(named, machine),
        look=lambda: QUIET,
        clock=lambda: machine[0],
    )
    return tuple(outcome for outcome in outcomes if isinstance(outcome, Measurement))


def one(file: Path, seed: int, noise: Noise, pattern: Pattern | None = None) -> Measurement:
    """A run of one model."""
    rng = np.random.default_rng(seed)
    return run(file, [Clock(rng, noise, BASE_S, pattern, rng)], seed)[0]


def kinds(measurement: Measurement) -> set[str]:
    """The reasons why it is unreliable."""
    return {doubt.kind for doubt in stats.doubts(summary.per_image_s(measurement))}


def named(file: Path, runs: int, noise: Noise) -> dict[str, Any]:
    """How often each pattern is named, and made the row INVALID."""
    found = {}
    for number, (name, pattern) in enumerate(PATTERNS.items()):
        seen = [kinds(one(file, 10_000 * number + k, noise, pattern)) for k in range(runs)]
        found[name] = {"runs": runs, "named": sum(name in k for k in seen), "invalid": sum(bool(k) for k in seen)}
    return found


def clean(file: Path, invalid_of: int, covered_of: int, noise: Noise) -> dict[str, Any]:
    """How often a clean run is INVALID, and its interval holds the true median, which is `BASE_S`."""
    reasons: Counter[str] = Counter()
    invalid = covered = 0
    widths = []
    for seed in range(max(invalid_of, covered_of)):
        measurement = one(file, seed, noise)
        if seed < invalid_of:
            against = kinds(measurement)
            reasons.update(against)
            invalid += bool(against)
        if seed < covered_of:
            low, high = summary.summarise(measurement).p50_ci95_s or (0.0, 0.0)
            covered += low <= BASE_S <= high
            widths.append((high - low) / BASE_S)
    return {
        "invalid": {"runs": invalid_of, "invalid": invalid, "reasons": dict(reasons)},
        "coverage": {"runs": covered_of, "covered": covered, "median_width": float(np.median(widths))},
    }


def pairs(file: Path, count: int, ratio: float, noise: Noise) -> dict[str, Any]:
    """How often two models whose times differ by `ratio` are called different, and the interval holds the ratio."""
    verdicts: Counter[str] = Counter()
    covered, seconds = 0, []
    for seed in range(count):
        clocks = [
            Clock(
                np.random.default_rng((seed, side)), noise, BASE_S * (1, ratio)[side], None, np.random.default_rng(seed)
            )
            for side in (0, 1)
        ]
        sides = run(file, clocks, seed, asked=True)
        comparison = summary.compare(*sides)
        verdicts[comparison.verdict] += 1
        seconds.append(summary.span_s(*sides))
        low, high = comparison.speedup_ci99 or (0.0, 0.0)
        covered += low <= 1 / ratio <= high
    return {
        "pairs": count,
        "ratio": ratio,
        "verdicts": dict(verdicts),
        "different": verdicts["faster"] + verdicts["slower"],
        "covered_by_99": covered,
        "median_s": float(np.median(seconds)),
    }


def noise_of(document: dict[str, Any]) -> Noise:
    """Noise of a saved bench of two rows or more: medians over its rows and pairs of rows, in the order of the run.

    What two rows share is the machine's and goes to `turn`; only what is left in their difference is a row's own, and
    of that, what whole processes differ by is the process's.
    """
    rows = [row for row in document["results"] if row["scenario"] == "single-stream" and row["samples_ms"]]
    rows = [row for row in rows if np.median(row["block_sizes"]) > 2]  # fewer queries have no spread
    if len(rows) < 2:
        sys.exit("--noise takes a bench of two rows or more: one does not tell the machine's wandering from its own")
    queries, samplings, medians = [], [], []
    for row in rows:
        logs = np.split(np.log(row["samples_ms"]), np.cumsum(row["block_sizes"])[:-1])
        queries.append(float(np.median([_sigma(block) for block in logs if len(block) > 2])))
        # The median of n normal times has variance pi / 2n of theirs.
        samplings.append(np.pi / 2 * queries[-1] ** 2 / np.median([len(block) for block in logs]))
        medians.append(np.array([np.median(block) for block in logs]))
    turns, blocks, processes = [], [], []
    a_process = interleaved.BLOCKS // interleaved.PROCESSES
    for (one, own), (other, others) in itertools.combinations(zip(medians, samplings, strict=True), 2):
        turns.append(np.cov(one, other)[0, 1])
        apart = (one - other).reshape(-1, a_process)
        within = apart.var(axis=1, ddof=1).mean()
        blocks.append((within - own - others) / 2)
        processes.append((apart.mean(axis=1).var(ddof=1) - within / a_process) / 2)
    turn, block, process = (float(np.sqrt(max(np.median(found), 0.0))) for found in (turns, blocks, processes))
    return Noise(process=process, turn=turn, block=block, query=float(np.median(queries)))


def _sigma(values: np.ndarray) -> float:
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low) / 1.349


def properties(scale: float, measured: Noise | None) -> dict[str, Any]:
    """All figures; `scale` shrinks the numbers of simulations."""

    def count(n: int) -> int:
        return max(1, round(n * scale))

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.onnx"
        file.write_bytes(b"x")
        found: dict[str, Any] = {}
        settings = {"synthetic": Noise(), "restarts": Noise(process=0.004), "wandering": Noise(turn=0.05, block=0.005)}
        if measured:
            settings["measured"] = measured
        for name, noise in settings.items():
            found[name] = {
                "noise": dataclasses.asdict(noise),
                "named": named(file, count(200), noise),
                **clean(file, count(1000), count(2000), noise),
                "equal": pairs(file, count(1000), 1.0, noise),
                "three_percent": pairs(file, count(500), 1.03, noise),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=Path, help="a saved bench of this machine")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    source = json.loads(arguments.noise.read_text()) if arguments.noise else None
    document = {
        "command": f"python benchmarks/timing_properties.py {' '.join(sys.argv[1:])}",
        "environment": environment.capture(),
        "noise_measured_on": source["environment"]["cpu"]["model"] if source else None,
        "base_s": BASE_S,
        "duration_s": DURATION_S,
        "results": properties(arguments.scale, noise_of(source) if source else None),
    }
    store.write_json(arguments.output, document)
    print(json.dumps(document["results"], indent=2))


if __name__ == "__main__":
    main()
