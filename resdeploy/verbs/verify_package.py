"""`package --verify`: whether a packaged folder still answers as the file that it was made from, and what is amiss.

The package is made again from that file, in a temporary folder, and what decides its answers is compared part by part.
Then images go both ways: through the file as `eval` runs it, and through the folder's spec and model. The folder's own
module is compared and never run: nothing in it is trusted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy import backends, scratch, store
from resdeploy.backends.lane import Lane
from resdeploy.data import datasets, loading
from resdeploy.deploy import candidates
from resdeploy.deploy.model_string import Request
from resdeploy.errors import MissingInput, ResdeployError, UsageError
from resdeploy.measure import run_images
from resdeploy.packaged import classifier
from resdeploy.records import Artifact, Fault, Manifest, Preprocessing, Progress, ServedSpec, Verified
from resdeploy.verbs import package
from resdeploy.verbs.package import MANIFEST, Content, PackagePlan, Prepared

if TYPE_CHECKING:
    from numpy.typing import NDArray

MADE_IMAGES = 12  # that are replayed where no data are named
ALL = "all of it"  # which no single file is to blame for
AHEAD = 32  # images decoded at a time
LABELS = "labels"


def verify(folder: Path, model: str | None, data: str | None, *, progress: Progress) -> Verified:
    """Compares a packaged folder with the file that it was made from.

    Args:
        folder: of the package.
        model: that file; None: the one of the manifest's name beside the folder or in the current one.
        data: images to replay; None: made ones.
        progress: what is being done.

    Raises:
        MissingInput: there is no package, or the file is not found.
        MalformedInput: its manifest cannot be read.
        ResdeployError: as `package`, and what the data raised.
    """
    if not (folder / MANIFEST).is_file():
        raise MissingInput(f"{folder} is no package: it has no {MANIFEST}", fix="Name what `resdeploy package` wrote")
    manifest = store.read(Manifest, folder / MANIFEST)
    plan = PackagePlan(
        kind=manifest.kind, backend=manifest.runtime, batch_size=manifest.batch_size, threads=manifest.threads
    )
    prepared = package.prepare(Request(model=model or find_source(folder, manifest)), plan, progress=progress)
    with scratch.folder() as temporary:
        expected = package.contents(prepared, plan)
        for name, content in expected.items():
            package.write(temporary / name, content)
        faults = [*_of_source(manifest, prepared), *_of_files(folder, temporary, manifest, expected, prepared)]
    images = made_images(prepared) if data is None else datasets.open_dataset(data, split="test", need_labels=False)
    found = replay(folder, expected, prepared, images, progress) if not _is_lacking(folder, expected) else Replayed()
    return Verified(
        manifest=manifest,
        source=prepared.source.path,
        images=found.images,
        changed=found.changed,
        faults=(*faults, *found.faults),
    )


def find_source(folder: Path, manifest: Manifest) -> str:
    """The file of the manifest's name: a bare name, looked for in two places only.

    Raises:
        UsageError: it is in neither.
    """
    name = manifest.source.path
    for place in (folder.absolute().parent, Path()):
        if Path(name).name == name and (place / name).is_file():
            return str(place / name)
    raise UsageError(
        f"the file that {folder} was made from is not beside it and not in the current folder",
        fix=f"Name it: resdeploy package F.onnx --verify {folder}",
    )


def _of_source(manifest: Manifest, prepared: Prepared) -> Iterator[Fault]:
    if prepared.source.sha256 != manifest.source.sha256:
        why = f"{prepared.source.path} has the hash {prepared.source.sha256[:12]}"
        yield Fault(file=MANIFEST, what="source", why=f"made of {manifest.source.sha256[:12]}, while {why}")


def _is_lacking(folder: Path, expected: Mapping[str, Content]) -> bool:
    return not all((folder / name).is_file() for name in expected)


def _of_files(
    folder: Path, made: Path, manifest: Manifest, expected: Mapping[str, Content], prepared: Prepared
) -> Iterator[Fault]:
    """What is missing, what is another file than was packaged, and what that changes."""
    beside = {package.README, package.REQUIREMENTS, *([package.GATE] if manifest.gate else [])}
    for name in sorted({*expected, *beside}):
        if not (folder / name).is_file():
            yield Fault(file=name, what="missing", why="there is no such file")
            continue
        reasons = list(_reasons(folder / name, made / name, name, prepared, manifest)) if name in expected else []
        yield from (Fault(file=name, what=what, why=why) for what, why in reasons)
        if not reasons and store.sha256_of(folder / name) != manifest.files.get(name):
            yield Fault(file=name, what="file", why="it is not the one that was packaged, by its SHA-256")
    for name in sorted(manifest.files.keys() - expected.keys() - beside):
        yield Fault(file=MANIFEST, what="files", why=f"it names {name}, which such a package does not have")


def _reasons(file: Path, made: Path, name: str, prepared: Prepared, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """In what a file differs from the one that is made of the source now."""
    if store.sha256_of(file) == store.sha256_of(made):
        return
    if file.name == package.SPEC:
        yield from _of_spec(file, made)
    elif file.suffix == ".py":
        yield "module", "it is not the one that resdeploy writes, and was not run"
    elif file.suffix == ".onnx":
        yield "weights", _of_tensors(file, made)
    elif file.suffix not in (".xml", ".bin"):
        yield file.stem, _of_lines(file, made)
    elif package.versions(prepared.runtime)[prepared.runtime] == manifest.versions.get(prepared.runtime):
        yield "weights", f"it is not what {prepared.runtime} makes of the source"


def _of_lines(file: Path, made: Path) -> str:
    ours, theirs = (path.read_text(encoding="utf-8", errors="replace").splitlines() for path in (file, made))
    for number, (line, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if line != other:
            return f"line {number} is {line.strip()!r}, not {other.strip()!r}"
    return f"{len(ours)} lines, where there should be {len(theirs)}"


def _of_spec(file: Path, made: Path) -> Iterator[tuple[str, str]]:
    expected = store.read(ServedSpec, made)
    try:
        found = store.read(ServedSpec, file)
    except ResdeployError as e:
        yield "spec", e.what
        return
    pairs: list[tuple[Any, Any, str]] = [
        (found, expected, name) for name in _names(expected) if name not in ("preprocessing", LABELS)
    ]
    pairs += [(found.preprocessing, expected.preprocessing, name) for name in _names(expected.preprocessing)]
    for ours, theirs, name in pairs:
        is_now, was = getattr(ours, name), getattr(theirs, name)
        if is_now != was:
            yield name, f"{name} {is_now}, where the source has {was}"
    if found.labels != expected.labels:
        yield LABELS, _of_labels(found.labels, expected.labels)


def _of_labels(found: Sequence[str], expected: Sequence[str]) -> str:
    for k, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
        if ours != theirs:
            return f"class {k} is {ours!r}, not {theirs!r}"
    return f"{len(found)} names, where the source has {len(expected)}"


def _names(record: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(record)]


def _of_tensors(file: Path, made: Path) -> str:
    from resdeploy.graph import files

    try:
        other = files.other_tensors(files.load_model(file), files.load_model(made))
    except ResdeployError as e:
        return e.what
    if not other:
        return "its graph is not the source's"
    return f"other values of {', '.join(other[:3])}" + f" and {len(other) - 3} more" * (len(other) > 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """What became of images that went both ways."""

    images: int = 0
    changed: int = 0
    faults: tuple[Fault, ...] = ()


def replay(
    folder: Path, expected: Mapping[str, Content], prepared: Prepared, images: loading.Images, progress: Progress
) -> Replayed:
    """Sends images through the source, as `eval` does, and through the folder's spec and model.

    Raises:
        ResdeployError: what the source's side raised.
    """
    name = next(name for name in expected if Path(name).name == package.SPEC)
    model = next(name for name in expected if Path(name).suffix in (".onnx", ".xml"))
    source_spec = run_images.require_preprocessing(prepared.candidate.artifact.model.preprocessing, prepared.candidate)  # type: ignore[union-attr]
    done, changed, other, largest = 0, 0, 0, 0.0
    with Lane(prepared.runtime) as source, Lane(prepared.runtime) as packaged:
        source.open(prepared.candidate.artifact, prepared.candidate.execution)
        try:
            spec = store.read(ServedSpec, folder / name)
            packaged.open(_packaged(folder / model, prepared), prepared.candidate.execution)
            for batch in loading.batches(images, source_spec, AHEAD, progress=progress):
                truth = run_images.require_finite(source.predict(batch.inputs), prepared.candidate)
                answers = np.asarray(packaged.predict(_inputs(images, batch.indices, spec.preprocessing)), np.float32)
                differs = (truth != answers).any(axis=1)
                done, changed = done + len(truth), changed + int(differs.sum())
                other += int((truth.argmax(axis=1) != answers.argmax(axis=1)).sum())
                largest = max(largest, float(np.abs(truth - answers).max()))
        except (ResdeployError, ValueError) as e:
            why = e.what if isinstance(e, ResdeployError) else str(e)
            return Replayed(images=done, changed=changed, faults=(Fault(file=ALL, what="replay", why=why),))
    if not changed:
        return Replayed(images=done)
    why = f"{changed} of {done} images have others, by {largest:.3g} at most, and {other} another class"
    return Replayed(images=done, changed=changed, faults=(Fault(file=ALL, what="logits", why=why),))


def _packaged(path: Path, prepared: Prepared) -> Artifact:
    """The folder's model as a lane opens it: looked at as any file from elsewhere, and built as the source was."""
    from resdeploy.graph import files

    if path.suffix != ".onnx":
        backends.load(prepared.runtime).check(path)
        return dataclasses.replace(prepared.candidate.artifact, path=str(path), sha256=store.digest(path))
    files.load_model(path)
    source = dataclasses.replace(prepared.source, path=str(path), sha256=store.digest(path))
    how = prepared.candidate.execution
    return candidates.candidate(source, prepared.runtime, execution=how).artifact


def _inputs(images: loading.Images, indices: NDArray[np.int64], how: Preprocessing) -> NDArray[Any]:
    known = dataclasses.asdict(how)
    return np.stack([classifier.preprocess(classifier.decode(images.read(int(k))), known) for k in indices])


def made_images(prepared: Prepared) -> loading.Given:
    """Images with the look of photographs, of the model's size, or of many sizes where it resizes."""
    assert prepared.source.model is not None
    spec = prepared.source.model.preprocessing
    assert spec is not None
    target = spec.resize or max(spec.size)
    sizes = (
        [spec.size]
        if spec.resize is None
        else [(2 * target + 3, 3 * target + 1), (target, target + 7), (3 * target, target)]
    )
    smooth = datasets.open_dataset(f"synthetic:{MADE_IMAGES}", need_labels=False)
    made = []
    for k in range(MADE_IMAGES):
        pixels, (height, width) = smooth.read(k), sizes[k % len(sizes)]
        assert not isinstance(pixels, bytes)
        rows, columns = (np.arange(size) * 64 // size for size in (height, width))
        made.append(np.ascontiguousarray(pixels[rows][:, columns]))
    return loading.Given(tuple(f"made {k}" for k in range(MADE_IMAGES)), tuple(made))
