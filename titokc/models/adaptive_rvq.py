"""Residual vector quantisation whose tokens choose what they refine, the quantiser of `titokc.models.nano`.

A token refines the T coefficients that are probably most wrong after the tokens before it. How wrong each one probably
is follows from those tokens alone: a small network looks at the coefficients that are known and tells the spread of the
others (a picture with strong upright edges has more of them, a grey one has no colour). So a busy picture and a smooth
one, a grey one and a colourful one spend their tokens differently, and no bit tells which is which.

Encoder and decoder must choose alike on every machine. So whatever a choice depends on is an integer held in float32,
far below 2^24: sums of such are exact in any order. Only the search for the nearest entry is real arithmetic.

Idea: backward adaptation (C. Chrysafis, A. Ortega, "Efficient context-based entropy coding for lossy wavelet image
compression", 1997) for fixed-length tokens; residual codebooks that depend on what is decoded: arXiv 2401.14732.

Shapes: B pictures, C coefficients that can be coded, K tokens, T coefficients a token, V codebook entries, H hidden.
Levels: log2 of a spread in eighths, from 0 to 96. A spread at level 0 is 2^6 units of the integer values.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.errors import UsageError
from titokc.models.blocks import full_precision

_LEVELS = 96
_UNIT_BITS = 6
# Codebook entries are in sixteenths of the spread, so that they fit into 8 bits.
_ENTRY = 16
_STEPS = [round(2**_UNIT_BITS / _ENTRY * 2 ** (level / 8)) for level in range(_LEVELS + 1)]
# What the network sees of a coefficient of |x| twelfths of its usual spread: the square root, centred.
_SEEN = 12
_EVIDENCE = [round(8 * (math.sqrt(x / _SEEN) - 0.75)) for x in range(128)]
# Fractional bits of what the network sees, of its hidden values, and of the levels it tells.
_INPUT_BITS, _HIDDEN_BITS, _LEVEL_BITS = 3, 4, 3
# How far a token of 12 bits for 8 coefficients lowers their levels, about: fits start from it.
_DROP = -11
# Pictures at a time while fitting. On a CPU their distances to all entries stay in the cache.
_PART_ON_CPU, _PART = 256, 8192

# Shows how far a loop is.
Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass
class Known:
    """What the tokens so far say: values float32 [B, C] (integers), levels float32 [B, C] (integers) of the errors that
    are left, coded bool [B, C]."""

    values: Tensor
    levels: Tensor
    coded: Tensor

    def __getitem__(self, rows: slice) -> "Known":
        """The same of some pictures; what changes there changes here."""
        return Known(self.values[rows], self.levels[rows], self.coded[rows])


class _Network(NamedTuple):
    """The network's integers as float32. What a layer sums up is divided by its scale and rounded down."""

    usual: Tensor
    into: Tensor
    into_bias: Tensor
    into_scale: Tensor
    out: Tensor
    out_bias: Tensor
    out_scale: Tensor


class AdaptiveResidualVQ(nn.Module):
    """Coefficients [B, C] <-> indices [B, k], k <= K.

    refresh: the network looks anew before every `refresh`-th token.
    """

    def __init__(
        self, coefficients: int, tokens: int, token_size: int, entries: int, hidden: int, refresh: int
    ) -> None:
        super().__init__()
        if 127 * max(_EVIDENCE) * coefficients >= 2**24 or 127 * 127 * hidden >= 2**24:
            raise UsageError(f"{coefficients} coefficients, {hidden} hidden: sums would not be exact in float32")
        self.refresh = refresh
        self.register_buffer("codebooks", torch.zeros(tokens, token_size, entries, dtype=torch.int8))
        self.register_buffer("drops", torch.full((tokens, token_size), _DROP, dtype=torch.int32))
        self.register_buffer("base", torch.zeros(coefficients, dtype=torch.int32))
        self.register_buffer("unit", torch.ones(1))
        self.register_buffer("into", torch.zeros(hidden, coefficients, dtype=torch.int8))
        self.register_buffer("into_bias", torch.zeros(hidden, dtype=torch.int32))
        self.register_buffer("out", torch.zeros(coefficients, hidden, dtype=torch.int8))
        self.register_buffer("out_bias", torch.zeros(coefficients, dtype=torch.int32))
        self.register_buffer("shifts", torch.zeros(2, dtype=torch.int32))
        self.register_buffer("steps", torch.tensor(_STEPS, dtype=torch.float32), persistent=False)
        self.register_buffer("evidence", torch.tensor(_EVIDENCE, dtype=torch.float32), persistent=False)

    codebooks: Tensor
    drops: Tensor
    base: Tensor
    unit: Tensor
    into: Tensor
    into_bias: Tensor
    out: Tensor
    out_bias: Tensor
    shifts: Tensor
    steps: Tensor
    evidence: Tensor

    # ---- what both sides know

    def nothing(self, rows: int) -> Known:
        """Before the first token."""
        base = self.base.float().clamp(0, _LEVELS).expand(rows, -1)
        return Known(torch.zeros_like(base), base.clone(), torch.zeros_like(base, dtype=torch.bool))

    def network(self) -> _Network:
        """For `guess`: made once for many tokens."""
        into, out = ((w.float(), b.float()) for w, b in ((self.into, self.into_bias), (self.out, self.out_bias)))
        return _Network(self._usual(), *into, _power(self.shifts[0]), *out, _power(self.shifts[1]))

    def guess(self, known: Known, token: int, network: _Network) -> None:
        """Before token number `token`, if the network is to look anew: sets the levels of what is not known."""
        if not token or token % self.refresh:
            return
        hidden = F.linear(self._look(known, network.usual), network.into, network.into_bias)
        hidden = (hidden / network.into_scale).floor().clamp(0, 127)
        changes = (F.linear(hidden, network.out, network.out_bias) / network.out_scale).floor()
        levels = (self.base + changes).clamp(0, _LEVELS)
        known.levels.copy_(torch.where(known.coded, known.levels, levels))

    def _look(self, known: Known, usual: Tensor) -> Tensor:
        """What the network sees: integers [B, C], 0 for coefficients that are not known."""
        seen = (known.values.abs() * _SEEN / usual).floor().clamp(max=127)
        return torch.where(known.coded, self.evidence[seen.long()], 0)

    def _usual(self) -> Tensor:
        """The spread of each coefficient over all pictures, rounded down to a power of two."""
        return _power(self.base // 8 + _UNIT_BITS)

    def choose(self, known: Known) -> tuple[Tensor, Tensor]:
        """The coefficients that the next token refines, int64 [B, T], most wrong first, and a step of each, [B, T]."""
        count = known.levels.shape[1]
        order = known.levels * count - torch.arange(count, device=known.levels.device)
        chosen = order.topk(self.codebooks.shape[1], dim=1).indices
        return chosen, self.steps[known.levels.gather(1, chosen).long()]

    def learn(self, known: Known, token: int, chosen: Tensor, changes: Tensor) -> None:
        """Adds what a token says, integers [B, T], about the coefficients `chosen` [B, T]."""
        known.values.scatter_add_(1, chosen, changes)
        left = known.levels.gather(1, chosen) + self.drops[token]
        known.levels.scatter_(1, chosen, left.clamp(0, _LEVELS))
        known.coded.scatter_(1, chosen, True)

    # ---- coding

    @torch.no_grad()
    def assign(self, coefficients: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, C] and the tokens to make of each, [B] -> indices [B, max(counts)] (0 beyond a row's count) and
        the quantised coefficients [B, C]."""
        order = counts.argsort(descending=True, stable=True)
        wanted, descending = coefficients[order] / self.unit, counts[order].cpu()
        indices = torch.zeros(len(order), int(descending[0]), dtype=torch.int64, device=wanted.device)
        with full_precision(coefficients.device):
            whole, network = self.nothing(len(order)), self.network()
            for token in range(indices.shape[1]):
                rows = int((descending > token).sum())
                known = whole[:rows]
                self.guess(known, token, network)
                chosen, steps = self.choose(known)
                residual = (wanted[:rows] - known.values).gather(1, chosen)
                indices[:rows, token], entries = self.nearest(residual / steps, steps, token)
                self.learn(known, token, chosen, entries * steps)
        back = order.argsort()
        return indices[back], whole.values[back] * self.unit

    @torch.no_grad()
    def lookup(self, indices: Tensor) -> Tensor:
        """Indices [B, k] -> coefficients [B, C]."""
        with full_precision(indices.device):
            known, network = self.nothing(len(indices)), self.network()
            for token in range(indices.shape[1]):
                self.guess(known, token, network)
                chosen, steps = self.choose(known)
                self.learn(known, token, chosen, self.codebooks[token].T[indices[:, token]] * steps)
        return known.values * self.unit

    def nearest(self, residual: Tensor, steps: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """What is left of a token's coefficients [B, T], in steps -> indices [B] of the entries that leave the least
        squared error, and those [B, T]."""
        codebook = self.codebooks[token].float()
        indices = _nearest(residual, (steps / steps[:, :1]).square(), codebook)
        return indices, codebook.T[indices]

    # ---- fitting

    @torch.no_grad()
    def fit(self, samples: Tensor, rate: float = 1e-3, progress: Progress = iter) -> None:
        """Makes network (AdamW at `rate`) and codebooks for samples [N, C]; `progress` wraps the loops."""
        spread = samples.square().mean(0).sqrt()
        # Two octaves are left above the largest spread: pictures of far more contrast than usual exist.
        top = _LEVELS - 16
        self.unit.fill_(float(spread.max()) / 2 ** (top / 8 + _UNIT_BITS))
        self.base.copy_((8 * torch.log2(spread / self.unit) - 8 * _UNIT_BITS).round().clamp(0, top))
        samples = samples / self.unit
        if len(self.codebooks) > self.refresh:
            self._fit_network(samples, rate, progress)
        self._fit_codebooks(samples, progress)

    def _fit_network(self, samples: Tensor, rate: float, progress: Progress, batch: int = 256) -> None:
        """Trains the network on codes whose errors are drawn at random, as large as those of a code, and rounds it."""
        hidden, count = self.into.shape
        into = nn.Linear(count, hidden).to(samples.device)
        out = nn.Linear(hidden, count).to(samples.device)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        parameters = [*into.parameters(), *out.parameters()]
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.01)
        looks = range(self.refresh, len(self.codebooks), self.refresh)
        usual = self._usual()
        batches = min(128, math.ceil(len(samples) / batch))
        total, done = batches * len(looks), 0
        for rows in progress(torch.randperm(len(samples))[: batch * batches].split(batch)):
            wanted, known = samples[rows], self.nothing(len(rows))
            for token in range(len(self.codebooks)):
                if token in looks:
                    with torch.enable_grad():
                        seen = self._look(known, usual) / 2**_INPUT_BITS
                        changes = out(F.relu(into(seen)).clamp(max=128 / 2**_HIDDEN_BITS))
                        spreads = math.log(2) * (self.base / 8 + changes + _UNIT_BITS)
                        # The negative log-likelihood of normal coefficients.
                        losses = spreads + 0.5 * (wanted * torch.exp(-spreads)).square()
                        unknown = ~known.coded
                        loss = (losses * unknown).sum() / unknown.sum()
                    optimizer.zero_grad()
                    loss.backward()
                    for group in optimizer.param_groups:
                        group["lr"] = rate * (1 - done / total)
                    optimizer.step()
                    done += 1
                    levels = (self.base + 8 * changes.detach()).round().clamp(0, _LEVELS)
                    known.levels = torch.where(known.coded, known.levels, levels)
                chosen, steps = self.choose(known)
                residual = (wanted - known.values).gather(1, chosen)
                keep = 1 - 4 ** (_DROP / 8)
                noise = torch.randn_like(residual) * math.sqrt(keep * (1 - keep)) * _ENTRY * steps
                self.learn(known, token, chosen, (keep * residual + noise).round())
        self._round(into, out)

    def _round(self, into: nn.Linear, out: nn.Linear) -> None:
        """Puts the network into 8-bit weights, each layer's with as many fractional bits as they have room for."""
        fractions = []
        for layer, weight, bias, before, after in (
            (into, self.into, self.into_bias, _INPUT_BITS, _HIDDEN_BITS),
            (out, self.out, self.out_bias, _HIDDEN_BITS, _LEVEL_BITS),
        ):
            largest = float(layer.weight.detach().abs().max())
            bits = min(max(math.floor(math.log2(127 / max(largest, 1e-3))), 2), 10)
            weight.copy_((layer.weight * 2**bits).round().clamp(-127, 127))
            bias.copy_((layer.bias * 2 ** (bits + before)).round())
            fractions.append(bits + before - after)
        self.shifts.copy_(torch.tensor(fractions))
        # With half a level more, rounding down becomes rounding to the nearest.
        self.out_bias += 2 ** (fractions[1] - 1)

    def _fit_codebooks(self, samples: Tensor, progress: Progress, rounds: int = 5) -> None:
        """k-means for one token after the other, on what the tokens before leave of the samples, in integer units.

        A picture counts as much as its error is small, so that a decibel is worth the same in all of them.
        """
        whole, error = self.nothing(len(samples)), samples.square().sum(1)
        size = _part(samples)
        parts = [slice(at, at + size) for at in range(0, len(samples), size)]
        network = self.network()
        for token in progress(range(len(self.codebooks))):
            choices = []
            for part in parts:
                self.guess(whole[part], token, network)
                choices.append(self.choose(whole[part]))
            chosen, steps = (torch.cat(both) for both in zip(*choices, strict=True))
            residual = (samples.gather(1, chosen) - whole.values.gather(1, chosen)) / steps
            weights = steps.square() / (error + error.mean())[:, None]
            codebook = residual[weights.mean(1).multinomial(self.codebooks.shape[2])].T
            for turn in range(rounds):
                # The early rounds only have to spread the entries: a quarter of the samples does.
                some = slice(None) if turn >= rounds - 2 else torch.randperm(len(residual))[: len(residual) // 4]
                codebook = _lloyd(codebook, residual[some], weights[some])
            self.codebooks[token] = codebook.round().clamp(-127, 127)
            entries = torch.cat([self.nearest(residual[part], steps[part], token)[1] for part in parts])
            left = residual - entries
            error += ((left.square() - residual.square()) * steps.square()).sum(1)
            spread = ((left.square() * weights).sum(0) / weights.sum(0)).sqrt() / _ENTRY
            self.drops[token] = (8 * torch.log2(spread.clamp(min=1e-3))).round()
            self.learn(whole, token, chosen, entries * steps)


def _part(samples: Tensor) -> int:
    return _PART_ON_CPU if samples.device.type == "cpu" else _PART


def _power(exponents: Tensor) -> Tensor:
    """2 to the exponents, exactly: division by it is exact too."""
    return (torch.ones_like(exponents) << exponents).float()


def _nearest(residual: Tensor, weights: Tensor, codebook: Tensor) -> Tensor:
    """For residual [B, T] the entries of codebook [T, V] with the least squared error, weighted by [B, T]: [B]."""
    scores = torch.cat([weights, -2 * weights * residual], 1) @ torch.cat([codebook.square(), codebook])
    # On the CPU NumPy's arg-min is five times faster than torch's, and this is what fitting spends its time on.
    return torch.from_numpy(scores.numpy().argmin(1)) if scores.device.type == "cpu" else scores.argmin(1)


def _lloyd(codebook: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """One round of k-means on points [N, T] with weights [N, T]; empty entries become random points."""
    entries = codebook.shape[1]
    size = _part(points)
    pairs = zip(points.split(size), weights.split(size), strict=True)
    indices = torch.cat([_nearest(p, w / w.amax(1, keepdim=True), codebook) for p, w in pairs])
    total = torch.zeros_like(codebook.T).index_add_(0, indices, points * weights)
    weight = torch.zeros_like(total).index_add_(0, indices, weights)
    means = total / weight.clamp(min=1e-30)
    empty = torch.bincount(indices, minlength=entries) == 0
    means[empty] = points[torch.randint(len(points), (int(empty.sum()),))]
    return means.T.contiguous()
