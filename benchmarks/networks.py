"""The networks that are timed: untrained, with batch norms as training leaves them."""

from __future__ import annotations

from pathlib import Path

import torch

from resdeploy.deploy.model_string import Request
from resdeploy.models import zoo


def with_biases(name: str, folder: Path) -> Request:
    """A network of the zoo, its checkpoint made in `folder` or taken from there (seed 0).

    An untrained batch norm does nothing, and what is folded from it is a bias of zero, which OpenVINO leaves out of its
    kernels: a file whose biases were corrected would be timed against files that have none, which no trained network's
    do.
    """
    path = folder / f"{name}.pth"
    if not path.exists():
        net = zoo.create(zoo.spec(name), seed=0)
        random = torch.Generator().manual_seed(0)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for values, low, high in (
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                ):
                    assert values is not None
                    values.data.uniform_(low, high, generator=random)
        torch.save(net.state_dict(), path)
    return Request(model=name, weights=str(path))
