"""What a recipe would cost here: parameters, memory and time, from training passes over the first images."""

import time
from dataclasses import replace

import torch
from torch import Tensor

from titokc.models.interface import Tokenizer
from titokc.train import optim
from titokc.train.augment import Sampler
from titokc.train.data import ImageSet
from titokc.train.distributed import Group
from titokc.train.gradients import Gradients
from titokc.train.objectives import Objective
from titokc.train.recipes.schema import Phase, Recipe

# Batches are doubled until a pass takes so long: what every pass costs counts less and less.
_LONG_ENOUGH_S = 1.5
_GIB = 2**30


def estimate(
    recipe: Recipe,
    tokenizer: Tokenizer,
    objectives: list[Objective | None],
    images: ImageSet,
    autocast: torch.dtype,
    processes: int,
) -> list[str]:
    """Lines for a person: parameters, the memory of one process, and the time of each phase on this device.

    Measured are passes of all phases and views as they would be at their end, with all networks, on `images`.
    """
    numbers = sum(p.numel() for p in tokenizer.parameters())
    phases = [(phase, objective) for phase, objective in zip(recipe.phases, objectives, strict=True) if objective]
    prefixes = [prefix for phase, _ in phases for prefix in phase.trainable or ("",)]
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(tuple(prefixes)))
    made = optim.build(tokenizer, recipe.muon, recipe.betas, recipe.weight_decay)
    trained = {name: _numbers(optimizer) for name, optimizer in made.items()}
    by_name = ", ".join(f"{count:,} by {name}" for name, count in trained.items())
    lines = [f"parameters: {numbers:,}; trained {by_name}"]
    # Weights and their average; gradients, with Muon's one moment or AdamW's two.
    held = 2 * numbers + sum(count * (2 if name == "muon" else 3) for name, count in trained.items())
    others = [part for _, objective in phases for part in objective.tensors().values()]
    if extra := sum(tensor.numel() for part in others for tensor in part.values()):
        lines.append(f"adversary: {extra:,} parameters")
        held += 4 * extra
    lines.append(f"memory: {4 * held / _GIB:.2f} GiB for weights, average, gradients and moments, and activations:")
    gradients = Gradients(tokenizer, Group(), recipe, autocast)
    tokenizer.train()
    hours = 0.0
    for phase, objective in phases:
        share = phase.share / sum(p.share for p, _ in phases)
        seconds = 0.0
        for view in phase.views:
            mine = view.batch_size // processes
            most = min(recipe.micro_batch or mine, mine)
            count, took, held_bytes = _measured(gradients, phase, objective, Sampler(images, view, (0,)), most)
            seconds += took / count * mine * view.share / sum(v.share for v in phase.views)
            lines.append(
                f"  {phase.name}, {view.side} px, batch {view.batch_size}: {held_bytes * most / _GIB:.2f} GiB, about "
                f"{took / count * mine:.2f} s a step, {processes * count / took:.1f} images/s "
                f"(measured: {count} images in {took:.2f} s)"
            )
        hours += share * recipe.steps * seconds / 3600
    if recipe.steps and not (recipe.minutes and recipe.minutes < 60 * hours):
        lines.append(f"time: about {hours:.1f} hours for {recipe.steps:,} steps")
    else:
        lines.append(f"time: {recipe.minutes / 60:.1f} hours, as budgeted")
    return lines


def _numbers(optimizer: torch.optim.Optimizer) -> int:
    return sum(p.numel() for settings in optimizer.param_groups for p in settings["params"])


def _measured(
    gradients: Gradients, phase: Phase, objective: Objective, sampler: Sampler, most: int
) -> tuple[int, float, int]:
    """(images, seconds they took in one pass, bytes kept for the backward pass of each), of at most `most` images."""
    device = gradients.tokenizer.device
    seen = {p.untyped_storage().data_ptr() for p in gradients.tokenizer.parameters()}
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
        began = time.perf_counter()
        gradients.of(batch, phase, objective, 1.0)
        objective.learn(0.0)
        gradients.tokenizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    count = min(2, most)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train(count, replace(phase, search=0))
    kept_bytes //= count
    while (took := train(count, phase)) < _LONG_ENOUGH_S and count < most:
        count = min(most, count * max(2, min(8, int(_LONG_ENOUGH_S / took))))
    return count, took, kept_bytes
