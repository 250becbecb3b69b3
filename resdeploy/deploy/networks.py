"""The torch network that a MODEL names, and where its weights come from."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import dataclass
from pathlib import Path

from resdeploy import backends, store
from resdeploy.deploy import model_string
from resdeploy.deploy.model_string import CheckpointFile, ForeignName, Request
from resdeploy.errors import FactoryRefused, MalformedInput, UsageError, WeightsMismatch
from resdeploy.records import ModelSpec, Weights
from resdeploy.registered_backends import BACKENDS


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that torch can make: its description, where its weights come from, their file if there is one."""

    spec: ModelSpec
    weights: Weights
    path: Path | None
    code: str | None = None  # sha256 of the module that holds a factory of the user's own


def resolve(request: Request) -> Network:
    """The network of a zoo name, `timm:`, `torchvision:`, a factory, or a checkpoint that knows what it is.

    Raises:
        UnknownName, MissingInput: no such model or file.
        UsageError: a checkpoint that does not say which network it belongs to.
        FactoryRefused: a checkpoint that says a factory, which only a person may name.
        MalformedInput: a checkpoint that names a network that nobody has.
    """
    from resdeploy.models import foreign, weights, zoo

    programs = [suffix for each in map(backends.load, BACKENDS) if each.PROGRAM for suffix in each.SUFFIXES]
    if request.model.startswith(("http://", "https://")) and request.model.endswith(tuple(programs)):
        raise UsageError(
            "an engine is a program and is not fetched from a URL by itself",
            fix="Download it, and name the file with --trust-engine if you trust where it came from",
        )
    if request.model.startswith(("http://", "https://")):
        raise UsageError(
            f"a model is not fetched from a URL: {request.model}",
            fix="Download it and name the file; weights of a network may be a URL: MODEL --weights URL",
        )
    if isinstance(request.named, CheckpointFile):
        return _checkpoint_network(request)
    foreign.permit(request.model)  # the one place: a request holds what was typed
    size = request.override.size
    spec = zoo.spec(
        request.model,
        classes=request.classes,
        weights=request.weights,
        # A foreign module is run once to learn its classes, at the size it will have.
        input_shape=(3, *size) if size and isinstance(request.named, ForeignName) else None,
    )
    path, record = weights.resolve(request.weights, spec, seed=request.seed)
    stored = weights.spec_in(path) if path is not None else None
    if stored is not None and stored.name == spec.name:
        if request.classes not in (None, stored.classes):
            raise WeightsMismatch(
                f"{path} was trained for {stored.classes} classes, not {request.classes}", fix="Leave --classes out"
            )
        spec = stored
    return Network(spec=request.override.apply_to(spec), weights=record, path=path, code=_factory_code(request.model))


def _factory_code(model: str) -> str | None:
    """The user's own code is part of what a network is: an edited factory makes another one."""
    from resdeploy.models import foreign

    if not foreign.is_factory(model):
        return None
    module = importlib.util.find_spec(model.partition(":")[0])
    return store.digest(Path(module.origin)) if module and module.origin else None


def _checkpoint_network(request: Request) -> Network:
    from resdeploy.models import foreign, weights, zoo

    path = Path(request.model)
    model_string.refuse_changes(request)
    sha256 = store.check_digest(path)  # before anything is read from it
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
    return Network(spec=request.override.apply_to(spec), weights=record, path=path)
