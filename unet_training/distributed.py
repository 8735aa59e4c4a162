"""One training in several processes, which torchrun starts: the numbers are those of one process, but for rounding.

    torchrun --nproc_per_node 2 -m unet_training.training

All processes draw the same batches and random numbers; each computes on every so many-th image of a batch, and
gradients are averaged. The first one alone tracks, saves and publishes. Without torchrun everything here does nothing.
"""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Sampler

from utils.errors import InputError
from utils.locks import exclusive
from utils.ranks import processes, rank
from utils.tracking.experiment import Experiment, start

PATIENCE = timedelta(days=7)  # for the slowest process, and for a lock that the first one waits for


def wait_for_all() -> None:
    """Returns when all processes have come here; from the first time on they know each other: tensors on GPUs travel by
    NCCL, others by gloo."""
    if processes() == 1:
        return
    if not distributed.is_initialized():
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    distributed.all_reduce(torch.zeros(1))


@contextmanager
def exclusive_for_all(path: Path) -> Iterator[None]:
    """`exclusive`, which the first process takes for all of them; they leave together, so that none of them ends while
    another one writes."""
    with exclusive(path) if rank() == 0 else nullcontext():
        wait_for_all()
        yield
        wait_for_all()


class _Untracked:
    """Stands for the experiment in all processes but the first."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def track(*arguments, **options) -> Iterator[Experiment | _Untracked]:
    """`start` in the first process; in the others nothing is tracked."""
    if rank():
        yield _Untracked()
        return
    with start(*arguments, **options) as experiment:
        yield experiment


def average_gradients(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, with gradients that are the mean of all processes'.

    Raises:
        InputError: it has a batch norm that learns: its statistics would be those of a process's own images.
    """
    if processes() == 1:
        return model
    if any(isinstance(module, _BatchNorm) and any(each.requires_grad for each in module.parameters())
           for module in model.modules()):
        raise InputError("a network with batch norm needs whole batches; train it without torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None,
                                               forward_sync_buffers=False)


def agree_on_random_numbers(device: torch.device) -> None:
    """All processes draw what the first one draws from now on, whatever each of them did before."""
    if processes() == 1:
        return
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    for state in states:
        distributed.broadcast(state, 0)
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


class _ShareOfBatches(Sampler[list[int]]):
    """Of each batch every so many-th image."""

    def __init__(self, batches: Sampler[list[int]]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            if len(batch) % processes():
                raise InputError(f"{processes()} processes can't share a batch of {len(batch)} images evenly; give "
                                 f"--batch_size (and --data_sample_per_epoch) a multiple of {processes()}")
            yield batch[rank()::processes()]


def share_batches(batches: Sampler[list[int]]) -> Sampler[list[int]]:
    """This process's part of each batch."""
    return _ShareOfBatches(batches) if processes() > 1 else batches


def draw_share(draw: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What `draw` gives for each of these images; random numbers are drawn for those of all processes."""
    if processes() == 1:
        return draw(images)
    return draw(images[:1].expand(processes() * len(images), *images.shape[1:]))[rank()::processes()]


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Of a batch that they share. A sum without a gradient, as of validation, is of a whole batch already."""
    if processes() == 1 or not values.requires_grad:
        return values
    from torch.distributed.nn.functional import all_reduce  # slow to import
    return all_reduce(values)


def join_shares(losses: torch.Tensor, dice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the shares' losses (steps,) the means, of their images' Dice (N, C) all, in the order of the batches."""
    if processes() == 1:
        return losses, dice
    losses = losses.clone()
    distributed.all_reduce(losses)
    parts = [torch.empty_like(dice) for _ in range(processes())]
    distributed.all_gather(parts, dice.contiguous())
    return losses / processes(), torch.stack(parts, dim=1).flatten(0, 1)


def join_batches(losses: Sequence[torch.Tensor], dice: Sequence[torch.Tensor]
                 ) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """Of each process's whole batches, every so many-th one, those of all in their order."""
    if processes() == 1:
        return losses, dice
    parts: list = [None] * processes()
    distributed.all_gather_object(parts, [(loss.cpu(), each.cpu()) for loss, each in zip(losses, dice, strict=True)])
    joined = [part[step] for step in range(len(parts[0])) for part in parts if step < len(part)]
    return tuple(zip(*joined, strict=True))
