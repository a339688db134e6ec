"""nano's quantiser in NumPy, one picture at a time: the same integers as `titokc.models.nano.code`, without torch.

That module teaches the algorithm; this one is fast for one picture. What the network sees changes in few places from
token to token, so its first sum is kept and only changed inputs are added: all of it are integers in float32, far below
2^24, exact in any order. And as only chosen coefficients change between two looks of the network, the tokens between
them choose among the `refresh * T` that were most wrong at the first.

Shapes: C coefficients that can be coded, K tokens, T coefficients a token, V codebook entries, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass
class State:
    """A code on its way, after `done` tokens: indices [K], integer values [C], levels [C], which coefficients are coded
    [C], what the network saw of them [C], its first sums [H], and where tokens choose up to its next look."""

    done: int
    indices: np.ndarray
    values: np.ndarray
    levels: np.ndarray
    coded: np.ndarray
    seen: np.ndarray
    hidden: np.ndarray
    near: np.ndarray

    def copy(self) -> State:
        return State(self.done, *(array.copy() for name, array in vars(self).items() if name != "done"))


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
        self,
        coefficients: np.ndarray,
        tokens: int,
        after: State | None = None,
        marks: Sequence[int] = (),
        choice: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, list[State]]:
        """float32 [C] -> indices of `tokens` tokens, each the nearest entry, the quantised coefficients [C], and the
        states on the way before those tokens that are `marks`. after: such a state, whose tokens stay as they are.
        choice: of the first token, how many entries are nearer than the one that is taken."""
        wanted = coefficients / self.unit
        state, marked = after.copy() if after else self._start(tokens), []
        for token, chosen, steps in self._tokens(state):
            if token in marks:
                marked.append(state.copy())
            residual = (wanted[chosen] - state.values[chosen]) / steps
            weights = np.square(steps / steps[0])
            errors = np.concatenate([weights, -2 * weights * residual]) @ self._table(token)
            index = errors.argpartition(choice)[choice] if choice else errors.argmin()
            choice = 0
            state.indices[token] = index
            state.values[chosen] += self.codebooks[token, :, index] * steps
        return state.indices, state.values * self.unit, marked

    def errors(self, coefficients: np.ndarray, tokens: int) -> np.ndarray:
        """float32 [C] -> the squared errors that 0 to `tokens` nearest tokens leave, float64 [1 + tokens]: exact at
        every `refresh`-th number, between them interpolated."""
        marks = range(0, tokens, self.refresh)
        _, quantised, states = self.assign(coefficients, tokens, marks=marks)
        left = [
            np.square(coefficients - values).sum() for values in (*(s.values * self.unit for s in states), quantised)
        ]
        return np.interp(np.arange(tokens + 1), [*marks, tokens], left)

    def lookup(self, indices: np.ndarray) -> np.ndarray:
        """Indices [k] in 0..V-1 -> float32 coefficients [C]."""
        state = self._start(len(indices))
        for token, chosen, steps in self._tokens(state):
            state.values[chosen] += self.codebooks[token, :, indices[token]] * steps
        return state.values * self.unit

    def _start(self, tokens: int) -> State:
        zeros, coded = np.zeros(len(self.base), np.float32), np.zeros(len(self.base), bool)
        levels, hidden = _within(self.base, LEVELS), self._into_bias.copy()
        return State(0, np.zeros(tokens, np.int64), zeros, levels, coded, zeros.copy(), hidden, self._places)

    def _tokens(self, state: State) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Number, coefficients [T] and steps float32 [T] of each token that is not done; the caller adds to the values
        of these coefficients, in place, what the token says. A look that a copied state has had changes nothing."""
        size, levels = self.drops.shape[1], state.levels
        for token in range(state.done, len(state.indices)):
            if token % self.refresh == 0:
                if token:
                    self._look(state)
                order = levels * len(levels) - self._places
                state.near = order.argpartition(len(order) - self._candidates)[len(order) - self._candidates :]
            near = state.near
            chosen = near[(levels[near] * len(levels) - near).argsort()[: -size - 1 : -1]]
            yield token, chosen, STEPS[levels[chosen]]
            levels[chosen] = _within(levels[chosen] + self.drops[token], LEVELS)
            state.coded[chosen] = True
            state.done = token + 1

    def _look(self, state: State) -> None:
        """The network sets the levels of what is not coded, after values changed among `near`, and brings up to date
        what it saw and its first sums."""
        changed = state.near[state.coded[state.near]]
        twelfths = np.minimum(np.floor(np.abs(state.values[changed]) * SEEN / self._usual[changed]), 127)
        now = EVIDENCE[twelfths.astype(np.intp)]
        state.hidden += (now - state.seen[changed]) @ self._into[changed].astype(np.float32)
        state.seen[changed] = now
        active = _within(np.floor(state.hidden * self._scales[0]), 127)
        changes = np.floor((self._out @ active + self._out_bias) * self._scales[1]).astype(np.int64)
        np.copyto(state.levels, _within(self.base + changes, LEVELS), where=~state.coded)

    def _table(self, token: int) -> np.ndarray:
        """float32 [2 T, V]: its product with [w, -2 w r] is the error of each entry, but for the same constant."""
        table = self._tables[token]
        if table is None:
            codebook = self.codebooks[token].astype(np.float32)
            table = self._tables[token] = np.concatenate([np.square(codebook), codebook])
        return table


def _within(values: np.ndarray, most: int) -> np.ndarray:
    """Clipped to 0..most, in a fifth of the time that `np.clip` takes for few."""
    return np.minimum(np.maximum(values, 0), most)
