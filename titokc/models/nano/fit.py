"""How nano's quantiser is made for training images: a network by gradient descent, then codebooks by k-means.

`titokc.models.nano.code` uses what is made here. Everything random follows from the step it is drawn for, so a fit that
goes on where it stopped ends as one that never did.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from titokc.models.nano.code import DROP, AdaptiveResidualVQ, nearest
from titokc.models.nano.code_numpy import ENTRY, LEVELS, UNIT_BITS

# Fractional bits of what the network sees, of its hidden values, and of the levels it tells.
_INPUT_BITS, _HIDDEN_BITS, _LEVEL_BITS = 3, 4, 3
# Pictures at a time. On a CPU their distances to all entries stay in the cache.
_PART_ON_CPU, _PART = 256, 8192


@torch.no_grad()
def fit_quantizer(quantizer: AdaptiveResidualVQ, samples: Tensor, done: int = 0, rate: float = 1e-3) -> Iterator[int]:
    """Makes the quantiser for samples [N, C]: step 1 is the network (AdamW at `rate`), and each further one a token.

    Yields the number of steps done as it goes on: with the same samples and what the quantiser then holds, `done` steps
    need not be done again. K + 1 steps in all.
    """
    if not done:
        spread = samples.square().mean(0).sqrt()
        # Two octaves are left above the largest spread: pictures of far more contrast than usual exist.
        top = LEVELS - 16
        quantizer.unit.fill_(float(spread.max()) / 2 ** (top / 8 + UNIT_BITS))
        quantizer.base.copy_((8 * torch.log2(spread / quantizer.unit) - 8 * UNIT_BITS).round().clamp(0, top))
    samples = samples / quantizer.unit
    if not done:
        if len(quantizer.codebooks) > quantizer.refresh:
            yield from _fit_network(quantizer, samples, rate)
        yield 1
    yield from _fit_codebooks(quantizer, samples, done - 1 if done else 0)


def _fit_network(quantizer: AdaptiveResidualVQ, samples: Tensor, rate: float, batch: int = 256) -> Iterator[int]:
    """Trains the network on codes whose errors are drawn at random, as large as those of a code, and rounds it; yields
    0 after every batch."""
    hidden, count = quantizer.into.shape
    device, draw = samples.device, _generator(samples.device, 0)
    bound = count**-0.5
    into = torch.empty(hidden, count, device=device).uniform_(-bound, bound, generator=draw)
    into_bias = torch.empty(hidden, device=device).uniform_(-bound, bound, generator=draw)
    out, out_bias = torch.zeros(count, hidden, device=device), torch.zeros(count, device=device)
    parameters = [tensor.requires_grad_() for tensor in (into, into_bias, out, out_bias)]
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.01)
    looks = range(quantizer.refresh, len(quantizer.codebooks), quantizer.refresh)
    prior = quantizer.prior()
    batches = min(128, math.ceil(len(samples) / batch))
    total, done = batches * len(looks), 0
    for rows in torch.randperm(len(samples), generator=draw, device=device)[: batch * batches].split(batch):
        wanted, known = samples[rows], quantizer.start(len(rows))
        for token in range(len(quantizer.codebooks)):
            if token in looks:
                with torch.enable_grad():
                    seen = quantizer.look(known, prior) / 2**_INPUT_BITS
                    changes = F.linear(F.linear(seen, into, into_bias).clamp(0, 128 / 2**_HIDDEN_BITS), out, out_bias)
                    spreads = math.log(2) * (quantizer.base / 8 + changes + UNIT_BITS)
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
                levels = (quantizer.base + 8 * changes.detach()).round().clamp(0, LEVELS)
                known.levels = torch.where(known.coded, known.levels, levels)
            chosen, steps = quantizer.choose(known)
            residual = (wanted - known.values).gather(1, chosen)
            keep = 1 - 4 ** (DROP / 8)
            noise = torch.randn(residual.shape, generator=draw, device=device) * math.sqrt(keep * (1 - keep))
            quantizer.update(known, token, chosen, (keep * residual + noise * ENTRY * steps).round())
        yield 0
    into_bits = _round(into, into_bias, quantizer.into, quantizer.into_bias, _INPUT_BITS) - _HIDDEN_BITS
    out_bits = _round(out, out_bias, quantizer.out, quantizer.out_bias, _HIDDEN_BITS) - _LEVEL_BITS
    quantizer.shifts.copy_(torch.tensor([into_bits, out_bits]))
    # With half a level more, rounding down becomes rounding to the nearest.
    quantizer.out_bias += 2 ** (out_bits - 1)


def _round(weight: Tensor, bias: Tensor, weight_to: Tensor, bias_to: Tensor, before: int) -> int:
    """Puts a layer into 8-bit weights of as many fractional bits as they have room for; says how many fractional bits
    its sums then have, for inputs of `before`."""
    bits = min(max(math.floor(math.log2(127 / max(float(weight.abs().max()), 1e-3))), 2), 10)
    weight_to.copy_((weight * 2**bits).round().clamp(-127, 127))
    bias_to.copy_((bias * 2 ** (bits + before)).round())
    return bits + before


def _fit_codebooks(quantizer: AdaptiveResidualVQ, samples: Tensor, made: int, rounds: int = 5) -> Iterator[int]:
    """k-means for one token after the other, on what the tokens before leave of the samples, in integer units; the
    first `made` tokens are taken as they are. Yields the steps done.

    A picture counts as much as its error is small, so that a decibel is worth the same in all of them.
    """
    whole, error = quantizer.start(len(samples)), samples.square().sum(1)
    size = _part(samples)
    parts = [slice(at, at + size) for at in range(0, len(samples), size)]
    network = quantizer.network()
    for token in range(len(quantizer.codebooks)):
        choices = []
        for part in parts:
            quantizer.predict(whole[part], token, network)
            choices.append(quantizer.choose(whole[part]))
        chosen, steps = (torch.cat(both) for both in zip(*choices, strict=True))
        residual = (samples.gather(1, chosen) - whole.values.gather(1, chosen)) / steps
        weights = steps.square() / (error + error.mean())[:, None]
        if token >= made:
            # Before the network's first look all pictures choose alike, and the signs of one depend on each other.
            symmetric = token >= quantizer.refresh
            quantizer.codebooks[token] = _means(
                residual, weights, quantizer.codebooks.shape[2], rounds, token, symmetric
            )
        entries = torch.cat([quantizer.nearest(residual[part], steps[part], token)[1] for part in parts])
        left = residual - entries
        error += ((left.square() - residual.square()) * steps.square()).sum(1)
        if token >= made:
            spread = ((left.square() * weights).sum(0) / weights.sum(0)).sqrt() / ENTRY
            quantizer.drops[token] = (8 * torch.log2(spread.clamp(min=1e-3))).round()
        quantizer.update(whole, token, chosen, entries * steps)
        yield 1 + max(made, token + 1)


def _means(points: Tensor, weights: Tensor, entries: int, rounds: int, seed: int, symmetric: bool) -> Tensor:
    """Weighted k-means of points [N, T] with weights [N, T], rounded to integers [T, V].

    symmetric: every sign of a coordinate is as likely as the other, so each round draws them anew, which is worth
    several times the points."""
    draw = _generator(points.device, 1 + seed)
    codebook = points[weights.mean(1).multinomial(entries, generator=draw)].T
    for turn in range(rounds):
        # The early rounds only have to spread the entries: a quarter of the samples does.
        order = torch.randperm(len(points), generator=draw, device=points.device)
        some = slice(None) if turn >= rounds - 2 else order[: len(points) // 4]
        seen = points[some]
        if symmetric:
            seen = seen * (1 - 2 * torch.randint(2, seen.shape, generator=draw, device=seen.device))
        codebook = _lloyd(codebook, seen, weights[some], draw)
    return codebook.round().clamp(-127, 127)


def _lloyd(codebook: Tensor, points: Tensor, weights: Tensor, draw: torch.Generator) -> Tensor:
    """One round of k-means on points [N, T] with weights [N, T]; empty entries become random points."""
    entries = codebook.shape[1]
    size = _part(points)
    pairs = zip(points.split(size), weights.split(size), strict=True)
    indices = torch.cat([nearest(p, w / w.amax(1, keepdim=True), codebook) for p, w in pairs])
    total = torch.zeros_like(codebook.T).index_add_(0, indices, points * weights)
    weight = torch.zeros_like(total).index_add_(0, indices, weights)
    means = total / weight.clamp(min=1e-30)
    empty = torch.bincount(indices, minlength=entries) == 0
    means[empty] = points[torch.randint(len(points), (int(empty.sum()),), generator=draw, device=points.device)]
    return means.T.contiguous()


def _part(samples: Tensor) -> int:
    return _PART_ON_CPU if samples.device.type == "cpu" else _PART


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)
