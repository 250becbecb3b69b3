"""`quantize --sensitivity` and `--max-drop`: what each layer costs in INT8, and the fastest model within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy import backends, scratch, store
from resdeploy.deploy import build, calibration, candidates, lower, rewriting
from resdeploy.errors import UsageError, refuse
from resdeploy.judge import pairs
from resdeploy.measure import run_images
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import (
    Artifact,
    BackendName,
    Execution,
    LayerCost,
    Mixed,
    Precision,
    Predictions,
    Progress,
    Sensitivity,
    Target,
)
from resdeploy.verbs import precision_ladder
from resdeploy.vocabulary import MAX_TIME_S

if TYPE_CHECKING:
    from resdeploy.quantize.ptq import Calibrated


# Counts of TensorRT-RTX 1.7.1's compiler, SM89, batch 1: benchmarks/results/rtx-placements.json.
RTX_ADVICE = (
    "INT8 may gain nothing on TensorRT-RTX: its compiler makes 106 kernels of ResNet-50 in INT8, which move 74.5 MB of "
    "activations, and 57 with 57.9 MB in FP16. What it makes of this file: "
    "resdeploy audit {} --backend tensorrt-rtx (extra rtx, no GPU needed)"
)
BATCH_SIZE = 32  # of the judging; times are taken with one image per query


@dataclass(frozen=True, kw_only=True)
class QuantizeGoal:
    """What is asked of `quantize` beyond a file: what every layer costs, or a model within a budget."""

    sensitivity: bool = False
    max_drop_pp: float | None = None  # None: no search
    data: str | None = None  # its test split judges
    confidence: float = 0.95
    duration_s: float = 3.0  # of timed queries, a candidate
    max_time_s: float = MAX_TIME_S  # longest that a candidate's comparison with FP32 may take

    def refuse_nonsense(self, precision: Precision, plan: calibration.CalibrationPlan) -> None:
        """Refuses contradictions before any work.

        Raises:
            UsageError: a search without images, images without a search, or for another precision either of them or
                ranges, which it has none of.
        """
        images = calibration.CalibrationPlan(data=plan.data, samples=plan.samples, seed=plan.seed, force=plan.force)
        searched, lower_float = self.max_drop_pp is not None, precision != "int8"
        refuse(
            (searched and self.data is None, "--max-drop needs labelled images to judge on", "Add --data DIR"),
            (
                not searched and self.data is not None,
                "--data judges the search of --max-drop",
                "Add --max-drop 0.5, or use resdeploy eval",
            ),
            (
                not searched and self.max_time_s != MAX_TIME_S,
                "--max-time limits the timing of the search of --max-drop",
                "Add --max-drop 0.5, or leave it out",
            ),
            (
                lower_float and (self.sensitivity or searched),
                f"--sensitivity and --max-drop start from INT8, not from {precision}",
                "Add --precision int8",
            ),
            (
                lower_float and plan != images,
                f"--calib-method, --portable, --effort and the like are of INT8's ranges: {precision} has none",
                "Leave them out, or add --precision int8",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The model written; of a search every candidate, the most exact first."""

    artifact: Artifact
    layers: tuple[Sensitivity, ...] = ()
    candidates: tuple[Mixed, ...] = ()

    @property
    def advice(self) -> str:
        """What whoever asked for INT8 should know of the target; "": nothing."""
        rtx = self.artifact.precision == "int8" and self.artifact.target == "tensorrt-rtx"
        return RTX_ADVICE.format(self.artifact.path) if rtx else ""

    @property
    def is_within_budget(self) -> bool | None:
        """Whether the model written is shown to be within the budget; None where there was none."""
        if not self.candidates:
            return None
        return any(c.chosen and c.check is not None and c.check.state == "pass" for c in self.candidates)


def quantize(
    source: Artifact,
    precision: Precision,
    target: Target,
    plan: calibration.CalibrationPlan,
    out: Path,
    wanted: QuantizeGoal,
    *,
    progress: Progress,
) -> Quantized:
    """The FP32 file in another precision, with what was asked for.

    Raises:
        UsageError: what is asked for makes no sense together; a calibration image is also a judging one; not an FP32
            file.
        BackendMissing: a search for a target that cannot run here, so that nothing can be measured.
        OutputLost: the file's output has nothing to do with the source's; nothing is written.
    """
    from resdeploy.quantize import ptq

    wanted.refuse_nonsense(precision, plan)
    if source.precision != "fp32":
        raise UsageError(f"{source.path} is {source.precision} already", fix="Name the FP32 file it was made from")
    if not wanted.sensitivity and wanted.max_drop_pp is None:
        return Quantized(artifact=lower.lower(source, precision, target, plan, out, progress=progress))
    store.probe(out)
    if wanted.max_drop_pp is not None:
        backends.require(backends.load(_backend_of(target)).available(), target)
    rewriting.refuse_other_function(source, lower.images_to_compare(source, plan))
    seen = calibration.calibrate(source, target, plan, progress=progress)
    if wanted.max_drop_pp is not None:
        return _search(seen, plan, wanted, out, progress)
    layers = _try_layers(seen, plan, progress)
    options = ptq.FileOptions(portable=plan.portable_here(), force=plan.force)
    artifact = store.publish(out, lambda path: ptq.write(seen, path, options))
    return Quantized(artifact=artifact, layers=layers)


def _backend_of(target: Target) -> BackendName:
    """Who runs the candidates of a search."""
    if target == "tensorrt-rtx":
        raise UsageError(
            "--max-drop measures its candidates, and TensorRT-RTX builds here but runs on RTX GPUs alone",
            fix="Leave --max-drop and --data out, and judge the file: resdeploy gate --baseline F.onnx "
            "--candidate F.int8.onnx --backend onnxruntime --max-drop 0.3 --data DIR",
        )
    return target


def _try_layers(seen: Calibrated, plan: calibration.CalibrationPlan, progress: Progress) -> tuple[Sensitivity, ...]:
    """Each layer and block alone, on the calibration images."""
    from resdeploy.quantize import sensitivity

    images = calibration.calibration_inputs(seen.source, plan)
    return sensitivity.measure(seen, images, portable=plan.portable_here(), progress=progress)


def _search(
    seen: Calibrated, plan: calibration.CalibrationPlan, wanted: QuantizeGoal, out: Path, progress: Progress
) -> Quantized:
    """The fastest mixed INT8/FP32 or FP16 model whose drop of top-1 is shown to be within the budget.

    Ranges and the choice of layers come from the calibration images, the verdict from others: the test split.

    Raises:
        OutputLost: the best of them has an output that has nothing to do with the source's.
    """
    from resdeploy.quantize import fidelity

    assert wanted.data is not None
    assert wanted.max_drop_pp is not None
    with scratch.folder() as folder:
        bench = _Bench(seen, plan, wanted.data, folder, progress)
        baseline = bench.predictions(None)
        assert baseline.origin is not None
        pairs.refuse_leak(replace(baseline, origin=replace(baseline.origin, calibration=seen.calibration)))
        layers = _try_layers(seen, plan, progress)
        macs = {layer.name: layer.macs for layer in _costs(seen)}
        judged = precision_ladder.judge_mixes(
            precision_ladder.ladder(layers, macs),
            baseline,
            bench.predictions,
            max_drop_pp=wanted.max_drop_pp,
            confidence=wanted.confidence,
        )
        timed = precision_ladder.time_mixes(
            judged,
            bench.candidate(None),
            bench.candidate,
            duration_s=wanted.duration_s,
            max_time_s=wanted.max_time_s,
            seed=plan.seed,
            progress=progress,
        )
        chosen = next(mix for mix in timed if mix.chosen)
        made = bench.file_of(chosen.label)
        fidelity.refuse_lost(made, force=plan.force)
        artifact = _keep(made, chosen, wanted, baseline.repeats.notes, out)
    return Quantized(artifact=artifact, candidates=timed, layers=layers)


def _costs(seen: Calibrated) -> tuple[LayerCost, ...]:
    """Costs of the canonical graph's layers, whose names calibration uses."""
    from resdeploy.graph import counts

    assert seen.source.model is not None
    return counts.count(seen.model, seen.source.model).layers


class _Bench:
    """Makes each candidate once, in a folder of its own, and runs it; None stands for FP32."""

    def __init__(
        self, seen: Calibrated, plan: calibration.CalibrationPlan, data: str, folder: Path, progress: Progress
    ) -> None:
        self.seen, self.data, self.folder, self.progress = seen, data, folder, progress
        self.plan = replace(plan, force=True)  # a candidate whose output is lost is one that loses
        self.made: dict[str, Artifact] = {}

    def file_of(self, label: str) -> Artifact:
        """The ONNX file of a candidate that was made before."""
        return self.made[label]

    def _onnx(self, mix: Mixed) -> Artifact:
        from resdeploy.quantize import ptq

        if mix.label not in self.made:
            path = self._next(".onnx")
            if mix.precision == "int8":
                portable = self.plan.portable_here()
                options = ptq.FileOptions(portable=portable, keep_float=mix.keep_float, force=True)
                made = ptq.write(self.seen, path, options)
            else:
                made = lower.lower(
                    self.seen.source, mix.precision, self.seen.target, self.plan, path, progress=self.progress
                )
            self.made[mix.label] = made
        return self.made[mix.label]

    def candidate(self, mix: Mixed | None, *, batch_size: int = 1) -> Candidate:
        """Built for the target's backend."""
        source, label = (self.seen.source, "fp32") if mix is None else (self._onnx(mix), mix.label)
        return candidates.candidate(
            source, _backend_of(self.seen.target), label=label, batch_size=batch_size, make=self._build
        )

    def _build(self, source: Artifact, backend: BackendName, execution: Execution) -> Artifact:
        return build.build_in_lane(source, backend, execution, self._next(build.suffix_of(backend)))

    def predictions(self, mix: Mixed | None) -> Predictions:
        """On the judging images."""
        return run_images.predict_test_split(
            self.candidate(mix, batch_size=BATCH_SIZE), self.data, progress=self.progress
        )

    def _next(self, suffix: str) -> Path:
        return self.folder / f"{len(list(self.folder.iterdir()))}{suffix}"


def _keep(made: Artifact, chosen: Mixed, wanted: QuantizeGoal, left_out: Sequence[str], out: Path) -> Artifact:
    """The chosen candidate at its place, with what was found out about it."""
    assert chosen.check is not None
    checks = {"drop_pp": chosen.check.observed or 0.0}
    if chosen.check.interval is not None:
        checks["drop_at_most_pp"] = chosen.check.interval[1]
    notes = [f"to judge on: {told}" for told in left_out]
    notes.append(
        f"chosen by search on {wanted.data}: {chosen.check.state} for a drop of at most {wanted.max_drop_pp:g} points "
        f"at {100 * wanted.confidence:g} % confidence"
    )
    return store.copy_to(made, out, checks={**made.checks, **checks}, notes=(*made.notes, *notes))
