"""Tokens shared out among tiles: those with more to gain have more, and none is left over that would help."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titokc.budget import LIKELY, Stage, candidates, finalists, header_of, reduction, stages
from titokc.header import Header, possible_counts
from titokc.models.info import ModelInfo
from titokc.options import EncodeOptions
from titokc.sharing import share_out


def falling(size: float, power: float = 0.33, most: int = 128) -> np.ndarray:
    """What photographs leave: less and less is gained from one more token."""
    return size * np.arange(1, most + 2) ** -power


def counts(shared: tuple[int, bytes]) -> list[int]:
    return [possible_counts(shared[0])[share] for share in shared[1]]


def test_a_busy_tile_has_more_than_a_smooth_one() -> None:
    assert counts(share_out(np.stack([falling(1), falling(0.1)]), 8, 100)) == [85, 15]
    assert counts(share_out(np.stack([falling(0.02), falling(1), falling(0.3), falling(1)]), 8, 120)) == [8, 48, 16, 48]


def test_tiles_that_gain_alike_have_nearly_as_many() -> None:
    assert counts(share_out(np.stack([falling(1)] * 4), 8, 200)) == [52, 52, 52, 43]


def test_noise_that_no_token_removes_has_the_fewest() -> None:
    noise = np.linspace(3.0, 2.99, 129)
    assert counts(share_out(np.stack([noise, falling(1)]), 8, 90))[0] == 8


def test_a_budget_that_is_too_small_for_the_fewest_has_no_shares() -> None:
    assert share_out(np.stack([falling(1), falling(0.1)]), 8, 15) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-4, 1), min_size=2, max_size=12), st.integers(1, 12), st.integers(0, 1500))
def test_shares_are_those_of_a_header_within_the_budget(sizes: list[float], fewest: int, room: int) -> None:
    distortions = np.stack([falling(size) for size in sizes])
    shared = share_out(distortions, fewest, room)
    if shared is None:
        return
    header = Header(256, 256, 1, len(sizes), shared[0], 12, 1, b"ab", shares=shared[1])
    assert sum(header.counts) == header.indices <= room
    assert fewest <= min(header.counts) < max(header.counts) == header.tokens_per_tile <= 128


def test_it_leaves_nearly_as_little_as_the_best_of_all_that_can_be_had() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        distortions = np.stack([falling(size) for size in np.exp(rng.normal(0, 1, 3))])
        best = min(
            float(distortions[range(3), found].sum())
            for most in range(20, 129)
            for found in np.stack(np.meshgrid(*[sorted(set(possible_counts(most)))] * 3), -1).reshape(-1, 3)
            if found.min() >= 8 and found.max() == most and found.sum() <= 150
        )
        shared = share_out(distortions, 8, 150)
        assert float(distortions[range(3), counts(shared)].sum()) == pytest.approx(best, rel=0.003)


def test_grids_are_tried_where_the_linear_code_leaves_least() -> None:
    """A picture in four strips, of which one is busy; tiles that are all or nothing of it need fewer tokens."""
    info = ModelInfo(4096, 4, 128, nested=True, side=256, code=bytes(32))

    def told(grid: tuple[int, int]) -> np.ndarray:
        rows, columns = grid
        busy = [max(0, min(1 / 2, (row + 1) / rows) - max(1 / 4, row / rows)) * rows for row in range(rows)]
        return np.stack([falling(0.02 + part, 0.5 if part in (0, 1) else 0.3) for part in busy for _ in range(columns)])

    headers = candidates((256, 256), info, None, EncodeOptions(target_size=204), told)
    assert len(headers) == LIKELY
    assert (headers[0].rows, headers[0].columns) == (4, 1)
    assert headers[0].counts[1] > 2 * max(headers[0].counts[0], *headers[0].counts[2:])


def test_the_nearest_go_on_to_longer_searches() -> None:
    assert stages(0) == [(0, 0.0, 0, True)]
    assert stages(2) == [(0, 0.2, 64, False), (2, 0.0, 0, True)]
    assert stages(6) == [(0, 0.2, 64, False), (2, 0.06, 16, False), (6, 0.0, 0, True)]
    assert [(stage.effort, stage.whole) for stage in stages(9)] == [(0, False), (2, False), (7, True), (9, True)]
    info = ModelInfo(4096, 4, 128, nested=True, side=256, code=bytes(32))
    made = [
        (quality, [0], header_of(info, (512, 512), (rows, 4), 9))
        for quality, rows in [(20.0, 1), (19.95, 12), (19.9, 2), (19.85, 1), (19.7, 1)]
    ]
    rows = [[header.rows for header in finalists(made, Stage(0, close, 64, True))] for close in (0.0, 0.06, 0.2, 9.0)]
    assert rows == [[1], [1, 12], [1, 12, 2, 1], [1, 12, 2, 1]]
    rows = [[header.rows for header in finalists(made, Stage(0, 9.0, tiles, True))] for tiles in (0, 8, 24)]
    assert rows == [[1], [1, 1], [1, 2, 1, 1]]


def test_large_pictures_are_compared_reduced() -> None:
    """As long as the tiles of the finest grid keep the model's side: 22 tiles of 6 tokens in 204 bytes."""
    info = ModelInfo(4096, 4, 128, nested=True, side=256, code=bytes(32))
    sizes = [(256, 256), (768, 512), (2400, 2400), (2403, 2403), (4032, 3024), (24_000, 18_000)]
    assert [reduction(size, info, 204) for size in sizes] == [1, 1, 1, 2, 2, 17]
    assert [reduction((4032, 3024), info, budget) for budget in (9, 60, 1000, 65_000)] == [13, 5, 1, 1]
