"""Where weights come from and go to: random, torchvision's published files, a file, a URL, our own checkpoints.

A URL must say what it expects, since whoever can change a file on a server or on the way can change what a
network answers: `#sha256=HEX` after it, or the first digits of the SHA-256 in the file's name, `name-0676ba61.pth`,
which is torch.hub's convention. Eight digits find accidents, not forgeries; a whole hash finds both.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag, urlsplit

from resdeploy import cache, places, store
from resdeploy.errors import MalformedInput, MissingInput, UnknownName, UsageError, WeightsMismatch
from resdeploy.models import checkpoint, zoo
from resdeploy.records import Artifact, ModelSpec, Progress, Weights

if TYPE_CHECKING:
    from torch import nn

TORCHVISION_URL = "https://download.pytorch.org/models"  # $RESDEPLOY_WEIGHTS_URL: a mirror with the same file names
SPEC_KEY = "resdeploy.model"  # in a safetensors file's metadata: the ModelSpec as JSON


def resolve(
    weights: str, spec: ModelSpec, *, seed: int = 0, progress: Progress | None = None
) -> tuple[Path | None, Weights]:
    """The file that `weights` means, downloaded where needed, and its origin; no file for `random`.

    Args:
        weights: `random`, `imagenet1k_v1`, `imagenet1k_v2`, a path, or an http(s) URL.
        spec: of the model; only torchvision's names have published files.
        seed: of `random`.
        progress: of a download.

    Raises:
        UnknownName: the model has no such published weights.
        MissingInput: no such file.
        UsageError: a URL that does not say the hash of its file.
        EnvironmentFailure: the download failed.
        IntegrityError: the downloaded file is not the expected one, or a file not what its sidecar describes.
    """
    if weights == "random":
        return None, Weights(source="random", seed=seed)
    if re.fullmatch(r"imagenet1k_v\d+", weights.lower()):
        weights = _published_url(weights.lower(), spec.name)
    if weights.lower().startswith(("http:", "https:")):
        return _download(weights, progress)
    path = Path(weights)
    if not path.is_file():
        raise MissingInput(
            f"there are no weights {weights!r}", fix="Give random, imagenet1k_v1, imagenet1k_v2, a file or a URL"
        )
    return path, Weights(source=path.name, sha256=store.check_digest(path))


def _published_url(weights: str, name: str) -> str:
    base = os.environ.get("RESDEPLOY_WEIGHTS_URL", TORCHVISION_URL).rstrip("/")
    if name.startswith("torchvision:"):
        from resdeploy.models import foreign

        url = foreign.torchvision_url(name, weights)
        if url is not None:
            return f"{base}/{url.rpartition('/')[2]}"
        names: list[str] = []
    else:
        published = zoo.ENTRIES[name].published if name in zoo.ENTRIES else ()
        files = {p.weights: p.file for p in published if p.file}
        if weights in files:
            return f"{base}/{files[weights]}"
        names = list(files)
    raise UnknownName(
        f"nobody published {weights} for {name}",
        cause=f"It has {', '.join(names)}" if names else "",
        fix=f"Give {' or '.join([*names, 'random', 'a file', 'a URL'])} with --weights",
    )


def _download(url: str, progress: Progress | None) -> tuple[Path, Weights]:
    from resdeploy.models import download

    download.refuse_malformed(url)
    address, fragment = urldefrag(url)
    name = Path(unquote(urlsplit(address).path)).name or "weights"
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment) if fragment else re.search(r"-([0-9a-f]{8,64})\.", name)
    if match is None:
        raise UsageError(
            f"{url} does not say which file to expect",
            cause="Neither #sha256= with 64 hexadecimal digits follows it, nor does the file name end in -xxxxxxxx.",
            fix=f"Append #sha256= and what `curl -L {address} | sha256sum` prints, if you trust it",
        )
    expected = match[1].lower()
    cached_name = name if expected in name else f"{expected}-{name}"
    path = places.cache_dir() / cache.WEIGHTS / cached_name
    digest = store.digest(path) if path.is_file() else ""
    if digest and not digest.startswith(expected):
        places.log.warning("%s is not the file that its name states: it is downloaded again", path)
    if not digest.startswith(expected):
        path = places.writable_cache(cache.WEIGHTS) / cached_name
        digest = download.fetch(address, expected, path, progress=progress)
    return path, Weights(source=address, sha256=digest)


def create(spec: ModelSpec, path: Path | None, *, seed: int = 0) -> nn.Module:
    """The network in eval mode with the weights of a file; None: random ones, drawn by `seed`.

    Raises:
        MissingInput, PickleRefused, MalformedInput, WeightsMismatch: as `load_into`.
    """
    module = zoo.create(spec, seed=seed)
    if path is not None:
        load_into(module, path)
    return module


def create_unfilled(spec: ModelSpec) -> nn.Module:
    """The network in eval mode without weights worth the name, for a graph that is counted and never run."""
    from resdeploy.models import unfilled

    with unfilled.Unfilled():
        return zoo.create(spec)


def load_into(module: nn.Module, path: Path, *, new_head: bool = False) -> bool:
    """Loads a checkpoint's weights, converted to the network's type; on failure the network is as before.

    With `new_head` a network of another number of classes keeps its own last layer.

    Returns:
        Whether all of the network is the file's now, its last layer included.

    Raises:
        MissingInput, PickleRefused, MalformedInput: as `checkpoint.read`.
        WeightsMismatch: as `checkpoint.fit`.
    """
    tensors, whole = checkpoint.read(path), True
    try:
        fitting = checkpoint.fit(tensors, module, str(path))
    except WeightsMismatch:
        if not new_head:
            raise
        fitting, whole = checkpoint.fit(tensors, module, str(path), new_head=True), False
    module.load_state_dict(fitting, strict=True)
    return whole


def save(
    module: nn.Module,
    spec: ModelSpec,
    out: Path,
    weights: Weights,
    *,
    parent: str | None = None,
    checks: Mapping[str, float] | None = None,
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Writes a safetensors checkpoint that says which network it belongs to, and its sidecar.

    Raises:
        NotWritable, DiskFull: as `store.publish`.
    """
    import safetensors
    import torch
    from safetensors.torch import save_file

    # Clones: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {k: t.detach().cpu().clone(memory_format=torch.contiguous_format) for k, t in module.state_dict().items()}

    def make(path: Path) -> Artifact:
        # One key only: safetensors writes several in an order that changes from run to run.
        save_file(tensors, path, metadata={SPEC_KEY: json.dumps(asdict(spec))})
        return Artifact(
            path=str(path),
            format="checkpoint",
            precision="fp32",
            sha256=store.digest(path),
            parent=parent,
            model=spec,
            weights=weights,
            checks=checks or {},
            notes=notes,
            tools={"torch": torch.__version__, "safetensors": safetensors.__version__},
        )

    return store.publish(out, make)


def spec_in(path: Path) -> ModelSpec | None:
    """The description inside a checkpoint of ours; None for any other file. Needs no torch.

    Raises:
        MissingInput: no such file.
        MalformedInput: a damaged safetensors file, or a description that cannot be read.
    """
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="Check the path")
    with path.open("rb") as file:
        if not checkpoint.is_safetensors(file.read(9)):
            return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as e:
        raise MalformedInput(f"{path} is truncated or corrupt", cause=str(e), fix="Copy or download it again") from e
    return store.parse(ModelSpec, metadata[SPEC_KEY], str(path)) if SPEC_KEY in metadata else None
