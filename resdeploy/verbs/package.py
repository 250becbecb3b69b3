"""`package`: a model in a folder that is served without resdeploy, with all that serving it takes."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from resdeploy import __version__, backends, packages, scratch, store
from resdeploy.backends import choose
from resdeploy.deploy import candidates, model_files
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import OnnxFile, Request
from resdeploy.errors import BackendMissing, MalformedInput, NotWritable, UsageError, refuse
from resdeploy.measure import results
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Artifact, Manifest, PackageKind, Progress, Runtime, ServedSpec, State
from resdeploy.report import sentences
from resdeploy.verbs import triton_repository

SCHEMA_VERSION = 1
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
PACKAGED = Path(__file__).parents[1] / "packaged"
SPEC, MANIFEST, GATE, README, REQUIREMENTS = "spec.json", "manifest.json", "gate.json", "README.md", "requirements.txt"

Content = bytes | Path  # of a file: itself, or the file that is copied


@dataclass(frozen=True, kw_only=True)
class PackagePlan:
    """What kind of folder to write, and how the model is to run in it."""

    kind: PackageKind = "python"
    backend: str = "auto"
    batch_size: int = 1
    threads: int | None = None
    gate: Path | None = None  # a saved verdict on the model


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model made ready: the file that was named, and what of it a runtime runs."""

    source: Artifact
    runtime: Runtime
    candidate: Candidate


def package(request: Request, plan: PackagePlan, out: Path, *, progress: Progress) -> Manifest:
    """Writes the folder `out`, whole or not at all.

    Raises:
        UsageError: no ONNX file, one that does not say how it sees images, a verdict on another file.
        NotWritable: there is something at `out` already, or nothing can be written there.
        BackendMissing: no runtime here that could be packaged.
    """
    refuse_taken(out)
    prepared = prepare(request, plan, progress=progress)
    verdict = None if plan.gate is None else read_verdict(plan.gate, prepared.source)
    with store.disk_errors(out), scratch.folder(beside=out) as folder:
        made = folder / "made"
        made.mkdir()
        for name, content in contents(prepared, plan).items():
            write(made / name, content)
        if plan.gate is not None:
            write(made / GATE, plan.gate)
        needed = versions(prepared.runtime)
        if plan.kind == "triton":  # the server brings the runtime
            del needed[prepared.runtime]
        write(made / REQUIREMENTS, requirements(needed))
        write(made / README, readme(prepared, plan, verdict))
        manifest = describe(made, prepared, plan, verdict)
        write(made / MANIFEST, as_json(manifest))
        made.rename(out)
    return manifest


def refuse_taken(out: Path) -> None:
    """A package never replaces or joins what is there.

    Raises:
        NotWritable: something other than an empty folder lies at `out`.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise NotWritable(f"{out} is there already", fix="Name another folder with -o, or remove that one")
    with store.disk_errors(out):
        store.make_folder(out.absolute().parent)


def prepare(request: Request, plan: PackagePlan, *, progress: Progress) -> Prepared:
    """The model as `eval` would run it.

    Raises:
        UsageError, BackendMissing: as `package`.
    """
    if not isinstance(request.named, OnnxFile):
        raise UsageError(
            f"package takes an ONNX file, and {request.model} is none",
            fix=f"Write one: resdeploy export {request.model} -o F.onnx, or resdeploy quantize",
        )
    runtime = pick_runtime(request, plan.backend)
    source = candidates.source_for(request, runtime, None, CalibrationPlan(), progress=progress)
    if source.model is None or source.model.preprocessing is None:
        raise UsageError(
            f"{request.model} does not say how images become its input",
            cause="Only files that resdeploy wrote carry their preprocessing",
            fix=f"Write it into the file: resdeploy export {request.model} --mean M --std S --resize N -o F.onnx",
        )
    made = candidates.candidate(source, runtime, batch_size=plan.batch_size, threads=plan.threads)
    return Prepared(source=source, runtime=runtime, candidate=made)


def pick_runtime(request: Request, asked: str) -> Runtime:
    """The runtime `asked` for; `auto` is the first of `RUNTIMES` that is here and runs the file's precision.

    Raises:
        UsageError: another backend, or one that does not run this precision.
        BackendMissing: it is not here; for `auto`, none is.
    """
    precision = model_files.open_model(request).precision
    if asked != "auto":
        wrong = asked not in RUNTIMES
        refuse((wrong, f"a package runs in {' or '.join(RUNTIMES)}, not in {asked}", "Choose one with --backend"))
        return cast("Runtime", choose.pick(asked, precision)[0])
    for name in RUNTIMES:
        module = backends.load(name)
        if precision in module.ACCEPTS and module.available().ok:
            return name
    raise BackendMissing(
        f"no runtime for {precision} that a package could run in is installed here",
        fix=f"Run `{packages.install(*RUNTIMES)}`",
    )


def contents(prepared: Prepared, plan: PackagePlan) -> dict[str, Content]:
    """The files that decide what a package answers, by their paths in it: the same for the same source and versions."""
    return python_contents(prepared, plan) if plan.kind == "python" else triton_contents(prepared, plan)


def python_contents(prepared: Prepared, plan: PackagePlan) -> dict[str, Content]:
    """The module, its spec, and the model as its backend built it."""
    built = Path(prepared.candidate.artifact.path)
    name = f"model{built.suffix}"
    model: dict[str, Content] = {name: built}
    model |= {f"model{part.suffix}" if part.stem == built.stem else part.name: part for part in store.companions(built)}
    spec = as_json(spec_of(prepared, plan, name))
    return {"classifier.py": PACKAGED / "classifier.py", SPEC: spec, **model}


def triton_contents(prepared: Prepared, plan: PackagePlan) -> dict[str, Content]:
    """A model repository, whose preprocessing is that module.

    Raises:
        UsageError: the file fixes its batch size.
    """
    spec = spec_of(prepared, plan, "model.onnx")
    modules: dict[str, Content] = {
        "model.py": PACKAGED / "triton.py",
        "classifier.py": PACKAGED / "classifier.py",
        SPEC: as_json(spec),
    }
    return triton_repository.repository(
        Path(prepared.source.path),
        prepared.runtime,
        spec.labels or tuple(map(str, range(spec.classes))),
        modules,
        batch_size=plan.batch_size,
        threads=plan.threads,
    )


def spec_of(prepared: Prepared, plan: PackagePlan, model: str) -> ServedSpec:
    """What the module must know."""
    known = prepared.source.model
    assert known is not None
    assert known.preprocessing is not None
    return ServedSpec(
        name=known.name,
        runtime=prepared.runtime,
        model=model,
        batch_size=plan.batch_size,
        threads=plan.threads,
        precision=prepared.candidate.execution.precision,
        classes=known.classes,
        preprocessing=known.preprocessing,
        labels=known.labels,
    )


def readme(prepared: Prepared, plan: PackagePlan, verdict: State | None) -> bytes:
    """The folder's page, with the versions of its packages beside it."""
    known = prepared.source.model
    assert known is not None
    assert known.preprocessing is not None
    text = (PACKAGED / f"{plan.kind}.md").read_text(encoding="utf-8")
    words = {
        "file": Path(prepared.source.path).name,
        "runtime": prepared.runtime,
        "name": triton_repository.name_of(Path(prepared.source.path)),
        "classes": known.classes,
        "seen": sentences.preprocessing(known.preprocessing),
        "batch_size": plan.batch_size,
        "threads": plan.threads or "the cores that the process may run on",
        "gate": f"{verdict} ({GATE})" if verdict else "none was given (`resdeploy package --gate`)",
    }
    return string.Template(text).substitute(words).encode()


def describe(folder: Path, prepared: Prepared, plan: PackagePlan, verdict: State | None) -> Manifest:
    """The manifest of the files that lie in `folder`."""
    source = prepared.source
    calibration = source.calibration and dataclasses.replace(source.calibration, methods={}, images=())
    return Manifest(
        schema_version=SCHEMA_VERSION,
        kind=plan.kind,
        runtime=prepared.runtime,
        batch_size=plan.batch_size,
        threads=plan.threads,
        source=dataclasses.replace(source, path=Path(source.path).name, calibration=calibration, layers=()),
        gate=verdict,
        files={name: store.sha256_of(folder / name) for name in files_in(folder)},
        versions=versions(prepared.runtime) | {"resdeploy": __version__, "python": platform.python_version()},
    )


def versions(runtime: Runtime) -> dict[str, str]:
    """Of the packages that a package needs, by their names on an index."""
    module = backends.load(runtime)
    found = {
        "numpy": backends.installed_version("numpy"),
        "pillow": backends.installed_version("PIL", "pillow"),
        runtime: module.available().version,
    }
    return {name: version for name, version in found.items() if version}


def files_in(folder: Path) -> list[str]:
    """Paths of all files in a folder, relative to it and sorted, but for what Python compiled there."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if "__pycache__" not in path.parts)


def read_verdict(path: Path, source: Artifact) -> State:
    """What a saved gate says of this file.

    Raises:
        MissingInput, MalformedInput: no result of `gate`.
        UsageError: it did not judge this file.
    """
    document = results.read(path)
    again = "Give what `resdeploy gate --candidate F.onnx ... --format json -o gate.json` wrote of this file"
    if document["command"] != "gate":
        raise UsageError(f"{path} is a result of {document['command']!r}, and no gate's", fix=again)
    judged = document.get("candidates")
    rows: list[Any] = judged if isinstance(judged, list) else []
    states = [row.get("verdict") for row in rows if isinstance(row, dict) and row.get("sha256") == source.sha256]
    if not states:
        raise UsageError(f"{path} judged other files than {source.path}", fix=again)
    if states[0] not in get_args(State):
        raise MalformedInput(f"{path} has the verdict {states[0]!r}", fix=again)
    return cast("State", states[0])


def as_json(record: ServedSpec | Manifest) -> bytes:
    """A record as its file has it."""
    return (json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False) + "\n").encode()


def write(path: Path, content: Content) -> None:
    """A file of the package, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)


def requirements(found: Mapping[str, str]) -> bytes:
    """For pip: exactly these versions."""
    return "".join(f"{name}=={version}\n" for name, version in found.items()).encode()
