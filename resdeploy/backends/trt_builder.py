"""Building an engine: one path for TensorRT 8.6, 10.x and 11.x, and for TensorRT-RTX 1.7, whose API is that of 11.

Only names that all of them have are used, but for those in `CAPABILITIES`, which are looked for with hasattr; `doctor`
prints what was found. Precision is in the graph: where the version knows strongly typed networks (9.1 and later) the
network is one and no precision flag is set; 8.6 needs FP16 for what the graph leaves in float and INT8 for its Q/DQ.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy import backends, locks, store
from resdeploy.backends import input_shape
from resdeploy.errors import BackendCrash, MalformedInput, OutOfMemory, UsageError
from resdeploy.records import Artifact, EngineOptions, Execution

# What not every version has: the class, the member, and what it is for.
CAPABILITIES: Mapping[str, tuple[str, str]] = {
    "strongly typed networks": ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    "explicit batch flag": ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
    "FP16 flag": ("BuilderFlag", "FP16"),
    "INT8 flag": ("BuilderFlag", "INT8"),
    "stripped plans": ("BuilderFlag", "STRIP_PLAN"),
    "refitting from ONNX": ("OnnxParserRefitter", "refit_from_file"),
    "engines for one compute capability": ("HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY"),
    "profile sharing": ("PreviewFeature", "PROFILE_SHARING_0806"),
    "cuBLAS tactics": ("TacticSource", "CUBLAS"),
    "progress of a build": ("IProgressMonitor", "step_complete"),
    "names in parser errors": ("ParserError", "node_name"),
    "engine memory (v2)": ("ICudaEngine", "device_memory_size_v2"),
}
# cuBLAS and cuDNN are off, as TensorRT 10 has them by default: CNN classifiers gain nothing and load 1 GB.
TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
LAST_RESORT = "--opt-level 0 finds a first working engine"
WORDS_ABOUT_MEMORY = ("out of memory", "outofmemory", "insufficient memory")


def capabilities(trt: Any) -> dict[str, bool]:
    """Which of `CAPABILITIES` a tensorrt module has."""
    return {name: hasattr(getattr(trt, kind, None), member) for name, (kind, member) in CAPABILITIES.items()}


@dataclass(frozen=True, kw_only=True)
class Built:
    """A serialized engine and what building it took."""

    plan: bytes
    facts: Mapping[str, float]
    notes: tuple[str, ...]


def build(trt: Any, log: Any, source: Artifact, execution: Execution, *, last_resort: str = LAST_RESORT) -> Built:
    """Builds an engine from an ONNX file, which must hold its precision already.

    Args:
        trt: the tensorrt module.
        log: as `trt_log.logger` makes it.
        source: the ONNX file, lowered for this version.
        execution: batch and image size, and the builder's options.
        last_resort: what may help where the builder gives up.

    Raises:
        MalformedInput: the parser refuses the file; the node is named.
        UsageError: an option that this version does not have.
        OutOfMemory, BackendCrash: the builder gives up.
    """
    start_s = time.perf_counter()
    able, options = capabilities(trt), execution.engine
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, able))
    _parse(trt, log, network, source.path)
    config = builder.create_builder_config()
    _configure(trt, config, source, options, able)
    _add_profile(builder, config, network, source, execution)
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        if options.timing_cache:
            stack.enter_context(_timing_cache(config, Path(options.timing_cache), notes))
        if able["progress of a build"]:
            config.progress_monitor = _monitor(trt)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _build_failure(log, source, last_resort)
    if options.strip:
        notes.append("its weights are stripped: build --refit-from puts them back before it runs")
    facts = {
        "build_s": time.perf_counter() - start_s,
        "build_peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return Built(plan=bytes(plan), facts=facts, notes=tuple(notes))


def _network_flags(trt: Any, able: Mapping[str, bool]) -> int:
    """Strongly typed where that exists; explicit batch, which 8.6 must be told and 11 no longer has, elsewhere."""
    flag = trt.NetworkDefinitionCreationFlag
    if able["strongly typed networks"]:
        return 1 << int(flag.STRONGLY_TYPED)
    return 1 << int(flag.EXPLICIT_BATCH)


def _parse(trt: Any, log: Any, network: Any, path: str) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(path):
        return
    problems = parser_errors(parser) or log.errors[-1:]
    raise MalformedInput(
        f"{log.product} {trt.__version__} cannot read {path}: {'; '.join(problems) or 'it does not say why'}",
        cause="An operator, an opset or an attribute that this version does not know",
        fix="Export it again with resdeploy export, which writes opset 17 in a form that TensorRT 8.6 to 11 read",
    )


def parser_errors(parser: Any) -> list[str]:
    """What the parser says, with the ONNX nodes; 8.6 gives their numbers alone, which `prepare` turns into names."""
    return [_describe(parser.get_error(i)) for i in range(parser.num_errors)]


def _describe(error: Any) -> str:
    text = " ".join(str(error.desc()).split())
    if hasattr(error, "node_name") and error.node_name():
        return f"node {error.node_name()} ({error.node_operator()}): {text}"
    return f"node #{error.node()}: {text}" if error.node() >= 0 else text


def _configure(trt: Any, config: Any, source: Artifact, options: EngineOptions, able: Mapping[str, bool]) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the audit
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    config.set_tactic_sources(_tactics(trt, options.tactics or TACTICS))
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
    for number, name in enumerate(options.targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), number)
    if able["profile sharing"]:  # several streams over one profile; a matter of course in 11
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if not able["strongly typed networks"]:
        if source.precision in ("fp16", "int8"):
            config.set_flag(trt.BuilderFlag.FP16)
        if source.precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible != "none":
        name = options.hardware_compatible.upper()
        if not hasattr(trt.HardwareCompatibilityLevel, name):
            raise _option_missing(trt, f"--hardware-compatible {options.hardware_compatible.replace('_', '-')}")
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    _set_refit_flags(trt, config, options, able)


def _set_refit_flags(trt: Any, config: Any, options: EngineOptions, able: Mapping[str, bool]) -> None:
    """For other weights, or for the same ones alone: the latter costs no speed and has no known defect.

    NVIDIA's notes on 11.3 warn that REFIT can drop a GEMM's bias, REFIT_IDENTICAL does not.
    """
    if options.strip and not able["stripped plans"]:
        raise _option_missing(trt, "--strip-weights")
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    elif options.strip:
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if options.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)


def _option_missing(trt: Any, option: str) -> UsageError:
    return UsageError(f"TensorRT {trt.__version__} has no {option}", fix="Leave it out, or install a newer tensorrt")


def _tactics(trt: Any, names: tuple[str, ...]) -> int:
    if unknown_names := [name for name in names if not hasattr(trt.TacticSource, name.upper())]:
        raise _option_missing(trt, f"--tactics {', '.join(unknown_names)}")
    return sum(1 << int(getattr(trt.TacticSource, name.upper())) for name in names)


def _add_profile(builder: Any, config: Any, network: Any, source: Artifact, execution: Execution) -> None:
    """One optimization profile: the smallest, the usual and the largest batch; none where the file fixes all sizes."""
    low, high = execution.engine.batch_range or (execution.batch_size, execution.batch_size)
    if not low <= execution.batch_size <= high:
        raise UsageError(
            f"batches of {low} to {high} leave out {execution.batch_size}, for which the engine is optimised",
            fix="Give -b a size between --min-batch and --max-batch",
        )
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        declared = [None if size < 0 else int(size) for size in tuple(tensor.shape)]
        shape = input_shape(declared, source, execution)
        if None in declared:
            sizes = [(batch if declared[0] is None else shape[0], *shape[1:]) for batch in (low, shape[0], high)]
            profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells the outermost phase's steps; inner ones come and go too quickly to read."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outer: tuple[str, int] | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.outer = (phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self.outer is not None and phase_name == self.outer[0]:
                backends.report("building the engine", min(step + 1, self.outer[1]), self.outer[1])
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _build_failure(log: Any, source: Artifact, last_resort: str) -> Exception:
    words = " | ".join(log.errors[-4:])
    if any(word in words.lower() for word in WORDS_ABOUT_MEMORY):
        return OutOfMemory(
            f"{log.product} ran out of memory building {source.path}",
            cause=words,
            fix="Use a smaller batch or --workspace",
        )
    return BackendCrash(
        f"{log.product} could not build {source.path}",
        cause=words or "It does not say why",
        fix=f"Read the lines above; {last_resort}",
    )


@contextlib.contextmanager
def _timing_cache(config: Any, path: Path, notes: list[str]) -> Iterator[None]:
    """Measured kernel times from earlier builds; what this build adds is merged into the file at the end.

    Writers wait for each other and read the file again before they merge, so that nothing is lost; readers see a whole
    file. One that does not fit (another version or GPU) is set aside under another name, and the build goes on.
    """
    with locks.hold(path.with_name(path.name + ".lock"), "the timing cache of TensorRT"):
        cache = _load_cache(config, path, notes)
    if not config.set_timing_cache(cache, False):
        _set_aside(path, notes)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    with locks.hold(path.with_name(path.name + ".lock"), "the timing cache of TensorRT"):
        merged = config.get_timing_cache()
        others = _load_cache(config, path, notes)
        if not merged.combine(others, False):
            _set_aside(path, notes)
        store.write_bytes(path, bytes(merged.serialize()))


def _load_cache(config: Any, path: Path, notes: list[str]) -> Any:
    """The cache in a file, or an empty one.

    Of a file that does not fit some versions make None or raise; others, from 11 on at the latest, warn and make an
    empty cache, which tells nothing but by being empty where the file is not.
    """
    data, empty = path.read_bytes() if path.is_file() else b"", config.create_timing_cache(b"")
    with contextlib.suppress(Exception):  # a damaged cache is no reason not to build
        cache = config.create_timing_cache(data)
        if cache is not None and (not data or data == (held := _content(cache)) or held != _content(empty)):
            return cache
    _set_aside(path, notes)
    return empty


def _content(cache: Any) -> bytes:
    return bytes(cache.serialize())


def _set_aside(path: Path, notes: list[str]) -> None:
    if path.is_file():
        aside = path.with_name(f"{path.name}.{time.time_ns()}.incompatible")
        os.replace(path, aside)
        notes.append(f"the timing cache did not fit this TensorRT and GPU and was set aside as {aside.name}")
