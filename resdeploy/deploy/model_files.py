"""Model files that already exist: opened, and what their records or the files themselves tell of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from resdeploy import backends, store
from resdeploy.backends import origin
from resdeploy.deploy import model_string
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError
from resdeploy.records import (
    Artifact,
    ModelSpec,
    Precision,
    Preprocessing,
    Weights,
)


def open_model(request: Request) -> Artifact:
    """The artifact of an ONNX or compiled file, from its sidecar or from what the file itself tells.

    Raises:
        MissingInput: no such file.
        IntegrityError: not the file its sidecar describes, or a downloaded engine, or one with host code of another's.
        MalformedInput, UnsafeInput: a file that cannot be read, or must not be.
        UsageError: a compiled file without a sidecar; options that would have to change the file.
    """
    path = Path(request.model)
    model_string.refuse_changes(request)
    compiler = backends.load(request.compiler) if request.compiler is not None else None
    if compiler is not None and compiler.PROGRAM:
        origin.refuse_unknown(path, trusted=request.trust_engine)
    artifact = store.load(path, trusted=request.trust_engine)
    if compiler is not None:
        compiler.check(path)
    if artifact is None:
        if compiler is not None:
            raise UsageError(
                f"{path} has no sidecar {store.sidecar(path).name}, and a compiled file cannot say what it classifies",
                fix="Name the ONNX file it was made from",
            )
        artifact = _foreign_onnx(path)
    if artifact.model is None:
        raise UsageError(f"the sidecar of {path} holds no model description", fix="Name the ONNX file it was made from")
    spec = request.override.apply_to(artifact.model)
    if 0 in spec.input_shape:
        raise UsageError(f"{path} does not fix the size of its images", fix="Add --img-size")
    return dataclasses.replace(artifact, model=spec)


def foreign_engine(request: Request, precision: Precision | None) -> Artifact:
    """An engine from elsewhere (trtexec, say): its hash is recorded, and what a plan does not tell is asked for.

    Raises:
        UsageError: the option that is missing.
    """
    path, size = Path(request.model), request.override.size
    assert request.compiler is not None
    compiler = backends.load(request.compiler)
    if compiler.PROGRAM:
        origin.refuse_unknown(path, trusted=request.trust_engine)
    compiler.check(path)
    lacking = [option for option, value in (("--img-size", size), ("--precision", precision)) if value is None]
    if lacking:
        raise UsageError(
            f"{path} has no sidecar {store.sidecar(path).name}, and an engine cannot say this itself",
            fix=f"Name the ONNX file it was made from; bench, eval and audit take {' and '.join(lacking)}",
        )
    assert size is not None
    assert precision is not None
    spec = ModelSpec(
        name=path.stem, family="foreign", classes=request.classes or 0, input_shape=(3, *size), preprocessing=None
    )
    note = "an engine from elsewhere: its precision is what --precision says, and audit shows what it runs in"
    return Artifact(
        path=str(path),
        format=compiler.FORMAT,
        precision=precision,
        sha256=store.digest(path),
        model=request.override.apply_to(spec) if request.override.mean else spec,
        weights=Weights(source=path.name),
        notes=(note,),
    )


def _foreign_onnx(path: Path) -> Artifact:
    from resdeploy.graph import dtypes, files, metadata

    model = files.load_model(path)
    return Artifact(
        path=str(path),
        format="onnx",
        precision=files.precision_of(model),
        sha256=store.digest(path),
        model=metadata.spec_of(model, path),
        weights=Weights(source=path.name),
        notes=("its weights are FP64: what is made of it is FP32",) if dtypes.holds_double(model) else (),
    )


def preprocessing_of(artifact: Artifact) -> Preprocessing:
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
