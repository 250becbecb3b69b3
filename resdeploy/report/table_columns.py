"""The tables of every command: how each column is titled, and where in the document its value lies.

The first table of a command is also its CSV.
"""

from __future__ import annotations

from collections.abc import Mapping

from resdeploy.report.cells import Column, Quantities, Table

_MODEL = Column("model", "model", role="name")
_OF_MODEL = Column("model", "model", role="common")
_FILE = Column("model", "name", role="name", older="model")  # as its file is called: two may be of one network
_LABEL = Column("label", "label", role="program")
_NETWORK = Column("network", "model", role="program")
_BACKEND = Column("backend", "backend", role="common")
_PRECISION = Column("precision", "precision", role="common")
_CANDIDATE = Column("candidate", "candidate", role="common")
_BECAUSE = Column("because", "note", role="reason")
_CHECKS = Table(
    "checks",
    (
        _CANDIDATE,
        Column("check", "name", role="name"),
        Column("state", "state"),
        Column("observed", "observed", "number", ci="interval", drawn=True),
        Column("limit", "limit", "number"),
        Column("unit", "unit"),
        _BECAUSE,
    ),
    "checks",
    quantities=Quantities(name="name", unit="unit", limit="limit"),
)
_REPORTED = Table(
    "reported",
    (
        _CANDIDATE,
        Column("quantity", "name", role="name"),
        Column("observed", "observed", "number", ci="interval"),
        Column("unit", "unit"),
        _BECAUSE,
    ),
    "reported, not judged",
)
_FLIPS = Table(
    "flips",
    (
        _CANDIDATE,
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
        _CANDIDATE,
        Column("class", "label", "number", role="name"),
        Column("name", "name", role="name"),
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
        _CANDIDATE,
        Column("image", "image", role="name"),
        Column("label", "label_name", older="label"),
        Column("baseline", "baseline_name", older="baseline"),
        Column("now", "candidate_name", older="candidate_class"),
        Column("effect", "effect"),
    ),
    "images that flipped",
    most=20,
)
_COMPARISONS = Table(
    "comparisons",
    (
        Column("baseline", "baseline", role="common"),
        Column("candidate", "candidate", role="name"),
        Column("speed-up [99 %]", "speedup", "ratio", ci="speedup_ci99", drawn=True),
        Column("CPU time [99 %]", "cpu_ratio", "ratio", ci="cpu_ratio_ci99", rank=1),
        Column("instructions [99 %]", "instructions_ratio", "ratio", ci="instructions_ratio_ci99", rank=3),
        Column("pairs", "pairs", "count", rank=2),
        Column("verdict", "finding"),
    ),
    "speed-up",
)
_BENCH = Table(
    "results",
    (
        _LABEL,
        _NETWORK,
        _FILE,
        _BACKEND,
        _PRECISION,
        Column("batch", "batch_size", "count", role="common"),
        Column("threads", "threads", "count", role="common"),
        Column("streams", "streams", "count", role="common"),
        Column("p50 ms [95 %]", "latency_ms.p50", "ms", ci="p50_ci95_ms", drawn=True),
        Column("p90", "latency_ms.p90", "ms", rank=4),
        Column("p95", "latency_ms.p95", "ms", rank=5),
        Column("p99", "latency_ms.p99", "ms", rank=3),
        Column("images/s", "throughput_ips", "rate"),
        Column("MB", "size_bytes", "megabytes", rank=1),
        Column("RSS MB", "peak_rss_bytes", "megabytes", rank=6),
        Column("load s", "load_s", "seconds", rank=8),
        Column("first ms", "first_ms", "ms", rank=7),
        Column("CPU ms/image", "cpu_ms_per_image", "ms", rank=2),
        Column("J/image", "energy_j_per_image", "number", rank=2),
        Column("state", "state", role="common"),
        Column("compared with", "comparison.baseline", role="program"),
        Column("speed-up [99 %]", "comparison.speedup", "ratio", ci="comparison.speedup_ci99", role="program"),
        Column("finding", "comparison.verdict", role="program"),
    ),
)
_COMPARE = Table(
    "results",
    (
        Column("row", "subject", role="common"),
        Column("quantity", "quantity", role="name"),
        Column("before", "before", "number"),
        Column("after", "after", "number"),
        Column("unit", "unit"),
        Column("change [95 %]", "change", "points", ci="change_ci95", drawn=True),
        Column("in", "change_unit"),
        Column("finding", "finding"),
    ),
    quantities=Quantities(name="quantity", unit="change_unit"),
)
_COST = Table(
    "results",
    (
        _MODEL,
        Column("input", "input_shape", "shape", role="common"),
        Column("batch", "batch_size", "count", role="common"),
        Column("parameters", "params", "millions", drawn=True),
        Column("in the graph", "params_deployed", "millions", rank=4),
        Column("MACs", "macs", "giga", drawn=True),
        Column("FLOPs", "flops", "giga", rank=5),
        Column("activations", "activations", "millions", rank=2),
        Column("FP32 MB: weights", "bytes.fp32.weights", "megabytes", rank=3),
        Column("FP32 MB: activations", "bytes.fp32.activations", "megabytes", rank=3),
        Column("FLOPs per byte", "bytes.fp32.intensity", "number", rank=1),
        Column("not counted", "unknown", role="reason"),
    ),
)
_CONVENTIONS = Table(
    "conventions",
    (
        _OF_MODEL,
        Column("convention", "convention", role="name"),
        Column("counts", "count", "count"),
        Column("figure", "state"),
        Column("which is", "formula", role="reason"),
    ),
    "as another tool counts",
)
_AGAINST_BLOCK = (
    _OF_MODEL,
    Column("stage", "scope", role="name"),
    Column("blocks", "blocks", "count", rank=4),
    Column("MACs of an identity block", "block_macs", "count", rank=2),
    Column("of a basic block", "basic_block_macs", "count", rank=2),
)
_AGAINST_TOTAL = (
    Column("MACs in all", "macs", "giga"),
    Column("MACs with basic blocks", "basic_macs", "giga"),
    Column("ratio", "ratio", "thousandths"),
    Column("parameters", "params", "count", rank=3),
    Column("parameters with basic blocks", "basic_params", "count", rank=3),
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
        _OF_MODEL,
        Column("module", "module", role="name"),
        Column("1x1 convolution", "name", role="name"),
        Column("before", "before", rank=1),
        Column("MACs with it", "macs", "count"),
        Column("without", "direct_macs", "count"),
        Column("ratio", "ratio", "thousandths"),
    ),
    "1x1 reductions",
)
_MODULES = Table(
    "modules",
    (
        _OF_MODEL,
        Column("module", "module", role="name"),
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
        Column("machine", "machine", role="common"),
        Column("of", "of", role="name"),
        Column("peak [95 %]", "rate", "rate", ci="ci95"),
        Column("unit", "unit"),
        Column("reached by", "by", role="common", rank=1),
        Column("or none, because", "missing", role="reason"),
    ),
    "roofs",
)
_ROOFLINES = Table(
    "rooflines",
    (
        _MODEL,
        Column("batch", "batch_size", "count", role="common"),
        _PRECISION,
        _BACKEND,
        Column("kernels bound by arithmetic", "compute_bound", "count", rank=1),
        Column("by memory", "memory_bound", "count", rank=1),
        Column("ms allowed", "allowed_ms", "ms"),
        Column("p50 ms [95 %]", "p50_ms", "ms", ci="p50_ci95_ms", drawn=True),
        Column("reached %", "reached_percent", "percent"),
        Column("timing", "state", role="common"),
    ),
    "what the roofs allow",
)
_ROOFLINE_LAYERS = Table(
    "roofline_layers",
    (
        _OF_MODEL,
        _PRECISION,
        Column("kernel", "name", role="name"),
        Column("FLOPs per byte", "intensity", "number", rank=1),
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
        _OF_MODEL,
        Column("layer", "name", role="name"),
        Column("op", "op"),
        Column("block", "block", rank=1),
        Column("parameters", "params", "count"),
        Column("MACs", "macs", "count"),
        Column("share of MACs %", "macs_percent", "percent"),
        Column("output", "output_shape", "shape", rank=2),
    ),
    "layers",
)
_STAGES = Table(
    "stages",
    (
        _OF_MODEL,
        Column("stage", "stage", role="name"),
        Column("layers", "layers", "count"),
        Column("parameters", "params", "count"),
        Column("MACs", "macs", "giga"),
        Column("share of MACs %", "macs_percent", "percent"),
    ),
    "stages",
)
_EVALUATED = (_NETWORK, _FILE, _BACKEND, _PRECISION, Column("data", "data", role="common"))
_UNREADABLE = Column("unreadable", "unreadable_count", "count", role="program")
_EVAL = Table(
    "results",
    (
        *_EVALUATED,
        Column("top-1 % [95 %]", "top1", "percent", ci="top1_ci95", drawn=True),
        Column("top-5 %", "top5", "percent"),
        Column("correct", "correct", "count", rank=1),
        Column("images", "total", "count", role="common"),
        _UNREADABLE,
    ),
)
_OF_ALL = Column("of", "images_of_all", "count")
_SHARD = Table(
    "results", (*_EVALUATED, Column("shard", "shard"), Column("images", "images", "count"), _OF_ALL, _UNREADABLE)
)
_PREDICT = Table(
    "results",
    (
        Column("image", "image", role="name"),
        Column("class", "class", rank=2),
        Column("name", "name"),
        Column("%", "probability", "percent"),
        Column("then", "others", rank=1),
    ),
)
_MODELS = Table(
    "results",
    (
        Column("name", "model", role="name"),
        Column("family", "family", role="common", rank=2),
        Column("input", "input_shape", "shape", role="common"),
        Column("classes", "classes", "count", role="common", rank=3),
        Column("parameters", "params", "millions"),
        Column("MACs", "macs", "giga"),
        Column("published top-1 %", "published_top1", "percent"),
        Column("by", "published_source", rank=1),
    ),
)
_DOCTOR = Table(
    "results",
    (
        Column("backend", "backend", role="name"),
        Column("usable", "ok", "flag"),
        Column("builds", "builds", "flag"),
        Column("version", "version"),
        Column("devices", "devices"),
        Column("why not", "reason", role="reason"),
        Column("remedy", "install", role="reason"),
    ),
)
_RUN = Table(
    "results",
    (
        _LABEL,
        _NETWORK,
        Column("model", "name", role="common", older="model"),
        _BACKEND,
        _PRECISION,
        Column("top-1 %", "top1", "percent"),
        Column("drop in points [90 %]", "drop_pp", "points", ci="drop_ci_pp", drawn=True),
        Column("p50 ms [95 %]", "latency_ms.p50", "ms", ci="p50_ci95_ms", ci_rank=2, drawn=True),
        Column("images/s", "throughput_ips", "rate", rank=4),
        Column("MB", "size_bytes", "megabytes", rank=3),
        Column("speed-up [99 %]", "speedup", "ratio", ci="speedup_ci99", drawn=True),
        Column("timing", "state", role="common"),
        Column("audit", "audit"),
        Column("gate", "verdict"),
    ),
)
_TRIED = (
    Column("layer or block", "name", role="name"),
    Column("kind", "kind", role="common"),
    Column("changed %", "changed_percent", "percent"),
    Column("logit SQNR dB", "sqnr_db", "percent"),
    Column("images", "images", "count", role="common"),
    Column("layers in it", "layers", rank=1),
)
_SEARCH = Table(
    "results",
    (
        Column("candidate", "label", role="name"),
        Column("logit noise left %", "noise_share_percent", "percent", rank=3),
        Column("drop in points [90 %]", "drop_pp", "points", ci="drop_ci_pp", drawn=True),
        Column("accuracy", "state"),
        Column("p50 ms [95 %]", "timing.latency_ms.p50", "ms", ci="timing.p50_ci95_ms", rank=1, ci_rank=2),
        Column("over fp32 [99 %]", "speedup", "ratio", ci="speedup_ci99", drawn=True),
        Column("timing", "timing.state", role="common"),
        Column("chosen", "chosen", "flag"),
        Column("layers in fp32", "keep_float", rank=4),
    ),
)
_PRUNE = Table(
    "results",
    (
        Column("network", "network", role="name"),
        Column("blocks", "blocks", "count"),
        Column("parameters", "params", "millions"),
        Column("MACs", "macs", "giga"),
        Column("p50 ms [95 %]", "latency_ms.p50", "ms", ci="p50_ci95_ms", drawn=True),
        Column("top-1 %", "top1", "percent"),
    ),
)
_LESION = (
    Column("block", "block", role="name"),
    Column("divergence", "divergence", "number"),
    Column("drop in points [90 %]", "drop_pp", "points", ci="interval_pp"),
)
_PATH = Table("path", (*_LESION, Column("removed", "removed", "flag")), "one by one, on the images to choose on")
_LESIONS = Table("lesions", _LESION, "each block alone, on the images to choose on")
_LESION_STUDY = Table(
    "results",
    (
        _OF_MODEL,
        Column("block", "block", role="name"),
        Column("shortcut", "shortcut"),
        Column("error %", "error", "percent"),
        Column("more than whole, points", "rise_pp", "points"),
    ),
)
_DEGRADATION = Table(
    "results",
    (
        _MODEL,
        Column("depth", "depth", "count", rank=2),
        Column("seeds", "seeds", "count", role="common"),
        Column("training loss [95 %]", "train_loss", "number", ci="train_loss_ci95", drawn=True),
        Column("training error %", "train_error", "percent"),
        Column("test error %", "test_error", "percent"),
    ),
)
_DIFFERENCES = Table(
    "differences",
    (Column("of training losses", "of", role="name"), Column("value [95 %]", "value", "number", ci="ci95", drawn=True)),
    "does depth hurt plain networks more",
)
_TENSORRT = Table("tensorrt", (Column("TensorRT here has", "name", role="name"), Column("", "has", "flag")))
_AUDIT = Table(
    "blocks",
    (
        Column("block", "name", role="name"),
        Column("fusion", "fusion"),
        Column("adds in", "precision"),
        Column("asked", "asked", role="common"),
        Column("ran as", "executed_as", rank=2),
        Column("converted by", "reformats", rank=5),
        Column("kernels", "kernels", "count", rank=3),
        Column("MB", "activation_bytes", "megabytes", rank=4),
        Column("ms", "time_ms", "ms", rank=1),
        Column("because", "reason", role="reason"),
    ),
)

_MACHINE = Table("machine", (Column("this machine", "name", role="name"), Column("what it has", "value")))
_KEPT = (Column("kept", "part", role="name"), Column("entries", "entries", "count"))
_CACHE = Table("results", (*_KEPT, Column("MB", "size_bytes", "megabytes")))
_WHY = Column("why", "why", role="reason")
_DOUBTS = Table("results", (Column("file", "file", role="name"), Column("state", "state"), _WHY))

_PACKAGE = Table("results", (Column("file", "file", role="name"), Column("SHA-256", "sha256", rank=1)))
_FAULTS = Table(
    "results",
    (Column("file", "file", role="name"), Column("differs in", "what"), Column("because", "why", role="reason")),
)

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
    "eval --shard": (_SHARD,),
    "gate": (_CHECKS, _REPORTED, _FLIPS, _CLASSES, _FLIPPED),
    "models": (_MODELS,),
    "package": (_PACKAGE,),
    "package --verify": (_FAULTS,),
    "predict": (_PREDICT,),
    "quantize --max-drop": (_SEARCH, Table("layers", _TRIED, "each layer or block alone in INT8")),
    "quantize --sensitivity": (Table("results", _TRIED),),
    "prune": (_PRUNE, _COMPARISONS, _PATH, _LESIONS, _CHECKS, _REPORTED),
    "run": (_RUN,),
    "study degradation": (_DEGRADATION, _DIFFERENCES),
    "study lesion": (_LESION_STUDY,),
}
