"""The encoder's search for better tokens, a picture at a time, in NumPy; `titokc.models.nano.tokenizer` has torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from titokc.models.nano.code_numpy import Code
    from titokc.models.nano.numpy import Decoder

# The first step, and how steps change when one helped and when it did not.
FIRST_STEP = 0.5
STEP_CHANGES = (1.2, 0.5)
# How far the squared error's gradient is followed: were there only the linear code, 1.5 would lead to the picture's own
# coefficients, as the mean is taken over three colours.
REACH = 1.5


def search(code: Code, decoder: Decoder, picture: np.ndarray, own: np.ndarray, tokens: int, rounds: int) -> np.ndarray:
    """RGB float32 [3, S, S] and its own coefficients [C] -> indices int64 [tokens] that decode to something nearer than
    the nearest ones do.

    What is quantised moves from the picture's own coefficients to those that the decoder would need, by the gradient of
    its squared error; steps grow while they help and shrink when they do not.
    """
    goal = from_goal = from_wanted = own
    step, least = FIRST_STEP, np.inf
    best = np.zeros(tokens, np.int64)
    for done in range(rounds + 1):
        indices, coded = code.assign(goal, tokens)
        made, backward = decoder.with_gradient(coded, tokens)
        made -= picture
        error = float(np.square(made).mean())
        helped = error < least
        if helped:
            least, best = error, indices
        if done == rounds:
            break
        if helped:
            made *= np.float32(2 / made.size)
            from_goal, from_wanted = goal, coded - np.float32(REACH) * backward(made)
        step *= STEP_CHANGES[0] if helped else STEP_CHANGES[1]
        goal = from_goal + np.float32(step) * (from_wanted - from_goal)
    return best
