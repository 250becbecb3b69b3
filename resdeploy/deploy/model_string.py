"""MODEL on the command line: what it names, and how the model is to see images.

Nothing is opened here, but for the first bytes of a file whose suffix several compilers give.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from resdeploy import backends
from resdeploy.errors import MissingInput, UsageError, refuse
from resdeploy.records import BackendName, Format, ModelSpec, Preprocessing
from resdeploy.registered_backends import BACKENDS
from resdeploy.vocabulary import Interpolation

# Of networks: what they are compiled to has the suffixes that its backend knows.
FORMATS: dict[str, Format] = {
    ".onnx": "onnx",
    ".safetensors": "checkpoint",
    ".pth": "checkpoint",
    ".pt": "checkpoint",
    ".th": "checkpoint",
}


@dataclass(frozen=True)
class ZooName:
    """A network of ours by its name; whether there is one, the zoo tells."""

    name: str


@dataclass(frozen=True)
class ForeignName:
    """`timm:NAME`, `torchvision:NAME`, or `package.module:factory`."""

    name: str


@dataclass(frozen=True)
class CheckpointFile:
    """Weights that may say which network is theirs."""

    path: Path


@dataclass(frozen=True)
class OnnxFile:
    path: Path


@dataclass(frozen=True)
class CompiledFile:
    """What one backend has built already."""

    path: Path
    format: Format
    compiler: BackendName


Model = ZooName | ForeignName | CheckpointFile | OnnxFile | CompiledFile


def classify(model: str) -> Model:
    """What a MODEL on the command line names, as `format_of` tells; a URL counts as a name, and there is none such."""
    form = format_of(model)
    if form is None:
        return ForeignName(model) if ":" in model else ZooName(model)
    compiler = backends.compiler_of(form)
    if compiler is not None:
        return CompiledFile(Path(model), form, compiler)
    return OnnxFile(Path(model)) if form == "onnx" else CheckpointFile(Path(model))


@functools.cache
def _formats() -> dict[str, dict[bytes, Format]]:
    """The formats of every suffix, by how their files begin."""
    found: dict[str, dict[bytes, Format]] = {}
    for module in map(backends.load, BACKENDS):
        for suffix in module.SUFFIXES:
            found.setdefault(suffix, {}).setdefault(module.TAG, module.FORMAT)
    return found | {suffix: {b"": form} for suffix, form in FORMATS.items()}


def format_of(name: str) -> Format | None:
    """The format that a file name's suffix states; None for the name of a network, and for a URL.

    Where compilers share a suffix, the file's first bytes tell; one that is not there yet is the first compiler's.
    """
    if re.match(r"(timm|torchvision):|\w+://", name):
        return None
    forms = _formats().get(Path(name).suffix.lower(), {})
    head = _head(Path(name)) if len(forms) > 1 else b""
    return next((form for tag, form in forms.items() if head.startswith(tag)), next(iter(forms.values()), None))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""


def refuse_missing(requests: Iterable[Request]) -> None:
    """Looks for every model before anything is said or done; not for those that an import alone can find.

    Raises:
        MissingInput, UnknownName: no such file, no such network in the zoo.
    """
    from resdeploy.models import zoo

    for request in requests:
        named = request.named
        if isinstance(named, ZooName):
            zoo.find(named.name)
        elif not isinstance(named, ForeignName) and not named.path.is_file():
            raise MissingInput(f"there is no file {request.model}", fix="Check the path")


def names(requests: Sequence[Request]) -> dict[Request, str]:
    """A name for each model: its stem, or all that was typed where stems are equal."""
    stems = [stem(request.model) for request in dict.fromkeys(requests)]
    return {
        request: stem if stems.count(stem) == 1 else request.model
        for request, stem in zip(dict.fromkeys(requests), stems, strict=True)
    }


def stem(model: str) -> str:
    """A short name for a model's rows and files: `resnet50`, `timm-resnet50d`, or the model file's own stem."""
    named = classify(model)
    if isinstance(named, (ZooName, ForeignName)):
        return model.replace(":", "-").replace("/", "-")
    return named.path.stem


def refuse_changes(request: Request) -> None:
    """A file has its weights and classes."""
    options = (("--weights", not request.random), ("--classes", request.classes is not None))
    refuse(
        *(
            (given, f"{option} does not apply to {request.model}, which has its own", "Leave it out")
            for option, given in options
        )
    )


# What people write for the order of channels.
ORDERS: Mapping[str, Literal["RGB", "BGR"]] = {"rgb": "RGB", "bgr": "BGR"}


class SightOptions(TypedDict, total=False):
    """What a `PreprocessingOverride` is made of, by the names and in the words of the command line."""

    img_size: int | tuple[int, int] | None
    resize: int | None
    interpolation: Interpolation | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    channels: Literal["rgb", "bgr"] | None
    labels: Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class PreprocessingOverride:
    """What a person says of a model's input and classes; None keeps what the model says. `resize=0`: no resizing."""

    img_size: int | tuple[int, int] | None = None  # height and width, or both as one
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: Literal["RGB", "BGR"] | None = None  # their order in the input
    labels: tuple[str, ...] | None = None  # a name for each class

    @classmethod
    def of(cls, options: SightOptions) -> PreprocessingOverride:
        """What these options say; others beside them are not looked at.

        Raises:
            UsageError: `channels` that are neither rgb nor bgr.
        """
        mean, std, labels = options.get("mean"), options.get("std"), options.get("labels")
        channels = options.get("channels")
        if channels not in (None, *ORDERS):  # Python takes any text
            raise UsageError(f"channels is {channels!r}", fix="Choose rgb or bgr")
        return cls(
            img_size=options.get("img_size"),
            resize=options.get("resize"),
            interpolation=options.get("interpolation"),
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
            channels=None if channels is None else ORDERS[channels],
            labels=None if labels is None else tuple(labels),
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int | float) else self.img_size

    @property
    def given(self) -> bool:
        return bool(self.options)

    @property
    def options(self) -> tuple[str, ...]:
        """The options that these changes are from, as they are typed."""
        fields = (field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None)
        return tuple(f"--{name.replace('_', '-')}" for name in fields)

    def apply_to(self, spec: ModelSpec) -> ModelSpec:
        """The spec with these changes.

        A model that does not say how it sees images (a foreign file) needs mean and std from the user; without them its
        preprocessing stays None.

        Raises:
            UsageError: mean and std of another length than the channels, or labels than the classes.
        """
        if not self.given:
            return spec
        spec = self._label(spec)
        channels, height, width = spec.input_shape
        size = self.size or (height, width)
        before = spec.preprocessing
        if before is None:
            if self.mean is None or self.std is None:
                return dataclasses.replace(spec, input_shape=(channels, *size))
            before = Preprocessing(size=size, channels="L" if channels == 1 else "RGB")
        after = dataclasses.replace(
            before,
            size=size,
            resize=self._resize(before),
            interpolation=self.interpolation or before.interpolation,
            mean=self.mean or before.mean,
            std=self.std or before.std,
            channels=self.channels or before.channels,
        )
        options = (("--mean", after.mean), ("--std", after.std))
        refuse(
            (
                self.channels is not None and channels != 3,
                f"--channels is the order of three colours, and {spec.name} takes {channels} channels",
                "Leave --channels out",
            ),
            *(
                (
                    len(values) != channels,
                    f"{option} has {len(values)} numbers, but {spec.name} takes {channels} channels",
                    "Give --mean and --std with a number for each channel",
                )
                for option, values in options
            ),
        )
        return dataclasses.replace(spec, input_shape=(channels, *size), preprocessing=after)

    def _label(self, spec: ModelSpec) -> ModelSpec:
        if self.labels is None:
            return spec
        if spec.classes and len(self.labels) != spec.classes:
            raise UsageError(
                f"--labels names {len(self.labels)} classes, and {spec.name} tells {spec.classes} apart",
                fix="Give a file with one name a line, in the order of the logits",
            )
        return dataclasses.replace(spec, labels=self.labels)

    def _resize(self, before: Preprocessing) -> int | None:
        if self.resize is not None:
            return self.resize or None
        if before.resize is None or self.size is None:
            return before.resize
        # Another crop keeps the share of the image that it shows (timm's crop_pct).
        return round(before.resize * min(self.size) / min(before.size))


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model as the command line names it."""

    model: str
    weights: str = "random"
    classes: int | None = None
    seed: int = 0
    override: PreprocessingOverride = PreprocessingOverride()
    trust_engine: bool = False  # run an engine although it was downloaded

    @property
    def named(self) -> Model:
        return classify(self.model)

    @property
    def compiler(self) -> BackendName | None:
        """Which backend built the file; None for a name, and for a file that several can build from."""
        return self.named.compiler if isinstance(self.named, CompiledFile) else None

    @property
    def seen_by(self) -> str:
        """Who says how the model sees images, and the options that have changed it."""
        if isinstance(self.named, ForeignName):
            package = self.named.name.partition(":")[0]
            says = f"{package}'s configuration" if package in ("timm", "torchvision") else "the default"
        else:
            says = "the zoo" if isinstance(self.named, ZooName) else "the file's record"
        return f"{says} with {', '.join(self.override.options)}" if self.override.given else says

    @property
    def random(self) -> bool:
        """Whether the weights are drawn, and not those of a file."""
        return self.weights == "random"

    def can_give(self, form: Format) -> bool:
        """Whether a file in this format can be made of it."""
        if isinstance(self.named, OnnxFile):
            return form == "onnx"
        if isinstance(self.named, CompiledFile):
            return form == self.named.format
        return form in ("checkpoint", "onnx")


def beside(model: str, suffix: str) -> Path:
    """Where a file made from MODEL goes by default: beside it, or in the current folder for a name."""
    named = classify(model)
    folder = Path() if isinstance(named, (ZooName, ForeignName)) else named.path.parent
    return folder / (stem(model) + suffix)
