"""A model repository of Triton: its own protobuf reads the configurations, and its parts together answer as `eval`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from resdeploy import api
from resdeploy.backends.lane import Lane
from resdeploy.deploy import candidates
from resdeploy.deploy.model_files import open_model
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError
from resdeploy.records import Preprocessing
from resdeploy.verbs import triton_repository
from tests.packaged.networks import LABELS, network

FLOAT = Preprocessing(size=(8, 6), resize=9, interpolation="bicubic", channels="BGR")
PIXELS = Preprocessing(size=(8, 8), resize=8, dtype="uint8")
CONFIGURED = [
    (how, runtime, batch) for how in (FLOAT, PIXELS) for runtime in ("onnxruntime", "openvino") for batch in (1, 8)
]
# An interpreter with tritonclient[grpc], whose protobuf is older than onnx's: an environment of its own.
PYTHON = os.environ.get("TRITONCLIENT_PYTHON", "")
PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
texts = json.load(sys.stdin)
print(json.dumps([json_format.MessageToDict(text_format.Parse(t, model_config_pb2.ModelConfig())) for t in texts]))
"""


def configurations(model: Path, runtime: Any, batch_size: int) -> list[str]:
    """Of the ensemble, of the preprocessing and of the network."""
    written = triton_repository.repository(model, runtime, LABELS, {}, batch_size=batch_size, threads=2)
    configs = {name: content for name, content in written.items() if name.endswith("config.pbtxt")}
    texts = [configs[name] for name in sorted(configs, key=lambda name: ("_network" in name, "_preprocess" in name))]
    return [text.decode() for text in texts if isinstance(text, bytes)]


@pytest.mark.acceptance
def test_tritons_own_protobuf_reads_every_configuration(tmp_path: Path) -> None:
    """Names, types, shapes and batches fit together, and a name with signs comes through."""
    assert PYTHON, "TRITONCLIENT_PYTHON names no interpreter with tritonclient[grpc]: make acceptance installs one"
    texts = []
    for number, (how, runtime, batch_size) in enumerate(CONFIGURED):
        model = network(tmp_path / f"net {number}.onnx", how)
        proto = onnx.load(model)
        proto.graph.node[-1].output[0] = proto.graph.output[0].name = 'ü "logits" \\'
        onnx.save(proto, model)
        texts += configurations(model, runtime, batch_size)
    done = subprocess.run([PYTHON, "-c", PARSE], input=json.dumps(texts), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    for number, (how, runtime, batch_size) in enumerate(CONFIGURED):
        ensemble, preprocess, net = read[3 * number : 3 * number + 3]
        first, second = ensemble["ensembleScheduling"]["step"]
        assert (first["modelName"], second["modelName"]) == (preprocess["name"], net["name"])
        assert (ensemble["name"], ensemble["platform"], preprocess["backend"]) == (
            f"net_{number}",
            "ensemble",
            "python",
        )
        assert [each["maxBatchSize"] for each in (ensemble, preprocess, net)] == [batch_size] * 3
        assert (net.get("platform"), net.get("backend")) == {
            "onnxruntime": ("onnxruntime_onnx", None), "openvino": (None, "openvino")
        }[runtime]  # fmt: skip
        (given,), (made,), (logits,), (taken,) = preprocess["input"], preprocess["output"], net["output"], net["input"]
        assert (given["dataType"], given["dims"]) == ("TYPE_STRING", ["1"])
        assert (made["dataType"], made["dims"]) == (taken["dataType"], taken["dims"])
        assert taken["dataType"] == ("TYPE_UINT8" if how.dtype == "uint8" else "TYPE_FP32")
        assert taken["dims"] == ["3", *map(str, how.size)]
        assert first["outputMap"] == {"PIXELS": second["inputMap"][taken["name"]]}
        assert second["outputMap"] == {'ü "logits" \\': ensemble["output"][0]["name"]}
        assert (logits["name"], logits["dims"], logits["labelFilename"]) == ('ü "logits" \\', ["4"], "labels.txt")
        assert ("dynamicBatching" in net) == (batch_size > 1)
        (warmup,) = net["modelWarmup"]
        assert (warmup["batchSize"], warmup["inputs"][taken["name"]]["dims"]) == (batch_size, taken["dims"])
        assert net["instanceGroup"] == [{"count": 1, "kind": "KIND_CPU"}]


def backend_double() -> Any:
    """What the module takes of Triton's python backend."""
    double: Any = ModuleType("triton_python_backend_utils")
    double.get_output_config_by_name = lambda config, name: next(o for o in config["output"] if o["name"] == name)
    double.triton_string_to_numpy = {"TYPE_FP32": np.float32}.__getitem__
    double.get_input_tensor_by_name = lambda request, name: SimpleNamespace(as_numpy=lambda: request[name])
    double.Tensor = lambda name, values: (name, values)
    double.TritonError = str
    double.InferenceResponse = lambda output_tensors, error=None: error or output_tensors[0]
    return double


def test_the_parts_together_answer_as_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The python backend's module as it lies in the folder, then the network; a bad image is one request's error."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (13, 17, 3), np.uint8)).save(path)
    model = network(tmp_path / "m.onnx", FLOAT)
    api.package(model, tmp_path / "t", for_="triton", backend="onnxruntime", threads=1)
    folder = tmp_path / "t/models/m_preprocess/1"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend_double())
    found = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    del sys.modules["classifier"]  # not by monkeypatch, which would put it back
    preprocess = module.TritonPythonModel()
    outputs = [{"name": "PIXELS", "data_type": "TYPE_FP32"}]
    preprocess.initialize({"model_config": json.dumps({"output": outputs})})
    requests = [
        {"IMAGE": np.array([[path.read_bytes()] for path in some], np.object_)} for some in (paths[:2], paths[2:])
    ]
    bad, *answers = preprocess.execute([{"IMAGE": np.array([[b"no picture"]], np.object_)}, *requests])
    assert "no JPEG or PNG" in bad
    source = open_model(Request(model=str(tmp_path / "t/models/m_network/1/model.onnx")))
    candidate = candidates.candidate(source, "onnxruntime", threads=1)
    with Lane("onnxruntime") as lane:
        lane.open(candidate.artifact, candidate.execution)
        logits = lane.predict(np.concatenate([values for _, values in answers]))
    with api.load(model, backend="onnxruntime", threads=1) as predictor:
        assert logits.tobytes() == predictor.logits(paths).tobytes()
    assert (folder.parents[1] / "m/labels.txt").read_text().split() == list(LABELS)


@pytest.mark.parametrize(
    ("changed", "problem", "fix"),
    [
        ({0: 1}, "fixes its batch to 1", "resdeploy export .* -o"),
        ({2: "h", 3: "w"}, "leaves the size of its images open", "--img-size H,W"),
        ({"type": TensorProto.DOUBLE}, "other types than FP32, FP16 and uint8", "Package the FP32"),
    ],
)
def test_a_file_that_triton_could_not_batch_or_feed_is_refused(
    tmp_path: Path, changed: dict[Any, Any], problem: str, fix: str
) -> None:
    """Each with what to do about it."""
    model = network(tmp_path / "m.onnx", FLOAT)
    proto = onnx.load(model)
    taken = proto.graph.input[0].type.tensor_type
    for what, value in changed.items():
        if what == "type":
            taken.elem_type = value
        elif isinstance(value, str):
            taken.shape.dim[what].dim_param = value
        else:
            taken.shape.dim[what].dim_value = value
    onnx.save(proto, model)
    with pytest.raises(UsageError, match=f"{problem}.*{fix}"):
        configurations(model, "onnxruntime", 1)
