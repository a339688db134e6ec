"""nano's quantiser in NumPy, one picture at a time: the same integers as `titokc.models.nano.code`, without torch.

That module teaches the algorithm; this one is fast for one picture. What the network sees changes in few places from
token to token, so its first sum is kept and only changed inputs are added: all of it are integers in float32, far below
2^24, exact in any order. And as only chosen coefficients change between two looks of the network, the tokens between
them choose among the `refresh * T` that were most wrong at the first.

Shapes: C coefficients that can be coded, K tokens, T coefficients a token, V codebook entries, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from titokc.errors import WeightsError
from titokc.models.nano.config import NanoConfig

# Levels are log2 of a spread in eighths; a spread at level 0 is 2^UNIT_BITS units of the integer values.
LEVELS = 96
UNIT_BITS = 6
# Codebook entries are in sixteenths of the spread, so that they fit into 8 bits.
ENTRY = 16
STEPS = np.array([round(2**UNIT_BITS / ENTRY * 2 ** (level / 8)) for level in range(LEVELS + 1)], np.float32)
# What the network sees of a coefficient of |x| twelfths of its usual spread: the square root, centred.
SEEN = 12
EVIDENCE = np.array([round(8 * (math.sqrt(x / SEEN) - 0.75)) for x in range(128)], np.float32)
# Integers in float32 are exact below this.
_EXACT = 2**24


def tensors_of(config: NanoConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors that give tokens their meaning, by name: type and shape."""
    kept, tokens, size, hidden = config.coefficients, config.num_tokens, config.token_size, config.hidden
    return {
        "coded": ("int32", (kept,)),
        "quantizer.codebooks": ("int8", (tokens, size, config.codebook_size)),
        "quantizer.drops": ("int32", (tokens, size)),
        "quantizer.base": ("int32", (kept,)),
        "quantizer.unit": ("float32", (1,)),
        "quantizer.into": ("int8", (hidden, kept)),
        "quantizer.into_bias": ("int32", (hidden,)),
        "quantizer.out": ("int8", (kept, hidden)),
        "quantizer.out_bias": ("int32", (kept,)),
        "quantizer.shifts": ("int32", (2,)),
    }


def check(config: NanoConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises WeightsError for numbers that no fit makes: what they mean would not be exact, or would be nothing."""
    last = 3 * config.thumb_size**2 - 1
    for name, most in (("coded", last), ("quantizer.base", LEVELS), ("quantizer.shifts", 23)):
        lowest, highest = tensors[name].min(), tensors[name].max()
        if not 0 <= lowest <= highest <= most:
            raise WeightsError(f"{name} holds {lowest}..{highest}, expected 0..{most}")
    if len(np.unique(tensors["coded"])) < len(tensors["coded"]):
        raise WeightsError("coded names a coefficient twice")

    def largest_sum(layer: str, largest: int) -> int:
        weights = np.abs(tensors[f"quantizer.{layer}"].astype(np.int64)).sum(1) * largest
        return int((weights + np.abs(tensors[f"quantizer.{layer}_bias"].astype(np.int64))).max())

    # A coefficient's level falls with each token that refines it, and what a token can add to it with the level.
    slowest, largest = (
        int(tensors["quantizer.drops"].max()),
        int(np.abs(tensors["quantizer.codebooks"].astype(int)).max()),
    )
    levels = [min(LEVELS, max(0, LEVELS + token * slowest)) for token in range(config.num_tokens)]
    reach = largest * int(STEPS[levels].sum())
    sums = max(largest_sum("into", int(EVIDENCE.max())), largest_sum("out", 127))
    for name, most in (("sums of the network", sums), ("values", reach)):
        if most >= _EXACT:
            raise WeightsError(f"quantizer: {name} can reach {most}, expected less than {_EXACT}")
    if not (np.isfinite(unit := float(tensors["quantizer.unit"][0])) and unit > 0):
        raise WeightsError(f"quantizer.unit is {unit}, expected more than 0")


class Code:
    """Coefficients float32 [C] <-> indices int64 [k], k <= K.

    tensors: nano's by name, as they are stored. Safe to use from several threads.
    """

    def __init__(self, config: NanoConfig, tensors: Mapping[str, np.ndarray]) -> None:
        tensors = {name.removeprefix("quantizer."): tensor for name, tensor in tensors.items()}
        self.codebooks, self.drops = tensors["codebooks"], tensors["drops"]
        self.unit = np.float32(tensors["unit"][0])
        self.base = tensors["base"].astype(np.int64)
        self.refresh = config.refresh
        count = min(config.refresh * self.drops.shape[1], len(self.base))
        self._candidates = count
        self._places = np.arange(len(self.base))
        # The spread of each coefficient over all pictures, rounded down to a power of two.
        self._usual = np.exp2(self.base // 8 + UNIT_BITS).astype(np.float32)
        self._into = np.ascontiguousarray(tensors["into"].T)
        self._into_bias = tensors["into_bias"].astype(np.float32)
        self._out = tensors["out"].astype(np.float32)
        self._out_bias = tensors["out_bias"].astype(np.float32)
        self._scales = np.exp2(-tensors["shifts"].astype(np.float32))
        self._tables: list[np.ndarray | None] = [None] * len(self.codebooks)

    def assign(
        self, coefficients: np.ndarray, tokens: int, kept: np.ndarray | tuple[()] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 [C] -> indices of `tokens` tokens, each the nearest entry, and the quantised coefficients [C].

        kept: indices of the first tokens, which are taken as they are."""
        wanted = coefficients / self.unit
        indices = np.zeros(tokens, np.int64)
        values = np.zeros(len(self.base), np.float32)
        for token, chosen, steps in self._tokens(values, tokens):
            if token < len(kept):
                index = int(kept[token])
            else:
                residual = (wanted[chosen] - values[chosen]) / steps
                weights = np.square(steps / steps[0])
                index = int((np.concatenate([weights, -2 * weights * residual]) @ self._table(token)).argmin())
            indices[token] = index
            values[chosen] += self.codebooks[token, :, index] * steps
        return indices, values * self.unit

    def lookup(self, indices: np.ndarray) -> np.ndarray:
        """Indices [k] in 0..V-1 -> float32 coefficients [C]."""
        values = np.zeros(len(self.base), np.float32)
        for token, chosen, steps in self._tokens(values, len(indices)):
            values[chosen] += self.codebooks[token, :, indices[token]] * steps
        return values * self.unit

    def _tokens(self, values: np.ndarray, tokens: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Number, coefficients [T] and steps float32 [T] of each token; the caller adds to the integer values [C] of
        these coefficients, in place, what the token says."""
        levels = self.base.clip(0, LEVELS)
        coded = np.zeros(len(values), bool)
        seen = np.zeros(len(values), np.float32)
        hidden = self._into_bias.copy()
        size = self.drops.shape[1]
        near = self._places
        for token in range(tokens):
            if token % self.refresh == 0:
                if token:
                    self._look(values, levels, coded, seen, hidden, near)
                order = levels * len(values) - self._places
                near = order.argpartition(len(order) - self._candidates)[len(order) - self._candidates :]
            chosen = near[(levels[near] * len(values) - near).argsort()[: -size - 1 : -1]]
            yield token, chosen, STEPS[levels[chosen]]
            levels[chosen] = (levels[chosen] + self.drops[token]).clip(0, LEVELS)
            coded[chosen] = True

    def _look(
        self,
        values: np.ndarray,
        levels: np.ndarray,
        coded: np.ndarray,
        seen: np.ndarray,
        hidden: np.ndarray,
        near: np.ndarray,
    ) -> None:
        """The network sets the levels of what is not coded, after values changed among `near`. seen [C], hidden [H]:
        its inputs and first sums at its last look, brought up to date."""
        changed = near[coded[near]]
        twelfths = np.floor(np.abs(values[changed]) * SEEN / self._usual[changed]).clip(max=127)
        now = EVIDENCE[twelfths.astype(np.intp)]
        hidden += (now - seen[changed]) @ self._into[changed].astype(np.float32)
        seen[changed] = now
        active = np.floor(hidden * self._scales[0]).clip(0, 127)
        changes = np.floor((self._out @ active + self._out_bias) * self._scales[1]).astype(np.int64)
        np.copyto(levels, (self.base + changes).clip(0, LEVELS), where=~coded)

    def _table(self, token: int) -> np.ndarray:
        """float32 [2 T, V]: its product with [w, -2 w r] is the error of each entry, but for the same constant."""
        table = self._tables[token]
        if table is None:
            codebook = self.codebooks[token].astype(np.float32)
            table = self._tables[token] = np.concatenate([np.square(codebook), codebook])
        return table
