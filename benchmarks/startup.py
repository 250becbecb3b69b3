"""What `resdeploy --help` and a verb's costs above an empty Typer app with as many commands, in CPU time, interleaved.

python benchmarks/startup.py --output benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from resdeploy import store
from resdeploy.measure import environment

EMPTY = """
import typer
app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)
for i in range({commands}):
    def command(name: str = "x") -> None:
        "An empty command."
    app.command(f"command{{i}}")(command)
app()
"""


def cpu_s(command: list[str]) -> float:
    """User plus system seconds of one run of `command` with --help."""
    process = subprocess.Popen([*command, "--help"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return usage.ru_utime + usage.ru_stime


def above(ours_s: list[float], empty_s: list[float]) -> dict[str, object]:
    """The median of the rounds' differences, with a bootstrap interval."""
    difference_ms = 1e3 * (np.array(ours_s) - np.array(empty_s))
    medians = [np.median(np.random.default_rng(i).choice(difference_ms, len(ours_s))) for i in range(2000)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return {"above_ms": float(np.median(difference_ms)), "above_ci95_ms": [float(low), float(high)]}


def main() -> None:
    from resdeploy.cli import app

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="runs of each")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "empty.py"
        script.write_text(EMPTY.format(commands=len(app.registered_commands) + len(app.registered_groups)))
        # As installed: the console script does no more than this.
        ours = [sys.executable, "-c", "from resdeploy.cli import main; main()"]
        empty = [sys.executable, str(script)]
        order = [
            ("resdeploy", ours),
            ("empty", empty),
            ("resdeploy bench", [*ours, "bench"]),
            ("empty verb", [*empty, "command0"]),
        ]
        for _, command in order:
            cpu_s(command)  # bytecode is compiled once per installation, not per run
        times: dict[str, list[float]] = {name: [] for name, _ in order}
        for _ in range(rounds):
            random.shuffle(order)
            for name, command in order:
                times[name].append(cpu_s(command))
    document = {
        "command": "benchmarks/startup.py",
        "environment": environment.capture(),
        "rounds": rounds,
        "resdeploy_help_cpu_ms": 1e3 * float(np.median(times["resdeploy"])),
        "empty_typer_cpu_ms": 1e3 * float(np.median(times["empty"])),
        **above(times["resdeploy"], times["empty"]),
        "of_bench": above(times["resdeploy bench"], times["empty verb"]),  # `resdeploy bench --help`
    }
    if arguments.output is not None:
        store.write_json(arguments.output, document)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
