"""The gate on real networks: FP32 against INT8, against another network, and against networks spoiled on purpose.

    python benchmarks/gate_real.py --data ../shared/data            # writes results/gate-real.json and docs/gate.md
    python benchmarks/gate_real.py --data ../shared/data --limit 1  # another limit

The folder holds `cifar10/{train,test}` and `weights/resnet{20,56}-*.th` (see its README.md). The whole test set is the
truth here, so a verdict is right if it does not contradict the drop counted on it; and how often verdicts from random
parts of it contradict it is counted too. Spoiled networks have the likely cause that the gate named beside them.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy import stats, store
from resdeploy.deploy import calibration, candidates, export, lower
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.graph import files, residual
from resdeploy.judge import pairs
from resdeploy.measure import environment, prediction_files, run_images
from resdeploy.records import Artifact, Judged, Predictions
from resdeploy.verbs import gate, gate_options
from resdeploy.verbs.judge_limits import Limits

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "gate-real.json", HERE.parent / "docs" / "gate.md"
BEGIN, END = "<!-- gate_real: begin -->", "<!-- gate_real: end -->"
METHODS = ("minmax", "percentile", "entropy")
PARTS, PART_IMAGES = 2000, 1000
WRONG = PreprocessingOverride(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def quiet(_what: str, _done: int, _total: int) -> None:
    """No bars: the output goes to a file as a rule."""


Spoil = Callable[[onnx.ModelProto, np.random.Generator], None]


def weights_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def change(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), tensor.name))


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def doubled_block(model: onnx.ModelProto, _rng: np.random.Generator) -> None:
    """The last convolution of the middle block's branch gives twice its output."""
    blocks = residual.find_blocks(model)
    block = blocks[len(blocks) // 2]
    last = next(node for node in convolutions(model) if node.name == block.last_conv)
    for name in last.input[1:]:
        change(weights_of(model)[name], 2 * numpy_helper.to_array(weights_of(model)[name]))


def flipped_weights(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """1 % of the weights of every convolution change their sign."""
    for node in convolutions(model):
        tensor = weights_of(model)[node.input[1]]
        values = numpy_helper.to_array(tensor)
        change(tensor, np.where(rng.random(values.shape) < 0.01, -values, values))


def shifted_classes(model: onnx.ModelProto, _rng: np.random.Generator) -> None:
    """Class k answers as class k + 1, as with a class list that has one more at its start."""
    head = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")][-1]
    for name in head.input[1:]:
        values = numpy_helper.to_array(weights_of(model)[name])
        classes = next(axis for axis, size in enumerate(values.shape) if size == 10)
        change(weights_of(model)[name], np.roll(values, 1, axis=classes))


def trained_on_bgr(model: onnx.ModelProto, _rng: np.random.Generator) -> None:
    """The first convolution expects blue first; the file goes on saying RGB."""
    tensor = weights_of(model)[convolutions(model)[0].input[1]]
    change(tensor, numpy_helper.to_array(tensor)[:, ::-1])


def trained_on_unit_pixels(model: onnx.ModelProto, _rng: np.random.Generator) -> None:
    """The network normalises its input itself; the file goes on stating ImageNet's mean and std."""
    image = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["normalised" if name == image else name for name in node.input]
    for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
        channels = np.array(values, np.float32)[None, :, None, None]
        model.graph.initializer.append(numpy_helper.from_array(channels, name))
    nodes = (("Sub", image, "mean", "centred"), ("Div", "centred", "std", "normalised"))
    for k, (kind, left, right, made) in enumerate(nodes):
        model.graph.node.insert(k, onnx.helper.make_node(kind, [left, right], [made], name=made))


SPOILED: dict[str, Spoil] = {
    "one block's scale doubled": doubled_block,
    "1 % of weights flipped": flipped_weights,
    "classes shifted by one": shifted_classes,
    "trained on BGR, says RGB": trained_on_bgr,
    "trained on 0 to 1, says mean and std": trained_on_unit_pixels,
}


def spoiled(fp32: Artifact, name: str, folder: Path) -> Path:
    """The network with one thing wrong, as a file that says it is the same as before."""
    model = files.load_model(Path(fp32.path))
    SPOILED[name](model, np.random.default_rng(0))
    path = folder / f"{Path(fp32.path).stem}-{list(SPOILED).index(name)}.onnx"
    files.save_model(model, path)
    made = replace(fp32, path=str(path))
    store.copy_to(made, path, sha256=store.digest(path), parent=fp32.sha256, checks={})
    return path


Case = tuple[
    str, str, Callable[[], Path], PreprocessingOverride
]  # baseline, candidate, its file, how it is told to see images


def cases(data: Path, folder: Path, fp32: dict[str, Artifact]) -> Iterator[Case]:
    """All comparisons: INT8, one network against the other, then what was spoiled."""
    for net, artifact in fp32.items():
        for method in METHODS:
            yield (
                net,
                f"INT8 {method}",
                functools.partial(quantized, artifact, data, folder, net, method),
                PreprocessingOverride(),
            )
    for before, after in (("resnet56", "resnet20"), ("resnet20", "resnet56")):
        yield before, after, functools.partial(Path, fp32[after].path), PreprocessingOverride()
    for net, artifact in fp32.items():
        for name in SPOILED:
            yield net, name, functools.partial(spoiled, artifact, name, folder), PreprocessingOverride()
        yield net, "told mean and std of 0.5", functools.partial(Path, artifact.path), WRONG


def quantized(fp32: Artifact, data: Path, folder: Path, net: str, method: str) -> Path:
    path = folder / f"{net}-{method}.onnx"
    if not path.exists():
        plan = calibration.CalibrationPlan(data=str(data / "cifar10" / "train"), method=method)
        lower.lower(fp32, "int8", "openvino", plan, path, progress=quiet)
    return path


def contradictions(before: Predictions, after: Predictions, limit: float) -> dict[str, float]:
    """Shares of the verdicts from random parts of the set, and of those that contradict the whole set's drop."""
    pair = pairs.match(before, after)
    rng = np.random.default_rng(0)
    over = 100 * (pair.lost.mean() - pair.gained.mean()) > limit
    found = {"pass": 0, "fail": 0, "inconclusive": 0}
    change_of = pair.lost.astype(int) - pair.gained.astype(int)
    for _ in range(PARTS):
        part = change_of[rng.choice(len(change_of), PART_IMAGES, replace=False)]
        lost, gained = int((part > 0).sum()), int((part < 0).sum())
        score = float(stats.tango_score(lost, gained, PART_IMAGES, limit / 100))
        state = "pass" if score <= -1.6448536 else "fail" if score >= 1.6448536 else "inconclusive"
        found[state] += 1
    wrong = found["pass"] if over else found["fail"]
    return {f"{state}_share": n / PARTS for state, n in found.items()} | {"wrong_share": wrong / PARTS}


def answers(before: Predictions, judged: Judged) -> Predictions:
    """The candidate's top-1 answers: the baseline's with the flips."""
    where = {name: k for k, name in enumerate(before.ids)}
    top = before.top[:, :1].copy()
    for flip in judged.flips:
        top[where[flip.image]] = flip.candidate
    return replace(before, top=top, logits=None)


def row(
    name: str, baseline: Path, model: Path, override: PreprocessingOverride, data: str, limit: float
) -> dict[str, object]:
    """One gate, with what it counted and said."""
    plan = gate_options.GatePlan(
        baseline=str(baseline),
        candidates=(str(model),),
        limits=Limits(drop_pp=limit),
        data=data,
        override=override,
        backends=("openvino",),
    )
    found = gate.gate(plan, progress=quiet).gate
    check = found.judged[0].verdict.checks[0]
    assert check.interval is not None
    assert check.observed is not None
    before = prediction_files.load(baseline)
    after = answers(before, found.judged[0])
    return {
        "candidate": name,
        "top1": prediction_files.score(after).top1,
        "drop_pp": check.observed,
        "interval_pp": list(check.interval),
        "verdict": check.state,
        "right": not (check.state == "pass" and check.observed > limit)
        and not (check.state == "fail" and check.observed <= limit)
        and (check.state == "fail") == (check.interval[0] > limit),
        "hint": check.note.partition("mid-p")[2].partition("). ")[2],
        "of_parts": contradictions(replace(before, logits=None), after, limit),
    }


def table(document: dict[str, object]) -> str:
    lines = [
        "| baseline | candidate | top-1 % | drop in points | one-sided 95 % bounds | verdict | likely cause named |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for r in document["results"]:  # type: ignore[attr-defined]
        low, high = r["interval_pp"]
        hint = str(r["hint"]).replace("|", r"\|") or "-"
        lines.append(
            f"| {r['baseline']} | {r['candidate']} | {r['top1']:.2f} | {r['drop_pp']:+.2f} | {low:+.2f} to {high:+.2f} "
            f"| {r['verdict']} | {hint} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10 and weights")
    parser.add_argument("--limit", type=float, default=0.5, help="points of top-1")
    parser.add_argument("--folder", type=Path, default=Path("runs/gate-real"), help="where files go; kept")
    arguments = parser.parse_args()
    data, folder = str(arguments.data / "cifar10" / "test"), arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    fp32, baselines = {}, {}
    for net in ("resnet20", "resnet56"):
        weights = next((arguments.data / "weights").glob(f"{net}-*.th"))
        fp32[net] = export.to_onnx(Request(model=net, weights=str(weights)), folder / f"{net}.onnx", progress=quiet)
        baselines[net] = folder / f"{net}.npz"
        if not baselines[net].exists():
            candidate = candidates.candidate(fp32[net], "openvino", batch_size=32)
            prediction_files.save(run_images.predict_test_split(candidate, data, progress=quiet), baselines[net])
    document = {
        "command": f"python benchmarks/gate_real.py --data FOLDER --limit {arguments.limit:g}",
        "limit_pp": arguments.limit,
        "images": len(prediction_files.load(baselines["resnet20"]).labels),
        "parts": {"count": PARTS, "images": PART_IMAGES},
        "environment": environment.capture(),
        "results": [],
    }
    kept = folder / "rows.json"  # an interrupted run goes on where it stopped
    results = json.loads(kept.read_text()) if kept.exists() else []
    for net, name, make_file, override in cases(arguments.data, folder, fp32):
        if not any((r["baseline"], r["candidate"]) == (net, name) for r in results):
            results.append({"baseline": net, **row(name, baselines[net], make_file(), override, data, arguments.limit)})
            store.write_json(kept, results)
            print(json.dumps(results[-1]), flush=True)
        document["results"] = results
        store.write_json(RESULTS, document)
        publish(document)
    print(f"wrote {RESULTS.name} and {PAGE.name}; {folder} may be removed", file=sys.stderr)
    return int(not all(r["right"] for r in results))


def publish(document: dict[str, object]) -> None:
    """The table of docs/gate.md."""
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(document)}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
