"""MODEL on the command line -> a network that torch can make, or a model file."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from resdeploy import store
from resdeploy.backends import openvino
from resdeploy.errors import FactoryRefused, MalformedInput, MissingInput, UsageError, WeightsMismatch
from resdeploy.pipeline import engines
from resdeploy.pipeline.request import Request
from resdeploy.records import Artifact, Format, ModelSpec, Precision, Preprocessing, Weights

FORMATS: dict[str, Format] = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".engine": "engine",
    ".plan": "engine",
    ".safetensors": "checkpoint",
    ".pth": "checkpoint",
    ".pt": "checkpoint",
    ".th": "checkpoint",
}


def format_of(name: str) -> Format | None:
    """The format that a file name's suffix states; None for the name of a network, and for a URL."""
    return FORMATS.get(Path(name).suffix.lower()) if not re.match(r"(timm|torchvision):|\w+://", name) else None


def can_give(request: Request, wanted: Format) -> bool:
    """Whether a file in this format can be made of the request."""
    found = format_of(request.model) or "checkpoint"
    return found == wanted or (found == "checkpoint" and wanted == "onnx")


def refuse_missing(requests: Iterable[Request]) -> None:
    """Looks for every model before anything is said or done; not for those that an import alone can find.

    Raises:
        MissingInput, UnknownName: no such file, no such network in the zoo.
    """
    from resdeploy.models import zoo

    for model in (request.model for request in requests):
        if format_of(model):
            if not Path(model).is_file():
                raise MissingInput(f"there is no file {model}", fix="Check the path")
        elif ":" not in model:
            zoo.find(model)


def stem(model: str) -> str:
    """A short name for a model's rows and files: `resnet50`, `timm-resnet50d`, or the model file's own stem."""
    return Path(model).stem if format_of(model) else model.replace(":", "-").replace("/", "-")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that torch can make: its description, where its weights come from, their file if there is one."""

    spec: ModelSpec
    weights: Weights
    path: Path | None
    code: str | None = None  # sha256 of the module that holds a factory of the user's own


def network(request: Request) -> Network:
    """The network of a zoo name, `timm:`, `torchvision:`, a factory, or a checkpoint that knows what it is.

    Raises:
        UnknownName, MissingInput: no such model or file.
        UsageError: a checkpoint that does not say which network it belongs to.
        FactoryRefused: a checkpoint that says a factory, which only a person may name.
        MalformedInput: a checkpoint that names a network that nobody has.
    """
    from resdeploy.models import foreign, weights, zoo

    if request.model.startswith(("http://", "https://")) and request.model.endswith((".engine", ".plan")):
        raise UsageError(
            "an engine is a program and is not fetched from a URL by itself",
            fix="Download it, and name the file with --trust-engine if you trust where it came from",
        )
    if format_of(request.model) == "checkpoint":
        return _checkpoint_network(request)
    foreign.permit(request.model)  # the one place: a request holds what was typed
    size = request.sight.img_size
    spec = zoo.spec(
        request.model,
        classes=request.classes,
        weights=request.weights,
        # A foreign module is run once to learn its classes, at the size it will have.
        input_shape=(3, size, size) if size and ":" in request.model else None,
    )
    path, record = weights.resolve(request.weights, spec, seed=request.seed)
    stored = weights.spec_in(path) if path is not None else None
    if stored is not None and stored.name == spec.name:
        if request.classes not in (None, stored.classes):
            raise WeightsMismatch(
                f"{path} was trained for {stored.classes} classes, not {request.classes}", fix="Leave --classes out"
            )
        spec = stored
    return Network(spec=request.sight.applied_to(spec), weights=record, path=path, code=_code(request.model))


def _code(model: str) -> str | None:
    """The user's own code is part of what a network is: an edited factory makes another one."""
    from resdeploy.models import foreign

    if not foreign.is_factory(model):
        return None
    found = importlib.util.find_spec(model.partition(":")[0])
    return store.digest(Path(found.origin)) if found and found.origin else None


def _checkpoint_network(request: Request) -> Network:
    from resdeploy.models import foreign, weights, zoo

    path = Path(request.model)
    _refuse_changes(request)
    sha256 = store.checked_digest(path)  # before anything is read from it
    spec = weights.spec_in(path)
    if spec is None:
        raise UsageError(
            f"{path} does not say which network its weights belong to",
            cause="Only checkpoints that resdeploy wrote do",
            fix=f"Name the network and pass the file as its weights: MODEL --weights {path}",
        )
    if foreign.is_factory(spec.name):
        # What is no name at all stays out of a command that a person might paste.
        named = spec.name if foreign.FACTORY.fullmatch(spec.name) else "package.module:factory"
        command = f"resdeploy export {named} --weights {shlex.quote(str(path))}"
        raise FactoryRefused(
            f"{path} says that {spec.name} makes its network, which was not imported",
            cause="Importing a module runs it, so a file may name zoo, timm: and torchvision: networks alone",
            fix=f"If you trust that module, name it yourself: `{command}`",
        )
    _, colon, rest = spec.name.partition(":")
    if not (foreign.REGISTERED.fullmatch(rest) if colon else spec.name in zoo.ENTRIES):
        raise MalformedInput(
            f"{path} says that its network is {spec.name!r}, and there is none of that name",
            cause="It was written by another version of resdeploy, or is not what it claims to be",
            fix=f"Name its network: resdeploy export MODEL --weights {shlex.quote(str(path))}",
        )
    record = Weights(source=path.name, sha256=sha256)
    return Network(spec=request.sight.applied_to(spec), weights=record, path=path)


def model_file(request: Request) -> Artifact:
    """The artifact of an ONNX, OpenVINO or engine file, from its sidecar or from what the file itself tells.

    Raises:
        MissingInput: no such file.
        IntegrityError: not the file its sidecar describes, or a downloaded engine, or one with host code of another's.
        MalformedInput, UnsafeInput: a file that cannot be read, or must not be.
        UsageError: a compiled file without a sidecar; options that would have to change the file.
    """
    path = Path(request.model)
    _refuse_changes(request)
    kind = format_of(request.model)
    if kind == "engine":
        engines.refuse_unknown_origin(path, trusted=request.trust_engine)
    artifact = store.load(path, trusted=request.trust_engine)
    if kind == "openvino":
        openvino.check(path)
    if artifact is None:
        if kind != "onnx":
            raise UsageError(
                f"{path} has no sidecar {store.sidecar(path).name}, and a compiled file cannot say what it classifies",
                fix="Name the ONNX file it was made from",
            )
        artifact = _foreign_onnx(path)
    if artifact.model is None:
        raise UsageError(f"the sidecar of {path} holds no model description", fix="Name the ONNX file it was made from")
    spec = request.sight.applied_to(artifact.model)
    if 0 in spec.input_shape:
        raise UsageError(f"{path} does not fix the size of its images", fix="Add --img-size")
    return dataclasses.replace(artifact, model=spec)


def foreign_engine(request: Request, precision: Precision | None) -> Artifact:
    """An engine from elsewhere (trtexec, say): its hash is recorded, and what a plan does not tell is asked for.

    Raises:
        UsageError: the option that is missing.
    """
    path, size = Path(request.model), request.sight.img_size
    engines.refuse_unknown_origin(path, trusted=request.trust_engine)
    for option, given in (("--img-size", size), ("--precision", precision)):
        if given is None:
            raise UsageError(
                f"{path} has no sidecar {store.sidecar(path).name}, and an engine cannot say this itself",
                fix=f"Add {option}, or name the ONNX file it was made from",
            )
    assert size is not None
    assert precision is not None
    spec = ModelSpec(
        name=path.stem, family="foreign", classes=request.classes or 0, input_shape=(3, size, size), preprocessing=None
    )
    note = "an engine from elsewhere: its precision is what --precision says, and audit shows what it runs in"
    return Artifact(
        path=str(path),
        format="engine",
        precision=precision,
        sha256=store.digest(path),
        model=request.sight.applied_to(spec) if request.sight.mean else spec,
        weights=Weights(source=path.name),
        notes=(note,),
    )


def _refuse_changes(request: Request) -> None:
    """A file has its weights and classes."""
    for option, given in (("--weights", request.weights != "random"), ("--classes", request.classes is not None)):
        if given:
            raise UsageError(f"{option} does not apply to {request.model}, which has its own", fix="Leave it out")


def _foreign_onnx(path: Path) -> Artifact:
    from resdeploy.graph import files, metadata

    model = files.load_model(path)
    return Artifact(
        path=str(path),
        format="onnx",
        precision=files.precision_of(model),
        sha256=store.digest(path),
        model=metadata.spec_of(model, path),
        weights=Weights(source=path.name),
    )


def sight_of(artifact: Artifact) -> Preprocessing:
    """How the model sees images.

    Raises:
        UsageError: a file that does not say.
    """
    if artifact.model is None or artifact.model.preprocessing is None:
        raise UsageError(
            f"{artifact.path} does not say how images become its input",
            cause="Only files that resdeploy wrote carry their preprocessing",
            fix="Add --mean and --std, and --resize where images are larger than the input",
        )
    return artifact.model.preprocessing
