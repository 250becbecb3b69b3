"""ResNet-50 on this machine's CPU: resdeploy against what users would run instead, all in one interleaved run.

    python benchmarks/peers.py --folder /tmp/peers --prepare                   # makes the files
    python benchmarks/peers.py --folder /tmp/peers --nncf-python VENV/bin/python   # measures; writes results/peers.json

The network has random weights (seed 0, `networks.py`), and every INT8 file is calibrated on the same synthetic images:
only time is asked here. Ours are the rows of `resdeploy bench --precision int8 --backend all`. Every row, ours or a
peer's, goes through the same timed loop, in a process of its own, with all usable cores. Peers run with their own best
settings: torch in channels_last without autograd; ONNX Runtime with every optimisation; quantize_static in QDQ, minmax,
per channel, weights in 7 bits where its documentation advises them (no VNNI); OpenVINO with the hint of the scenario.

Single-stream is batch 1. Offline is throughput in the best of three ways for each tool: one session per core (batch 1),
or one session of all cores in batch 1 or 8. A ratio is our time per image over the peer's, with its
95 % interval: below 1 we are faster. The INT8 peak is that of a chain of large convolutions in the same run.

Every block is kept as soon as it is timed: `resdeploy show` has what a run that was cut short had measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.networks import with_biases
from benchmarks.peer_static import quantize_static
from resdeploy import store
from resdeploy.backends import machine
from resdeploy.backends.lane import Lane
from resdeploy.cost import peak_graphs
from resdeploy.deploy import build, calibration, export
from resdeploy.deploy.candidates import cost_of, source_for
from resdeploy.deploy.model_string import Request
from resdeploy.graph import files
from resdeploy.measure import environment, interleaved, journal, summary
from resdeploy.records import Artifact, BackendName, Execution, Failure, Measurement, Precision, Progress, Scenario

RESULT = Path(__file__).parent / "results" / "peers.json"
CALIBRATION = calibration.CalibrationPlan(data=f"synthetic:{calibration.SYNTHETIC_SAMPLES}")
Silent: Progress = lambda *_: None  # noqa: E731
Who = Literal["ours", "peer", "peak"]


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One way to run the network: a file, the backend and whether it counts as ours."""

    name: str
    who: Who
    backend: BackendName
    source: Artifact
    precision: Precision = "fp32"  # of what the file leaves in FP32
    compiled: bool = False
    macs: int | None = None  # of one image; None: the network's


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a scenario is run: images per query and sessions side by side."""

    scenario: Scenario
    batch_size: int
    streams: int

    def __str__(self) -> str:
        return f"{self.scenario} b{self.batch_size} x{self.streams}"


def tools(request: Request, folder: Path, nncf_python: str | None) -> Iterator[Tool]:
    """Every way to run the network, its file made in `folder` or taken from there."""
    checkpoint = source_for(request, "torch", "fp32", CALIBRATION, progress=Silent)
    fp32 = export.to_onnx(request, progress=Silent)
    images = folder / "images.npy"
    if not images.exists():
        np.save(images, np.concatenate(list(calibration.calibration_inputs(fp32, CALIBRATION))))
    yield Tool(name="torch eager", who="peer", backend="torch", source=checkpoint)
    yield Tool(name="torch.compile", who="peer", backend="torch", source=checkpoint, compiled=True)
    yield Tool(name="ONNX Runtime FP32", who="peer", backend="onnxruntime", source=fp32)
    yield Tool(name="OpenVINO FP32", who="peer", backend="openvino", source=fp32)
    if machine.cpu().bf16:
        yield Tool(name="OpenVINO BF16", who="peer", backend="openvino", source=fp32, precision="bf16")
    int8 = _made(folder / "static.onnx", lambda out: static(Path(fp32.path), images, out))
    yield Tool(name="quantize_static in ONNX Runtime", who="peer", backend="onnxruntime", source=int8)
    yield Tool(name="quantize_static in OpenVINO", who="peer", backend="openvino", source=int8)
    if nncf_python is not None:
        script = str(Path(__file__).with_name("peer_nncf.py"))

        def nncf(out: Path) -> None:
            subprocess.run([nncf_python, script, fp32.path, str(images), str(out)], check=True, stdout=sys.stderr)

        yield Tool(name="NNCF in OpenVINO", who="peer", backend="openvino", source=_made(folder / "nncf.onnx", nncf))
    ours: dict[BackendName, str] = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
    for backend, name in ours.items():
        source = source_for(request, backend, "int8", CALIBRATION, progress=Silent)
        yield Tool(name=f"resdeploy INT8 in {name}", who="ours", backend=backend, source=source)
    for shape in peak_graphs.SHAPES:
        out = folder / f"{peak_graphs.spec(*shape).name}.onnx"
        if not out.exists():
            files.save_model(peak_graphs.quantize(peak_graphs.chain(*shape), "openvino"), out)
        yield Tool(
            name=peak_graphs.spec(*shape).name,
            who="peak",
            backend="openvino",
            source=_made(out),
            macs=peak_graphs.macs(*shape),
        )


def static(fp32: Path, images: Path, out: Path) -> None:
    """ONNX Runtime's own INT8 as its documentation advises for this CPU."""
    inputs = np.load(images)
    name = onnx.load(fp32, load_external_data=False).graph.input[0].name
    batches = ({name: inputs[k : k + 1]} for k in range(len(inputs)))
    quantize_static(fp32, batches, out, reduce_range=not machine.cpu().vnni)


def _made(out: Path, build: Callable[[Path], None] | None = None) -> Artifact:
    if build is not None and not out.exists():
        build(out)
    return Artifact(path=str(out), format="onnx", precision="int8", sha256=store.digest(out))


def candidates(
    request: Request, found: list[Tool], ways: list[Way]
) -> dict[str, tuple[Tool, Way, interleaved.Candidate]]:
    """Every tool in every way, built; peaks only offline."""
    made: dict[str, tuple[Tool, Way, interleaved.Candidate]] = {}
    network = cost_of(export.to_onnx(request, progress=Silent)).macs
    for way, tool in itertools.product(ways, found):
        if tool.who == "peak" and way.scenario != "offline":
            continue
        shape = tool.source.model.input_shape if tool.source.model else _image(Path(tool.source.path))
        execution = Execution(
            batch_size=way.batch_size,
            streams=way.streams,
            hint="latency" if way.streams == 1 else "throughput",
            precision=tool.precision,
            input_shape=shape,
            compiled=tool.compiled,
        )
        label = f"{tool.name}, {way}"
        made[label] = (
            tool,
            way,
            interleaved.Candidate(
                label=label,
                backend=tool.backend,
                artifact=build.build(tool.source, tool.backend, execution),
                execution=execution,
                macs=tool.macs or network,
                scenario=way.scenario,
            ),
        )
    return made


def _image(path: Path) -> tuple[int, int, int]:
    sizes = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    channels, height, width = (size.dim_value for size in sizes[1:])
    return channels, height, width


Measured = list[tuple[Tool, Way, Measurement]]


def rate(measurement: Measurement) -> float:
    """Images a second, of the median: what tools and ways are chosen by."""
    return 1 / float(np.median(np.concatenate(summary.per_image_s(measurement))))


def ratios(measured: Measured, scenario: Scenario) -> dict[str, Any]:
    """Our fastest row against every peer's best way, the fastest first; and against the peak."""
    best: dict[str, Measurement] = {}
    whose: dict[str, Who] = {}
    for tool, way, measurement in measured:
        if way.scenario == scenario and (tool.name not in best or rate(measurement) > rate(best[tool.name])):
            best[tool.name], whose[tool.name] = measurement, tool.who
    order = sorted(best, key=lambda name: -rate(best[name]))
    if not {"ours", "peer"} <= set(whose.values()):
        return {}
    mine = best[next(name for name in order if whose[name] == "ours")]
    peers = [compared(mine, best[name]) for name in order if whose[name] == "peer"]
    found: dict[str, Any] = {"ours": mine.label, "fastest_peer": peers[0]["against"], "time_ratios": peers}
    peaks = [best[name] for name in order if whose[name] == "peak"]
    if peaks:
        # MACs a second of ours over the peak's, so the ratio of times turned over and weighed by the work.
        top = max(peaks, key=lambda peak: rate(peak) * (peak.macs or 0))
        against = summary.compare(top, mine)
        weight = (mine.macs or 0) / (top.macs or 1)
        found["peak"] = {
            "chain": top.label,
            "gmacs_per_s": rate(top) * (top.macs or 0) / 1e9,
            "share": against.speedup * weight,
            "share_ci95": against.speedup_ci95 and [bound * weight for bound in against.speedup_ci95],
        }
    return found


def compared(mine: Measurement, other: Measurement) -> dict[str, Any]:
    """Our time over the other's: its "speed-up" with ours as the baseline."""
    found = summary.compare(mine, other)
    return {
        "against": other.label,
        "time_ratio": found.speedup,
        "time_ratio_ci95": found.speedup_ci95,
        "valid": found.valid,
    }


def row(tool: Tool, measurement: Measurement) -> dict[str, Any]:
    found = summary.summarise(measurement)
    return {
        "label": measurement.label,
        "who": tool.who,
        "p50_ms": 1e3 * (found.latency_s["p50"] or 0.0),
        "p50_ci95_ms": found.p50_ci95_s and [1e3 * bound for bound in found.p50_ci95_s],
        "throughput_ips": found.throughput_ips,
        "valid": found.valid,
        "warnings": [*found.warnings],
        "settings": dict(measurement.settings),
        "peak_rss_bytes": measurement.peak_rss_bytes,
        "size_bytes": measurement.size_bytes,
        "load_s": measurement.load_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="of the zoo; with its own --folder")
    parser.add_argument("--folder", type=Path, required=True, help="where the peers' files are made and kept")
    parser.add_argument("--nncf-python", help="an interpreter with nncf; without it NNCF is left out")
    parser.add_argument("--prepare", action="store_true", help="only make the files, and compile for torch")
    parser.add_argument(
        "--duration", type=float, default=3.0, help="seconds of timed queries per row, or about 80,000 queries"
    )
    parser.add_argument("--only", default="", help="only tools with one of these words in their names, comma-separated")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(arguments.folder.absolute() / "inductor")
    cores = machine.usable_cores()
    ways = [
        Way(scenario="single-stream", batch_size=1, streams=1),
        Way(scenario="offline", batch_size=1, streams=cores),
        Way(scenario="offline", batch_size=8, streams=1),
    ]
    request = with_biases(arguments.model, arguments.folder)
    found = list(tools(request, arguments.folder, arguments.nncf_python))
    words = [word for word in arguments.only.split(",") if word]
    made = candidates(request, [t for t in found if not words or any(word in t.name for word in words)], ways)
    if arguments.prepare:
        for tool, _, candidate in made.values():
            if tool.compiled:  # the compiler's results are kept, so that no row compiles while others are timed
                with Lane("torch") as lane:
                    lane.open(candidate.artifact, candidate.execution)
        return
    with journal.open_journal(journal.of_this_run()) as keep:
        assert keep is not None

        def watch(outcome: Measurement | Failure, done: int, total: int) -> None:
            keep(outcome, done, total)
            print(done, total, outcome.label, file=sys.stderr, flush=True)

        outcomes = interleaved.run(
            [candidate for *_, candidate in made.values()],
            interleaved.Schedule(duration_s=arguments.duration),
            interleaved.Listener(watch=watch),
        )
        save(made, outcomes, request.model, arguments.output)


def save(
    made: dict[str, tuple[Tool, Way, interleaved.Candidate]],
    outcomes: Sequence[Measurement | Failure],
    model: str,
    out: Path,
) -> None:
    """Writes the result, and prints its ratios."""
    measured = [(*made[o.label][:2], o) for o in outcomes if isinstance(o, Measurement)]
    document = {
        "command": "python benchmarks/peers.py",
        "model": model,
        "environment": environment.capture(),
        "failed": {o.label: o.message for o in outcomes if not isinstance(o, Measurement)},
        "rows": [row(tool, measurement) for tool, _, measurement in measured],
        "ratios": {name: ratios(measured, name) for name in ("single-stream", "offline")},
    }
    store.write_json(out, document)
    print(json.dumps(document["ratios"], indent=2))


if __name__ == "__main__":
    main()
