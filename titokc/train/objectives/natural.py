"""The natural look: grain and edges where photographs have them, by a generator on top of a frozen faithful decoder.

    photographs -> frozen tokenizer -> pool of (photograph, faithful picture, features) -> crops -> generator -> terms

Decoding a photograph costs more than a generator's step on it, so what was decoded is kept in a pool and drawn from
many times; the images of every batch, `View.batch_size` of them, replace the oldest. The adversaries are in
`titokc.train.critics`, the local spectrum in `titokc.train.spectrum`; what was tried before is in bench/LOG.md.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from titokc.errors import WeightsError
from titokc.judge import texture
from titokc.judge.networks import EfficientNetDistance
from titokc.judge.pixels import psnr
from titokc.models.info import FAITHFUL
from titokc.models.interface import Tokenizer
from titokc.models.nano.natural import FINE_NOISE, NATURAL, NOISE
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.models.precision import full_precision
from titokc.train import critics
from titokc.train.checkpoint import Parts
from titokc.train.critics import Critics
from titokc.train.objectives.interface import Objective, Setup, Shown
from titokc.train.objectives.pixels import log_l2
from titokc.train.spectrum import LocalSpectrum
from titokc.train.validate import arrays, to_bytes, token_counts

_LOOKS = (FAITHFUL, NATURAL)
# What crops start at a multiple of; the most that features and critics see shifted, and how they are scaled for the
# features: a pattern that is aligned to the networks' strides would be invisible to them.
_GRID = 4
_FEATURE_SHIFT, _PATCH_SHIFT = 16, 8
_SCALES = (0.8, 0.9, 1.0, 1.0, 1.1, 1.25)
# What validation measures of each look and token count.
_FIGURES = ("psnr", "means", "features", "smooth", "busy")
# A block of this deviation, of 255, is busy: about the quarter that `titokc.judge.texture` calls so.
_BUSY = 18.0
# Fewer blocks than these count as if there were so many.
_BLOCKS = 16
# Rounds of search of the tokens that validation decodes.
_VALIDATION_EFFORT = 2


@dataclass(frozen=True)
class Natural:
    """Weights of the terms, and what a step sees.

    features: distance of EfficientNet-Lite0's, after one random shift and scale of both pictures. heads, patches: hinge
    losses of critics on these features and on patches beside the faithful picture. spectrum: of local energies at each
    frequency. smooth, busy: of blocks that vary more than where the photograph is smooth, less than where it is busy.
    means, log_l2: the mean of ln(1 + 10^4 mse) of 8x8 means and of pixels. critics_lr: of AdamW.
    crops, crop: how many crops of how many pixels; whole, whole_share: how many whole pictures instead, in which part
    of the steps. pool: the pictures in the pool, .42 MB each, in checkpoints too. fewest: tokens of a picture, up to
    all. search: most steps of the training search for them.
    """

    features: float = 3.0
    heads: float = 0.1
    patches: float = 0.15
    spectrum: float = 0.7
    smooth: float = 0.9
    busy: float = 0.5
    means: float = 1.4
    log_l2: float = 0.85
    critics_lr: float = 1e-4
    crops: int = 16
    crop: int = 128
    whole: int = 4
    whole_share: float = 0.15
    pool: int = 512
    fewest: int = 4
    search: int = 2

    def scaled(self, times: int) -> "Natural":
        """See `titokc.train.recipes.schema.scaled`; crops are the batch that the generator learns from."""
        crops, whole = times * self.crops, times * self.whole
        return replace(self, crops=crops, whole=whole, critics_lr=self.critics_lr * times**0.5)


class Decoded(NamedTuple):
    """images, faithful: uint8 [N, 3, S, S]. features: of the faithful decoder, bfloat16 [N, P, D]. known: the part of
    all tokens, float32 [N]."""

    images: Tensor
    faithful: Tensor
    features: Tensor
    known: Tensor


class Pool:
    """The last `size` decoded pictures; `seen` counts all."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self._held: Decoded | None = None

    def put(self, new: Decoded) -> None:
        if self._held is None:
            self._held = Decoded(*(part.new_zeros(self.size, *part.shape[1:]) for part in new))
        at = torch.arange(self.seen, self.seen + len(new.known), device=new.known.device) % self.size
        for held, part in zip(self._held, new, strict=True):
            held[at] = part
        self.seen += len(new.known)

    def draw(self, count: int) -> Decoded:
        """With replacement."""
        assert self._held is not None
        at = torch.randint(min(self.seen, self.size), (count,)).to(self._held.known.device, non_blocking=True)
        return Decoded(*(part[at] for part in self._held))

    def tensors(self) -> dict[str, Tensor]:
        filled = {} if self._held is None else {n: part[: self.seen] for n, part in self._held._asdict().items()}
        return filled | {"seen": torch.tensor(self.seen)}

    def load(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.seen, self._held = 0, None
        parts = {name: tensor.to(device) for name, tensor in tensors.items() if name != "seen"}
        if parts:
            self.put(Decoded(**parts))
            self.seen = int(tensors["seen"])


class NaturalObjective(Objective[Natural]):
    may_grow: ClassVar[frozenset[str]] = frozenset({"heads", "patches"})
    adversary: Critics

    def __init__(self, settings: Natural, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._distance = EfficientNetDistance().to(setup.device).to(memory_format=torch.channels_last)
        self._spectrum = LocalSpectrum().to(setup.device)
        self.adversary = Critics(setup.device, setup.group, settings.critics_lr)
        self.pool = Pool(settings.pool)

    # ---- training

    def terms(self, tokenizer: Tokenizer, batch: Shown) -> tuple[dict[str, Tensor], None]:
        nano, weights = _with_generator(tokenizer), self.settings
        self.pool.put(self._decoded(nano, batch.images))
        whole = float(torch.rand(())) < weights.whole_share
        count, side = (weights.whole, nano.info.side) if whole else (weights.crops, weights.crop)
        images, faithful, output = self._crops(nano, count, side)

        network, seen = self._distance.network, _shifted_and_scaled(side)
        with torch.no_grad():
            wanted = network.features(seen(images))
        found = network.features(seen(output))
        shift = _shifted(side, _PATCH_SHIFT)
        shown = critics.Shown(shift(images), shift(output), shift(faithful), wanted, found)
        verdicts = self.adversary.judge(shown.fake, shown.faithful, found)
        self.adversary.show(shown._replace(fake=shown.fake.detach(), fake_features=[stage.detach() for stage in found]))
        terms = {"features": weights.features * self._distance.between(found, wanted).mean()}
        terms |= {kind: getattr(weights, kind) * verdict for kind, verdict in verdicts.items()}
        return terms | self._errors(output, images), None

    def _errors(self, output: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The weighted terms that need no network; [B, 3, S, S] in [0, 1]."""
        weights, output = self.settings, output.float()
        smooth, busy = _texture(output, images)
        return {
            "spectrum": weights.spectrum * self._spectrum(output, images),
            "smooth": weights.smooth * smooth,
            "busy": weights.busy * busy,
            "means": weights.means * log_l2(F.avg_pool2d(output, 8), F.avg_pool2d(images, 8)),
            "log_l2": weights.log_l2 * log_l2(output, images),
        }

    def _decoded(self, nano: NanoTokenizer, images: Tensor) -> Decoded:
        """What the frozen decoder makes of images [B, 3, S, S], from tokens nearest or after some steps of search."""
        fewest = min(self.settings.fewest, nano.info.max_tokens)
        counts = torch.randint(fewest, nano.info.max_tokens + 1, (len(images),))
        rounds = min(_integer(self.settings.search + 2), self.settings.search)
        latents = None
        with full_precision(images.device):
            for turn in range(rounds + 1):
                with torch.enable_grad():
                    made = nano.reconstruct(images, counts, latents)
                assert made.latents is not None
                assert made.quantised is not None
                coded = made.quantised.detach()
                if turn < rounds:
                    error = (made.images - images).square().mean((1, 2, 3)).sum()
                    (gradient,) = torch.autograd.grad(error, made.quantised)
                    latents = nano.better_latents(made.latents, coded, gradient)
            with torch.no_grad():
                faithful, features = nano.seen(coded, counts)
        known = (counts / nano.info.max_tokens).to(images.device, non_blocking=True)
        return Decoded(to_bytes(images), to_bytes(faithful), features.bfloat16(), known)

    def _crops(self, nano: NanoTokenizer, count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Squares of pictures of the pool, of the faithful ones, and what the generator makes of these, float32
        [B, 3, side, side] in [0, 1] (the last nominally)."""
        held = self.pool.draw(count)
        corners = (_GRID * torch.randint((nano.info.side - side) // _GRID + 1, (count, 2))).tolist()

        def cut(maps: Tensor, scale: int = 1) -> Tensor:
            size = side // scale
            rows = [m[:, y // scale :, x // scale :][:, :size, :size] for m, (y, x) in zip(maps, corners, strict=True)]
            return torch.stack(rows).contiguous(memory_format=torch.channels_last)

        images, faithful = (cut(part).float() / 255 for part in (held.images, held.faithful))
        assert nano.natural is not None
        maps = cut(nano.natural.spread(held.features.float(), nano.info.side // _GRID), _GRID)
        noise = _noise(count, NOISE, side // 4, faithful), _noise(count, FINE_NOISE, side // 2, faithful)
        return images, faithful, faithful + nano.natural(faithful, maps, held.known, *noise)

    def tensors(self) -> Parts:
        """With several processes, each begins again from the pool of the first one."""
        return {**super().tensors(), "pool": self.pool.tensors()}

    def load(self, parts: Parts) -> None:
        super().load(parts)
        self.pool.load(parts.get("pool", {}), self.setup.device)

    # ---- validation

    @torch.no_grad()
    def validate(self, tokenizer: Tokenizer, squares: Tensor) -> tuple[dict[str, float], Tensor]:
        """Of the natural look, for each token count K: "psnr/K"; how much it loses to the faithful one in dB, of pixels
        "psnr_lost/K" and of 8x8 means "means_lost/K"; and of both looks "LOOK_features/K" (EfficientNet-Lite0's
        distance), "LOOK_smooth/K" and "LOOK_busy/K" (`titokc.judge.texture`). The loss is that of training without the
        critics. The grid has originals, then faithful over natural pictures from few tokens to many."""
        nano, group = _with_generator(tokenizer), self.setup.group
        counts, mine = token_counts(nano), squares[group.rank :: group.size]
        sums = {f"{look}_{figure}/{count}": 0.0 for look in _LOOKS for figure in _FIGURES for count in counts}
        sums["loss"] = 0.0
        rows = [mine[:4]]
        for count in counts:
            deviations: dict[str, list[np.ndarray]] = {look: [] for look in ("", *_LOOKS)}
            for start in range(0, len(mine), 8):
                originals = mine[start : start + 8]
                images = originals.to(nano.device).float() / 255
                tokens = nano.encode(images, count, _VALIDATION_EFFORT)
                deviations[""] += map(texture.deviations, arrays(originals))
                for look in _LOOKS:
                    made = nano.decode(tokens, look).float().clamp(0, 1)
                    pictures = to_bytes(made).cpu()
                    rows += [pictures[:4]] if start == 0 else []
                    features = float(self._distance(made, images).sum())
                    sums[f"{look}_features/{count}"] += features
                    if look == NATURAL:
                        errors = float(torch.stack(list(self._errors(made, images).values())).sum()) * len(images)
                        sums["loss"] += (errors + self.settings.features * features) / len(counts)
                    for original, picture in zip(arrays(originals), arrays(pictures), strict=True):
                        sums[f"{look}_psnr/{count}"] += psnr(original, picture)
                        sums[f"{look}_means/{count}"] += texture.mean_psnr(original, picture) or 0.0
                        deviations[look].append(texture.deviations(picture))
            for look in _LOOKS if len(mine) else ():
                pair = np.concatenate(deviations[""]), np.concatenate(deviations[look])
                # Ratios of this process's pictures, weighted by their number; 0 where no block is smooth.
                sums[f"{look}_smooth/{count}"] += len(mine) * (texture.smooth_ratio(*pair) or 0.0)
                sums[f"{look}_busy/{count}"] += len(mine) * (texture.busy_ratio(*pair) or 0.0)
        means = {name: value / len(squares) for name, value in group.sum(sums, nano.device).items()}
        for count, figure in itertools.product(counts, ("psnr", "means")):
            faithful, natural = (means.pop(f"{look}_{figure}/{count}") for look in _LOOKS)
            means[f"{figure}_lost/{count}"] = faithful - natural
            if figure == "psnr":
                means[f"psnr/{count}"] = natural
        return means, torch.cat([torch.cat([*row, row.new_zeros(3, row.shape[2], 0)], 2) for row in rows], 1)


def _with_generator(tokenizer: Tokenizer) -> NanoTokenizer:
    if not isinstance(tokenizer, NanoTokenizer) or NATURAL not in tokenizer.info.looks:
        raise WeightsError("the natural look is trained in a nano that has its generator")
    return tokenizer


def _texture(output: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """By how much luma of [B, 3, S, S] varies too much in smooth blocks, in their highest deviation, and by which part
    too little in busy ones (`titokc.judge.texture`), 0 to 1."""
    found, wanted = (_deviations(each) for each in (output, images))
    smooth, busy = wanted < texture.SMOOTH, wanted > _BUSY
    excess = F.relu(found - wanted)[smooth].sum() / texture.SMOOTH
    lack = (F.relu(wanted - found) / wanted)[busy].sum()
    return excess / smooth.sum().clamp_min(_BLOCKS), lack / busy.sum().clamp_min(_BLOCKS)


def _deviations(images: Tensor) -> Tensor:
    """`titokc.judge.texture.deviations` of [B, 3, S, S] in [0, 1], with a gradient: [B, S / 16, S / 16]."""
    luma = 255 * torch.einsum("bchw,c->bhw", images - 0.5, images.new_tensor(texture.LUMA))[:, None]
    variances = F.avg_pool2d(luma.square(), texture.SIDE) - F.avg_pool2d(luma, texture.SIDE).square()
    return variances.clamp_min(0.01).sqrt()[:, 0]


def _noise(count: int, channels: int, side: int, like: Tensor) -> Tensor:
    """Uniform, of standard deviation 1, as decoding draws it."""
    return math.sqrt(3) * (2 * torch.rand(count, channels, side, side, device=like.device) - 1)


def _integer(below: int) -> int:
    return int(torch.randint(below, ()))


def _shifted(side: int, most: int) -> Callable[[Tensor], Tensor]:
    """Cuts `most` pixels from maps [B, C, side, side], at all sides together, the same ones of each."""
    top, left = _integer(most), _integer(most)
    rows, columns = slice(top, top + side - most), slice(left, left + side - most)
    return lambda images: images[:, :, rows, columns]


def _shifted_and_scaled(side: int) -> Callable[[Tensor], Tensor]:
    shift, scale = _shifted(side, _FEATURE_SHIFT), _SCALES[_integer(len(_SCALES))]
    size = int((side - _FEATURE_SHIFT) * scale)

    def seen(images: Tensor) -> Tensor:
        scaled = F.interpolate(shift(images), (size, size), mode="bilinear", align_corners=False)
        return scaled.contiguous(memory_format=torch.channels_last)

    return seen
