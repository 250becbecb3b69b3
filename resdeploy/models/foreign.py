"""Models that are not ours: `timm:NAME`, `torchvision:NAME`, `package.module:factory`.

Their packages are asked for whatever they know: preprocessing, labels, input size. What nobody knows is measured:
the network is built once and run on one blank image, which tells its number of classes and whether it is a
classifier at all. Building runs the package's code; that is what naming it means.

Hence a factory is imported only where a person has typed its name (`permit`), whatever names a file holds: this module
is the one place that imports what a name says, and it refuses by default.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy import packages
from resdeploy.errors import FactoryRefused, UnknownName, UsageError
from resdeploy.records import ModelSpec, Preprocessing

if TYPE_CHECKING:
    from torch import nn

PACKAGES = ("timm", "torchvision")
FACTORY = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")  # package.module:factory
# Neither timm's `hf-hub:` and `local-dir:`, which fetch and read what they name, nor a path.
REGISTERED = re.compile(r"[\w.-]+", re.ASCII)
_permitted: set[str] = set()


def is_factory(name: str) -> bool:
    """Whether a network's name is neither the zoo's nor one of a known package's, so that it could only be imported."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source not in PACKAGES


def permit(*names: str) -> None:
    """Lets these factories be imported by this process: a person has typed them, here or in a profile that they named.

    Nothing that was read from a file may be passed: naming a factory runs its module.
    """
    _permitted.update(filter(is_factory, names))


def permitted_factories() -> tuple[str, ...]:
    """The factories that were permitted, for the children that run them."""
    return tuple(sorted(_permitted))


def spec(
    name: str,
    *,
    classes: int | None,
    input_shape: tuple[int, int, int] | None,
    preprocessing: Preprocessing | None,
    labels: tuple[str, ...],
    weights: str,
) -> ModelSpec:
    """The description of a foreign model. Arguments as `zoo.spec`.

    Raises:
        UnknownName: no such model, module or factory.
        FactoryRefused: a factory that nobody typed.
        PackageMissing: the package is not installed.
        EnvironmentFailure: it is installed but cannot be imported.
        UsageError: it fails to build, refuses the input, or does not give logits (N, classes).
    """
    packages.need("torch", name)
    import torch

    source = name.partition(":")[0]
    with torch.random.fork_rng(devices=[]):
        module = _build(name, classes, input_shape[0] if input_shape else None)
    usual, usual_labels = _FACTS[source](name, module, input_shape, weights) if source in _FACTS else (None, ())
    preprocessing = preprocessing or usual
    if input_shape is None:
        input_shape = (len(preprocessing.mean), *preprocessing.size) if preprocessing else (3, 224, 224)
    outputs = _classes(name, module, input_shape)
    if classes not in (None, outputs):
        raise UsageError(
            f"{name} gives {outputs} values and not {classes}", fix=f"Give --classes {outputs}, or leave it out"
        )
    return ModelSpec(
        name=name,
        family=source,
        classes=outputs,
        input_shape=input_shape,
        preprocessing=preprocessing,
        labels=labels or (usual_labels if len(usual_labels) == outputs else ()),
        params=sum(p.numel() for p in module.parameters()),
    )


def create(spec: ModelSpec) -> nn.Module:
    """The network of a description, in eval mode. Raises as `spec`."""
    return _build(spec.name, spec.classes, spec.input_shape[0])


def torchvision_url(name: str, weights: str) -> str | None:
    """Where torchvision keeps the weights `imagenet1k_v1` or `imagenet1k_v2` of its model; None: it has none."""
    if not name.startswith("torchvision:"):
        return None
    members = _torchvision_weights(name).__members__
    return str(members[weights.upper()].url) if weights.upper() in members else None


def _build(name: str, classes: int | None, channels: int | None) -> nn.Module:
    from torch import nn

    source, _, rest = name.partition(":")
    if source in PACKAGES and not REGISTERED.fullmatch(rest):
        raise UnknownName(f"there is no model {name!r}", fix=f"Name one of {source}'s own models, as {source}:resnet50")
    build = {"timm": _timm, "torchvision": _torchvision}.get(source)
    module = build(rest, classes, channels) if build else _factory(source, rest)
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"{name} gave a {type(module).__name__} and not a torch.nn.Module",
            fix="Name a function without arguments, or a class, that gives the network",
        )
    return module.eval()


def _timm(name: str, classes: int | None, channels: int | None) -> Any:
    timm = packages.load("timm")
    _refuse_unknown(f"timm:{name}", name.partition(".")[0], timm.list_models())
    options = {"num_classes": classes, "in_chans": channels}
    return _call(f"timm:{name}", timm.create_model, name, **{k: v for k, v in options.items() if v is not None})


def _torchvision(name: str, classes: int | None, channels: int | None) -> Any:
    models = packages.load("torchvision").models
    _refuse_unknown(f"torchvision:{name}", name, models.list_models())
    if channels not in (None, 3):
        raise UsageError(f"torchvision's models take 3 channels and not {channels}", fix="Give an input of 3 channels")
    return _call(
        f"torchvision:{name}",
        models.get_model,
        name,
        weights=None,
        **({} if classes is None else {"num_classes": classes}),
    )


def _factory(module_name: str, attribute: str) -> Any:
    name = f"{module_name}:{attribute}"
    if name not in _permitted:
        raise FactoryRefused(
            f"{name} was not imported: a file names it, and importing a module runs it",
            fix="If you trust it, name it yourself as the MODEL, with the file as its --weights",
        )
    if not FACTORY.fullmatch(name):
        raise UnknownName(f"there is no model {name!r}", fix="Write package.module:factory")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that it shadows nothing
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name and (module_name == e.name or module_name.startswith(e.name + ".")):
            raise UnknownName(
                f"there is no module {e.name!r} for the model {name!r}",
                fix="Run from the folder that holds it, or install its package",
            ) from e
        raise packages.failed_import(e) or packages.broken_package(module_name, e) from e
    except Exception as e:  # whatever a stranger's module raises
        raise packages.failed_import(e) or packages.broken_package(module_name, e) from e
    _refuse_unknown(name, attribute, [n for n in dir(module) if not n.startswith("_")])
    return _call(name, getattr(module, attribute))


def _refuse_unknown(full: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise UnknownName(
            f"there is no model {full!r}",
            cause=f"Did you mean {' or '.join(near)}?" if near else "",
            fix="Check the name; `resdeploy models` lists the zoo's own",
        )


def _call(name: str, build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return build(*args, **options)
    except Exception as e:  # whatever a stranger's factory raises
        if failure := packages.failed_import(e):
            raise failure from e
        raise UsageError(
            f"{name} could not be built",
            cause=f"It raised {type(e).__name__}: {e}",
            fix="Call it in Python to see where",
        ) from e


def _classes(name: str, module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Runs one blank image, (1, *shape), and reads the number of classes off the logits."""
    import torch

    try:
        with torch.no_grad():
            out = module(torch.zeros(1, *shape))
    except Exception as e:  # whatever a stranger's network raises
        raise UsageError(
            f"{name} does not take an input of {shape}",
            cause=f"It raised {type(e).__name__}: {e}",
            fix="Give its input size with --img-size",
        ) from e
    if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != 1:
        answer = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise UsageError(f"{name} is not a classifier: it gives {answer} and not logits (N, classes)", fix="Wrap it")
    return out.shape[1]


def _timm_facts(
    name: str, module: Any, shape: tuple[int, int, int] | None, weights: str
) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """The evaluation transform of timm: resize to floor(size / crop_pct), then a centre crop."""
    config = packages.load("timm.data").resolve_model_data_config(module)
    labels = tuple(module.pretrained_cfg.get("label_names") or ())
    channels, height, width = shape or config["input_size"]
    mode = {"center": "shorter", "squash": "squash"}.get(config["crop_mode"])
    interpolation = config["interpolation"]
    if mode is None or height != width or channels != 3 or interpolation not in ("nearest", "bilinear", "bicubic"):
        return None, labels  # `border` and the like: better no answer than a wrong one
    preprocessing = Preprocessing(
        size=(height, width),
        resize=math.floor(height / config["crop_pct"]),
        resize_mode=mode,  # type: ignore[arg-type]
        interpolation=interpolation,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    return preprocessing, labels


def _torchvision_facts(
    name: str, module: Any, shape: tuple[int, int, int] | None, weights: str
) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """The transform in the weights' metadata; of V1 where the weights are not torchvision's."""
    members = _torchvision_weights(name).__members__
    member = members.get(weights.upper()) or next(iter(members.values()), None)
    if member is None:
        return None, ()
    transform, labels = member.transforms(), tuple(member.meta.get("categories", ()))
    if not hasattr(transform, "crop_size"):
        return None, labels  # detection, segmentation: other presets
    crop = transform.crop_size[0]
    size = shape[1:] if shape else (crop, crop)
    preprocessing = Preprocessing(
        size=size,
        resize=round(min(size) * transform.resize_size[0] / crop),
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
    return preprocessing, labels


def _torchvision_weights(name: str) -> Any:
    models = packages.load("torchvision").models
    _refuse_unknown(name, name.partition(":")[2], models.list_models())
    return models.get_model_weights(name.partition(":")[2])


_FACTS: dict[str, Callable[..., tuple[Preprocessing | None, tuple[str, ...]]]] = {
    "timm": _timm_facts,
    "torchvision": _torchvision_facts,
}
