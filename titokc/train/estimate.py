"""What a recipe would cost here: parameters, memory and time, from a small training pass of each view."""

import time

import torch
from torch import Tensor

from titokc.models.interface import Tokenizer
from titokc.train import losses, optim
from titokc.train.discriminator import Discriminator
from titokc.train.recipes import Phase, Recipe, View, check

# Batches are doubled until a pass takes so long: what every pass costs counts less and less.
_LONG_ENOUGH_S = 1.0
_GIB = 2**30


def estimate(recipe: Recipe, tokenizer: Tokenizer, autocast: torch.dtype, processes: int) -> list[str]:
    """Lines for a person: parameters, the memory of one process, and the time of each phase on this device.

    Probed with the tokenizer alone: perceptual networks and the discriminator come on top of activations and time.
    """
    numbers = sum(p.numel() for p in tokenizer.parameters())
    phases = check(recipe, tokenizer)
    prefixes = [prefix for phase in phases for prefix in phase.trainable or ("",)]
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(tuple(prefixes)))
    trained = {name: _numbers(optimizer) for name, optimizer in optim.build(tokenizer, recipe).items()}
    by_name = ", ".join(f"{count:,} by {name}" for name, count in trained.items())
    lines = [f"parameters: {numbers:,}; trained {by_name}"]
    # Weights and their average; gradients, with Muon's one moment or AdamW's two.
    held = 2 * numbers + sum(count * (2 if name == "muon" else 3) for name, count in trained.items())
    if any(phase.losses.gan for phase in phases):
        extra = sum(p.numel() for p in Discriminator(recipe.discriminator_channels).parameters())
        lines.append(f"discriminator: {extra:,} parameters")
        held += 4 * extra
    lines.append(f"memory: {4 * held / _GIB:.2f} GiB for weights, average, gradients and moments, and activations:")
    hours = 0.0
    for phase in phases:
        share = phase.share / sum(p.share for p in phases)
        seconds = 0.0
        for view in phase.views:
            mine = view.batch_size // processes
            image_seconds, image_bytes = _probe(tokenizer, phase, view, min(recipe.micro_batch or mine, mine), autocast)
            image_seconds *= 1 + phase.search
            seconds += image_seconds * mine * view.share / sum(v.share for v in phase.views)
            activations = image_bytes * min(recipe.micro_batch or mine, mine) / _GIB
            lines.append(
                f"  {phase.name}, {view.side} px, batch {view.batch_size}: {activations:.2f} GiB, about "
                f"{image_seconds * mine:.2f} s a step, {processes / image_seconds:.1f} images/s"
            )
        hours += share * recipe.steps * seconds / 3600
    if recipe.steps and not (recipe.minutes and recipe.minutes < 60 * hours):
        lines.append(f"time: about {hours:.1f} hours for {recipe.steps:,} steps")
    else:
        lines.append(f"time: {recipe.minutes / 60:.1f} hours, as budgeted")
    return lines


def _numbers(optimizer: torch.optim.Optimizer) -> int:
    return sum(p.numel() for settings in optimizer.param_groups for p in settings["params"])


def _probe(tokenizer: Tokenizer, phase: Phase, view: View, most: int, autocast: torch.dtype) -> tuple[float, float]:
    """(seconds, bytes kept for the backward pass) for each image, in a batch of at most `most`."""
    device = tokenizer.device
    images = torch.rand(min(2, most), 3, view.side, view.side, device=device)
    seen = {p.untyped_storage().data_ptr() for p in tokenizer.parameters()}
    kept_bytes = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept_bytes
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept_bytes += storage.nbytes()
        return tensor

    def train() -> None:
        with torch.autocast(device.type, autocast, enabled=autocast != torch.float32):
            made = losses.Pass(tokenizer)(images, proxy=bool(phase.losses.codes))
        (made[0].float().square().mean() + made.quantizer_loss).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train()
    kept_bytes //= len(images)
    while True:
        began = time.perf_counter()
        train()
        seconds = time.perf_counter() - began
        if seconds >= _LONG_ENOUGH_S or len(images) == most:
            break
        images = torch.rand(min(2 * len(images), most), *images.shape[1:], device=device)
    tokenizer.zero_grad(set_to_none=True)
    return seconds / len(images), kept_bytes
