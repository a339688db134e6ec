"""nano's code: residual vector quantisation whose tokens choose what they refine, in integers.

A token refines the T coefficients that are probably most wrong after the tokens before it. How wrong each one probably
is follows from those tokens alone: a small network looks at the coefficients that are known and tells the spread of the
others (a picture with strong upright edges has more of them, a grey one has no colour). So a busy picture and a smooth
one, a grey one and a colourful one spend their tokens differently, and no bit tells which is which.

Of a picture's coefficients x both sides know the values v and the levels l of the errors x - v that are left, all
integers. Token k, with the codebook B_k [T, V] and the drops D_k [T], refines the coefficients c_1 ... c_T:

    c_1 ... c_T = the T highest levels l, the first of equal ones             s_t = STEPS[l_c_t]           (choose)
    i = argmin over V of  sum over t of (s_t / s_1)^2 (r_t - B_k[t, i])^2,    r_t = (x_c_t - v_c_t) / s_t  (nearest)
    v_c_t <- v_c_t + s_t B_k[t, i],                                           l_c_t <- l_c_t + D_k[t]      (update)

and before every `refresh`-th token the network tells l of all coefficients that no token has touched (predict).

    x - v ──> residual r ──> nearest ──> index i ──────────> file ──────────> index i
              ^                             │                                    │
        c, s  │                             v                                    v
    l ──> choose                         update ──> v, l                      update ──> v, l
    ^                                       │                                    │
    └──────────── predict <─────────────────┘            the same choose, predict and update

Encoder and decoder must choose alike on every machine. So whatever a choice depends on is an integer held in float32,
below 2^24: sums of such are exact in any order. Only `nearest` is real arithmetic. formats/nano-code.md specifies what
indices mean; `titokc.models.nano.fit` makes codebooks and network.

Idea: backward adaptation (C. Chrysafis, A. Ortega, "Efficient context-based entropy coding for lossy wavelet image
compression", 1997) for fixed-length tokens; residual codebooks that depend on what is decoded: arXiv 2401.14732.

Shapes: B pictures, C coefficients that can be coded, K tokens, T coefficients a token, V codebook entries, H hidden.
Levels: log2 of a spread in eighths, from 0 to 96. A spread at level 0 is 2^6 units of the integer values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titokc.errors import UsageError
from titokc.models.nano.code_numpy import EVIDENCE, LEVELS, SEEN, STEPS, UNIT_BITS
from titokc.models.precision import full_precision

# How far a token lowers the levels of its coefficients, about: fits start from it.
DROP = -11


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


class Network(NamedTuple):
    """The network's integers as float32. What a layer sums up is divided by its scale and rounded down."""

    prior: Tensor
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
        if 127 * EVIDENCE.max() * coefficients >= 2**24 or 127 * 127 * hidden >= 2**24:
            raise UsageError(f"{coefficients} coefficients, {hidden} hidden: sums would not be exact in float32")
        self.refresh = refresh
        self.register_buffer("codebooks", torch.zeros(tokens, token_size, entries, dtype=torch.int8))
        self.register_buffer("drops", torch.full((tokens, token_size), DROP, dtype=torch.int32))
        self.register_buffer("base", torch.zeros(coefficients, dtype=torch.int32))
        self.register_buffer("unit", torch.ones(1))
        self.register_buffer("into", torch.zeros(hidden, coefficients, dtype=torch.int8))
        self.register_buffer("into_bias", torch.zeros(hidden, dtype=torch.int32))
        self.register_buffer("out", torch.zeros(coefficients, hidden, dtype=torch.int8))
        self.register_buffer("out_bias", torch.zeros(coefficients, dtype=torch.int32))
        self.register_buffer("shifts", torch.zeros(2, dtype=torch.int32))
        self.register_buffer("steps", torch.tensor(STEPS), persistent=False)
        self.register_buffer("evidence", torch.tensor(EVIDENCE), persistent=False)

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

    def start(self, rows: int) -> Known:
        """Before the first token."""
        base = self.base.float().clamp(0, LEVELS).expand(rows, -1)
        return Known(torch.zeros_like(base), base.clone(), torch.zeros_like(base, dtype=torch.bool))

    def network(self) -> Network:
        """For `predict`: made once for many tokens."""
        into, out = ((w.float(), b.float()) for w, b in ((self.into, self.into_bias), (self.out, self.out_bias)))
        return Network(self.prior(), *into, power(self.shifts[0]), *out, power(self.shifts[1]))

    def predict(self, known: Known, token: int, network: Network) -> None:
        """Before token number `token`, if the network is to look anew: sets the levels of what is not known."""
        if not token or token % self.refresh:
            return
        hidden = F.linear(self.look(known, network.prior), network.into, network.into_bias)
        hidden = (hidden / network.into_scale).floor().clamp(0, 127)
        changes = (F.linear(hidden, network.out, network.out_bias) / network.out_scale).floor()
        levels = (self.base + changes).clamp(0, LEVELS)
        known.levels.copy_(torch.where(known.coded, known.levels, levels))

    def look(self, known: Known, prior: Tensor) -> Tensor:
        """What the network sees: integers [B, C], 0 for coefficients that are not known."""
        seen = (known.values.abs() * SEEN / prior).floor().clamp(max=127)
        return torch.where(known.coded, self.evidence[seen.long()], 0)

    def prior(self) -> Tensor:
        """The spread of each coefficient over all pictures, rounded down to a power of two."""
        return power(self.base // 8 + UNIT_BITS)

    def choose(self, known: Known) -> tuple[Tensor, Tensor]:
        """The coefficients that the next token refines, int64 [B, T], most wrong first, and a step of each, [B, T]."""
        count = known.levels.shape[1]
        order = known.levels * count - torch.arange(count, device=known.levels.device)
        chosen = order.topk(self.codebooks.shape[1], dim=1).indices
        return chosen, self.steps[known.levels.gather(1, chosen).long()]

    def update(self, known: Known, token: int, chosen: Tensor, changes: Tensor) -> None:
        """Adds what a token says, integers [B, T], about the coefficients `chosen` [B, T]."""
        known.values.scatter_add_(1, chosen, changes)
        left = known.levels.gather(1, chosen) + self.drops[token]
        known.levels.scatter_(1, chosen, left.clamp(0, LEVELS))
        known.coded.scatter_(1, chosen, True)

    # ---- coding

    @torch.no_grad()
    def assign(self, coefficients: Tensor, counts: Tensor | int) -> tuple[Tensor, Tensor]:
        """float32 [B, C] and the tokens to make of each, [B] or a number for all -> indices [B, max(counts)], 0 beyond
        a row's count, and the quantised coefficients [B, C].

        counts: on the host, or this waits for the device; the longest are worked on first."""
        device = coefficients.device
        by_count: Tensor | slice = slice(None)
        back: Tensor | slice = slice(None)
        if isinstance(counts, int):
            having = [len(coefficients)] * counts
        else:
            descending, order = counts.cpu().sort(descending=True, stable=True)
            having = [int((descending > token).sum()) for token in range(int(descending[0]))]
            by_count, back = (at.to(device, non_blocking=True) for at in (order, order.argsort()))
        wanted = coefficients[by_count] / self.unit
        indices = torch.zeros(len(wanted), len(having), dtype=torch.int64, device=device)
        with full_precision(device):
            whole, network = self.start(len(wanted)), self.network()
            for token, rows in enumerate(having):
                known = whole[:rows]
                self.predict(known, token, network)
                chosen, steps = self.choose(known)
                residual = (wanted[:rows] - known.values).gather(1, chosen)
                indices[:rows, token], entries = self.nearest(residual / steps, steps, token)
                self.update(known, token, chosen, entries * steps)
        return indices[back], whole.values[back] * self.unit

    @torch.no_grad()
    def assign_after(
        self, coefficients: Tensor, indices: Tensor, starts: Sequence[int], choice: Tensor
    ) -> tuple[Tensor, Tensor]:
        """float32 [B, C], indices [B, K], of which so many of the first are kept (N rising numbers below K), and [B] ->
        new indices [N, B, K] and what they say, [N, B, C]: the first token that is not kept becomes the entry that
        `choice` entries are nearer than, those after it the nearest."""
        each, count = indices.shape
        wanted, made = (coefficients / self.unit).repeat(len(starts), 1), indices.repeat(len(starts), 1)
        with full_precision(coefficients.device):
            known, network = self.start(len(made)), self.network()
            for token in range(count):
                self.predict(known, token, network)
                chosen, steps = self.choose(known)
                begun = each * sum(start <= token for start in starts)
                residual = (wanted[:begun] - known.values[:begun]).gather(1, chosen[:begun]) / steps[:begun]
                made[:begun, token], _ = self.nearest(residual, steps[:begun], token)
                if token in starts:
                    first = slice(begun - each, begun)
                    made[first, token], _ = self.nearest(residual[first], steps[first], token, choice)
                self.update(known, token, chosen, self.codebooks[token].T[made[:, token]] * steps)
        shape = (len(starts), each)
        return made.unflatten(0, shape), (known.values * self.unit).unflatten(0, shape)

    @torch.no_grad()
    def lookup(self, indices: Tensor) -> Tensor:
        """Indices [B, k] -> coefficients [B, C]."""
        with full_precision(indices.device):
            known, network = self.start(len(indices)), self.network()
            for token in range(indices.shape[1]):
                self.predict(known, token, network)
                chosen, steps = self.choose(known)
                self.update(known, token, chosen, self.codebooks[token].T[indices[:, token]] * steps)
        return known.values * self.unit

    def nearest(
        self, residual: Tensor, steps: Tensor, token: int, choice: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is left of a token's coefficients [B, T], in steps -> indices [B] of the entries that leave the least
        squared error, or of those that so many leave less than, and those [B, T]."""
        codebook = self.codebooks[token].float()
        indices = nearest(residual, (steps / steps[:, :1]).square(), codebook, choice)
        return indices, codebook.T[indices]


def power(exponents: Tensor) -> Tensor:
    """2 to the exponents, exactly: division by it is exact too."""
    return (torch.ones_like(exponents) << exponents).float()


def nearest(residual: Tensor, weights: Tensor, codebook: Tensor, choice: Tensor | None = None) -> Tensor:
    """For residual [B, T] the entries of codebook [T, V] with the least squared error, weighted by [B, T], or, with
    choice [B], those that so many are nearer than: [B]."""
    scores = torch.cat([weights, -2 * weights * residual], 1) @ torch.cat([codebook.square(), codebook])
    if choice is not None:
        return scores.argsort(1).gather(1, choice[:, None])[:, 0]
    # On the CPU NumPy's arg-min is five times faster than torch's, and this is what fitting spends its time on.
    return torch.from_numpy(scores.numpy().argmin(1)) if scores.device.type == "cpu" else scores.argmin(1)
