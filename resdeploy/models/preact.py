"""Residual networks with their activations elsewhere: figure 4 of He et al. 2016, arXiv:1603.05027.

    original             conv BN ReLU conv BN  (+)  ReLU       (`resnet.py`)
    bn_after_add         conv BN ReLU conv     (+)  BN ReLU
    relu_before_add      conv BN ReLU conv BN ReLU  (+)
    relu_only            ReLU conv BN ReLU conv BN  (+)
    full                 BN ReLU conv BN ReLU conv  (+)

and the same with three convolutions in a bottleneck. In the last two, the first unit takes its activation from the
stem, before the paths split, and one more activation follows the last addition (the paper's appendix); behind
ImageNet's stem, whose pool stands between, it keeps its own, as in the ResNet-200 of 64,666,280 parameters. Where the
shape changes, both paths start from the activated tensor. Projections carry a batch norm where the branch ends in one.

The CIFAR bottlenecks stride in the first 1x1, as KaimingHe/resnet-1k-layers; the ImageNet ones in the 3x3, as v1.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from resdeploy.models import resnet
from resdeploy.models.resnet import Bottleneck, Config, conv1x1, conv3x3, shortcut, stem

Placement = Literal["bn_after_add", "relu_before_add", "relu_only", "full"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A residual network of `resnet.Config`, with its activations elsewhere."""

    config: Config
    placement: Placement = "full"


# The steps of one weight layer; `bn_after_add` moves the last two behind the addition.
STEPS: Mapping[Placement, tuple[str, str, str]] = {
    "bn_after_add": ("conv", "bn", "relu"),
    "relu_before_add": ("conv", "bn", "relu"),
    "relu_only": ("relu", "conv", "bn"),
    "full": ("bn", "relu", "conv"),
}


class Unit(nn.Module):
    """One residual unit; `activated`: its input is activated already, so that what would stand first is left out."""

    def __init__(self, variant: Variant, inputs: int, width: int, stride: int, *, activated: bool) -> None:
        super().__init__()
        convs = _convs(variant.config, inputs, width, stride)
        steps = [f"{kind}{k}" for k in range(1, len(convs) + 1) for kind in STEPS[variant.placement]]
        entry = steps.index("conv1")
        end = len(steps) - (2 if variant.placement == "bn_after_add" else 0)
        self.lead = () if activated else tuple(steps[:entry])
        self.branch, self.after = tuple(steps[entry:end]), tuple(steps[end:])
        for step in (*self.lead, *self.branch, *self.after):
            conv = convs[int(step[-1]) - 1]
            if step.startswith("conv"):
                self.add_module(step, conv)
            elif step.startswith("bn"):
                before = variant.placement == "full"
                self.add_module(step, nn.BatchNorm2d(conv.in_channels if before else conv.out_channels))
            else:
                self.add_module(step, nn.ReLU())  # not in place: the shortcut may read its input
        self.downsample = _shortcut(variant, inputs, convs[-1].out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)
        entry = self._run(self.lead, x)
        out = self._run(self.branch, entry) + (x if self.downsample is None else self.downsample(entry))
        return self._run(self.after, out)

    def _run(self, steps: tuple[str, ...], x: Tensor) -> Tensor:
        for step in steps:
            x = self.get_submodule(step)(x)
        return x


def _convs(config: Config, inputs: int, width: int, stride: int) -> list[nn.Conv2d]:
    if config.block is not Bottleneck:
        return [conv3x3(inputs, width, stride), conv3x3(width, width)]
    first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
    return [conv1x1(inputs, width, first), conv3x3(width, width, second), conv1x1(width, 4 * width)]


def _shortcut(variant: Variant, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    normed = variant.placement in ("relu_before_add", "relu_only")
    if normed or variant.config.shortcut == "A" or (inputs == outputs and stride == 1):
        return shortcut(variant.config, inputs, outputs, stride)
    return nn.Sequential(conv1x1(inputs, outputs, stride))


class PreActResNet(nn.Module):
    """Stem, stages of units, the last activation, global average, one linear layer."""

    def __init__(self, variant: Variant, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        config, leads = variant.config, variant.placement in ("relu_only", "full")
        width = 64 if config.stem == "imagenet" else 16
        self.conv1 = stem(config, channels, width)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if config.stem == "imagenet" else nn.Identity()
        self.stages = tuple(f"layer{i + 1}" for i in range(len(config.depths)))
        inputs = width
        for i, (name, depth) in enumerate(zip(self.stages, config.depths, strict=True)):
            stage = nn.Sequential()
            for k in range(depth):
                stride = 2 if i > 0 and k == 0 else 1
                stage.append(
                    Unit(
                        variant, inputs, width << i, stride, activated=leads and config.stem == "cifar" and i == k == 0
                    )
                )
                inputs = (width << i) * config.block.expansion
            self.add_module(name, stage)
        self.bn_last = nn.BatchNorm2d(inputs) if variant.placement == "full" else nn.Identity()
        self.relu_last = nn.ReLU() if leads else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, classes)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = self.relu_last(self.bn_last(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def _initialise(net: PreActResNet) -> None:
    """As `resnet.initialise`: convolutions after He, and branches scaled down so that the sum of all stays O(1).

    Scaled where the branch ends: the last batch norm's gamma, or the last convolution where none follows it.
    """
    units = [m for m in net.modules() if isinstance(m, Unit)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    with torch.no_grad():
        for unit in units:
            last = next(step for step in reversed(unit.branch) if not step.startswith("relu"))
            unit.get_parameter(f"{last}.weight").mul_(len(units) ** -0.5)


def make(name: str, classes: int, channels: int) -> nn.Module:
    """The variant `name` of `VARIANTS`, initialised."""
    return PreActResNet(VARIANTS[name], classes, channels)


_CIFAR110 = resnet.VARIANTS["resnet110"]
_CIFAR164 = resnet.VARIANTS["resnet164"]
_OTHERS: tuple[Placement, ...] = ("bn_after_add", "relu_before_add", "relu_only")
VARIANTS: dict[str, Variant] = {
    **{f"preresnet{depth}": Variant(config=resnet.VARIANTS[f"resnet{depth}"]) for depth in (18, 34, 50, 101, 152)},
    "preresnet200": Variant(config=Config(block=Bottleneck, depths=(3, 24, 36, 3))),
    "preresnet110": Variant(config=_CIFAR110),
    "preresnet164": Variant(config=_CIFAR164),
    "preresnet1001": Variant(config=resnet.VARIANTS["resnet1001"]),
    **{f"resnet110_{placement}": Variant(config=_CIFAR110, placement=placement) for placement in _OTHERS},
    **{f"resnet164_{placement}": Variant(config=_CIFAR164, placement=placement) for placement in _OTHERS},
}
