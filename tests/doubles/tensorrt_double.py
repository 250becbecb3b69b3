"""TensorRT as its API lists say it is, without a GPU: a class, member, value or keyword that a version lacks raises.

What a version has comes from tests/data/tensorrt/api.json.gz, read off the real bindings. What its parts do here is the
least that a build, a run and an audit need: the network is the ONNX file, an engine holds that file, running it is ONNX
Runtime's business, and the inspector lists what simple fusion would make of it, in the version's own schema.

8.6 refuses what the real one refuses or silently misreads: opsets above 17, axes as an input, Q/DQ scales in FP16, Q/DQ
without the INT8 flag. Strongly typed networks refuse precision flags and mixed operand types.
"""

from __future__ import annotations

import ctypes
import functools
import gzip
import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from tests.doubles import cuda_runtime, fusion, plans

API = Path(__file__).parents[1] / "data/tensorrt/api.json.gz"
VERSIONS = ("8.6.0", "10.3.0", "10.16.1", "11.4.0")
NUMPY: dict[int, str] = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF"}
GPU = "Double GPU"


@functools.cache
def api() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(API.read_bytes()))
    return found


class Double:
    """One version.

    Args:
        version: one of `VERSIONS`.
        without: (class, member) pairs, or (class, "") for whole classes, that the version is to lack too.
        execute: whether engines compute (ONNX Runtime) or answer zeros.
    """

    tag = b"ftrt"  # of its plans
    gives_up = ""  # what the builder says instead of building

    def __init__(self, version: str, without: tuple[str, str] | None = None, *, execute: bool = True) -> None:
        self.version, self.major, self.execute = version, int(version.split(".")[0]), execute
        self.used: set[tuple[str, str]] = set()
        self.calls: list[str] = []
        self.classes: dict[str, Any] = {}
        lists = api()[version]["classes"]
        for name, found in lists.items():
            if without == (name, ""):
                continue
            members = {key: kind for key, kind in found["members"].items() if (name, key) != without}
            enum = [value for value in found["enum"] if (name, value) != without]
            self.classes[name] = _enum(self, name, enum) if found["enum"] else _class(self, name, members)
        self.module: Any = _Module(self)

    def tell(self, layers: list[dict[str, Any]]) -> str:
        """What a VERBOSE logger hears of a build."""
        return "Disabling unused tactic source"

    def make(self, kind: str, /, **state: Any) -> Any:
        """An instance that only the library itself can make."""
        made = self.classes[kind].__new__(self.classes[kind])
        made._init(**state)
        return made

    def value(self, name: str, member: str) -> Any:
        return self.classes[name]._values[member]


class _Module(types.ModuleType):
    def __init__(self, double: Double) -> None:
        super().__init__("tensorrt")
        self.__dict__["_double"] = double
        self.__dict__["__version__"] = double.version

    def __getattr__(self, name: str) -> Any:
        double = self.__dict__["_double"]
        if name not in double.classes:
            raise AttributeError(f"module 'tensorrt' {double.version} has no attribute {name!r}")
        double.used.add((name, ""))
        return double.classes[name]


class _Enumerator:
    def __init__(self, kind: str, name: str, number: int) -> None:
        self.kind, self.name, self.number = kind, name, number

    def __int__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"{self.kind}.{self.name}"


class _Recorded(type):
    """A class whose own members are noted when they are looked at."""

    _double: Double
    _values: Mapping[str, Any]
    _members: Mapping[str, Any]

    def __getattr__(cls, name: str) -> Any:
        base = next(kind for kind in cls.__mro__ if "_members" in kind.__dict__)  # not a subclass of ours
        if name in cls._values or name in cls._members:
            cls._double.used.add((base.__name__, name))
            return cls._values.get(name, property())
        raise AttributeError(f"type object 'tensorrt.{cls.__name__}' has no attribute {name!r}")


def _enum(double: Double, name: str, members: list[str]) -> type:
    values = {member: _Enumerator(name, member, number) for number, member in enumerate(members)}
    return _Recorded(name, (), {"_double": double, "_values": values, "_members": {}})


def _class(double: Double, name: str, members: Mapping[str, Any]) -> type:
    constants = {k: _Enumerator(name, k, n) for n, (k, kind) in enumerate(members.items()) if kind == "value"}
    space: dict[str, Any] = {"_double": double, "_values": constants, "_members": members, "__setattr__": _set}
    space |= {"__init__": _init, "_init": _state, "__getattr__": _get}
    for key, kind in members.items():
        if isinstance(kind, list) and key != "__init__":
            space[key] = _method(name, key, kind)
    return _Recorded(name, (), space)


def _state(self: Any, **state: Any) -> None:
    object.__setattr__(self, "_own", {})
    for key, value in state.items():
        self._own[key] = value


def _init(self: Any, *arguments: Any) -> None:
    _state(self, arguments=arguments)
    if type(self).__name__ == "Refitter":
        plans.refitter(type(self)._double, self, *arguments)


def _get(self: Any, name: str) -> Any:
    """Properties: what was set, what the double gives, or nothing of that name."""
    kind = type(self)
    base: Any = next(c for c in kind.__mro__ if isinstance(c.__dict__.get("_members"), Mapping))
    if name.startswith("_") or name not in base._members:
        raise AttributeError(f"'tensorrt.{base.__name__}' object has no attribute {name!r}")
    base._double.used.add((base.__name__, name))
    if name in base._values:
        return base._values[name]
    if name in self._own:
        return self._own[name]
    if (base.__name__, name) in PROPERTIES:
        return PROPERTIES[base.__name__, name](base._double, self)
    return None


def _set(self: Any, name: str, value: Any) -> None:
    kind = type(self)
    if "_members" not in kind.__dict__:  # a subclass of ours: free to have what it likes
        object.__setattr__(self, name, value)
        return
    if kind._members.get(name) != "rw":
        raise AttributeError(f"'tensorrt.{kind.__name__}' object has no attribute {name!r} to set")
    kind._double.used.add((kind.__name__, name))
    kind._double.calls.append(
        f"{kind.__name__}.{name} = {value if not hasattr(value, '_own') else type(value).__name__}"
    )
    self._own[name] = value


def _method(kind: str, name: str, parameters: list[str]) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
        base: Any = next(c for c in type(self).__mro__ if "_members" in c.__dict__)
        double = base._double
        double.used.add((kind, name))
        if unknown := sorted(set(keywords) - set(parameters)):
            raise TypeError(f"{kind}.{name}() of TensorRT {double.version} has no argument {', '.join(unknown)}")
        shown = ", ".join(
            repr(a) for a in (*arguments, *keywords.values()) if isinstance(a, (int, str, tuple, _Enumerator))
        )
        # Addresses differ from run to run.
        double.calls.append(f"{kind}.{name}({'' if name in ('set_tensor_address', 'execute_async_v3') else shown})")
        if (kind, name) not in METHODS:
            raise NotImplementedError(f"the double does not do {kind}.{name}")
        return METHODS[kind, name](double, self, *arguments, **keywords)

    return method


# What the parts do


def _log(double: Double, logger: Any, severity: str, text: str) -> None:
    logger.log(getattr(type(logger), severity), text)


def _create_network(double: Double, builder: Any, flags: int = 0) -> Any:
    names = {int(value): name for name, value in double.classes["NetworkDefinitionCreationFlag"]._values.items()}
    chosen = {name for number, name in names.items() if flags >> number & 1}
    if double.major == 8 and "EXPLICIT_BATCH" not in chosen:
        _log(double, builder._own["arguments"][0], "ERROR", "implicit batch networks take no ONNX")
        return None
    return double.make("INetworkDefinition", flags=chosen, model=None, logger=builder._own["arguments"][0])


def _parse(double: Double, parser: Any, model: str) -> bool:
    network, logger = parser._own["arguments"]
    loaded = onnx.load(model)
    problem = fusion.refusal(loaded, double.major, strongly_typed="STRONGLY_TYPED" in network._own["flags"])
    parser._own["errors"] = [problem] if problem else []
    if problem:
        _log(double, logger, "ERROR", problem[2])
        return False
    network._own["model"] = loaded
    return True


def _parser_error(double: Double, parser: Any, index: int) -> Any:
    number, node, text = parser._own["errors"][index]
    return double.make("ParserError", number=number, onnx_node=node, text=text)


def _input(double: Double, network: Any, index: int) -> Any:
    value = network._own["model"].graph.input[index]
    sizes = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
    return double.make("ITensor", name=value.name, shape=sizes)


def _flag(double: Double, config: Any, flag: _Enumerator) -> None:
    config._own.setdefault("set_flags", set()).add(flag.name)


def _timing_cache(double: Double, config: Any, data: bytes) -> Any:
    """A cache is a list of kernels for one version and GPU; of others, and of damaged ones, 8.6 makes none.

    Later ones make an empty one and warn of it, as TensorRT-RTX 1.7.1.116 does, whose words are in TensorRT 11 too.
    """
    text = bytes(data).decode(errors="replace") or f"{double.version} {GPU}\n"
    if not text.startswith(f"{double.version} {GPU}\n"):
        if double.major == 8:
            return None
        _log(double, config._own["logger"], "WARNING", "Failed to deserialize timing cache. Returning an empty one.")
        text = ""
    return double.make("ITimingCache", kernels=set(text.splitlines()[1:]))


def _use_cache(double: Double, config: Any, cache: Any, ignore_mismatch: bool) -> bool:
    config._own["cache"] = cache
    return cache is not None


def _combine(double: Double, cache: Any, other: Any, ignore_mismatch: bool) -> bool:
    cache._own["kernels"] |= other._own["kernels"]
    return True


def _build(double: Double, builder: Any, network: Any, config: Any) -> Any:
    logger, model, flags = builder._own["arguments"][0], network._own["model"], config._own.get("set_flags", set())
    typed = "STRONGLY_TYPED" in network._own["flags"]
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if typed and flags & {"FP16", "INT8", "BF16"}:
        _log(double, logger, "ERROR", "precision flags do not go with a strongly typed network")
        return None
    if quantized and not typed and "INT8" not in flags:
        _log(double, logger, "ERROR", "Q/DQ layers need the INT8 flag")
        return None
    if double.gives_up:
        _log(double, logger, "ERROR", double.gives_up)
        return None
    if monitor := config._own.get("progress_monitor"):
        monitor.phase_start("Building Engine", None, 2)
        for step in (0, 1):
            monitor.phase_start("Tactic Selection", "Building Engine", 1)
            monitor.step_complete("Tactic Selection", 0)
            monitor.phase_finish("Tactic Selection")
            assert monitor.step_complete("Building Engine", step)
        monitor.phase_finish("Building Engine")
    if cache := config._own.get("cache"):
        cache._own["kernels"].add(f"{model.graph.name} {sorted(flags)}")
    halves = not typed and "FP16" in flags
    head = {
        "version": double.version,
        "portable": "VERSION_COMPATIBLE" in flags,
        "layers": fusion.layers(model, half=halves),
        "profile": config._own.get("profile", {}),
        "level": config._own.get("builder_optimization_level"),
        "stripped": "STRIP_PLAN" in flags,
        "refittable": bool(flags & {"REFIT", "REFIT_IDENTICAL"}),
    }
    _log(double, logger, "VERBOSE", double.tell(head["layers"]))
    return plans.plan(double, head, plans.stripped(model) if head["stripped"] else model)


def _profile_shape(double: Double, profile: Any, name: str, *sizes: Any) -> None:
    profile._own.setdefault("shapes", {})[name] = [list(size) for size in sizes]


def _add_profile(double: Double, config: Any, profile: Any) -> int:
    config._own["profile"] = profile._own.get("shapes", {})
    return 0


def _deserialize(double: Double, runtime: Any, plan: bytes) -> Any:
    if plan[:4] != double.tag:
        _log(double, runtime._own["arguments"][0], "ERROR", "magicTag does not match")
        return None
    size = int.from_bytes(plan[28:36], "little")
    head = json.loads(plan[36 : 36 + size])
    if head["portable"] and not runtime._own.get("engine_host_code_allowed"):
        _log(double, runtime._own["arguments"][0], "ERROR", "host code in the engine is not allowed")
        return None
    if head["version"] != double.version and not head["portable"]:
        _log(double, runtime._own["arguments"][0], "ERROR", "the engine plan file is of another version")
        return None
    return double.make("ICudaEngine", head=head, model=onnx.load_from_string(plan[36 + size :]))


def _tensors(engine: Any) -> list[onnx.ValueInfoProto]:
    graph = engine._own["model"].graph
    return [*graph.input, *graph.output]


def _tensor(engine: Any, name: str) -> onnx.ValueInfoProto:
    return next(value for value in _tensors(engine) if value.name == name)


def _mode(double: Double, engine: Any, name: str) -> Any:
    reads = name in [value.name for value in engine._own["model"].graph.input]
    return double.value("TensorIOMode", "INPUT" if reads else "OUTPUT")


def _shape(double: Double, engine: Any, name: str) -> tuple[int, ...]:
    dims = _tensor(engine, name).type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)


def _dtype(double: Double, engine: Any, name: str) -> Any:
    return double.value("DataType", NUMPY[_tensor(engine, name).type.tensor_type.elem_type])


def _set_shape(double: Double, context: Any, name: str, shape: tuple[int, ...]) -> bool:
    engine = context._own["engine"]
    low, _, high = engine._own["head"]["profile"].get(name, [shape] * 3)
    fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
    if fits:
        context._own["batch"] = shape[0]
        context._own["shapes"] = {name: tuple(shape)}
    return fits


def _context_shape(double: Double, context: Any, name: str) -> tuple[int, ...]:
    known = context._own.get("shapes", {}).get(name)
    return known or (context._own["batch"], *_shape(double, context._own["engine"], name)[1:])


def _address(double: Double, context: Any, name: str, memory: int) -> bool:
    context._own.setdefault("addresses", {})[name] = memory
    return True


def _view(double: Double, context: Any, name: str) -> Any:
    shape, kind = _context_shape(double, context, name), _dtype(double, context._own["engine"], name).name
    dtype: np.dtype[Any] = np.dtype({"FLOAT": np.float32, "HALF": np.float16}[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    buffer: Any = (ctypes.c_byte * size).from_address(context._own["addresses"][name])
    return np.frombuffer(buffer, dtype).reshape(shape)


def _run(double: Double, context: Any, stream_handle: int) -> bool:
    engine = context._own["engine"]
    graph = engine._own["model"].graph

    def work() -> None:
        feeds = {value.name: _view(double, context, value.name) for value in graph.input}
        if double.execute:
            values = fusion.compute(engine, feeds)
            for value, array in zip(graph.output, values, strict=True):
                _view(double, context, value.name)[...] = array
        if profiler := context._own.get("profiler"):
            for layer in engine._own["head"]["layers"]:
                profiler.report_layer_time(layer["Name"], 0.25)

    cuda_runtime.submit(stream_handle, work)
    return True


def _information(double: Double, inspector: Any, form: Any) -> str:
    assert form.name == "JSON"
    engine = inspector._own["engine"]
    types = {value.name: _dtype(double, engine, value.name).name for value in _tensors(engine)}
    return json.dumps(fusion.schema(engine._own["head"]["layers"], types, double.major))


METHODS: dict[tuple[str, str], Callable[..., Any]] = {
    ("Builder", "create_network"): _create_network,
    ("Builder", "create_builder_config"): lambda double, self: double.make(
        "IBuilderConfig", logger=self._own["arguments"][0]
    ),
    ("Builder", "create_optimization_profile"): lambda double, self: double.make("IOptimizationProfile"),
    ("Builder", "build_serialized_network"): _build,
    ("OnnxParser", "parse_from_file"): _parse,
    ("OnnxParser", "get_error"): _parser_error,
    ("ParserError", "desc"): lambda double, self: self._own["text"],
    ("ParserError", "node"): lambda double, self: self._own["number"],
    ("ParserError", "node_name"): lambda double, self: self._own["onnx_node"][0],
    ("ParserError", "node_operator"): lambda double, self: self._own["onnx_node"][1],
    ("INetworkDefinition", "get_input"): _input,
    ("IBuilderConfig", "set_flag"): _flag,
    ("IBuilderConfig", "set_memory_pool_limit"): lambda double, self, pool, pool_size: None,
    ("IBuilderConfig", "set_tactic_sources"): lambda double, self, tactic_sources: True,
    ("IBuilderConfig", "set_preview_feature"): lambda double, self, feature, enable: None,
    ("IBuilderConfig", "set_compute_capability"): lambda double, self, compute_capability, idx: None,
    ("IBuilderConfig", "create_timing_cache"): _timing_cache,
    ("IBuilderConfig", "set_timing_cache"): _use_cache,
    ("IBuilderConfig", "get_timing_cache"): lambda double, self: self._own["cache"],
    ("IBuilderConfig", "add_optimization_profile"): _add_profile,
    ("IOptimizationProfile", "set_shape"): _profile_shape,
    ("ITimingCache", "combine"): _combine,
    ("ITimingCache", "serialize"): lambda double, self: plans.Memory(
        "".join(f"{line}\n" for line in (f"{double.version} {GPU}", *sorted(self._own["kernels"]))).encode()
    ),
    ("Runtime", "deserialize_cuda_engine"): _deserialize,
    ("OnnxParserRefitter", "refit_from_file"): plans.refit,
    ("OnnxParserRefitter", "get_error"): _parser_error,
    ("Refitter", "get_missing_weights"): lambda double, self: self._own["missing"],
    ("Refitter", "refit_cuda_engine"): plans.refit_engine,
    ("ICudaEngine", "create_serialization_config"): lambda double, self: double.make(
        "ISerializationConfig", flags={"EXCLUDE_WEIGHTS"} if self._own["head"]["stripped"] else set()
    ),
    ("ICudaEngine", "serialize_with_config"): plans.serialize,
    ("ISerializationConfig", "clear_flag"): plans.clear_flag,
    ("ICudaEngine", "get_tensor_name"): lambda double, self, index: _tensors(self)[index].name,
    ("ICudaEngine", "get_tensor_mode"): _mode,
    ("ICudaEngine", "get_tensor_shape"): _shape,
    ("ICudaEngine", "get_tensor_dtype"): _dtype,
    ("ICudaEngine", "get_tensor_profile_shape"): lambda double, self, name, index: self._own["head"]["profile"][name],
    ("ICudaEngine", "create_execution_context"): lambda double, self: double.make("IExecutionContext", engine=self),
    ("ICudaEngine", "create_engine_inspector"): lambda double, self: double.make("EngineInspector", engine=self),
    ("IExecutionContext", "set_input_shape"): _set_shape,
    ("IExecutionContext", "get_tensor_shape"): _context_shape,
    ("IExecutionContext", "set_tensor_address"): _address,
    ("IExecutionContext", "execute_async_v3"): _run,
    ("EngineInspector", "get_engine_information"): _information,
}
PROPERTIES: dict[tuple[str, str], Callable[..., Any]] = {
    ("OnnxParserRefitter", "num_errors"): lambda double, self: 0,
    ("OnnxParser", "num_errors"): lambda double, self: len(self._own["errors"]),
    ("INetworkDefinition", "num_inputs"): lambda double, self: len(self._own["model"].graph.input),
    ("ICudaEngine", "num_io_tensors"): lambda double, self: len(_tensors(self)),
    ("ICudaEngine", "num_optimization_profiles"): lambda double, self: 1,
    ("ICudaEngine", "device_memory_size"): lambda double, self: 1 << 20,
    ("ICudaEngine", "device_memory_size_v2"): lambda double, self: 1 << 20,
}
