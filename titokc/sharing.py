"""How tokens are shared out among the tiles of a picture, so that the least error is left; no torch here.

A tile of sky is done with few tokens, and a tile of noise gains little from many: where a budget allows so many tokens
in all, each should go where it takes away most (Lagrangian rate allocation: Shoham and Gersho, "Efficient bit
allocation for an arbitrary set of quantizers", 1988).
"""

from collections.abc import Sequence

import numpy as np

from titokc.header import possible_counts

# Halvings of the range of prices, on a logarithmic scale.
_HALVINGS = 24


def share_out(distortions: np.ndarray, fewest: int, room: int) -> tuple[int, bytes] | None:
    """Of each tile the error after 0 to K tokens, [N, 1 + K] -> the most tokens of a tile, and the shares as a
    `titokc.header.Header` has them: at most `room` tokens in all, in each `fewest` or more, in some more than in
    others. None where there is no room for that."""
    most = distortions.shape[1] - 1
    if fewest * len(distortions) > room:
        return None
    best: tuple[float, int, bytes] | None = None
    for tokens in range(max(fewest, room // len(distortions)), most + 1):
        counts = possible_counts(tokens)
        shares = [share for share, count in enumerate(counts) if count >= fewest and count not in counts[:share]]
        chosen = _chosen(distortions, [counts[share] for share in shares], room)
        if chosen.min() or not chosen.max():  # no tile has the most, or all have
            continue
        left = distortions[range(len(chosen)), [counts[shares[n]] for n in chosen]].sum()
        if best is None or left < best[0]:
            best = left, tokens, bytes(shares[n] for n in chosen)
    return best and best[1:]


def _chosen(distortions: np.ndarray, counts: Sequence[int], room: int) -> np.ndarray:
    """Which of the falling `counts` each tile should have, [N], so that all have at most `room`."""
    tokens = np.array(counts)
    errors = distortions[:, tokens]
    dear, cheap = np.log(errors.max() + 1e-30), np.log(1e-15)
    for _ in range(_HALVINGS):
        price = (dear + cheap) / 2
        chosen = (errors + np.exp(price) * tokens).argmin(1)
        dear, cheap = (price, cheap) if tokens[chosen].sum() <= room else (dear, price)
    chosen = (errors + np.exp(dear) * tokens).argmin(1)
    every = np.arange(len(errors))
    while True:  # what is left over goes where it helps most
        richer = np.maximum(chosen - 1, 0)
        more = tokens[richer] - tokens[chosen]
        gains = (errors[every, chosen] - errors[every, richer]) / np.maximum(more, 1)
        gains[more > room - tokens[chosen].sum()] = 0
        tile = gains.argmax()
        if gains[tile] <= 0:
            return chosen
        chosen[tile] -= 1
