"""Reads a checkpoint file into tensors that fit a network, without running anything that the file says.

The format is told by the file's content, never its suffix. Pickles go through torch's weights-only unpickler, with
argparse.Namespace allowed (torchvision's and timm's training scripts store their arguments so); there is no fallback
to the full one.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy.errors import MalformedInput, MissingInput, PickleRefused, UnsafeInput, WeightsMismatch

if TYPE_CHECKING:
    from torch import Tensor, nn

# In timm's order: the averaged weights are the ones that were evaluated.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "model.")  # DistributedDataParallel and AveragedModel; Lightning
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception v3's classifiers for training alone
HEADER_LIMIT_BYTES = 100_000_000  # of a safetensors header, the format's own limit
LISTED = 12

# Other projects' names for our tensors: Hugging Face's ResNetForImageClassification (modeling_resnet.py), then
# akamaster/pytorch_resnet_cifar10 and kuangliu/pytorch-cifar.
_TRANSLATIONS = (
    (re.compile(r"^resnet\.embedder\.embedder\.convolution\."), "conv1."),
    (re.compile(r"^resnet\.embedder\.embedder\.normalization\."), "bn1."),
    (re.compile(r"^resnet\.encoder\.stages\.(\d+)\.layers\."), lambda m: f"layer{int(m[1]) + 1}."),
    (re.compile(r"\.layer\.(\d+)\.convolution\."), lambda m: f".conv{int(m[1]) + 1}."),
    (re.compile(r"\.layer\.(\d+)\.normalization\."), lambda m: f".bn{int(m[1]) + 1}."),
    (re.compile(r"\.shortcut\.(?:convolution|0)\."), ".downsample.0."),
    (re.compile(r"\.shortcut\.(?:normalization|1)\."), ".downsample.1."),
    (re.compile(r"^(?:classifier\.1|linear)\."), "fc."),
)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, unwrapped, on the CPU, in the file's own types.

    Raises:
        MissingInput: no such file.
        PickleRefused: the file wants to run code, or holds objects that only code can make.
        UnsafeInput: a compressed archive, which torch.save does not write.
        MalformedInput: truncated, corrupt, not a checkpoint, or without tensors.
    """
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="Check the path")
    with path.open("rb") as file:
        head = file.read(32)
    if is_safetensors(head):
        return _read_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        if head.startswith(b"PK"):
            _refuse_unpacking(path)
        return _unwrap(_read_pickle(path), path)
    raise MalformedInput(
        f"{path} is not a checkpoint", cause=_looks_like(head), fix="Give a .pth, .pt, .th or .safetensors file"
    )


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins so: the length of a JSON header in eight bytes, little endian, then the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < HEADER_LIMIT_BYTES


def _looks_like(head: bytes) -> str:
    if not head:
        return "The file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer: the file itself was not fetched"
    if head.lstrip().startswith(b"<"):
        return "It is an HTML or XML page, perhaps an error page saved under this name"
    return f"It begins with {head[:8]!r}, neither a safetensors header nor a file of torch.save"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as e:
        raise _damage_error(path, e) from e
    return tensors


def _refuse_unpacking(path: Path) -> None:
    """A reader's memory is bounded by the file's size: torch.save compresses nothing.

    TorchScript's code is compressed by torch itself, and never read here.

    Raises:
        UnsafeInput: an archive whose members are larger than it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.split("/")[1:2] != ["code"]]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as e:
        raise _damage_error(path, e) from e
    unpacked, size = sum(info.file_size for info in members), path.stat().st_size
    if unpacked > size:
        raise UnsafeInput(
            f"{path} has {size:,} bytes and unpacks to {unpacked:,}",
            cause="torch.save does not compress, so something else made this archive",
            fix="Save the weights again with torch.save, or get the file from elsewhere",
        )


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        with (
            path.open("rb") as file,  # not the path: newer torch goes by a .safetensors suffix
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript; the errors below say it
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        # torch wraps its own message in advice to load the file unsafely; the bare one is the context.
        reason = str(e.__context__ or e).split(". ")[0].strip().rstrip(".")
        raise PickleRefused(
            f"{path} was not loaded: it holds more than tensors and plain values",
            cause=f"{reason}. Loading such a file can run any code; nothing of it was run",
            fix="If you trust it, save only its weights where it was made: torch.save(model.state_dict(), FILE)",
        ) from e
    except Exception as e:  # torch raises RuntimeError, EOFError, UnicodeDecodeError, KeyError... on damaged files
        if "TorchScript" in str(e):
            raise MalformedInput(
                f"{path} is a TorchScript program and not a checkpoint",
                fix="Save its weights where it was made: torch.save(torch.jit.load(FILE).state_dict(), OTHER)",
            ) from e
        raise _damage_error(path, e) from e


def _damage_error(path: Path, error: Exception) -> MalformedInput:
    reason = str(error).split("\n")[0].split(". ")[0]
    return MalformedInput(
        f"{path} is truncated or corrupt",
        cause=f"{type(error).__name__}: {reason}" if reason else "The file ends too early",
        fix="Copy or download it again",
    )


def _unwrap(document: Any, path: Path) -> dict[str, Tensor]:
    from torch import Tensor

    outer = document
    while isinstance(document, Mapping):
        inner = next((document[k] for k in WRAPPERS if isinstance(document.get(k), Mapping) and document[k]), None)
        if inner is None:
            break
        document = inner
    named = document.items() if isinstance(document, Mapping) else ()
    tensors = {k: v for k, v in named if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        contents = (
            ", ".join(map(str, list(outer)[:LISTED])) if isinstance(outer, Mapping) else f"a {type(outer).__name__}"
        )
        raise MalformedInput(
            f"{path} holds no weights (found: {contents or 'nothing'})",
            fix=f"A checkpoint is a table of tensors, bare or under {', '.join(WRAPPERS)}",
        )
    return tensors


def fit(tensors: Mapping[str, Tensor], module: nn.Module, origin: str, *, new_head: bool = False) -> dict[str, Tensor]:
    """The same tensors under the network's names, complete for strict loading.

    Wrappers' prefixes are taken off and other projects' names translated. Auxiliary classifiers that the network was
    built without are left out. BatchNorm's counter of batches, unused in inference and absent from old files, is taken
    from the network; so is, with `new_head`, a classifier that differs in its number of outputs.

    Raises:
        WeightsMismatch: naming what is missing, unexpected or of another shape.
        MalformedInput: NaN or infinity among the weights.
    """
    own: dict[str, Tensor] = module.state_dict()
    fitted = _translate(_strip_wrappers(tensors, own), own)
    if not any(key.startswith(AUXILIARY) for key in own):
        fitted = {key: tensor for key, tensor in fitted.items() if not key.startswith(AUXILIARY)}
    for key, tensor in own.items():
        if key.endswith("num_batches_tracked"):
            fitted.setdefault(key, tensor)
    reshaped = [k for k in own if k in fitted and fitted[k].shape != own[k].shape]
    if reshaped and fitted.keys() == own.keys() and (sentence := _other_classes(reshaped, fitted, own)):
        if new_head:
            return fit(fitted | {key: own[key] for key in reshaped}, module, origin)
        raise WeightsMismatch(
            f"{origin} {sentence}",
            fix=f"Give --classes {len(fitted[reshaped[0]])}, or weights for {len(own[reshaped[0]])} classes",
        )
    if problems := _mismatches(fitted, own, reshaped):
        raise WeightsMismatch(
            f"{origin} does not fit the model ({_some(problems)})",
            cause="The weights are of another network or variant" if len(problems) > 2 else "",
            fix="Name the model they were trained for; `resdeploy models` lists the names",
        )
    _refuse_not_finite(fitted, origin)
    return fitted


def _mismatches(fitted: Mapping[str, Tensor], own: Mapping[str, Tensor], reshaped: Collection[str]) -> list[str]:
    """Why these tensors are not the network's own: what is missing, unexpected, of another shape or type."""
    return [
        *(f"missing {k} {_shape(own[k])}" for k in own if k not in fitted),
        *(f"unexpected {k} {_shape(fitted[k])}" for k in fitted if k not in own),
        *(f"{k} is {_shape(fitted[k])}, the model's {_shape(own[k])}" for k in reshaped),
        *(f"{k} is {fitted[k].dtype}" for k in own if k in fitted and not _is_convertible(fitted[k], own[k])),
    ]


def _refuse_not_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    import torch

    names = [k for k, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t.float()).all()]
    if names:
        raise MalformedInput(
            f"{origin} holds NaN or infinity ({_some(names)})",
            cause="The training diverged, or the file is damaged",
            fix="Take an earlier checkpoint",
        )


def _strip_wrappers(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers add: `_orig_mod.` of torch.compile anywhere, whole prefixes, AveragedModel's counter."""
    bare = {k.replace("_orig_mod.", ""): t for k, t in tensors.items() if k != "n_averaged"}
    while prefix := next((p for p in PREFIXES if bare and all(k.startswith(p) for k in bare)), None):
        if any(k.startswith(prefix) for k in own):
            break
        bare = {k.removeprefix(prefix): t for k, t in bare.items()}
    return bare


def _translate(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the network's own names, where another project's are known."""
    translated = {}
    for key, tensor in tensors.items():
        name = key
        for pattern, replacement in _TRANSLATIONS:
            name = pattern.sub(replacement, name)
        translated[name if key not in own and name in own else key] = tensor
    return translated


def _other_classes(reshaped: list[str], theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Whether only the classifier differs, and only in its number of outputs."""
    layers = {key.rpartition(".")[0] for key in reshaped}
    same_inputs = all(theirs[k].ndim == own[k].ndim and theirs[k].shape[1:] == own[k].shape[1:] for k in reshaped)
    if len(layers) != 1 or not same_inputs or max(own[k].ndim for k in reshaped) != 2:
        return ""
    return f"is for {len(theirs[reshaped[0]])} classes, the model has {len(own[reshaped[0]])}"


def _is_convertible(theirs: Tensor, own: Tensor) -> bool:
    import torch

    plain = theirs.layout == torch.strided and not theirs.is_quantized and not theirs.is_meta
    return plain and theirs.is_floating_point() == own.is_floating_point()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(items: list[str]) -> str:
    more = f"; and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return "; ".join(items[:LISTED]) + more
