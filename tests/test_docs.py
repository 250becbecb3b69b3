"""The pages: links lead somewhere, the index has them all, and the Python of a page runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "findings").glob("*.md"))]
INDEX = (ROOT / "docs/README.md").read_text(encoding="utf-8")
DEBUGGING = (ROOT / "docs/debugging.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert lost == []


def test_the_index_has_every_page() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md") if not page.name.endswith(".part.md")}
    assert pages - {"README.md"} <= set(re.findall(r"\]\(([^)]+)\)", INDEX))


def small_network(path: Path) -> None:
    """A convolution and a product, as an ONNX file of somebody else's."""
    rng = np.random.default_rng(0)
    kernel = numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "kernel")
    matrix = numpy_helper.from_array(rng.normal(size=(4, 10)).astype(np.float32), "matrix")
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="pool"),
        helper.make_node("Flatten", ["c"], ["d"], name="flat"),
        helper.make_node("MatMul", ["d", "matrix"], ["logits"], name="fc"),
    ]
    given = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "small", [given], [logits], [kernel, matrix])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", DEBUGGING, re.DOTALL))
def test_what_debugging_says_to_run_runs(code: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    small_network(tmp_path / "model.onnx")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
