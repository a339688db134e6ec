"""The gradients of one batch: micro-batches, autocast, processes, and passes from better and better latents.

A tokenizer that can search (`Tokenizer.encode`'s effort) makes other tokens than the nearest ones, and its decoder
should know them. The gradient of a training pass already tells where better latents lie, so `Phase.search` more passes
over the same pictures cost no search of their own.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from titokc.models.interface import Reconstruction, Tokenizer
from titokc.models.titok.pixel_decoder import MaskGITVQGAN
from titokc.models.titok.tokenizer import ProxyPrediction
from titokc.train import losses
from titokc.train.augment import Batch
from titokc.train.discriminator import Adversary
from titokc.train.distributed import Group
from titokc.train.recipes import Phase
from titokc.train.validate import token_counts


class Measured(NamedTuple):
    """What the passes over a batch found: sums and means by name, the images, and their reconstructions."""

    values: dict[str, float]
    images: Tensor
    outputs: Tensor


class _Tally:
    """Adds up what the log shows of a batch in `values`: the terms of its loss as "loss_*", PSNR in dB by pass as
    "turn/*" and, of first passes, by token count as "decibels/*", with the images behind it as "images/*"."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        self._counts = torch.tensor(counts)
        self.values = {f"{name}/{count}": 0.0 for name in ("decibels", "images") for count in counts}

    def losses(self, terms: dict[str, Tensor], share: float) -> None:
        for name, value in terms.items():
            self.values[f"loss_{name}"] = self.values.get(f"loss_{name}", 0.0) + share * float(value.detach())

    def quality(self, turn: int, decibels: Tensor, kept: Tensor | None) -> None:
        """PSNR [B] of pictures of `kept` tokens [B] (None: all), each shown under the nearest of the counts."""
        self.values[f"turn/{turn}"] = self.values.get(f"turn/{turn}", 0.0) + float(decibels.sum())
        if turn:
            return
        tokens = self._counts.max().expand(len(decibels)) if kept is None else kept
        nearest = self._counts[(tokens[:, None] - self._counts).abs().argmin(1)]
        for count, value in zip(nearest.tolist(), decibels.tolist(), strict=True):
            self.values[f"decibels/{count}"] += value
            self.values[f"images/{count}"] += 1


class Gradients:
    """Forward and backward passes of this process, which leave gradients in `tokenizer`'s parameters.

    micro_batch, token_drop_step: see `Recipe`. autocast: the type of the forward passes, torch.float32 for none.
    scaler: of the gradients, at work with float16.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        criterion: losses.Criterion,
        group: Group,
        *,
        codes: MaskGITVQGAN | None = None,
        adversary: Adversary | None = None,
        micro_batch: int = 0,
        token_drop_step: int = 1,
        autocast: torch.dtype = torch.float32,
    ) -> None:
        self.tokenizer, self.criterion, self.group = tokenizer, criterion, group
        self.scaler = torch.amp.GradScaler(tokenizer.device.type, enabled=autocast == torch.float16)
        self._codes, self._adversary = codes, adversary
        self._micro_batch, self._token_drop_step, self._autocast = micro_batch, token_drop_step, autocast
        self._pass: nn.Module = losses.Pass(tokenizer)

    def enter(self) -> None:
        """Takes note of the parameters that train from now on."""
        self._pass = self.group.spread(losses.Pass(self.tokenizer))

    def casting(self) -> AbstractContextManager[Any]:
        device = self.tokenizer.device.type
        return torch.autocast(device, self._autocast, enabled=self._autocast != torch.float32)

    def of(self, batch: Batch, phase: Phase, with_gan: bool) -> Measured:
        """The gradients of one batch; PSNR by token count and outputs are those of each picture's first pass."""
        tally = _Tally(token_counts(self.tokenizer))
        images = batch.images(self.tokenizer.device)
        counts = self._token_counts(batch.draws)
        outputs: list[Tensor] = []
        passes = 1 + phase.search
        for rows in _slices(len(images), self._micro_batch or len(images)):
            part, latents = images[rows], None
            kept = None if counts is None else counts[rows]
            share = len(part) / len(images) / passes
            for turn in range(passes):
                last = rows.stop == len(images) and turn == passes - 1
                with nullcontext() if last else self.group.apart(self._pass):
                    made, terms = self._pass_once(phase, part, kept, latents, with_gan, share)
                tally.losses(terms, share)
                if not isinstance(made, Reconstruction):
                    continue
                tally.quality(turn, losses.psnr(made.images, part), kept)
                if turn < phase.search:
                    latents = self._better_latents(made, part)
                if not turn:
                    outputs.append(made.images.detach().float())
        return Measured(tally.values, images, torch.cat(outputs) if outputs else images)

    def _pass_once(
        self,
        phase: Phase,
        images: Tensor,
        kept: Tensor | None,
        latents: Tensor | None,
        with_gan: bool,
        share: float,
    ) -> tuple[Reconstruction | ProxyPrediction, dict[str, Tensor]]:
        """Forwards and, with the weight `share`, backwards: (what was made, the terms of its loss)."""
        device = self.tokenizer.device
        with self.casting():
            made = self._pass(images, None if kept is None else kept.to(device), latents, bool(phase.losses.codes))
            if isinstance(made, Reconstruction):
                terms = self.criterion.pixels(phase.losses, made.images, images, made.quantizer_loss)
            else:
                assert self._codes is not None
                codes = self._codes.encode(images)
                terms = self.criterion.codes(phase.losses, made.logits, codes, made.quantizer_loss)
            if with_gan and self._adversary is not None:
                terms["gan"] = phase.losses.gan * self._adversary.generator_term(made.images)
        if phase.search:
            made.images.retain_grad()
        self.scaler.scale(torch.stack(list(terms.values())).sum() * share).backward()
        return made, terms

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
        if not tokenizer.nested:
            return None
        choices = torch.arange(tokenizer.min_tokens, tokenizer.max_tokens + 1, self._token_drop_step)
        return choices[(draws * len(choices)).long()]


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
