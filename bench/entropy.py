"""How many of its bits a token of nano would take if tokens were entropy-coded.

python bench/entropy.py DATA [--model PATH] [--pictures 8192] [--minutes 15] [--searched 100]

Prints mean bits of the first 32, 64, 96 and 128 tokens on DATA's val-1k.tar. No own frequencies take less than Renyi's
entropy of order 2, which follows without bias from how often two pictures have the same entry. The others are
cross-entropies of what is fitted to crops of the photographs in DATA's train-hr*.tar (nearest tokens):

entries  a function of an entry's numbers and the token's place
state    it also sees which coefficients the token refines, their levels, and how often they were coded
values   and what a network that sees all values known so far says of them
"""

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from quantizer import crops, pictures, spectrum
from torch import Tensor, nn

from titokc import imaging, weights
from titokc.models.nano.code import AdaptiveResidualVQ
from titokc.models.nano.code_numpy import ENTRY
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.options import DEFAULT_EFFORT

COUNTS, BATCH, MODELS = (32, 64, 96, 128), 256, ("entries", "state", "values")


class Codes(NamedTuple):
    """Indices [N, K]; the coefficients that each token refines, their levels, its entry: [N, K, T]."""

    indices: Tensor
    chosen: Tensor
    levels: Tensor
    entries: Tensor


@torch.no_grad()
def code(quantizer: AdaptiveResidualVQ, coefficients: Tensor, kept: Tensor | None = None) -> Codes:
    """float [N, C] -> their nearest tokens, or those `kept`, [N, k], with what both sides know at each."""
    parts, network, total = [], quantizer.network(), len(quantizer.codebooks) if kept is None else kept.shape[1]
    for rows in torch.arange(len(coefficients)).split(BATCH):
        known, tokens = quantizer.start(len(rows)), []
        wanted = coefficients[rows].float() / quantizer.unit
        for token in range(total):
            quantizer.predict(known, token, network)
            chosen, steps = quantizer.choose(known)
            indices, entries = quantizer.nearest((wanted - known.values).gather(1, chosen) / steps, steps, token)
            if kept is not None:
                indices, entries = kept[rows, token], quantizer.codebooks[token].T[kept[rows, token]].float()
            tokens.append((indices.short(), chosen.short(), known.levels.gather(1, chosen).byte(), entries.char()))
            quantizer.update(known, token, chosen, entries * steps)
        parts.append([torch.stack(each, 1) for each in zip(*tokens, strict=True)])
    return Codes(*(torch.cat(each) for each in zip(*parts, strict=True)))


class Prior(nn.Module):
    """Log-probabilities of a token's entries, but for a constant."""

    def __init__(self, quantizer: AdaptiveResidualVQ, kind: str) -> None:
        super().__init__()
        self.quantizer, self.kind = quantizer, MODELS.index(kind)
        size, count = quantizer.codebooks.shape[1], len(quantizer.base)
        self.place = nn.Embedding(count, 4)
        self.hidden = nn.Linear(2 * count, 256)
        self.told = nn.Embedding(count, 2 * 256)
        nn.init.normal_(self.told.weight, std=0.01)
        self.state = nn.Sequential(nn.Linear(1 + (0, 8, 12)[self.kind] * size, 128), nn.ReLU())
        self.state.append(last := nn.Linear(128, 2 * size + 32))
        nn.init.zeros_(last.weight)
        self.entry = nn.Sequential(nn.Linear(2 * size, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, codes: Codes, rows: Tensor, token: int) -> Tensor:
        """[B, V] for these rows of the codes, before this token."""
        entries = self.quantizer.codebooks[token].T / ENTRY
        entries = torch.cat([entries, entries.square()], 1)
        return self.state(self._seen(codes, rows, token)) @ torch.cat([entries, self.entry(entries)], 1).T

    def _seen(self, codes: Codes, rows: Tensor, token: int) -> Tensor:
        chosen, level = codes.chosen[rows, token].long(), codes.levels[rows, token].float()
        prior = self.quantizer.prior()
        earlier = codes.chosen[rows, :token].long().flatten(1)
        steps, zeros = self.quantizer.steps[codes.levels[rows, :token].long()], torch.zeros(len(rows), len(prior))
        values = zeros.scatter_add(1, earlier, (codes.entries[rows, :token] * steps).flatten(1))
        times = zeros.scatter_add(1, earlier, torch.ones_like(earlier, dtype=torch.float32)).gather(1, chosen)
        seen = [torch.full((len(rows), 1), token / len(self.quantizer.codebooks))]
        if self.kind:
            seen += [(level - level[:, :1]) / 8, (level - self.quantizer.base[chosen]) / 8, times, times.clamp(max=1)]
            seen.append(self.place(chosen).flatten(1))
        if self.kind > 1:
            unit, roots = self.quantizer.steps[level.long()] * ENTRY, (values / prior).abs().sqrt()
            hidden = F.relu(self.hidden(torch.cat([values.sign() * roots, roots], 1)))
            told = (self.told(chosen).unflatten(2, (2, 256)) * hidden[:, None, None]).sum(3)
            own, mean = values.gather(1, chosen) / unit, told[..., 0] * prior[chosen] / unit
            seen += [mean.clamp(-9, 9), told[..., 1], own.clamp(-9, 9), own.abs().clamp(max=9).sqrt()]
        return torch.cat(seen, 1)


def fit(prior: Prior, codes: Codes, seconds: float) -> None:
    """AdamW, for so long."""
    optimizer, start = torch.optim.AdamW(prior.parameters(), 2e-3, weight_decay=0.01), time.process_time()
    draw = torch.Generator().manual_seed(0)
    while (spent := time.process_time() - start) < seconds:
        token = int(torch.randint(codes.indices.shape[1], (), generator=draw))
        rows = torch.randint(len(codes.indices), (BATCH,), generator=draw)
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - spent / seconds)
        optimizer.zero_grad()
        F.cross_entropy(prior(codes, rows, token), codes.indices[rows, token].long()).backward()
        optimizer.step()


def least(codes: Codes, entries: int) -> str:
    """Renyi's entropy."""
    counts = torch.stack([torch.bincount(indices.long(), minlength=entries) for indices in codes.indices.T]).double()
    same = (counts * (counts - 1)).sum(1) / len(codes.indices) / (len(codes.indices) - 1)
    return ", ".join(f"{count}: {-math.log2(same[:count].mean()):.3f}" for count in COUNTS if count <= len(same))


@torch.no_grad()
def bits(prior: Prior, codes: Codes) -> str:
    """Means of the first tokens, and their share of what they take now."""
    rows, entries = torch.arange(len(codes.indices)), prior.quantizer.codebooks.shape[2]
    taken = [float(F.cross_entropy(prior(codes, rows, at), own.long())) for at, own in enumerate(codes.indices.T)]
    means = {count: sum(taken[:count]) / count for count in COUNTS if count <= len(taken)}
    return ", ".join(f"{n}: {nats / math.log(2):.3f} ({nats / math.log(entries):.1%})" for n, nats in means.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pictures", type=int, default=8192)
    parser.add_argument("--minutes", type=float, default=15, help="of processor time for each network")
    parser.add_argument("--searched", type=int, default=100, help="pictures to code with the default effort as well")
    given = parser.parse_args()
    nano = weights.load(given.model)
    assert isinstance(nano, NanoTokenizer)
    quantizer, coded = nano.quantizer, nano.coded.long()
    images = map(Image.fromarray, pictures(given.data / "val-1k.tar"))
    squares = [np.array(imaging.centre_square(image, 256)) for image in images]
    tests = {"nearest": code(quantizer, torch.stack([spectrum(pixels).flatten()[coded] for pixels in squares]))}
    print("own frequencies, at least:", least(tests["nearest"], nano.info.codebook_size), flush=True)
    found = torch.stack([torch.from_numpy(pixels) for pixels in squares[: given.searched]]).permute(0, 3, 1, 2) / 255
    for count in [count for count in COUNTS if given.searched and count <= nano.info.max_tokens]:
        indices = torch.cat([nano.encode(part, count, DEFAULT_EFFORT) for part in found.split(10)])
        tests[f"searched at {count}"] = code(quantizer, torch.zeros(len(found), len(coded)), indices)
    codes = code(quantizer, crops(given.data / "train-hr*.tar", given.pictures, 0.7)[:, coded])
    for kind in MODELS:
        prior = Prior(quantizer, kind)
        fit(prior, codes, 60 * given.minutes)
        for name, test in tests.items():
            print(f"{kind}, {name}: {bits(prior, test)}", flush=True)


if __name__ == "__main__":
    main()
