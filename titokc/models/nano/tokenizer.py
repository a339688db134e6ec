"""nano, the embedded tokenizer: a linear code that is good from the first step, and a ViT that learns what is missing.

    images -> thumbnail [B, 3, 64, 64] -> DCT -> the coefficients that photographs need most [B, C]
    coefficients -> residual vector quantiser, token by token (titokc.models.nano.code) -> indices [B, K]
    indices -> coefficients -> inverse DCT -> thumbnail -> + ViT decoder's correction -> images

The ViT ends in zeros, so an untrained nano is the linear code. Every token refines the few coefficients that are most
wrong after the tokens before it, so each prefix of a code is a code. Because sizes change by cutting or padding the
DCT, the same weights work at 64 pixels (pretraining) and at full size. The ViT is not needed for encoding.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titokc.models.info import FAITHFUL
from titokc.models.interface import Code, Distance, Reconstruction, Tokenizer
from titokc.models.nano import code_numpy
from titokc.models.nano.code import AdaptiveResidualVQ
from titokc.models.nano.config import CODE_VERSION, NanoConfig
from titokc.models.nano.faithful import Decoder
from titokc.models.nano.fit import fit_quantizer
from titokc.models.nano.natural import FINE_NOISE, NATURAL, NOISE, Generator, noise
from titokc.models.nano.numpy import Transform, planes
from titokc.models.nano.search import CHOICES, DISTANCE, ENOUGH, REACH, SEARCHES, distortions, starts
from titokc.models.nano.transform import OPPONENT, dct_matrix, resizing
from titokc.models.precision import full_precision

# Errors [B] of what coefficients [B, C] decode to, and what makes their gradient [B, C].
_Judged = tuple[Tensor, Callable[[], Tensor]]
# A step to better latents while training, without looking whether it helps.
_TRAINING_STEP = 0.4


class NanoTokenizer(Tokenizer):
    """The tokenizer described at the top of this file."""

    config: NanoConfig
    searches = True

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config, self.info = config, config.info
        self.fit_steps = 1 + config.num_tokens
        self.quantizer = AdaptiveResidualVQ(
            config.coefficients,
            config.num_tokens,
            config.token_size,
            config.codebook_size,
            config.hidden,
            config.refresh,
        )
        self.decoder = Decoder(config)
        self.natural = Generator(config.natural, config.width) if config.natural else None
        side, thumb = config.image_size, config.thumb_size
        fixed = {"opponent": OPPONENT, "dct": dct_matrix(thumb, thumb)}
        fixed |= {"enlarging": resizing(thumb, side), "shrinking": resizing(side, thumb)}
        for name, matrix in fixed.items():
            self.register_buffer(name, torch.tensor(matrix), persistent=False)
        self.register_buffer("coded", torch.arange(config.coefficients, dtype=torch.int32))

    opponent: Tensor
    dct: Tensor
    enlarging: Tensor
    shrinking: Tensor
    coded: Tensor

    @property
    def training_sides(self) -> tuple[int, ...]:
        return (self.config.thumb_size, self.info.side)

    def code(self) -> Code:
        """See `Tokenizer.code`. Colours, DCT and integer tables are the algorithm, `titokc.models.nano.code`."""
        tensors = {f"quantizer.{name}": tensor for name, tensor in self.quantizer.state_dict().items()}
        return Code(CODE_VERSION, self.config.code_fields, {"coded": self.coded, **tensors})

    def check(self) -> None:
        code_numpy.check(self.config, {name: tensor.cpu().numpy() for name, tensor in self.code().tensors.items()})

    @torch.no_grad()
    def encode(
        self, images: Tensor, tokens: int | None = None, effort: int = 0, distance: Distance | None = None
    ) -> Tensor:
        """See `Tokenizer.encode`. UsageError for a number of tokens that the model does not make."""
        count = self.info.check_tokens(tokens)
        if not effort:
            return self.quantizer.assign(self._analyse(images - 0.5), count)[0]
        with torch.inference_mode(False), torch.enable_grad(), full_precision(images.device):
            images = images.float().clone()
            counts = torch.full((len(images),), count, device=images.device)
            goal = self._analyse(images - 0.5)
            nearest = self.quantizer.assign(goal, count)
            judged: Callable[[Tensor], _Judged] = partial(self.judged, counts=counts, images=images)
            if distance and self.natural:
                judged = self._judged_by(distance(images), *nearest, counts, images)
            rounds, steps = SEARCHES[effort]
            found = [self._search(goal, *nearest, rounds, step, judged) for step in steps]
            errors, indices = map(torch.stack, zip(*found, strict=True))
            return indices[errors.argmin(0), torch.arange(len(images), device=images.device)]

    def _search(
        self,
        goal: Tensor,
        best: Tensor,
        coded: Tensor,
        rounds: int,
        step: float,
        judged: Callable[[Tensor], _Judged],
    ) -> tuple[Tensor, Tensor]:
        """Of B pictures their own coefficients [B, C], the nearest indices [B, K] and what these say [B, C] -> errors
        [B] of indices [B, K] that decode to something nearer, and these: what `titokc.models.nano.search` explains, for
        all pictures at the same time. Nothing waits for a GPU."""
        count = best.shape[1]
        least, gradient = judged(coded)
        tried = best[None]
        turn, towards, wanted = torch.zeros_like(least, dtype=torch.int64), goal, goal
        helped = torch.ones_like(least, dtype=torch.bool)
        # Of each number of kept tokens: how far it is from what is wanted (infinity: tried), indices, coefficients.
        kept = starts(count)
        scores = least.new_full((len(kept), len(goal)), torch.inf)
        indices, quantised = (each.repeat(len(kept), 1, 1) for each in (best, coded))
        every = torch.arange(len(goal), device=goal.device)
        for _ in range(rounds):
            if _any(helped):
                wanted = torch.where(helped[:, None], _wanted(coded, gradient()), wanted)
            spent = scores.isinf().all(0)
            turn = torch.where(helped, 0, turn + spent)
            fresh = helped | spent
            part = (step * 0.5 ** (turn // CHOICES).float())[:, None]
            towards = torch.where(fresh[:, None], goal + part * (wanted - goal), towards)
            if _any(fresh):
                options = self.quantizer.assign_after(towards, best, kept, turn % CHOICES)
                for n, (made, found) in enumerate(zip(*options, strict=True)):
                    new = fresh & (made != tried).any(2).all(0)
                    tried = torch.cat([tried, made[None]])
                    indices[n] = torch.where(new[:, None], made, indices[n])
                    quantised[n] = torch.where(new[:, None], found, quantised[n])
                    distance = torch.where(new, (found - wanted).square().sum(1), torch.inf)
                    scores[n] = torch.where(fresh, distance, scores[n])
            choice = scores.argmin(0)
            error, gradient = judged(quantised[choice, every])
            helped = (error < least) & (least > ENOUGH) & scores[choice, every].isfinite()
            scores[choice, every] = torch.inf
            least = torch.where(helped, error, least)
            best = torch.where(helped[:, None], indices[choice, every], best)
            coded = torch.where(helped[:, None], quantised[choice, every], coded)
            goal = torch.where(helped[:, None], towards, goal)
        return least, best

    def judged(self, coded: Tensor, counts: Tensor, images: Tensor) -> _Judged:
        """With mean squared errors."""
        leaf = coded.detach().requires_grad_()
        errors = (self._synthesise(leaf, counts, self.info.side)[0] - images).square().mean((1, 2, 3))
        return errors.detach(), lambda: torch.autograd.grad(errors.sum(), leaf)[0]

    def _judged_by(
        self, distance: Callable[[Tensor], Tensor], nearest: Tensor, coded: Tensor, counts: Tensor, images: Tensor
    ) -> Callable[[Tensor], _Judged]:
        """As `judged`, with the distance of the natural pictures added to the squared errors of the faithful ones,
        DISTANCE times what these are for the nearest indices, whose noise all pictures get."""
        weight = DISTANCE * self.judged(coded, counts, images)[0]
        noise = self._noise(nearest)

        def judged(coded: Tensor) -> _Judged:
            leaf = coded.detach().requires_grad_()
            picture, features = self._synthesise(leaf, counts, self.info.side)
            natural = self.textured(picture.clamp(0, 1), features, counts, *noise)
            errors = (picture - images).square().mean((1, 2, 3)) + weight * distance(natural)
            return errors.detach(), lambda: torch.autograd.grad(errors.sum(), leaf)[0]

        return judged

    def decode(self, tokens: Tensor, look: str = FAITHFUL) -> Tensor:
        """See `Tokenizer.decode`. Runs under the caller's autocast, but for the linear part."""
        assert look in self.info.looks
        counts = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        coefficients = self.quantizer.lookup(tokens)
        if look != NATURAL:
            return self._synthesise(coefficients, counts, self.info.side)[0]
        return self.textured(*self.seen(coefficients, counts), counts, *self._noise(tokens))

    def seen(self, coefficients: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """What the natural look starts from: coefficients [B, C] of `counts` tokens [B] -> faithful pictures
        [B, 3, S, S], clamped, and the ViT's features [B, P, D]."""
        picture, features = self._synthesise(coefficients, counts, self.info.side)
        return picture.clamp(0, 1), features

    def textured(self, picture: Tensor, features: Tensor, counts: Tensor, noise: Tensor, fine_noise: Tensor) -> Tensor:
        """What `seen` gives, and noise as the generator takes it -> pictures of the natural look."""
        assert self.natural is not None
        maps = self.natural.spread(features, self.info.side // 4)
        return picture + self.natural(picture, maps, self._known(counts), noise, fine_noise)

    def _noise(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of each picture its own: tokens [B, k] -> [B, NOISE, S/4, S/4] and [B, FINE_NOISE, S/2, S/2]."""
        quarter, half = self.info.side // 4, self.info.side // 2
        coarse, fine = NOISE * quarter**2, FINE_NOISE * half**2
        drawn = noise(tokens, coarse + fine)
        shapes = (NOISE, quarter, quarter), (FINE_NOISE, half, half)
        return drawn[:, :coarse].unflatten(1, shapes[0]), drawn[:, coarse:].unflatten(1, shapes[1])

    def distortions(self, image: np.ndarray, tokens: int) -> np.ndarray:
        return distortions(*self._in_numpy, planes(image), tokens)

    @cached_property
    def _in_numpy(self) -> tuple[code_numpy.Code, Transform]:
        """The encoder's side for one picture, which shares out tokens alike in both engines."""
        tensors = {name: tensor.cpu().numpy() for name, tensor in self.code().tensors.items()}
        return code_numpy.Code(self.config, tensors), Transform(self.config, tensors["coded"])

    def export_onnx(self, weights: Path, stored: Mapping[str, dict[str, Any]], search: bool) -> None:
        from titokc.models.nano.onnx import export

        export(self, weights, stored, search)

    def reconstruct(self, images: Tensor, keep: Tensor | None = None, latents: Tensor | None = None) -> Reconstruction:
        """See `Tokenizer.reconstruct`; S is one of `training_sides`, latents are coefficients [B, C]. Only the decoder
        has gradients."""
        counts = torch.full((len(images),), self.info.max_tokens, device=images.device) if keep is None else keep
        if latents is None:
            latents = self._analyse(images - 0.5)
        indices, quantised = self.quantizer.assign(latents, self.info.max_tokens if keep is None else keep)
        quantised.requires_grad_(torch.is_grad_enabled())
        made, _ = self._synthesise(quantised, counts, images.shape[-1])
        return Reconstruction(made, indices, made.new_zeros(()), latents, quantised)

    def better_latents(self, latents: Tensor, quantised: Tensor, gradient: Tensor) -> Tensor:
        """See `Tokenizer.better_latents`; all [B, C]."""
        return latents + _TRAINING_STEP * (_wanted(quantised, gradient) - latents)

    @torch.no_grad()
    def fit(self, batches: Iterator[Tensor], done: int = 0) -> Iterator[int]:
        """See `Tokenizer.fit`: chooses the coefficients that are coded, and makes the quantiser for 32 images an
        entry."""
        parts: list[Tensor] = []
        while sum(map(len, parts)) < 2 * self.info.codebook_size:
            parts.append(self._transform(next(batches) - 0.5).cpu())
            yield done
        if not done:
            variances = torch.cat(parts).square().mean(0)
            self.coded.copy_(variances.argsort(descending=True)[: self.config.coefficients])
        parts = [part[:, self.coded.cpu().long()] for part in parts]
        while sum(map(len, parts)) < 32 * self.info.codebook_size:
            parts.append(self._analyse(next(batches) - 0.5).cpu())
            yield done
        steps = fit_quantizer(self.quantizer, torch.cat(parts).to(self.device), done)
        while True:
            with full_precision(self.device):
                reached = next(steps, None)
            if reached is None:
                return
            yield reached

    def _analyse(self, centred: Tensor) -> Tensor:
        """RGB around zero [B, 3, S, S] -> float32 coefficients [B, C], in units of pixel values."""
        return self._transform(centred)[:, self.coded.long()]

    @torch.no_grad()
    def _transform(self, centred: Tensor) -> Tensor:
        """RGB around zero [B, 3, S, S] -> the thumbnail's DCT in opponent colours, float32 [B, 3 * thumb_size^2]."""
        with full_precision(centred.device):
            thumbs = self._resized(centred.float(), self.config.thumb_size)
            opponent = torch.einsum("dc,bchw->bdhw", self.opponent, thumbs)
            return (self.dct @ opponent @ self.dct.T).flatten(1) / self.config.thumb_size

    def _linear(self, coefficients: Tensor) -> Tensor:
        """Coefficients [B, C] -> the thumbnails around zero that they say, float32 [B, 3, thumb_size, thumb_size]."""
        side = self.config.thumb_size
        # Not `len`: an ONNX export would take the number of pictures for fixed.
        spectrum = coefficients.new_zeros(coefficients.shape[0], 3 * side * side)
        spectrum = spectrum.index_copy(1, self.coded.long(), coefficients)
        with full_precision(coefficients.device):
            opponent = self.dct.T @ spectrum.unflatten(1, (3, side, side)) @ self.dct * side
            return torch.einsum("dc,bdhw->bchw", self.opponent, opponent)

    def _synthesise(self, coefficients: Tensor, counts: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Coefficients [B, C], of which the first tokens [B] are known -> float32 RGB [B, 3, size, size], and the ViT's
        normalised last features [B, P, D]."""
        thumbs = self._linear(coefficients)
        known = self._known(counts.to(coefficients.device, non_blocking=True))
        features, correction, detail = self.decoder(thumbs, known, detail=size != self.config.thumb_size)
        with full_precision(coefficients.device):
            images = self._resized(thumbs + correction, size) + 0.5
        return (images if detail is None else images + detail), features

    def _resized(self, images: Tensor, size: int) -> Tensor:
        """From one of the two sides to the other, if it is not of that size."""
        if images.shape[-1] == size:
            return images
        matrix = self.shrinking if size == self.config.thumb_size else self.enlarging
        return matrix @ images @ matrix.T

    def _known(self, counts: Tensor) -> Tensor:
        """The part of all tokens, in float32 by name: the quotient of integers has the default type of the host."""
        return counts.float() / self.info.max_tokens


def _any(which: Tensor) -> bool:
    """Whether there is anything to do; on a GPU always, where asking takes longer."""
    return which.is_cuda or bool(which.any())


def _wanted(quantised: Tensor, gradient: Tensor) -> Tensor:
    """Were there only the linear code, this would be the picture's own coefficients."""
    return quantised - REACH * gradient
