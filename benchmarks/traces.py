"""Records what a machine does to times: an hour of real turns, from which `verdicts.py` judges the rules of `bench`.

    python benchmarks/traces.py --cell resnet50-int8 --beside idle --minutes 60
    python benchmarks/traces.py --cell resnet18-fp32 --beside bursts --minutes 60

A generation is a fresh process of each of three lanes, loaded and warmed up: `a` and `copy` run one file, `smaller` the
same network on images of 216 pixels in place of 224 (the true ratio is in the trace). They
take turns of one length, drawn for each generation, in random order and then backwards. Every third generation is a
duet: `a` runs at once with one of the others, one thread on one core each, and they change cores in the next one.

The result has, for each turn, the median time of a query, the CPU time of one, and for how many milliseconds a second
threads waited for a core; for each generation its length, how long it took, and the share of the machine that other
programs took. It goes on where it stopped, is written after every generation, and holds
nothing of what was computed. `--beside bursts` runs a process that computes for half of the time, in stretches of
random length (0.5 s in the mean).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from resdeploy import store
from resdeploy.backends.lane import Lane
from resdeploy.deploy import calibration, candidates
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.measure import entrant, environment, interleaved
from resdeploy.records import BackendName, Precision, Progress

RESULTS = Path(__file__).parent / "results" / "traces"
LANES = ("a", "copy", "smaller")
TURNS_S = (0.025, 0.05, 0.1, 0.2, 0.4)  # lengths that are tried
TIMED_S = 2.0  # of each lane in a generation, at least; a turn longer than an eighth of it makes it longer
LEAST_TURNS = 8
PARTS = ("query_us", "cpu_us", "waited_ms", "started_ms")  # of each turn of a lane
BURST_S = 0.5  # mean length of a burst, and of a rest
Silent: Progress = lambda *_: None  # noqa: E731


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What is timed."""

    model: str
    backend: BackendName
    precision: Precision
    sizes: tuple[int, int]  # of the images of `a` and of `smaller`


CELLS = {
    "resnet50-int8": Cell(model="resnet50", backend="openvino", precision="int8", sizes=(224, 216)),
    "resnet18-fp32": Cell(model="resnet18", backend="openvino", precision="fp32", sizes=(224, 216)),
    "resnet20-fp32": Cell(model="resnet20", backend="openvino", precision="fp32", sizes=(32, 31)),  # 0.2 to 0.4 ms
}


def candidates_of(cell: Cell) -> dict[str, interleaved.Candidate]:
    """The file of each lane, made and built once."""
    plan = calibration.CalibrationPlan(data=f"synthetic:{calibration.SYNTHETIC_SAMPLES}")

    def one(label: str, size: int) -> interleaved.Candidate:
        request = Request(model=cell.model, weights="random", override=PreprocessingOverride(img_size=size))
        source = candidates.source_for(request, cell.backend, cell.precision, plan, progress=Silent)
        return candidates.candidate(source, cell.backend, label=label)

    whole, smaller = cell.sizes
    return dict(zip(LANES, (one("a", whole), one("copy", whole), one("smaller", smaller)), strict=True))


def turns(made: dict[str, interleaved.Candidate], length_s: float, rng: random.Random) -> dict[str, Any]:
    """One generation of turns, one lane at a time."""
    with contextlib.ExitStack() as stack:
        lanes, query_s, open_s = {}, {}, {}
        for name, candidate in made.items():
            started = time.monotonic()
            lanes[name] = stack.enter_context(Lane(candidate.backend))
            lanes[name].open(candidate.artifact, candidate.execution)
            query_s[name] = entrant.warm_up(lanes[name])
            open_s[name] = time.monotonic() - started
        rows: dict[str, Any] = {name: {part: [] for part in PARTS} for name in made}
        order = list(made)
        for number in range(max(LEAST_TURNS, round(TIMED_S / length_s))):
            if number % 2 == 0:
                rng.shuffle(order)
            else:
                order.reverse()
            for name in order:
                add(rows[name], lanes[name], length_s, query_s[name])
    return {"kind": "turns", "length_s": length_s, "open_s": rounded(open_s), "rows": rows}


def add(row: dict[str, Any], lane: Lane, length_s: float, query_s: float) -> None:
    """One turn."""
    warmup = min(max(1, round(entrant.SWITCH_S / query_s)), 1000)
    block = lane.block(1, warmup=warmup, seconds=length_s)
    row["query_us"].append(round(1e6 * statistics.median(block.run_s), 2))
    row["cpu_us"].append(round(1e6 * block.cpu_s / len(block.run_s), 2))
    row["waited_ms"].append(None if block.waited is None else round(1e3 * block.waited))
    row["started_ms"].append(round(1e3 * block.started_s))


def duet(made: dict[str, interleaved.Candidate], other: str, length_s: float, swapped: bool) -> dict[str, Any]:
    """One generation of `a` and another lane at once, one thread on one core each."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    order = reversed(cores) if swapped else cores
    with contextlib.ExitStack() as stack:
        lanes, query_s, open_s = {}, {}, {}
        for name, core in zip(("a", other), order, strict=True):
            started = time.monotonic()
            with on_core(core):
                lanes[name] = stack.enter_context(Lane(made[name].backend))
                lanes[name].open(made[name].artifact, dataclasses.replace(made[name].execution, threads=1))
            query_s[name] = entrant.warm_up(lanes[name])
            open_s[name] = time.monotonic() - started
        rows: dict[str, Any] = {name: {part: [] for part in PARTS} for name in lanes}
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2))
        for _ in range(max(LEAST_TURNS, round(TIMED_S / length_s))):
            waiting = [pool.submit(add, rows[name], lanes[name], length_s, query_s[name]) for name in lanes]
            for each in waiting:
                each.result()
    return {"kind": f"duet {other}", "length_s": length_s, "open_s": rounded(open_s), "rows": rows}


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started meanwhile stays on one core: some runtimes pin their threads, within the mask they start with."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def burst() -> None:
    """Computes for half of the time, until it is ended."""
    rng = random.Random(0)
    while True:
        end = time.monotonic() + rng.expovariate(1 / BURST_S)
        while time.monotonic() < end:
            pass
        time.sleep(rng.expovariate(1 / BURST_S))


@contextlib.contextmanager
def beside(what: str) -> Iterator[None]:
    """The load beside which the trace is recorded."""
    if what == "idle":
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=burst, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=tuple(CELLS), default="resnet50-int8")
    parser.add_argument("--beside", choices=("idle", "bursts"), default="idle")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the whole trace, what is there included")
    parser.add_argument("--output", type=Path, help="default: results/traces/CELL-BESIDE.json")
    arguments = parser.parse_args()
    out = arguments.output or RESULTS / f"{arguments.cell}-{arguments.beside}.json"
    document: dict[str, Any] = {
        "command": f"python benchmarks/traces.py --cell {arguments.cell} --beside {arguments.beside}",
        "environment": environment.capture(),
        "generations": [],
    }
    if out.exists():
        document["generations"] = store.parse_json(out.read_bytes(), str(out))["generations"]
    generations = document["generations"]
    made = candidates_of(CELLS[arguments.cell])
    rng = random.Random(len(generations))
    with beside(arguments.beside):
        while (spent := sum(each["seconds"] for each in generations)) < 60 * arguments.minutes:
            number, length_s = len(generations), rng.choice(TURNS_S)
            before, started = environment.snapshot(), time.monotonic()
            if number % 3 == 2:
                one = duet(made, LANES[1 + number // 3 % 2], length_s, number // 6 % 2 == 1)
            else:
                one = turns(made, length_s, rng)
            after = environment.snapshot()
            one["seconds"] = round(time.monotonic() - started, 3)
            if before.busy_s is not None and after.busy_s is not None:
                others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
                one["others"] = round(others / one["seconds"] / before.cores, 4)
            generations.append(one)
            store.write_json(out, document)
            sys.stderr.write(f"\r{number + 1} generations, {spent / 60:.1f} of {arguments.minutes:g} min ")
    sys.stderr.write("\n")


if __name__ == "__main__":
    main()
