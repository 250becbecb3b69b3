"""The pages: links lead somewhere, the index has them all, and the Python of a page runs."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from resdeploy.graph import metadata
from resdeploy.records import ModelSpec, Preprocessing

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "findings").glob("*.md"))]
INDEX = (ROOT / "docs/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert lost == []


def test_the_index_has_every_page() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md") if not page.name.endswith(".part.md")}
    assert pages - {"README.md"} <= set(re.findall(r"\]\(([^)]+)\)", INDEX))


LABELS = tuple(f"class {number}" for number in range(10))
SHORT = "from tests.shortly import time_shortly\ntime_shortly()\n"
MADE_UP = {"load_s", "max_load"}  # names of the example


def lost_names(text: str) -> list[str]:
    """Names of code in an item of a page that are in none of the files which it, or else its section, names."""
    lost = []
    for section in re.split(r"\n## ", text)[1:]:
        for item in re.split(r"\n(?=\d\. |- |\| )", section):
            ticked = re.findall(r"`([^`\n]+)`", item)
            files = [path for place in ticked for path in files_at(place)]
            files = files or [path for place in re.findall(r"`([^`\n]+)`", section) for path in files_at(place)]
            code = "".join(path.read_text(encoding="utf-8") for path in files)
            names = {name for name in ticked if re.fullmatch(r"[A-Za-z_]\w*", name) and not files_at(name)} - MADE_UP
            names = {name for name in names if "_" in name or name[0].isupper()}
            lost += [f"{item[:40]}: {name}" for name in names if files and not re.search(rf"\b{name}\b", code)]
    return lost


def files_at(place: str) -> list[Path]:
    return [path for path in (ROOT / place, ROOT / "resdeploy" / place) if path.is_file()]


@pytest.mark.parametrize("page", ["extending.md", "debugging.md"])
def test_names_of_code_are_in_the_files_that_are_named_with_them(page: str) -> None:
    """A function that moved leaves its name behind in a page; so would a name that never was."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert lost_names(text) == []
    assert lost_names(text + "\n## More\n\n1. `refuse` and `_refuse_nobody` of `resdeploy/errors.py`.\n") != []


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


def run(code: str, folder: Path) -> str:
    """What a page's block prints; its benches are short."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RESDEPLOY_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SHORT + code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stdout


def blocks_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", blocks_of("debugging.md"))
def test_what_debugging_says_to_run_runs(code: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    small_network(tmp_path / "model.onnx")
    run(code, tmp_path)


@pytest.mark.acceptance
def test_what_the_page_on_python_says_runs(tmp_path: Path) -> None:
    """One block after the other, in the folder that the page describes."""
    pytest.importorskip("onnxruntime")
    labelled_network(tmp_path / "r56.onnx")
    for seed, folder in enumerate(("photos", "calibration")):
        pictures(tmp_path / folder, seed)
    shutil.copyfile(tmp_path / f"calibration/{LABELS[0]}/0.png", tmp_path / "horse.png")
    predicting, commanding, failing = blocks_of("api.md")
    assert "('class" in run(predicting, tmp_path)
    told = run(commanding, tmp_path)
    assert "r56.int8.onnx" in told
    assert "top1 " in told
    assert "there is no file r65.onnx" in run(failing, tmp_path)


def test_what_is_said_of_networks_from_elsewhere_was_measured() -> None:
    """Of each file: FP32 within 1e-4 of the largest output, equal counts, every convolution quantized."""
    root = Path(__file__).parents[1]
    rows = json.loads((root / "benchmarks/results/foreign.json").read_text(encoding="utf-8"))["results"]
    for row in rows:
        assert row["ok"], row
        assert row["fp32_rel_error"] < 1e-4, row
        assert set(row["macs_counted"].values()) == {row["macs"]}, row
        assert (row["quantized"]["Conv"], row["in_float"]) == (row["convolutions"], {}), row
    page = (root / "docs/graphs.md").read_text(encoding="utf-8")
    assert f"none of the {len(rows)} files" in page
    assert f"all {sum(row['convolutions'] for row in rows):,} convolutions" in page


def labelled_network(path: Path) -> None:
    """The small network, which resizes to its own size and has names for its classes."""
    small_network(path)
    network = onnx.load(path)
    spec = ModelSpec(
        name="small",
        family="f",
        classes=10,
        input_shape=(3, 8, 8),
        labels=LABELS,
        preprocessing=Preprocessing(size=(8, 8), resize=8),
    )
    metadata.attach(network, spec)
    onnx.save(network, path)


def pictures(folder: Path, seed: int = 0) -> None:
    """Three for each class, in folders."""
    rng = np.random.default_rng(seed)
    for name, number in itertools.product(LABELS, range(3)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        picture.save(folder / name / f"{number}.png")


@pytest.mark.acceptance
def test_what_the_page_on_serving_says_runs(tmp_path: Path) -> None:
    """Its commands and its Python, in the order of the page, in the folder that it describes."""
    pytest.importorskip("onnxruntime")
    labelled_network(tmp_path / "r56.int8.onnx")
    pictures(tmp_path / "cifar10/test")
    shutil.copyfile(tmp_path / f"cifar10/test/{LABELS[0]}/0.png", tmp_path / "horse.png")
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RESDEPLOY_CACHE": str(tmp_path / "cache")}
    run_by = {"resdeploy": [sys.executable, "-m", "resdeploy"], "python": [sys.executable]}
    for kind, block in re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL):
        if kind == "python":
            assert "class" in run(block, tmp_path)
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            done = subprocess.run(
                [*run_by[program], *arguments],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (line, done.stderr, done.stdout)


def test_the_matrix_shows_its_result_in_which_no_row_is_better_than_ours() -> None:
    """Convolutions, sums, Q/DQ left over, by the reading that shares no code with us; and noise, of whole INT8 files.

    Who leaves sums or the classifier in float has less noise: Model Optimizer's, of which the page says so.
    """
    from benchmarks import matrix

    page, result = matrix.PAGE.read_text(encoding="utf-8"), json.loads(matrix.RESULT.read_text(encoding="utf-8"))
    assert matrix.page(page, result) == page
    for runtime in matrix.RUNTIMES:
        cells = {row["name"]: row["cells"][runtime] for row in result["rows"] if "read" in row["cells"][runtime]}
        assert all(cell["agree"] for cell in cells.values())
        ours = cells[f"resdeploy --target {runtime}"]
        for name, cell in cells.items():
            assert all(cell["read"][what] <= ours["read"][what] for what in ("int8", "sums")), name
            if all(cell["read"][what] == ours["read"][what] for what in ("int8", "sums")):
                assert cell["read"]["qdq"] >= ours["read"]["qdq"], name
                assert cell["snr_db"] <= ours["snr_db"], name
