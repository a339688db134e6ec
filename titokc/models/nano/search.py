"""The encoder's search for better tokens, a picture at a time, in NumPy; `titokc.models.nano.tokenizer` has torch's.

The nearest tokens are the best ones for a linear decoder. For the decoder that there is, the gradient of its squared
error at the tokens so far says what coefficients it wants instead. They cannot be had: tokens are coarse, a changed one
changes all after it, and what is tried lands around them, better or worse by some tenths of a decibel. So several are
made on the way to them, which keep none of the tokens so far or the first of them, up to nearly all, and are tried in
the order of how near they come to what is wanted. One that helps is the new start. When none has helped, the first
token that is not kept becomes the second nearest entry instead, then the third, then the way is halved.

A round decodes once; after one that helped (half of the first eight) it takes a gradient, as long again, and quantises
twelve times (of many tokens six), each from the first token on that is not kept. Where this ends is chance, within a
tenth of a decibel, and long before all has been tried: the best of three searches whose steps differ a little is nearer
than one of as many rounds. Gain in dB over the nearest tokens, 24 Kodak and 40 held-out photographs, and milliseconds
of one core beside another busy one:

    effort          0    1    2    3    4    5    6    7    8    9
    rounds          0    1    2    3    4    6    8   16 2*16 3*16
    32 tokens       0  .12  .17  .21  .23  .26  .27  .29  .31  .33
    32 tokens, ms   3   87  131  175  217  297  365  605 1229 1843
    128 tokens      0  .11  .16  .18  .20  .22  .23  .24  .26  .27
    128 tokens, ms  9   98  163  220  273  382  457  734 1495 2232

More effort never gives less. More tokens can, as what is found scatters: one token more by over .05 dB in a fifth of
the cases, four by as much in a hundredth (bench/LOG.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from titokc.models.nano.code_numpy import Code, State
    from titokc.models.nano.numpy import Decoder, Transform

# How far along the way to what is wanted, in each of several searches.
STEPS = (0.4, 0.32, 0.5)
# Of each effort the rounds of a search, and the steps of the searches.
SEARCHES = (*((rounds, STEPS[:1]) for rounds in (0, 1, 2, 3, 4, 6, 8, 16)), (16, STEPS[:2]), (16, STEPS))
# What is made keeps these parts of the tokens so far; of more tokens than so many every second part, as quantising them
# would take as long as decoding.
KEPT = (0, 0.2, 0.4, 0.5, 0.6, 0.68, 0.75, 0.81, 0.87, 0.91, 0.95, 0.97)
MANY = 64
# The first token that is not kept is the nearest entry or, when all that was made has been tried in vain, the next in
# turn of so many. After the last of them half of the step is left.
CHOICES = 3
# How far the squared error's gradient is followed: were there only the linear code, 1.5 would lead to the picture's own
# coefficients, as the mean is taken over three colours.
REACH = 1.5
# How much the natural look's distance counts where it does, in squared errors of the nearest tokens.
DISTANCE = 0.2
# A mean squared error of one level of 255: what is nearer has nothing to gain but rounding.
ENOUGH = 255.0**-2


def distortions(code: Code, transform: Transform, picture: np.ndarray, tokens: int) -> np.ndarray:
    """RGB float32 [3, S, S] -> float64 [1 + tokens], the mean squared error that the linear code leaves after so many
    of the nearest tokens; the decoder leaves .2 to .7 dB less, and a search again."""
    own = transform.analyse(picture)
    beyond = np.square(picture - np.float32(0.5)).mean() - np.square(own).sum() / 3
    return max(0.0, float(beyond)) + code.errors(own, tokens) / 3


def starts(tokens: int) -> list[int]:
    """The numbers of tokens that what is made keeps, rising."""
    return sorted({int(part * tokens) for part in (KEPT if tokens <= MANY else KEPT[::2])})


def search(
    code: Code, decoder: Decoder, picture: np.ndarray, own: np.ndarray, tokens: int, rounds: int, step: float
) -> tuple[float, np.ndarray]:
    """One search: RGB float32 [3, S, S] and its own coefficients [C] -> indices int64 [tokens] that decode to something
    no farther than what the nearest ones decode to, after the mean squared error that they leave; no more rounds ever
    give less."""
    counts = starts(tokens)
    best, coded, states = code.assign(own, tokens, marks=counts)
    goal, way = own, {state.done: state for state in states}
    made, _, backward = decoder(coded, tokens)
    made -= picture
    least, helped, tried = float(np.square(made).mean()), True, {best.tobytes()}
    turn = 0
    options: list[tuple[float, np.ndarray, np.ndarray, list[State]]] = []
    for _ in range(rounds):
        if least <= ENOUGH:
            break
        if helped:
            turn, wanted, options = 0, coded - np.float32(REACH) * backward(made * np.float32(2 / made.size)), []
        elif not options:
            turn += 1
        if not options:
            halvings, choice = divmod(turn, CHOICES)
            towards = goal + np.float32(step / 2**halvings) * (wanted - goal)
            for count in counts:
                indices, quantised, states = code.assign(towards, tokens, way[count], counts, choice)
                if indices.tobytes() not in tried:
                    tried.add(indices.tobytes())
                    options.append((float(np.square(quantised - wanted).sum()), indices, quantised, states))
            options.sort(key=lambda option: -option[0])
        if not options:
            helped = False
            continue
        _, indices, quantised, states = options.pop()
        made, _, backward = decoder(quantised, tokens)
        made -= picture
        error = float(np.square(made).mean())
        helped = error < least
        if helped:
            least, best, coded, goal = error, indices, quantised, towards
            way |= {state.done: state for state in states}
    return least, best
