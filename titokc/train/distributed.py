"""The processes of one training, as torchrun starts them; a lone process is the group of one."""

import gc
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from titokc.errors import TitokcError, UsageError

_LOST = ("gloo", "Connection", "closed by peer", "Socket")


class ProcessLostError(TitokcError):
    """A process of the group has ended before the others."""


@dataclass(frozen=True)
class Group:
    """This process's `rank` among `size`; the first one (rank 0) writes checkpoints and logs.

    All processes see one file system: the data, and the run folder from which each resumes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "Group":
        """Joins the group that torchrun describes in the environment: gloo on CPUs, NCCL on GPUs."""
        if "RANK" not in os.environ:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # The first process alone fits a tokenizer's start, which can take a quarter of an hour.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
        return cls(dist.get_rank(), dist.get_world_size())

    @contextmanager
    def joined(self) -> Iterator[None]:
        """While the group is at work: it is left afterwards, and the loss of a process is a `ProcessLostError`."""
        try:
            yield
            self.wait()  # a process that leaves while others still talk can take them down
        except RuntimeError as error:  # what gloo and NCCL raise says so in its words only
            if self.size > 1 and (isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST)):
                raise ProcessLostError(
                    "another process of this training is gone: continue from the last checkpoint with --resume"
                ) from error
            raise
        finally:
            if dist.is_initialized():
                gc.collect()  # what still holds the group, and would end it after its threads, in Python's own end
                dist.destroy_process_group()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """The sums over the processes of numbers that all of them have under the same names."""
        if self.size == 1:
            return dict(values)
        names = sorted(values)
        total = torch.tensor([values[name] for name in names], dtype=torch.float32, device=device)
        dist.all_reduce(total)
        return dict(zip(names, total.tolist(), strict=True))

    def copy_first(self, module: nn.Module) -> None:
        """Gives every process the parameters and buffers that the first one has."""
        if self.size > 1:
            for tensor in itertools.chain(module.parameters(), module.buffers()):
                dist.broadcast(tensor.detach(), 0)

    def spread(self, module: nn.Module) -> nn.Module:
        """The module, such that every process ends its backward passes with the mean of all gradients."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        """Backward passes inside only add up; the next one outside takes the mean over the processes."""
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def local_device(device: torch.device) -> torch.device:
    """Under torchrun, this process's own GPU; UsageError where there are fewer than processes."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        rank, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if rank >= there:
            raise UsageError(f"each process needs a GPU of its own: torch finds {there}, start no more processes")
        return torch.device("cuda", rank)
    return device
