"""The noise of nano's natural look: drawn from the tokens, so that a file looks the same everywhere and every time.

A counter through a mixing function (splitmix64: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
generators", 2014), in 64-bit integers without sign:

    mix(z):  z ^= z >> 30;  z *= 0xbf58476d1ce4e5b9;  z ^= z >> 27;  z *= 0x94d049bb133111eb;  z ^= z >> 31
    seed:    0, then mix(seed ^ (token + 1)) for each token
    value n: (mix(seed + (n + 1) * 0x9e3779b97f4a7c15) >> 40) / 2^24, uniform in 0..1; centred, deviation 1
"""

import math

import numpy as np

_MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31


def noise(tokens: np.ndarray, count: int) -> np.ndarray:
    """Tokens int64 [k] -> `count` values float32, uniform in -sqrt(3)..sqrt(3)."""
    seed = 0
    for token in tokens.tolist():
        seed = _mix(seed ^ (token + 1))
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(STEP)
        for shift, factor in MIXING:
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(LAST_SHIFT)
    uniform = (z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return (uniform - np.float32(0.5)) * np.float32(2 * math.sqrt(3))


def _mix(z: int) -> int:
    for shift, factor in MIXING:
        z = (z ^ z >> shift) * factor & _MASK
    return z ^ z >> LAST_SHIFT
