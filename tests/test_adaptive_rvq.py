"""The quantiser whose tokens choose their coefficients: in integers, alike on both sides, better than a fixed order."""

import math

import pytest
import torch

from titokc.errors import UsageError
from titokc.models.nano.code import AdaptiveResidualVQ
from titokc.models.nano.fit import fit_quantizer


def two_kinds(count: int, seed: int) -> torch.Tensor:
    """[count, 24] coefficients: the first four in all rows; then either eight of one kind or eight of the other, which
    the size of the first tells."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(count, 1, generator=generator) < 0.5
    spread = torch.full((count, 24), 0.02)
    spread[:, :4] = 1.0
    spread[:, 4:12] = torch.where(kind, 0.6, 0.02)
    spread[:, 12:20] = torch.where(kind, 0.02, 0.6)
    rows = torch.randn(count, 24, generator=generator) * spread
    rows[:, 0] = torch.where(kind[:, 0], 0.2, 2.0) * rows[:, 0].sign()
    return rows


def fitted(refresh: int) -> AdaptiveResidualVQ:
    torch.manual_seed(0)
    quantizer = AdaptiveResidualVQ(24, 6, 4, 64, 16, refresh)
    assert list(fit_quantizer(quantizer, two_kinds(8192, 1), rate=1e-2))[-1] == 7
    return quantizer


@pytest.fixture(scope="module")
def quantizer() -> AdaptiveResidualVQ:
    return fitted(1)


def quantised(quantizer: AdaptiveResidualVQ, rows: torch.Tensor, tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return quantizer.assign(rows, torch.full((len(rows),), tokens))


def layer(weights: list[list[int]], bias: list[int], inputs: list[int]) -> list[int]:
    return [sum(w * x for w, x in zip(row, inputs, strict=True)) + b for row, b in zip(weights, bias, strict=True)]


def by_hand(quantizer: AdaptiveResidualVQ, indices: list[int]) -> list[int]:
    """The integer values that indices stand for, in Python's integers."""
    base, drops, books = quantizer.base.tolist(), quantizer.drops.tolist(), quantizer.codebooks.tolist()
    into, into_bias = quantizer.into.tolist(), quantizer.into_bias.tolist()
    out, out_bias, shifts = quantizer.out.tolist(), quantizer.out_bias.tolist(), quantizer.shifts.tolist()
    values, levels, coded = [0] * len(base), list(base), [False] * len(base)
    for token, index in enumerate(indices):
        if token and token % quantizer.refresh == 0:
            seen = [min(127, abs(v) * 12 >> (b // 8 + 6)) for v, b in zip(values, base, strict=True)]
            looked = [round(8 * (math.sqrt(x / 12) - 0.75)) if c else 0 for x, c in zip(seen, coded, strict=True)]
            hidden = [min(127, max(0, s >> shifts[0])) for s in layer(into, into_bias, looked)]
            changes = [s >> shifts[1] for s in layer(out, out_bias, hidden)]
            guesses = [min(96, max(0, b + change)) for b, change in zip(base, changes, strict=True)]
            levels = [old if c else new for old, new, c in zip(levels, guesses, coded, strict=True)]
        chosen = sorted(range(len(base)), key=lambda c: (-levels[c], c))[: len(drops[token])]
        for slot, place in enumerate(chosen):
            values[place] += books[token][slot][index] * round(4 * 2 ** (levels[place] / 8))
            levels[place] = min(96, max(0, levels[place] + drops[token][slot]))
            coded[place] = True
    return values


def test_what_indices_say_is_integer_arithmetic(quantizer: AdaptiveResidualVQ) -> None:
    indices, _ = quantised(quantizer, two_kinds(12, 2))
    integers = quantizer.lookup(indices) / quantizer.unit
    for row, expected in zip(indices.tolist(), integers, strict=True):
        assert by_hand(quantizer, row) == expected.round().long().tolist()
        torch.testing.assert_close(expected, expected.round(), atol=1e-2, rtol=0)


def test_both_sides_agree_and_prefixes_are_codes(quantizer: AdaptiveResidualVQ) -> None:
    rows = two_kinds(64, 3)
    indices, coefficients = quantised(quantizer, rows)
    assert torch.equal(quantizer.lookup(indices), coefficients)
    errors = [float((rows - quantizer.lookup(indices[:, :k])).square().sum(1).mean()) for k in range(7)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(quantised(quantizer, rows, 3)[0], indices[:, :3])


def test_rows_may_have_different_counts_and_do_not_influence_each_other(quantizer: AdaptiveResidualVQ) -> None:
    rows, counts = two_kinds(9, 4), torch.tensor([1, 6, 3, 2, 6, 4, 5, 1, 2])
    indices, coefficients = quantizer.assign(rows, counts)
    for row, count in enumerate(counts.tolist()):
        alone, said = quantised(quantizer, rows[row : row + 1], count)
        assert indices[row].tolist() == alone[0].tolist() + [0] * (6 - count)
        assert torch.equal(coefficients[row], said[0])


def test_pictures_of_different_kinds_refine_different_coefficients(quantizer: AdaptiveResidualVQ) -> None:
    rows = two_kinds(256, 5)
    _, said = quantised(quantizer, rows, 3)
    small = rows[:, 0].abs() < 1
    assert said[small][:, 4:12].count_nonzero() > 10 * said[small][:, 12:20].count_nonzero()
    assert said[~small][:, 12:20].count_nonzero() > 10 * said[~small][:, 4:12].count_nonzero()


def test_choosing_is_better_than_a_fixed_order(quantizer: AdaptiveResidualVQ) -> None:
    rows = two_kinds(1024, 6)
    adaptive, fixed = (quantised(q, rows, 3)[1] for q in (quantizer, fitted(6)))
    assert float((rows - adaptive).square().mean()) < 0.6 * float((rows - fixed).square().mean())


def test_ties_go_to_the_coefficient_that_comes_first() -> None:
    quantizer = AdaptiveResidualVQ(6, 1, 3, 2, 1, 4)
    quantizer.base.copy_(torch.tensor([0, 8, 8, 16, 8, 0]))
    chosen, steps = quantizer.choose(quantizer.start(1))
    assert chosen.tolist() == [[3, 1, 2]]
    assert steps.tolist() == [[16.0, 8.0, 8.0]]


def test_sizes_whose_sums_float32_cannot_hold_are_refused() -> None:
    with pytest.raises(UsageError, match="8000 coefficients"):
        AdaptiveResidualVQ(8000, 4, 2, 4, 4, 4)
