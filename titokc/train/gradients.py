"""The gradients of one batch: micro-batches, autocast, processes, and passes from better and better latents.

A tokenizer that can search (`Tokenizer.encode`'s effort) makes other tokens than the nearest ones, and its decoder
should know them. The gradient of a training pass already tells where better latents lie, so `Phase.search` more passes
over the same pictures cost no search of their own.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from titokc.models.interface import Reconstruction, Tokenizer
from titokc.train.augment import Batch
from titokc.train.distributed import Group
from titokc.train.objectives.interface import Objective, Shown
from titokc.train.recipes.schema import Phase, Recipe
from titokc.train.validate import token_counts


def decibels(output: Tensor, images: Tensor) -> Tensor:
    """For the log, on the device: PSNR of each image [B], [B, 3, H, W] against peak 1, the output clamped to [0, 1].

    What is published is `titokc.judge.pixels.psnr`, of 8-bit pictures."""
    error = (output.detach().float().clamp(0, 1) - images).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


class Tally:
    """Adds up what the log shows of a batch: the terms of its loss as "loss_*", PSNR in dB by pass as "turn/*" and, of
    first passes, by token count as "decibels/*", with the images behind it as "images/*".

    The numbers stay on the device until all are fetched at once: each time the host waits for one, a GPU runs idle."""

    def __init__(self, counts: tuple[int, ...], device: torch.device) -> None:
        self._counts = counts
        self._sums = {
            f"{what}/{count}": torch.zeros((), device=device) for what in ("images", "decibels") for count in counts
        }

    def add(self, name: str, value: Tensor, share: float = 1.0) -> None:
        """A scalar times `share` to the sum of its name."""
        value = share * value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def quality(self, turn: int, decibels: Tensor, kept: Tensor | None) -> None:
        """PSNR [B] of pictures of `kept` tokens [B] (None: all), each shown under the nearest of the counts."""
        self.add(f"turn/{turn}", decibels.sum())
        if turn:
            return
        tokens = torch.full((len(decibels),), max(self._counts)) if kept is None else kept
        nearest = (tokens[:, None] - torch.tensor(self._counts)).abs().argmin(1)
        for at, count in enumerate(self._counts):
            shown = (nearest == at).to(decibels, non_blocking=True)
            self.add(f"images/{count}", shown.sum())
            self.add(f"decibels/{count}", (shown * decibels).sum())

    def fetch(self) -> dict[str, float]:
        """The sums by name."""
        return dict(zip(self._sums, torch.stack(list(self._sums.values())).tolist(), strict=True))


class _Pass(nn.Module):
    """What an objective makes of a tokenizer, as a module whose gradients can be shared among processes.

    made: of the last pass; it does not go through the wrapper, which would cut its gradients off.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.made: Reconstruction | None = None

    def forward(self, objective: Objective[Any], batch: Shown, search: bool) -> dict[str, Tensor]:
        terms, self.made = objective.terms(self.tokenizer, batch)
        if search and self.made is not None:
            self.made.images.retain_grad()
        return terms


class Gradients:
    """Forward and backward passes of this process, which leave gradients in `tokenizer`'s parameters.

    Of the recipe, micro_batch and token_drop_step count. autocast: the type of the forward passes, float32 for none.
    scaler: of the gradients, at work with float16.
    """

    def __init__(self, tokenizer: Tokenizer, group: Group, recipe: Recipe, autocast: torch.dtype) -> None:
        self.tokenizer, self.group = tokenizer, group
        self.scaler = torch.amp.GradScaler(tokenizer.device.type, enabled=autocast == torch.float16)
        self._micro_batch, self._token_drop_step, self._autocast = recipe.micro_batch, recipe.token_drop_step, autocast
        self.enter()

    def enter(self) -> None:
        """Takes note of the parameters that train from now on."""
        self._pass = _Pass(self.tokenizer)
        self._spread = self.group.spread(self._pass)

    def casting(self) -> AbstractContextManager[Any]:
        device = self.tokenizer.device.type
        return torch.autocast(device, self._autocast, enabled=self._autocast != torch.float32)

    def of(self, batch: Batch, phase: Phase, objective: Objective[Any], progress: float) -> Tally:
        """The gradients of one batch, this far in the phase; returns what the log shows. PSNR by token count is
        that of each picture's first pass."""
        tally = Tally(token_counts(self.tokenizer), self.tokenizer.device)
        images = batch.images(self.tokenizer.device)
        counts = self._token_counts(batch.draws)
        passes = 1 + phase.search
        size = self._micro_batch or len(images)
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            part, latents = images[rows], None
            keep = None if counts is None else counts[rows]
            share = len(part) / len(images) / passes
            for turn in range(passes):
                last = start + size >= len(images) and turn == passes - 1
                shown = Shown(part, keep, latents, progress)
                with nullcontext() if last else self.group.apart(self._spread):
                    with self.casting():
                        terms = self._spread(objective, shown, phase.search > 0)
                    self.scaler.scale(torch.stack(list(terms.values())).sum() * share).backward()
                for name, value in terms.items():
                    tally.add(f"loss_{name}", value, share)
                made = self._pass.made
                if made is not None:
                    tally.quality(turn, decibels(made.images, part), keep)
                    if turn < phase.search:
                        latents = self._better_latents(made, part)
        return tally

    def _better_latents(self, made: Reconstruction, images: Tensor) -> Tensor:
        """What the next pass over the images quantises, by the gradient that this one has left."""
        assert made.latents is not None
        assert made.quantised is not None
        assert made.images.grad is not None
        assert made.quantised.grad is not None
        error = made.images.detach() - images
        # How much an image's squared error counts in the loss, whatever else is in it, falls out of the search.
        weight = (made.images.grad * error).sum((1, 2, 3)) / (2 * error.square().mean((1, 2, 3)))
        # Where less error would be worse, there is nowhere to go.
        gradient = torch.where(weight[:, None] > 0, made.quantised.grad / weight[:, None], 0)
        return self.tokenizer.better_latents(made.latents, made.quantised.detach(), gradient)

    def _token_counts(self, draws: Tensor) -> Tensor | None:
        """Draws [B] in [0, 1) -> tokens kept of each image, int64 [B]; None, for all, where prefixes are no codes."""
        tokenizer = self.tokenizer
        if not tokenizer.info.nested:
            return None
        choices = torch.arange(tokenizer.info.max_tokens, tokenizer.info.min_tokens - 1, -self._token_drop_step).flip(0)
        return choices[(draws * len(choices)).long()]
