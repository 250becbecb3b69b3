"""Several processes that train one network under torchrun, or the one process without it.

Gloo on CPUs, NCCL on GPUs, on as many machines as torchrun was told of. What a step sees does not depend on the
number of processes: each takes its part of the one batch (`images.steps_of`), and gradients are averaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from resdeploy import torchrun


@dataclass(frozen=True, kw_only=True)
class Group:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def writes(self) -> bool:
        """One process writes the files."""
        return self.rank == 0

    def sums(self, *values: float) -> tuple[float, ...]:
        """The sums of each value over all processes."""
        if self.size == 1:
            return values
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return tuple(totals.tolist())

    def share(self, tensors: Mapping[str, Tensor]) -> None:
        """Gives every process the tensors of the first one: BN statistics differ, and with them the network."""
        if self.size > 1:
            for value in tensors.values():
                dist.broadcast(value, 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def group() -> Iterator[Group]:
    """The processes that torchrun has started, by the variables that it sets; else this one alone, on a GPU if any."""
    size, gpus = torchrun.process_count(), torch.cuda.is_available()
    device = torch.device("cuda", torchrun.local_rank()) if gpus else torch.device("cpu")
    if size == 1:
        yield Group(device=device)
        return
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield Group(rank=torchrun.rank(), size=size, device=device)
    finally:
        dist.destroy_process_group()
