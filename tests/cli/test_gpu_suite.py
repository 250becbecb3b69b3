"""benchmarks/gpu_suite.py end to end: real lanes, doubles of TensorRT and the driver, two tiny networks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import gpu_pack
from resdeploy.graph import cast
from tests.backends.conftest import tiny_network
from tests.cli.conftest import LONGEST_S, ROOT, gpu_environment
from tests.graph.test_intent import quantized

SUITE, TABLE = ROOT / "benchmarks/gpu_suite.py", ROOT / "benchmarks/gpu_table.py"
VERSION = "8.6.0"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gpu_pack.py makes, of two networks with one residual block: one without its weights, one with."""
    folder = tmp_path_factory.mktemp("suite")
    rows = []
    for name, seeded in (("resnet50", True), ("resnet20", False)):
        model = onnx.shape_inference.infer_shapes(tiny_network(channels=64))
        gpu_pack.give_seeded_weights(model)
        variants = {"fp32": model, "fp16": cast.to_half(model, "fp16"), "int8": quantized(model, "tensorrt")}
        for precision, made in variants.items():
            data = (gpu_pack.strip(made) if seeded else made).SerializeToString()
            (folder / f"{name}.{precision}.onnx").write_bytes(data)
            rows.append({"network": name, "precision": precision, "seeded": seeded, "classes": 10, "notes": []})
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    for name in ("imagenet", "cifar10"):
        np.savez(folder / f"{name}.npz", pixels=pixels, mean=np.full(3, 0.5), std=np.full(3, 0.25))
    (folder / "suite.json").write_text(json.dumps({"rows": rows, "img_size": 32}))
    return folder


def ran(folder: Path, driver: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **gpu_environment(out.parent, driver, VERSION)}
    command: list[Any] = [sys.executable, SUITE, folder, "-o", out, "--seconds", "0.02", "--max-batch", "1", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False)


def rows(document: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [row for row in document["results"] if row["what"] == what]


@pytest.mark.acceptance
def test_the_whole_suite_runs_and_its_table_is_made(packed: Path, driver: Path, tmp_path: Path) -> None:
    """Several builds of each engine, audits, agreement, times; peers that cannot run are rows with the reason.

    The slowest of these tests: some twenty lanes, each a process of its own, as on a GPU.
    """
    torch = tmp_path / "python-without-torch"
    torch.write_text("#!/bin/sh\necho no torch here >&2; exit 1\n")
    torch.chmod(0o755)
    out = tmp_path / "gpu.json"
    done = ran(packed, driver, out, "--torch-python", str(torch), "--builds", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(out.read_text())
    audits = [row for row in rows(document, "audit") if row["network"] == "resnet50"]
    assert Counter((r["precision"], r["build"]) for r in audits) == Counter(
        {(p, n): 1 for p in ("int8", "fp16") for n in (0, 1)}
    )
    assert all((row["verdict"], row["fused"], row["blocks"]) == ("pass", 1, 1) for row in audits)
    assert all(row["adds_in"] == [row["precision"]] and row["layers"] for row in audits)
    assert all(row["build_s"] > 0 for row in audits)
    agreement = {(r["network"], r["precision"]): r for r in rows(document, "agreement")}
    assert set(agreement) == {(n, p) for n in ("resnet50", "resnet20") for p in ("int8", "fp16")}
    assert all(row["finite"] and "top1_agreement_percent" in row for row in agreement.values())
    ours = [row for row in rows(document, "time") if row["peer"] == "resdeploy"]
    assert {row["build"] for row in ours} == {0, 1}
    assert all(row["device_p50_ms"] > 0 and row["end_to_end_p50_ms"] > 0 for row in ours)
    peers = {row["peer"]: row for row in rows(document, "time") if row["peer"] != "resdeploy"}
    assert {"torch-eager", "torch-compile", "onnxruntime-gpu"} <= set(peers)
    assert all(row["error"] for row in peers.values())  # none of them finds CUDA here
    table = subprocess.run([sys.executable, TABLE, out], capture_output=True, text=True, check=True).stdout
    assert "| resnet50 | int8 | 1 |" in table
    assert "1 of 1 in int8" in table


def test_the_table_shows_the_build_that_fused_least(tmp_path: Path) -> None:
    """Times are medians over builds; a build that did not fuse must not hide behind one that did."""
    of = {"network": "resnet50", "precision": "int8", "batch": 1}
    audits = [{"what": "audit", **of, "fused": n, "blocks": 16, "adds_in": ["int8"]} for n in (16, 9, 16)]
    time = {"what": "time", **of, "peer": "resdeploy", "device_p50_ms": 2.0, "end_to_end_p50_ms": 3.0}
    (tmp_path / "gpu.json").write_text(json.dumps({"results": [*audits, time]}))
    command = [sys.executable, str(TABLE), str(tmp_path / "gpu.json")]
    assert "9 of 16 in int8" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_the_budget_cuts_off_is_named_and_the_rest_kept(packed: Path, driver: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert ran(packed, driver, out, "--budget", "0").returncode == 0
    document = json.loads(out.read_text())
    assert {row["what"] for row in document["results"]} == {"left out"}
    assert document["results"][0]["step"] == "audit resnet50 int8 b1"
    assert document["environment"]


def test_a_broken_graph_is_a_row_not_the_end(packed: Path, driver: Path, tmp_path: Path) -> None:
    broken = tmp_path / "suite"
    broken.mkdir()
    suite = json.loads((packed / "suite.json").read_text())
    kept = [row for row in suite["rows"] if row["network"] == "resnet50" and row["precision"] != "fp32"]
    (broken / "suite.json").write_text(json.dumps(suite | {"rows": kept}))
    shutil.copy(packed / "resnet50.fp16.onnx", broken)
    (broken / "resnet50.int8.onnx").write_bytes(b"no ONNX")
    out = tmp_path / "gpu.json"
    assert ran(broken, driver, out, "--builds", "1").returncode == 1
    document = json.loads(out.read_text())
    assert any("int8" in row["step"] for row in rows(document, "failed"))
    assert [row["precision"] for row in rows(document, "audit")][:1] == ["fp16"]
