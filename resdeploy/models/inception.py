"""Inception v3 and v4, in torchvision's and timm's parameter names, whose checkpoints fit as they are.

An auxiliary classifier serves training alone: it is built with `aux=True` and answers in training mode only.
Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

Pair = tuple[int, int]


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU; every size of kernel and padding may differ by axis."""

    def __init__(self, inputs: int, outputs: int, size: int | Pair, stride: int = 1, padding: int | Pair = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))  # type: ignore[no-any-return]


def same(inputs: int, outputs: int, size: int | Pair) -> ConvNorm:
    """Padded so that the map keeps its size."""
    rows, columns = size if isinstance(size, tuple) else (size, size)
    return ConvNorm(inputs, outputs, (rows, columns), padding=(rows // 2, columns // 2))


class Branches(nn.Module):
    """An Inception module as torchvision's v3 writes it: named convolutions, and the branches as chains of names.

    A branch is a list of steps; a step is the name of a convolution, of a pool, or a tuple of names whose outputs are
    concatenated.
    """

    def __init__(self, convs: Mapping[str, nn.Module], branches: tuple[tuple[str | tuple[str, ...], ...], ...]) -> None:
        super().__init__()
        for name, module in convs.items():
            self.add_module(name, module)
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, steps) for steps in self.branches], 1)

    def _branch(self, x: Tensor, steps: tuple[str | tuple[str, ...], ...]) -> Tensor:
        for step in steps:
            if isinstance(step, str):
                x = self.get_submodule(step)(x)
            else:
                x = torch.cat([self.get_submodule(name)(x) for name in step], 1)
        return x


def _average() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1)


def _v3_a(inputs: int, pooled: int) -> Branches:
    """Figure 5 of Szegedy et al. 2015; here 5x5 is one convolution, as in the released model."""
    convs = {
        "branch1x1": ConvNorm(inputs, 64, 1),
        "branch5x5_1": ConvNorm(inputs, 48, 1),
        "branch5x5_2": same(48, 64, 5),
        "branch3x3dbl_1": ConvNorm(inputs, 64, 1),
        "branch3x3dbl_2": same(64, 96, 3),
        "branch3x3dbl_3": same(96, 96, 3),
        "branch_pool": ConvNorm(inputs, pooled, 1),
        "pool": _average(),
    }
    return Branches(
        convs,
        (
            ("branch1x1",),
            ("branch5x5_1", "branch5x5_2"),
            ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            ("pool", "branch_pool"),
        ),
    )


def _v3_b(inputs: int) -> Branches:
    convs = {
        "branch3x3": ConvNorm(inputs, 384, 3, stride=2),
        "branch3x3dbl_1": ConvNorm(inputs, 64, 1),
        "branch3x3dbl_2": same(64, 96, 3),
        "branch3x3dbl_3": ConvNorm(96, 96, 3, stride=2),
        "pool": nn.MaxPool2d(3, stride=2),
    }
    return Branches(convs, (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), ("pool",)))


def _v3_c(inputs: int, width: int) -> Branches:
    """Figure 6: 7x7 as 1x7 and 7x1."""
    convs = {
        "branch1x1": ConvNorm(inputs, 192, 1),
        "branch7x7_1": ConvNorm(inputs, width, 1),
        "branch7x7_2": same(width, width, (1, 7)),
        "branch7x7_3": same(width, 192, (7, 1)),
        "branch7x7dbl_1": ConvNorm(inputs, width, 1),
        "branch7x7dbl_2": same(width, width, (7, 1)),
        "branch7x7dbl_3": same(width, width, (1, 7)),
        "branch7x7dbl_4": same(width, width, (7, 1)),
        "branch7x7dbl_5": same(width, 192, (1, 7)),
        "branch_pool": ConvNorm(inputs, 192, 1),
        "pool": _average(),
    }
    double = tuple(f"branch7x7dbl_{k}" for k in range(1, 6))
    single = ("branch7x7_1", "branch7x7_2", "branch7x7_3")
    return Branches(convs, (("branch1x1",), single, double, ("pool", "branch_pool")))


def _v3_d(inputs: int) -> Branches:
    convs = {
        "branch3x3_1": ConvNorm(inputs, 192, 1),
        "branch3x3_2": ConvNorm(192, 320, 3, stride=2),
        "branch7x7x3_1": ConvNorm(inputs, 192, 1),
        "branch7x7x3_2": same(192, 192, (1, 7)),
        "branch7x7x3_3": same(192, 192, (7, 1)),
        "branch7x7x3_4": ConvNorm(192, 192, 3, stride=2),
        "pool": nn.MaxPool2d(3, stride=2),
    }
    long = tuple(f"branch7x7x3_{k}" for k in range(1, 5))
    return Branches(convs, (("branch3x3_1", "branch3x3_2"), long, ("pool",)))


def _v3_e(inputs: int) -> Branches:
    """Figure 7: 1x3 and 3x1 beside each other."""
    convs = {
        "branch1x1": ConvNorm(inputs, 320, 1),
        "branch3x3_1": ConvNorm(inputs, 384, 1),
        "branch3x3_2a": same(384, 384, (1, 3)),
        "branch3x3_2b": same(384, 384, (3, 1)),
        "branch3x3dbl_1": ConvNorm(inputs, 448, 1),
        "branch3x3dbl_2": same(448, 384, 3),
        "branch3x3dbl_3a": same(384, 384, (1, 3)),
        "branch3x3dbl_3b": same(384, 384, (3, 1)),
        "branch_pool": ConvNorm(inputs, 192, 1),
        "pool": _average(),
    }
    return Branches(
        convs,
        (
            ("branch1x1",),
            ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
            ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
            ("pool", "branch_pool"),
        ),
    )


class InceptionV3Aux(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv0 = ConvNorm(inputs, 128, 1)
        self.conv1 = ConvNorm(128, 768, 5)
        self.fc = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 768, 17, 17) -> (N, classes)
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, stride=3)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


class InceptionV3(nn.Module):
    """Szegedy et al. 2015 (arXiv:1512.00567), as released and as in torchvision."""

    def __init__(self, classes: int = 1000, channels: int = 3, *, aux: bool = False) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(channels, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = same(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = _v3_a(192, 32)
        self.Mixed_5c = _v3_a(256, 64)
        self.Mixed_5d = _v3_a(288, 64)
        self.Mixed_6a = _v3_b(288)
        self.Mixed_6b = _v3_c(768, 128)
        self.Mixed_6c = _v3_c(768, 160)
        self.Mixed_6d = _v3_c(768, 160)
        self.Mixed_6e = _v3_c(768, 192)
        self.AuxLogits = InceptionV3Aux(768, classes) if aux else None
        self.Mixed_7a = _v3_d(768)
        self.Mixed_7b = _v3_e(1280)
        self.Mixed_7c = _v3_e(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # (N, C, 299, 299) -> (N, classes)
        x = self.maxpool1(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))  # (N, 64, 73, 73)
        x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # (N, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (N, 288, 35, 35)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # (N, 768, 17, 17)
        extra = self.AuxLogits(x) if self.AuxLogits is not None and self.training else None
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (N, 2048, 8, 8)
        logits = self.fc(torch.flatten(self.dropout(self.avgpool(x)), 1))
        return logits if extra is None else (logits, extra)


class Mixed(nn.Module):
    """An Inception module as timm's v4 writes it: numbered branches, each one module."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, module in branches.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


def _chain(*steps: tuple[int, int, int | Pair] | tuple[int, int, int | Pair, int]) -> nn.Sequential:
    """Convolutions (inputs, outputs, size[, stride]); without a stride they keep the map."""
    return nn.Sequential(*(ConvNorm(*step) if len(step) == 4 else same(*step) for step in steps))


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Sequential(pool, ConvNorm(inputs, outputs, 1))


def _v4_stem() -> tuple[Mixed, Mixed, Mixed]:
    """Figure 3 of Szegedy et al. 2016, after its first three convolutions; these two 3x3 are not padded."""
    long = _chain((160, 64, 1), (64, 64, (1, 7)), (64, 64, (7, 1)), (64, 96, 3, 1))
    short = _chain((160, 64, 1), (64, 96, 3, 1))
    return (
        Mixed(maxpool=nn.MaxPool2d(3, stride=2), conv=ConvNorm(64, 96, 3, stride=2)),
        Mixed(branch0=short, branch1=long),
        Mixed(conv=ConvNorm(192, 192, 3, stride=2), maxpool=nn.MaxPool2d(3, stride=2)),
    )


def _v4_a() -> Mixed:
    """Figure 4."""
    return Mixed(
        branch0=ConvNorm(384, 96, 1),
        branch1=_chain((384, 64, 1), (64, 96, 3)),
        branch2=_chain((384, 64, 1), (64, 96, 3), (96, 96, 3)),
        branch3=_projection(384, 96),
    )


def _v4_reduce_a() -> Mixed:
    """Figure 7."""
    return Mixed(
        branch0=ConvNorm(384, 384, 3, stride=2),
        branch1=_chain((384, 192, 1), (192, 224, 3), (224, 256, 3, 2)),
        branch2=nn.MaxPool2d(3, stride=2),
    )


def _v4_b() -> Mixed:
    """Figure 5."""
    return Mixed(
        branch0=ConvNorm(1024, 384, 1),
        branch1=_chain((1024, 192, 1), (192, 224, (1, 7)), (224, 256, (7, 1))),
        branch2=_chain((1024, 192, 1), (192, 192, (7, 1)), (192, 224, (1, 7)), (224, 224, (7, 1)), (224, 256, (1, 7))),
        branch3=_projection(1024, 128),
    )


def _v4_reduce_b() -> Mixed:
    """Figure 8."""
    return Mixed(
        branch0=_chain((1024, 192, 1), (192, 192, 3, 2)),
        branch1=_chain((1024, 256, 1), (256, 256, (1, 7)), (256, 320, (7, 1)), (320, 320, 3, 2)),
        branch2=nn.MaxPool2d(3, stride=2),
    )


def _v4_c() -> Branches:
    """Figure 6."""
    convs = {
        "branch0": ConvNorm(1536, 256, 1),
        "branch1_0": ConvNorm(1536, 384, 1),
        "branch1_1a": same(384, 256, (1, 3)),
        "branch1_1b": same(384, 256, (3, 1)),
        "branch2_0": ConvNorm(1536, 384, 1),
        "branch2_1": same(384, 448, (3, 1)),
        "branch2_2": same(448, 512, (1, 3)),
        "branch2_3a": same(512, 256, (1, 3)),
        "branch2_3b": same(512, 256, (3, 1)),
        "branch3": _projection(1536, 256),
    }
    return Branches(
        convs,
        (
            ("branch0",),
            ("branch1_0", ("branch1_1a", "branch1_1b")),
            ("branch2_0", "branch2_1", "branch2_2", ("branch2_3a", "branch2_3b")),
            ("branch3",),
        ),
    )


class InceptionV4(nn.Module):
    """Szegedy et al. 2016 (arXiv:1602.07261), figure 9, with timm's names."""

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(channels, 32, 3, stride=2),
            ConvNorm(32, 32, 3),
            same(32, 64, 3),
            *_v4_stem(),
            *(_v4_a() for _ in range(4)),
            _v4_reduce_a(),
            *(_v4_b() for _ in range(7)),
            _v4_reduce_b(),
            *(_v4_c() for _ in range(3)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.last_linear = nn.Linear(1536, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, 299, 299) -> (N, classes)
        x = torch.flatten(self.avgpool(self.features(x)), 1)  # from (N, 1536, 8, 8)
        return self.last_linear(self.dropout(x))  # type: ignore[no-any-return]
