"""The two recipes of training: loss, optimizer, learning rate, and the average of the weights.

`paper` is He et al. 2015 (arXiv:1512.03385, section 4.2): SGD with momentum 0.9 and weight decay 1e-4, the learning
rate divided by 10 after half and three quarters of the steps. `fast` reaches the same in a fraction of the epochs: one
cycle of the learning rate (Smith & Topin 2018, arXiv:1708.07120), Nesterov momentum, label smoothing 0.1 (Szegedy et
al. 2016), weight decay 5e-4 on the matrices only, residual branches that start at zero (Goyal et al. 2017,
arXiv:1706.02677, section 5.1), and an exponential moving average of the weights (Polyak & Juditsky 1992), which is
what is judged and saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from resdeploy.models.resnet import BasicBlock, Bottleneck

Recipe = Literal["fast", "paper"]
MOMENTUM = 0.9
SMOOTHING: Mapping[Recipe, float] = {"fast": 0.1, "paper": 0.0}
WARM_UP = 0.2  # share of the steps in which `fast` raises the learning rate from a tenth to its peak
# The average looks back over this share of all steps: in the flat end of the cycle, where weights only jitter.
EMA_SHARE = 0.02


def learning_rate(recipe: Recipe, peak: float, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    `fast`: linear from a tenth to the peak, then a half cosine to zero. `paper`: the peak, a tenth of it from half, a
    hundredth from three quarters of the steps on (32k and 48k of 64k in section 4.2).
    """
    done = step / steps
    if recipe == "paper":
        return peak * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
    if done < WARM_UP:
        return peak * (0.1 + 0.9 * done / WARM_UP)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def loss_of(logits: Tensor, labels: Tensor, targets: Tensor | None, recipe: Recipe) -> Tensor:
    """Cross-entropy with the labels; with a teacher's logits (n, classes), the mean squared distance from them.

    Logits and not softened probabilities: Kim et al. 2021 (arXiv:2105.08919) find the distance at least as good.
    """
    if targets is not None:
        return F.mse_loss(logits, targets)
    return F.cross_entropy(logits, labels, label_smoothing=SMOOTHING[recipe])


def start_at_identity(net: nn.Module) -> None:
    """Sets the last BN's gamma of every residual branch to zero: at first each block hands on its input."""
    for block in net.modules():
        if isinstance(block, BasicBlock | Bottleneck) and block.residual:
            nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)


def optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD as the recipe has it; the learning rate is set before each step."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]  # biases and BN: decay there only costs accuracy
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    if recipe == "paper":
        groups = [{"params": [*net.parameters()], "weight_decay": 1e-4}]
    sgd = torch.optim.SGD(groups, lr=0, momentum=MOMENTUM, nesterov=recipe == "fast")
    for parameter in net.parameters():
        # Made here and not by torch from the first gradient, so that a resumed training has the same memory layout.
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


class Average:
    """The exponential moving average of all parameters and BN statistics.

    Its decay follows the number of steps, `1 - 1 / (EMA_SHARE steps)`, and starts smaller, so that the random first
    weights do not stay in it (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, net: nn.Module, steps: int) -> None:
        self.tensors = {name: value.detach().clone() for name, value in net.state_dict().items()}
        self.decay = 1 - 1 / max(1.0, EMA_SHARE * steps)

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Takes in the weights after step `step` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            mine = self.tensors[name]
            if mine.is_floating_point():
                mine.lerp_(value.detach(), share)
            else:
                mine.copy_(value)
