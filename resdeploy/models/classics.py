"""The networks before and beside ResNet: AlexNet, VGG, GoogLeNet, and through `inception.py` Inception v3 and v4.

Each in the form of its paper, and where torchvision has it, in torchvision's, whose parameter names are kept so that
its checkpoints fit. Auxiliary classifiers serve training alone: they are built with
`aux=True` and answer in training mode only.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from resdeploy.models.inception import ConvNorm, InceptionV3, InceptionV4, Pair

Conv = Callable[..., nn.Module]


class AlexNet(nn.Module):
    """One tower, as in torchvision: "One weird trick" (Krizhevsky 2014, arXiv:1404.5997)."""

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_relu_conv(channels, 64, 11, stride=4, padding=2),
            nn.MaxPool2d(3, stride=2),
            *_relu_conv(64, 192, 5, padding=2),
            nn.MaxPool2d(3, stride=2),
            *_relu_conv(192, 384, 3, padding=1),
            *_relu_conv(384, 256, 3, padding=1),
            *_relu_conv(256, 256, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(nn.Dropout(), *_hidden(256 * 36), nn.Dropout(), *_hidden(4096))
        self.classifier.append(nn.Linear(4096, classes))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, 224, 224) -> (N, classes)
        x = self.avgpool(self.features(x))  # (N, 256, 6, 6)
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


class AlexNet2012(nn.Module):
    """Krizhevsky et al. 2012: 227 x 227 inputs, local response normalisation, and convolutions split over two GPUs.

    `groups=1` undoes the split.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, groups: int = 2) -> None:
        super().__init__()
        # Section 3.3. The paper's alpha multiplies the sum; torch and ONNX divide it by `size`.
        norm = partial(nn.LocalResponseNorm, 5, alpha=5e-4, beta=0.75, k=2.0)
        self.features = nn.Sequential(
            *_relu_conv(channels, 96, 11, stride=4),
            norm(),
            nn.MaxPool2d(3, stride=2),
            *_relu_conv(96, 256, 5, padding=2, groups=groups),
            norm(),
            nn.MaxPool2d(3, stride=2),
            *_relu_conv(256, 384, 3, padding=1),
            *_relu_conv(384, 384, 3, padding=1, groups=groups),
            *_relu_conv(384, 256, 3, padding=1, groups=groups),
            nn.MaxPool2d(3, stride=2),
        )
        self.classifier = nn.Sequential(*_hidden(256 * 36), nn.Dropout(), *_hidden(4096), nn.Dropout())
        self.classifier.append(nn.Linear(4096, classes))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, 227, 227) -> (N, classes)
        return self.classifier(torch.flatten(self.features(x), 1))  # type: ignore[no-any-return]


class VGG(nn.Module):
    """Simonyan & Zisserman 2014 (arXiv:1409.1556), table 1: `depths` 3x3 convolutions in each of five stages."""

    def __init__(
        self, depths: tuple[int, ...], classes: int = 1000, channels: int = 3, *, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = channels
        for width, depth in zip((64, 128, 256, 512, 512), depths, strict=True):
            for _ in range(depth):
                self.features.append(nn.Conv2d(inputs, width, 3, padding=1))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU(inplace=True))
                inputs = width
            self.features.append(nn.MaxPool2d(2, stride=2))
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(*_hidden(512 * 49), nn.Dropout(), *_hidden(4096), nn.Dropout())
        self.classifier.append(nn.Linear(4096, classes))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, 224, 224) -> (N, classes)
        x = self.avgpool(self.features(x))  # (N, 512, 7, 7)
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


def _relu_conv(inputs: int, outputs: int, size: int, **options: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, size, **options), nn.ReLU(inplace=True)  # type: ignore[arg-type]


def _hidden(inputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, 4096), nn.ReLU(inplace=True)


class ConvBias(nn.Module):
    """Convolution with bias, ReLU: the same before batch norms were known."""

    def __init__(self, inputs: int, outputs: int, size: int | Pair, stride: int = 1, padding: int | Pair = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))  # type: ignore[no-any-return]


# Table 1 of Szegedy et al. 2014: inputs; 1x1; 1x1 before 3x3, 3x3; 1x1 before 5x5, 5x5; 1x1 after the pool.
MODULES: Mapping[str, tuple[int, int, int, int, int, int, int]] = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Figure 2(b) of Szegedy et al. 2014: four branches beside each other, 1x1 convolutions before the large ones."""

    def __init__(self, conv: Conv, large: int, widths: tuple[int, int, int, int, int, int, int]) -> None:
        super().__init__()
        inputs, one, three_reduced, three, five_reduced, five, pooled = widths
        self.branch1 = conv(inputs, one, 1)
        self.branch2 = nn.Sequential(conv(inputs, three_reduced, 1), conv(three_reduced, three, 3, padding=1))
        self.branch3 = nn.Sequential(conv(inputs, five_reduced, 1), conv(five_reduced, five, large, padding=large // 2))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), conv(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, H, W) -> (N, one + three + five + pooled, H, W)
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), 1)


class GoogLeNetAux(nn.Module):
    """The auxiliary classifier (section 5): a 4 x 4 map, a 1x1 convolution to 128, two linear layers."""

    def __init__(self, conv: Conv, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = conv(inputs, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:  # (N, inputs, 14, 14) -> (N, classes)
        x = torch.flatten(self.conv(F.adaptive_avg_pool2d(x, 4)), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))  # type: ignore[no-any-return]


class GoogLeNet(nn.Module):
    """Szegedy et al. 2014 (arXiv:1409.4842).

    Torchvision's has batch norms, no biases, and 3x3 kernels where the paper has 5x5 (pytorch/vision issue 906);
    `paper=True` is the 2014 one: biases, 5x5, local response normalisation, no batch norms.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, *, paper: bool = False, aux: bool = False) -> None:
        super().__init__()
        conv: Conv = ConvBias if paper else ConvNorm
        pool = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
        norm = partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75, k=1.0) if paper else nn.Identity
        self.conv1 = conv(channels, 64, 7, stride=2, padding=3)
        self.maxpool1, self.norm1 = pool(), norm()
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3, padding=1)
        self.norm2, self.maxpool2 = norm(), pool()
        for name, widths in MODULES.items():
            self.add_module(f"inception{name}", Inception(conv, 5 if paper else 3, widths))
        self.maxpool3 = pool()
        self.maxpool4 = pool() if paper else nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.aux1, self.aux2 = (GoogLeNetAux(conv, n, classes) if aux else None for n in (512, 528))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.4 if paper else 0.2)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:  # (N, C, 224, 224) -> (N, classes)
        x = self.norm1(self.maxpool1(self.conv1(x)))  # (N, 64, 56, 56)
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))  # (N, 192, 28, 28)
        extra = []
        for name in MODULES:
            if name in ("4a", "5a"):
                x = (self.maxpool3 if name == "4a" else self.maxpool4)(x)
            if self.aux1 is not None and self.aux2 is not None and self.training and name in ("4b", "4e"):
                extra.append((self.aux1 if name == "4b" else self.aux2)(x))
            x = self.get_submodule(f"inception{name}")(x)
        logits = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))  # from (N, 1024, 7, 7)
        return (logits, extra[1], extra[0]) if extra else logits


def initialise(net: nn.Module) -> None:
    """He's normal initialisation of every convolution and hidden layer, so that a signal passes any depth untrained.

    (He et al. 2015, arXiv:1502.01852, equation 10; VGG's own needs batch norms or pre-training beyond 11 layers.)
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


def make(name: str, classes: int, channels: int) -> nn.Module:
    """The variant `name` of `VARIANTS`, initialised."""
    net = VARIANTS[name](classes=classes, channels=channels)
    initialise(net)
    return net


_VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "alexnet2012": AlexNet2012,
    **{f"vgg{depth}": partial(VGG, depths) for depth, depths in _VGG.items()},
    **{f"vgg{depth}_bn": partial(VGG, depths, batch_norm=True) for depth, depths in _VGG.items()},
    "googlenet": GoogLeNet,
    "googlenet2014": partial(GoogLeNet, paper=True),
    "inception_v3": InceptionV3,
    "inception_v4": InceptionV4,
}
