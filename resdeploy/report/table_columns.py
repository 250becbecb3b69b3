"""The tables of every command: how each column is titled, and where in the document its value lies.

The first table of a command is also its CSV.
"""

from __future__ import annotations

from collections.abc import Mapping

from resdeploy.report.cells import Column, Table

_MODEL = Column("model", "model")
_BACKEND = Column("backend", "backend")
_PRECISION = Column("precision", "precision")
_CHECKS = Table(
    "checks",
    (
        Column("candidate", "candidate"),
        Column("check", "name"),
        Column("state", "state"),
        Column("observed", "observed", "number", ci="interval"),
        Column("limit", "limit", "number"),
        Column("unit", "unit"),
        Column("because", "note"),
    ),
    "checks",
)
_REPORTED = Table(
    "reported",
    (
        Column("candidate", "candidate"),
        Column("quantity", "name"),
        Column("observed", "observed", "number", ci="interval"),
        Column("unit", "unit"),
        Column("because", "note"),
    ),
    "reported, not judged",
)
_FLIPS = Table(
    "flips",
    (
        Column("candidate", "candidate"),
        Column("right to wrong", "right_to_wrong", "count"),
        Column("wrong to right", "wrong_to_right", "count"),
        Column("wrong to other", "wrong_to_other", "count"),
        Column("same answer", "unchanged", "count"),
    ),
    "answers that changed",
)
_CLASSES = Table(
    "classes",
    (
        Column("candidate", "candidate"),
        Column("class", "label", "number"),
        Column("name", "name"),
        Column("images", "images", "count"),
        Column("lost", "lost", "count"),
        Column("gained", "gained", "count"),
        Column("drop in points", "drop_pp", "points"),
        Column("mid-p (Holm)", "p_adjusted", "number"),
    ),
    "classes, the largest drop first",
    most=10,
)
_FLIPPED = Table(
    "flipped",
    (
        Column("candidate", "candidate"),
        Column("image", "image"),
        Column("label", "label", "number"),
        Column("baseline", "baseline", "number"),
        Column("now", "candidate_class", "number"),
        Column("effect", "effect"),
    ),
    "images that flipped",
    most=20,
)
_COMPARISONS = Table(
    "comparisons",
    (
        Column("baseline", "baseline"),
        Column("candidate", "candidate"),
        Column("speed-up [99 %]", "speedup", "ratio", ci="speedup_ci99"),
        Column("CPU time [99 %]", "cpu_ratio", "ratio", ci="cpu_ratio_ci99"),
        Column("instructions [99 %]", "instructions_ratio", "ratio", ci="instructions_ratio_ci99"),
        Column("pairs", "pairs", "count"),
        Column("verdict", "finding"),
    ),
    "speed-up",
)
_BENCH = Table(
    "results",
    (
        Column("row", "row"),
        _MODEL,
        _BACKEND,
        _PRECISION,
        Column("batch", "batch_size", "count"),
        Column("threads", "threads", "count"),
        Column("streams", "streams", "count"),
        Column("p50 ms [95 %]", "latency_ms.p50", "ms", ci="p50_ci95_ms"),
        Column("p90", "latency_ms.p90", "ms"),
        Column("p95", "latency_ms.p95", "ms"),
        Column("p99", "latency_ms.p99", "ms"),
        Column("images/s", "throughput_ips", "rate"),
        Column("MB", "size_bytes", "megabytes"),
        Column("RSS MB", "peak_rss_bytes", "megabytes"),
        Column("load s", "load_s", "seconds"),
        Column("first ms", "first_ms", "ms"),
        Column("CPU ms/image", "cpu_ms_per_image", "ms"),
        Column("J/image", "energy_j_per_image", "number"),
        Column("state", "state"),
    ),
)
_COMPARE = Table(
    "results",
    (
        Column("row", "subject"),
        Column("quantity", "quantity"),
        Column("before", "before", "number"),
        Column("after", "after", "number"),
        Column("unit", "unit"),
        Column("change [95 %]", "change", "points", ci="change_ci95"),
        Column("in", "change_unit"),
        Column("finding", "finding"),
    ),
)
_COST = Table(
    "results",
    (
        _MODEL,
        Column("input", "input_shape", "shape"),
        Column("batch", "batch_size", "count"),
        Column("parameters", "params", "millions"),
        Column("in the graph", "params_deployed", "millions"),
        Column("MACs", "macs", "giga"),
        Column("FLOPs", "flops", "giga"),
        Column("activations", "activations", "millions"),
        Column("MB moved in FP32: weights", "bytes.fp32.weights", "megabytes"),
        Column("MB of activations", "bytes.fp32.activations", "megabytes"),
        Column("FLOPs per byte", "bytes.fp32.intensity", "number"),
        Column("not counted", "unknown"),
    ),
)
_CONVENTIONS = Table(
    "conventions",
    (
        _MODEL,
        Column("convention", "convention"),
        Column("counts", "count", "count"),
        Column("which is", "formula"),
    ),
    "as another tool counts",
)
_AGAINST_BLOCK = (
    _MODEL,
    Column("stage", "scope"),
    Column("blocks", "blocks", "count"),
    Column("MACs of an identity block", "block_macs", "count"),
    Column("of a basic block", "basic_block_macs", "count"),
)
_AGAINST_TOTAL = (
    Column("MACs in all", "macs", "giga"),
    Column("MACs with basic blocks", "basic_macs", "giga"),
    Column("ratio", "ratio", "thousandths"),
    Column("parameters", "params", "count"),
    Column("parameters with basic blocks", "basic_params", "count"),
)
_TIMES_LESS = (Column("times fewer", "block_ratio", "ratio"), Column("exactly", "block_ratio_exact"))
_SHARE = (Column("bottleneck's share", "block_share", "number"), Column("exactly", "block_share_exact"))
_OUTER = Table(
    "against_outer_width",
    (*_AGAINST_BLOCK, *_TIMES_LESS, *_AGAINST_TOTAL),
    "(a) against basic blocks of the bottleneck's own outer width",
)
_QUARTER = Table(
    "against_quarter_width",
    (*_AGAINST_BLOCK, *_SHARE, *_AGAINST_TOTAL),
    "(b) against ResNet-34's basic blocks, a quarter as wide outside",
)
_REDUCTIONS = Table(
    "reductions",
    (
        _MODEL,
        Column("module", "module"),
        Column("1x1 convolution", "name"),
        Column("before", "before"),
        Column("MACs with it", "macs", "count"),
        Column("without", "direct_macs", "count"),
        Column("ratio", "ratio", "thousandths"),
    ),
    "1x1 reductions",
)
_MODULES = Table(
    "modules",
    (
        _MODEL,
        Column("module", "module"),
        Column("weights", "weights", "count"),
        Column("weights if naive", "naive_weights", "count"),
        Column("MACs", "macs", "count"),
        Column("MACs if naive", "naive_macs", "count"),
        Column("ratio", "ratio", "thousandths"),
    ),
    "modules, with all their 1x1 convolutions and naive",
)
_MEASURED = Table("measured", _BENCH.columns, "measured in one interleaved run")
_ROOFS = Table(
    "roofs",
    (
        Column("machine", "machine"),
        Column("of", "of"),
        Column("peak [95 %]", "rate", "rate", ci="ci95"),
        Column("unit", "unit"),
        Column("reached by", "by"),
        Column("or none, because", "missing"),
    ),
    "roofs",
)
_ROOFLINES = Table(
    "rooflines",
    (
        _MODEL,
        Column("batch", "batch_size", "count"),
        _PRECISION,
        _BACKEND,
        Column("kernels bound by arithmetic", "compute_bound", "count"),
        Column("by memory", "memory_bound", "count"),
        Column("ms allowed", "allowed_ms", "ms"),
        Column("p50 ms [95 %]", "p50_ms", "ms", ci="p50_ci95_ms"),
        Column("reached %", "reached_percent", "percent"),
        Column("timing", "state"),
    ),
    "what the roofs allow",
)
_ROOFLINE_LAYERS = Table(
    "roofline_layers",
    (
        _MODEL,
        _PRECISION,
        Column("kernel", "name"),
        Column("FLOPs per byte", "intensity", "number"),
        Column("bound", "bound"),
        Column("ms allowed", "allowed_ms", "ms"),
        Column("ms in the trace", "measured_ms", "ms"),
        Column("reached %", "reached_percent", "percent"),
    ),
    "each kernel under its roof",
)
_LAYERS = Table(
    "layers",
    (
        _MODEL,
        Column("layer", "name"),
        Column("op", "op"),
        Column("block", "block"),
        Column("parameters", "params", "count"),
        Column("MACs", "macs", "count"),
        Column("output", "output_shape", "shape"),
    ),
    "layers",
)
_STAGES = Table(
    "stages",
    (
        _MODEL,
        Column("stage", "stage"),
        Column("layers", "layers", "count"),
        Column("parameters", "params", "count"),
        Column("MACs", "macs", "giga"),
        Column("share of MACs %", "macs_percent", "percent"),
    ),
    "stages",
)
_EVAL = Table(
    "results",
    (
        _MODEL,
        _BACKEND,
        _PRECISION,
        Column("data", "data"),
        Column("top-1 % [95 %]", "top1", "percent", ci="top1_ci95"),
        Column("top-5 %", "top5", "percent"),
        Column("correct", "correct", "count"),
        Column("of", "total", "count"),
        Column("unreadable", "unreadable_count", "count"),
    ),
)
_PREDICT = Table(
    "results",
    (
        Column("image", "image"),
        Column("class", "class", "count"),
        Column("name", "name"),
        Column("%", "probability", "percent"),
        Column("then", "others"),
    ),
)
_MODELS = Table(
    "results",
    (
        Column("name", "model"),
        Column("family", "family"),
        Column("input", "input_shape", "shape"),
        Column("classes", "classes", "count"),
        Column("parameters", "params", "millions"),
        Column("MACs", "macs", "giga"),
        Column("published top-1 %", "published_top1", "percent"),
        Column("by", "published_source"),
    ),
)
_DOCTOR = Table(
    "results",
    (
        _BACKEND,
        Column("usable", "ok", "flag"),
        Column("builds", "builds", "flag"),
        Column("version", "version"),
        Column("devices", "devices"),
        Column("why not", "reason"),
        Column("remedy", "install"),
    ),
)
_RUN = Table(
    "results",
    (
        Column("row", "row"),
        _MODEL,
        _BACKEND,
        _PRECISION,
        Column("top-1 %", "top1", "percent"),
        Column("drop in points [90 %]", "drop_pp", "points", ci="drop_ci_pp"),
        Column("p50 ms [95 %]", "latency_ms.p50", "ms", ci="p50_ci95_ms"),
        Column("images/s", "throughput_ips", "rate"),
        Column("MB", "size_bytes", "megabytes"),
        Column("speed-up [99 %]", "speedup", "ratio", ci="speedup_ci99"),
        Column("timing", "state"),
        Column("gate", "verdict"),
    ),
)
_TRIED = (
    Column("layer or block", "name"),
    Column("kind", "kind"),
    Column("changed %", "changed_percent", "percent"),
    Column("logit SQNR dB", "sqnr_db", "percent"),
    Column("images", "images", "count"),
    Column("layers in it", "layers"),
)
_SEARCH = Table(
    "results",
    (
        Column("candidate", "label"),
        Column("logit noise left %", "noise_share_percent", "percent"),
        Column("drop in points [90 %]", "drop_pp", "points", ci="drop_ci_pp"),
        Column("accuracy", "state"),
        Column("p50 ms [95 %]", "timing.latency_ms.p50", "ms", ci="timing.p50_ci95_ms"),
        Column("over fp32 [99 %]", "speedup", "ratio", ci="speedup_ci99"),
        Column("timing", "timing.state"),
        Column("chosen", "chosen", "flag"),
        Column("layers in fp32", "keep_float"),
    ),
)

_PRUNE = Table(
    "results",
    (
        Column("network", "network"),
        Column("blocks", "blocks", "count"),
        Column("parameters", "params", "millions"),
        Column("MACs", "macs", "giga"),
        Column("p50 ms [95 %]", "latency_ms.p50", "ms", ci="p50_ci95_ms"),
        Column("top-1 %", "top1", "percent"),
    ),
)
_LESION = (
    Column("block", "block"),
    Column("divergence", "divergence", "number"),
    Column("drop in points [90 %]", "drop_pp", "points", ci="interval_pp"),
)
_PATH = Table("path", (*_LESION, Column("removed", "removed", "flag")), "one by one, on the images to choose on")
_LESIONS = Table("lesions", _LESION, "each block alone, on the images to choose on")
_LESION_STUDY = Table(
    "results",
    (
        _MODEL,
        Column("block", "block"),
        Column("shortcut", "shortcut"),
        Column("error %", "error", "percent"),
        Column("more than whole, points", "rise_pp", "points"),
    ),
)
_DEGRADATION = Table(
    "results",
    (
        _MODEL,
        Column("depth", "depth", "count"),
        Column("seeds", "seeds", "count"),
        Column("training loss [95 %]", "train_loss", "number", ci="train_loss_ci95"),
        Column("training error %", "train_error", "percent"),
        Column("test error %", "test_error", "percent"),
    ),
)
_DIFFERENCES = Table(
    "differences",
    (Column("of training losses", "of"), Column("value [95 %]", "value", "number", ci="ci95")),
    "does depth hurt plain networks more",
)
_TENSORRT = Table("tensorrt", (Column("TensorRT here has", "name"), Column("", "has", "flag")))
_AUDIT = Table(
    "blocks",
    (
        Column("block", "name"),
        Column("fusion", "fusion"),
        Column("adds in", "precision"),
        Column("asked", "asked"),
        Column("ran as", "executed_as"),
        Column("converted by", "reformats"),
        Column("kernels", "kernels", "count"),
        Column("MB", "activation_bytes", "megabytes"),
        Column("ms", "time_ms", "ms"),
        Column("because", "reason"),
    ),
)

_MACHINE = Table(
    "machine",
    (Column("this machine", "name"), Column("what it has", "value")),
)

_CACHE = Table(
    "results", (Column("kept", "part"), Column("entries", "entries", "count"), Column("MB", "size_bytes", "megabytes"))
)
_DOUBTS = Table("results", (Column("state", "state"), Column("why", "why")))

TABLES: Mapping[str, tuple[Table, ...]] = {
    "audit": (_AUDIT, _CHECKS),
    "bench": (_BENCH, _COMPARISONS),
    "cache": (_CACHE,),
    "cache verify": (_DOUBTS,),
    "compare": (_COMPARE,),
    "cost": (
        *(_COST, _CONVENTIONS, _OUTER, _QUARTER, _REDUCTIONS, _MODULES, _MEASURED, _COMPARISONS),
        *(_ROOFS, _ROOFLINES, _ROOFLINE_LAYERS, _STAGES, _LAYERS),
    ),
    "doctor": (_DOCTOR, _MACHINE, _TENSORRT),
    "eval": (_EVAL,),
    "gate": (_CHECKS, _REPORTED, _FLIPS, _CLASSES, _FLIPPED),
    "models": (_MODELS,),
    "predict": (_PREDICT,),
    "quantize --max-drop": (_SEARCH, Table("layers", _TRIED, "each layer or block alone in INT8")),
    "quantize --sensitivity": (Table("results", _TRIED),),
    "prune": (_PRUNE, _COMPARISONS, _PATH, _LESIONS, _CHECKS, _REPORTED),
    "run": (_RUN,),
    "study degradation": (_DEGRADATION, _DIFFERENCES),
    "study lesion": (_LESION_STUDY,),
}
