"""What a recipe would cost here: parameters, memory and time, from training steps over the first images."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from titokc.train.augment import Sampler
from titokc.train.feed import Feed
from titokc.train.loop import Trainer
from titokc.train.objectives import Objective
from titokc.train.recipes.schema import Phase, View

# Batches are doubled until a step takes so long: what every step costs counts less and less. Whole batches are repeated
# until they have taken as long together.
_LONG_ENOUGH_S = 1.5
_GIB = 2**30


class Cost(NamedTuple):
    """Of one view of a phase. images, seconds: of the steps that were measured. held: bytes kept for the backward pass
    of one image. fed: images that the feed makes a second, while nothing trains."""

    phase: Phase
    view: View
    images: int
    seconds: float
    held: int
    fed: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def estimate(trainer: Trainer, processes: int) -> list[str]:
    """Lines for a person: parameters, the memory of one of `processes`, and the time of each phase on this device.

    Measured are steps of all phases and views as they would be at their end, with all networks.
    """
    recipe = trainer.recipe
    phases = [phase for phase in recipe.phases if phase.share]
    numbers = sum(p.numel() for p in trainer.tokenizer.parameters())
    training: set[nn.Parameter] = set()
    for phase in phases:
        trainer.train_for(phase)
        training.update(trainer.trained)
    trained = {
        name: sum(p.numel() for settings in optimizer.param_groups for p in settings["params"] if p in training)
        for name, optimizer in trainer.optimizers.items()
    }
    by_name = ", ".join(f"{count:,} by {name}" for name, count in trained.items() if count)
    lines = [f"parameters: {numbers:,}; trained {by_name}"]
    # Weights and their average; gradients, with Muon's one moment or AdamW's two.
    held = 2 * numbers + sum(count * (2 if name == "muon" else 3) for name, count in trained.items())
    others = [part for objective in trainer.objectives if objective for part in objective.tensors().values()]
    if extra := sum(tensor.numel() for part in others for tensor in part.values()):
        lines.append(f"adversary: {extra:,} parameters")
        held += 4 * extra
    lines.append(f"memory: {4 * held / _GIB:.2f} GiB for weights, average, gradients and moments, and activations:")
    hours = 0.0
    for cost in measure(trainer, processes):
        phase, view = cost.phase, cost.view
        mine = view.batch_size // processes
        seconds = mine / min(cost.rate, cost.fed)
        share = phase.share / sum(p.share for p in phases) * view.share / sum(v.share for v in phase.views)
        hours += share * recipe.steps * seconds / 3600
        most = min(recipe.micro_batch or mine, mine)
        limit = "the step" if cost.rate < cost.fed else "the feed: more --workers, or --cache-gib"
        lines.append(
            f"  {phase.name}, {view.side} px, batch {view.batch_size}: {cost.held * most / _GIB:.2f} GiB, about "
            f"{seconds:.2f} s a step, {processes * mine / seconds:.1f} images/s; a process is fed {cost.fed:.0f} "
            f"and trains {cost.rate:.0f} of them: the limit is {limit} "
            f"(measured: {cost.images} images in {cost.seconds:.2f} s)"
        )
    if recipe.steps and not (recipe.minutes and recipe.minutes < 60 * hours):
        lines.append(f"time: about {hours:.1f} hours for {recipe.steps:,} steps")
    else:
        lines.append(f"time: {recipe.minutes / 60:.1f} hours, as budgeted")
    return lines


def measure(trainer: Trainer, processes: int = 1) -> Iterator[Cost]:
    """The cost of each view of each phase that has a share, in one of `processes`; the optimisers' rates are 0."""
    recipe = trainer.recipe
    trainer.tokenizer.train()
    try:
        for phase, objective in zip(recipe.phases, trainer.objectives, strict=True):
            if objective is None:
                continue
            trainer.train_for(phase)
            for view in phase.views:
                mine = max(1, view.batch_size // processes)
                sampler = trainer.feed.sampler(trainer.images, replace(view, batch_size=mine), (0,))
                most = min(recipe.micro_batch or mine, mine)
                yield Cost(
                    phase, view, *_measured(trainer, phase, objective, sampler, most), _fed(trainer.feed, sampler)
                )
    finally:
        trainer.feed.close()


def _fed(feed: Feed, sampler: Sampler) -> float:
    """Images a second that the feed makes, its first batch left out."""
    size, taken = sampler.view.batch_size, 0
    feed.enter([sampler])
    feed.take(0, 0)
    began = time.perf_counter()
    while not taken or time.perf_counter() - began < _LONG_ENOUGH_S / 3:
        taken += size
        feed.take(0, taken)
    return taken / (time.perf_counter() - began)


def _measured(
    trainer: Trainer, phase: Phase, objective: Objective, sampler: Sampler, most: int
) -> tuple[int, float, int]:
    """(images, seconds that steps over them took, bytes kept for the backward pass of each), of at most `most` images
    a step."""
    gradients, device = trainer.gradients, trainer.device
    seen = {p.untyped_storage().data_ptr() for p in trainer.tokenizer.parameters()}
    kept_bytes = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept_bytes
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept_bytes += storage.nbytes()
        return tensor

    def train(count: int, phase: Phase) -> float:
        batch = sampler.batch(0, count)
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        gradients.of(batch, phase, objective, 1.0).fetch()
        for optimizer in trainer.optimizers.values():
            gradients.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        gradients.scaler.update()
        for revival in trainer.revivals.values():
            revival.step()
        objective.learn(0.0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    count = min(2, most)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train(count, replace(phase, search=0))
    kept_bytes //= count
    while (took := train(count, phase)) < _LONG_ENOUGH_S and count < most:
        count = min(most, count * max(2, min(8, int(_LONG_ENOUGH_S / took))))
    if device.type != "cpu":  # the first steps of a shape find out how to go about it
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - began < _LONG_ENOUGH_S and len(times) < 50):
            times.append(train(count, phase))
        took = sorted(times)[len(times) // 2]
    return count, took, kept_bytes
