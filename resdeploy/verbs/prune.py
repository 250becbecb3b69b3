"""`prune`: residual blocks dropped within a budget of accuracy, and what that buys."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resdeploy import scratch, store
from resdeploy.backends import choose
from resdeploy.deploy import candidates, export, model_files, model_string, networks
from resdeploy.deploy.model_string import OnnxFile, Request
from resdeploy.errors import UsageError, refuse
from resdeploy.measure import interleaved, prediction_files, run_images
from resdeploy.measure.one_run import Bench, Row, compare_rows, summaries, time_rows
from resdeploy.records import Artifact, BackendName, Cost, Predictions, Progress, PruneOutcome, PruneSide
from resdeploy.verbs import block_search
from resdeploy.vocabulary import MAX_TIME_S

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset
    from resdeploy.train.loop import Plan

BATCH = 64  # images per query where blocks are tried


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """What may be lost, on which images, and what is to be written and measured."""

    data: str
    budget: block_search.Budget
    training: Plan | None = None  # fine-tuning afterwards; None: none
    train_data: str | None = None  # None: the training split of `data`
    backend: str = "auto"  # for the latency
    threads: int | None = None
    duration_s: float = 3.0
    max_time_s: float = MAX_TIME_S  # of the comparison of the two networks
    seed: int = 0
    predictions: Path | None = None  # folder for both files of per-image answers on the images judged on


def fine_tuning_plan(epochs: int, lr: float, seed: int) -> Plan | None:
    """The one cycle at a low rate, without the recipe's start at identity; None: no epochs, no fine-tuning."""
    if not epochs:
        return None
    from resdeploy.train.loop import Plan

    return Plan(epochs=epochs, lr=lr, seed=seed)


def prune(request: Request, plan: PrunePlan, out: Path, *, progress: Progress) -> PruneOutcome:
    """Prunes a network or an FP32 ONNX file; `out` is a checkpoint or an ONNX file by its suffix.

    Raises:
        UsageError: no block can be removed, a low-precision file, an unknown suffix, a checkpoint or fine-tuning
            asked of an ONNX file, or fine-tuning on images that choose or judge.
    """
    from resdeploy.data import datasets

    store.probe(out)
    if plan.predictions is not None:
        store.probe(plan.predictions / "baseline.npz")
    backend, _ = choose.pick(plan.backend, "fp32")  # before a search of minutes
    kind = _kind_to_write(request, plan, out)
    images = datasets.deduplicate(datasets.open_dataset(plan.data, split="test"))
    train_images = None if plan.training is None else _training_images(plan, images)
    source = export.to_onnx(request, progress=progress)
    if source.precision != "fp32":
        raise UsageError(f"{source.path} is {source.precision} already", fix="Prune first, then quantize")
    choosing, judging = block_search.halves(images, plan.seed)
    with scratch.folder() as folder:
        tuner = None
        if train_images is not None and plan.training is not None:
            tuner = _Tuner(request, plan.training, train_images, choosing, folder, progress)
        pruned = block_search.prune(
            source, choosing, judging, plan.budget,
            predict=_predict, out=folder / "pruned.onnx", tune=tuner, progress=progress,
        )  # fmt: skip
        if kind == "onnx":
            written = store.copy_to(pruned.artifact, out)
        else:
            written = _write_checkpoint(request, pruned, tuner, out)
        if plan.predictions is not None:
            prediction_files.save(pruned.baseline, plan.predictions / "baseline.npz")
            prediction_files.save(pruned.candidate, plan.predictions / "pruned.npz")
        costs = candidates.cost_of(source), candidates.cost_of(pruned.artifact)
        return _outcome(pruned, written, costs, _time(source, pruned.artifact, backend, plan, progress))


def _kind_to_write(request: Request, plan: PrunePlan, out: Path) -> Literal["onnx", "checkpoint"]:
    """What `out` is by its suffix.

    Raises:
        UsageError: neither, or nothing that can be made of an ONNX file.
    """
    kind = model_string.format_of(out.name)
    from_onnx, fix = isinstance(request.named, OnnxFile), "Name the network and its --weights"
    refuse(
        (
            kind not in ("onnx", "checkpoint") or (kind == "checkpoint" and out.suffix != ".safetensors"),
            f"{out} is neither .onnx nor .safetensors",
            "Name the file to write by its suffix",
        ),
        (from_onnx and kind == "checkpoint", f"a checkpoint needs a network, and {request.model} is only a graph", fix),
        (
            from_onnx and plan.training is not None,
            f"fine-tuning needs a network, and {request.model} is only a graph",
            fix,
        ),
    )
    return "onnx" if kind == "onnx" else "checkpoint"


def _outcome(pruned: block_search.Pruned, written: Artifact, costs: tuple[Cost, Cost], bench: Bench) -> PruneOutcome:
    before, after = (
        PruneSide(cost=cost, timing=timing, score=prediction_files.score(answers))
        for cost, timing, answers in zip(
            costs, summaries(bench.outcomes), (pruned.baseline, pruned.candidate), strict=True
        )
    )
    return PruneOutcome(
        artifact=written,
        removed=pruned.removed,
        lesions=pruned.lesions,
        path=pruned.path,
        tuned=pruned.tuned,
        before=before,
        after=after,
        comparisons=bench.comparisons,
        verdict=pruned.verdict,
    )


def prune_unjudged(
    source: Artifact, data: str, max_drop_pp: float, seed: int, out: Path, *, progress: Progress
) -> Artifact:
    """An FP32 ONNX file without the blocks that training images can spare; the test images are not looked at.

    Raises:
        UsageError: no block can be removed, or the data set has no training images of its own.
    """
    from resdeploy.data import datasets

    train_data, test_data = datasets.training_images(data)
    test_data = datasets.deduplicate(test_data)  # as many as will judge
    choosing = datasets.deduplicate(datasets.choose(train_data, min(len(train_data), len(test_data)), seed))
    budget = block_search.Budget(max_drop_pp=max_drop_pp)
    return store.publish(
        out,
        lambda path: block_search.prune_unjudged(
            source, choosing, len(test_data), budget, predict=_predict, out=path, progress=progress
        ),
    )


def _predict(artifact: Artifact, images: Dataset) -> Predictions:
    """Answers of an FP32 file from ONNX Runtime."""
    # ONNX Runtime takes the file as it is: nothing need be built to be tried once.
    candidate = candidates.candidate(artifact, "onnxruntime", batch_size=BATCH, make=lambda source, *_: source)
    answers = run_images.predict(candidate, images, model_files.preprocessing_of(artifact), batch_size=4 * BATCH)
    if answers.unreadable:
        raise UsageError(
            f"{len(answers.unreadable)} images cannot be decoded, the first is {answers.unreadable[0]}",
            fix="Repair or remove them",
        )
    return answers


def _training_images(plan: PrunePlan, tested: Dataset) -> Dataset:
    """The images to fine-tune on, none of which is among those to choose and to judge on.

    Raises:
        UsageError: `data` has no training images of its own and no others are named, or some are among `tested`.
    """
    from resdeploy.data import datasets

    fix = "Give --train-data images of their own, or leave --epochs out"
    images = datasets.open_dataset(plan.train_data or plan.data, split="train")
    if plan.train_data is None and images.split != "train":
        raise UsageError(
            f"{plan.data} has no training images: fine-tuning would see those to choose and to judge on", fix=fix
        )
    if shared := len(set(datasets.contents(images)) & set(datasets.contents(tested))):
        raise UsageError(
            f"{shared} images of {images.name} to fine-tune on are among those of {tested.name} to choose and to judge "
            "on",
            fix=fix,
        )
    return images


class _Tuner:
    """Trains the network without some blocks to answer as the whole one does."""

    def __init__(
        self, request: Request, plan: Plan, images: Dataset, choosing: Dataset, folder: Path, progress: Progress
    ) -> None:
        self.request, self.plan, self.images, self.choosing = request, plan, images, choosing
        self.folder, self.progress = folder, progress
        self.trained: Artifact | None = None

    def __call__(self, removed: tuple[str, ...]) -> Artifact:
        from resdeploy.graph import from_torch
        from resdeploy.models import weights, zoo
        from resdeploy.train import loop

        start = _checkpoint_without(self.request, removed, self.folder / "start.safetensors")
        assert start.model is not None
        network = networks.resolve(self.request)
        teacher = weights.create(network.spec, network.path, seed=self.request.seed)
        task = loop.Task(
            spec=start.model, train_data=self.images, test_data=self.choosing, plan=self.plan,
            out=self.folder / "tuned.safetensors", initial=Path(start.path), teacher=teacher,
        )  # fmt: skip
        self.trained = loop.train(task, progress=self.progress)
        # Its test images were those to choose on, so its figures are not the verdict's.
        checks = {name.replace("test_", "choosing_"): x for name, x in self.trained.checks.items()}
        self.trained = dataclasses.replace(self.trained, checks=checks)
        assert self.trained.model is not None
        assert self.trained.weights is not None
        module = zoo.create(self.trained.model)
        weights.load_into(module, Path(self.trained.path))
        return from_torch.export(module, self.trained.model, self.folder / "tuned.onnx", weights=self.trained.weights)


def _checkpoint_without(request: Request, removed: tuple[str, ...], out: Path, notes: tuple[str, ...] = ()) -> Artifact:
    """The request's network without these blocks, as a checkpoint."""
    from resdeploy.models import resnet, weights

    network = networks.resolve(request)
    net = weights.create(network.spec, network.path, seed=request.seed)
    if not isinstance(net, resnet.ResNet):
        raise UsageError(f"{network.spec.name} is not a network of ours", fix="Write an .onnx file instead")
    resnet.remove_blocks(net, removed)
    params = sum(p.numel() for p in net.parameters())
    spec = dataclasses.replace(network.spec, removed=(*network.spec.removed, *removed), params=params)
    return weights.save(net, spec, out, network.weights, notes=notes)


def _write_checkpoint(request: Request, pruned: block_search.Pruned, tuner: _Tuner | None, out: Path) -> Artifact:
    notes = pruned.artifact.notes
    if tuner is None or tuner.trained is None:
        return _checkpoint_without(request, pruned.removed, out, notes)
    return store.copy_to(tuner.trained, out, notes=notes)


def _time(before: Artifact, after: Artifact, backend: BackendName, plan: PrunePlan, progress: Progress) -> Bench:
    """Both in one interleaved run, one image per query."""
    rows = []
    for label, source in (("before", before), ("after", after)):
        candidate = candidates.candidate(source, backend, label=label, threads=plan.threads)
        rows.append(Row(source=source, candidate=candidate, baselines=("before",) if label == "after" else ()))
    return compare_rows(
        rows,
        time_rows(
            rows,
            interleaved.Schedule(duration_s=plan.duration_s, seed=plan.seed, max_time_s=plan.max_time_s),
            interleaved.Listener(progress=progress),
        ),
    )
