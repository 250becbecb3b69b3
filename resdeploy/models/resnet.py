"""Residual networks, as in "Deep Residual Learning for Image Recognition" (He et al. 2015, arXiv:1512.03385).

Top to bottom: the ways around a block (section 3.3, options A, B and C), the two blocks (figure 5),
the network (table 1 for ImageNet, section 4.2 for CIFAR-10), the initialisation, and the variants, one line each.
The plain nets of section 4.1 are the same code without the shortcut. Parameter names are torchvision's, so its
checkpoints fit as they are. Every ReLU is a module of its own and every addition one `+`, so that each can be
found again in an exported graph.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from resdeploy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Config:
    """What distinguishes one variant from another."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, ...]  # blocks per stage
    stem: Literal["imagenet", "cifar"] = "imagenet"  # 7x7/2 and a pool to 56 x 56, or one 3x3 at full size
    shortcut: Literal["A", "B", "C", "none"] = "B"  # projections where the shape changes (B) or everywhere (C); or none
    groups: int = 1  # cardinality of ResNeXt (Xie et al. 2016, arXiv:1611.05431)
    group_width: int = 64  # channels per group in the first stage; 128 with one group is Wide-ResNet-2
    width: int | None = None  # channels of the first stage; None: the stem's
    stride_in_1x1: bool = False  # True: v1, the paper's; False: v1.5, stride in the 3x3, as torchvision


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class PadShortcut(nn.Module):
    """Option A: every other pixel, and zeros for the new channels, half before and half after. No parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def shortcut(config: Config, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The path around one block; None where the identity does (or, in a plain net, where there is none)."""
    if config.shortcut == "none" or (inputs == outputs and stride == 1 and config.shortcut != "C"):
        return None
    if config.shortcut == "A":
        return PadShortcut(inputs, outputs, stride)
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """3x3, 3x3 (figure 5, left)."""

    expansion = 1

    def __init__(self, config: Config, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(config, inputs, width, stride)
        self.relu2 = nn.ReLU(inplace=True)
        self.residual = config.shortcut != "none"

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, H, W) -> (N, width, H/stride, W/stride)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return self.relu2(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width (figure 5, right); grouped and widened for ResNeXt and Wide."""

    expansion = 4

    def __init__(self, config: Config, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width * config.group_width // 64 * config.groups
        outputs = width * self.expansion
        stride1, stride2 = (stride, 1) if config.stride_in_1x1 else (1, stride)
        self.conv1 = conv1x1(inputs, inner, stride1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(inner, inner, stride2, config.groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = conv1x1(inner, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(config, inputs, outputs, stride)
        self.relu3 = nn.ReLU(inplace=True)
        self.residual = config.shortcut != "none"

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, H, W) -> (N, 4 width, H/stride, W/stride)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        return self.relu3(out)  # type: ignore[no-any-return]


def stem(config: Config, channels: int, width: int) -> nn.Conv2d:
    """The first convolution."""
    if config.stem == "cifar":
        return conv3x3(channels, width)
    return nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)


class ResNet(nn.Module):
    """Stem, stages that halve the map and double the width, global average, one linear layer."""

    def __init__(self, config: Config, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        width = 64 if config.stem == "imagenet" else 16
        self.conv1 = stem(config, channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if config.stem == "imagenet" else nn.Identity()
        self.stages = tuple(f"layer{i + 1}" for i in range(len(config.depths)))
        inputs, width = width, config.width or width
        for i, (name, depth) in enumerate(zip(self.stages, config.depths, strict=True)):
            stage = nn.Sequential()
            for k in range(depth):
                stride = 2 if i > 0 and k == 0 else 1
                stage.append(config.block(config, inputs, width << i, stride))
                inputs = (width << i) * config.block.expansion
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, classes)
        x = self.relu(self.bn1(self.conv1(x)))  # ImageNet (N, 64, H/2, W/2); CIFAR (N, 16, H, W)
        x = self.maxpool(x)  # ImageNet (N, 64, H/4, W/4)
        for name in self.stages:
            x = self.get_submodule(name)(x)  # stage i: (N, width 2^i expansion, ... / 2^i)
        x = torch.flatten(self.avgpool(x), 1)  # (N, 512, 2048 or 64)
        return self.fc(x)  # type: ignore[no-any-return]


def initialise(net: ResNet) -> None:
    """He's normal initialisation, and residual branches that start small.

    Convolutions: variance 2 / fan-in (He et al. 2015, arXiv:1502.01852, equation 10); fan-in and not torchvision's
    fan-out, because the latter shrinks a grouped convolution's output by its number of groups. BatchNorm: gamma 1,
    beta 0, except the last one of each residual branch: gamma 1/sqrt(number of blocks). An untrained net in eval
    mode normalises nothing, so with gamma 1 every block doubles the variance, and FP16 overflows at some 30
    blocks; with this it grows by at most (1 + 1/L)^L < e (the scale that De & Smith 2020, arXiv:2002.10444, find
    sufficient). Not 0 as in Goyal et al. 2017: an untrained net is exported, quantized and timed here, and
    branches of nothing but zeros would be no test of that.
    """
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    for block in blocks:
        if block.residual:
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.constant_(last.weight, len(blocks) ** -0.5)


def blocks_of(net: ResNet) -> dict[str, BasicBlock | Bottleneck]:
    """The blocks in order of execution, by their names (`layer1.0`)."""
    return {
        f"{stage}.{name}": block
        for stage in net.stages
        for name, block in net.get_submodule(stage).named_children()
        if isinstance(block, BasicBlock | Bottleneck)
    }


def remove_blocks(net: ResNet, names: Collection[str]) -> None:
    """Takes identity-shortcut blocks out; the others keep their names, and so their weights' keys.

    Raises:
        UsageError: there is no such block, or it changes the shape and so has no identity shortcut.
    """
    blocks = blocks_of(net)
    for name in names:
        block = blocks.get(name)
        if block is None or block.downsample is not None or not block.residual:
            raise UsageError(
                f"{name} is no block with an identity shortcut",
                fix=f"Those are {', '.join(n for n, b in blocks.items() if b.downsample is None and b.residual)}",
            )
        stage, _, key = name.rpartition(".")
        del net.get_submodule(stage)._modules[key]


def make(name: str, classes: int, channels: int) -> nn.Module:
    """The variant `name` of `VARIANTS`, initialised."""
    return ResNet(VARIANTS[name], classes, channels)


def _cifar(n: int, shortcut: Literal["A", "B", "none"]) -> Config:
    """Depth 6n + 2 (section 4.2)."""
    return Config(block=BasicBlock, depths=(n, n, n), stem="cifar", shortcut=shortcut)


def _cifar_bottleneck(n: int) -> Config:
    """Depth 9n + 2, of He et al. 2016 (arXiv:1603.05027), section 3; they stride in the first 1x1."""
    return Config(block=Bottleneck, depths=(n, n, n), stem="cifar", stride_in_1x1=True)


VARIANTS: dict[str, Config] = {
    "resnet18": Config(block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": Config(block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": Config(block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": Config(block=Bottleneck, depths=(3, 4, 23, 3)),
    "resnet152": Config(block=Bottleneck, depths=(3, 8, 36, 3)),
    "resnet50_v1": Config(block=Bottleneck, depths=(3, 4, 6, 3), stride_in_1x1=True),
    "resnet101_v1": Config(block=Bottleneck, depths=(3, 4, 23, 3), stride_in_1x1=True),
    "resnet152_v1": Config(block=Bottleneck, depths=(3, 8, 36, 3), stride_in_1x1=True),
    "resnext50_32x4d": Config(block=Bottleneck, depths=(3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Config(block=Bottleneck, depths=(3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Config(block=Bottleneck, depths=(3, 4, 23, 3), groups=64, group_width=4),
    "wide_resnet50_2": Config(block=Bottleneck, depths=(3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": Config(block=Bottleneck, depths=(3, 4, 23, 3), group_width=128),
    "resnet18_a": Config(block=BasicBlock, depths=(2, 2, 2, 2), shortcut="A"),
    "resnet34_a": Config(block=BasicBlock, depths=(3, 4, 6, 3), shortcut="A"),
    "resnet18_c": Config(block=BasicBlock, depths=(2, 2, 2, 2), shortcut="C"),
    "resnet34_c": Config(block=BasicBlock, depths=(3, 4, 6, 3), shortcut="C"),
    "plain18": Config(block=BasicBlock, depths=(2, 2, 2, 2), shortcut="none"),
    "plain34": Config(block=BasicBlock, depths=(3, 4, 6, 3), shortcut="none"),
    **{f"resnet{6 * n + 2}": _cifar(n, "A") for n in (3, 5, 7, 9, 18, 200)},
    **{f"resnet{6 * n + 2}_b": _cifar(n, "B") for n in (3, 5, 7, 9, 18, 200)},
    **{f"plain{6 * n + 2}": _cifar(n, "none") for n in (3, 5, 7, 9, 18)},
    **{f"resnet{9 * n + 2}": _cifar_bottleneck(n) for n in (18, 111)},
    # What a bottleneck is compared with (`resdeploy cost --against basic`): two 3x3 instead, at ResNet-34's widths,
    # which cost as much (that of ResNet-50 is ResNet-34 itself), and at the bottleneck's own outer widths.
    "basic101": Config(block=BasicBlock, depths=(3, 4, 23, 3)),
    "basic152": Config(block=BasicBlock, depths=(3, 8, 36, 3)),
    "basic50_outer": Config(block=BasicBlock, depths=(3, 4, 6, 3), width=256),
}
