"""Grids, the geometry that formats/tok-v1.md prescribes, and reassembly without seams."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from titokc import tiling
from titokc.errors import UsageError


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (256, 1, [(0, 256)]),
        (512, 2, [(0, 256), (256, 512)]),
        (768, 3, [(0, 256), (256, 512), (512, 768)]),
        (100, 3, [(0, 33), (33, 66), (66, 100)]),
        (5, 5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        (1, 1, [(0, 1)]),
    ],
)
def test_spans_are_those_of_the_specification(length, count, expected):
    assert tiling.spans(length, count) == expected


@given(st.integers(1, 70_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, min(n, 256)))))
def test_spans_partition_the_axis_evenly(case):
    length, count = case
    spans = tiling.spans(length, count)
    assert len(spans) == count
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert {stop - start for start, stop in spans} <= {length // count, length // count + 1}


def test_the_step_at_a_seam_is_spread_over_a_32nd_of_either_tile():
    black, white = Image.new("RGB", (128, 8)), Image.new("RGB", (256, 8), (200, 100, 0))
    row = np.asarray(tiling.assemble([black.resize((4, 4)), white], (1, 2), (384, 8)))[0].astype(int)
    assert tiling.spans(384, 2) == [(0, 192), (192, 384)]
    assert row[180:204, 0].tolist() == [0] * 6 + [8, 25, 42, 58, 75, 92, 108, 125, 142, 158, 175, 192] + [200] * 6
    assert row[180:204, 1].tolist() == [0] * 6 + [4, 13, 21, 29, 38, 46, 54, 62, 71, 79, 87, 96] + [100] * 6
    assert row[:, 2].max() == 0


def test_a_small_step_between_unequal_tiles_is_spread_over_a_quarter_of_either():
    tiles = [Image.new("RGB", (32, 32), (100, 100, 100)), Image.new("RGB", (32, 32), (108, 100, 92))]
    row = np.asarray(tiling.assemble(tiles, (1, 2), (64, 32), unequal=True))[5].astype(int)
    red = [100] * 24 + [100, 101, 101, 102, 102, 103, 103, 104, 104, 105, 105, 106, 106, 107, 107, 108] + [108] * 24
    assert row[:, 0].tolist() == red
    assert row[:, 1].tolist() == [100] * 64
    assert row[:, 2].tolist() == [200 - value for value in red]


def test_of_a_larger_step_between_unequal_tiles_less_and_of_a_large_one_nothing():
    def spread(step: int) -> np.ndarray:
        tiles = [Image.new("RGB", (32, 32), (100, 100, 100)), Image.new("RGB", (32, 32), (100, 100 + step, 100))]
        found, usual = (tiling.assemble(tiles, (1, 2), (64, 32), unequal) for unequal in (True, False))
        return np.asarray(found).astype(int)[5, :, 1] - np.asarray(usual)[5, :, 1]

    assert spread(16)[24:32].tolist() == [1, 2, 3, 4, 5, 6, 7, 4]
    assert spread(24)[24:32].tolist() == [0, 1, 2, 3, 3, 4, 5, 3]
    assert not spread(32).any()


def test_a_step_on_few_lines_is_the_pictures_own():
    tile = np.full((64, 64, 3), 100, np.uint8)
    tile[30:32] = 130
    tiles = [Image.fromarray(tile), Image.new("RGB", (64, 64), (100, 100, 100))]
    found, usual = (np.asarray(tiling.assemble(tiles, (1, 2), (128, 64), unequal)) for unequal in (True, False))
    assert np.abs(found.astype(int) - usual).max() <= 2


@pytest.mark.parametrize("unequal", [False, True])
def test_rows_are_joined_like_columns(unequal):
    a, b = Image.new("RGB", (8, 8), (90, 0, 3)), Image.new("RGB", (8, 8), (100, 4, 0))
    across = np.asarray(tiling.assemble([a, b], (1, 2), (384, 8), unequal))
    down = np.asarray(tiling.assemble([a, b], (2, 1), (8, 384), unequal))
    assert across.transpose(1, 0, 2).tobytes() == down.tobytes()


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 4), (64, 96)])
def test_tiles_that_were_not_changed_come_back_nearly(photo, grid):
    picture = Image.merge("RGB", [Image.radial_gradient("L").resize((96, 64))] * 3)
    tiles = [picture.crop(box) for box in tiling.boxes(picture.size, grid)]
    again = tiling.assemble(tiles, grid, picture.size)
    assert np.abs(np.asarray(again).astype(int) - np.asarray(picture)).max() <= 6


def test_flat_tiles_leave_no_trace_of_seams():
    tiles = [Image.new("RGB", (16, 16), (9, 99, 199))] * 12
    assert tiling.assemble(tiles, (3, 4), (101, 77)).getcolors() == [(101 * 77, (9, 99, 199))]


def test_a_tile_of_the_models_size_is_not_resampled(photo):
    picture = photo(64, 64)
    (tile,) = tiling.cut(picture, (1, 1), 64)
    assert tile.tobytes() == picture.tobytes()
    assert tiling.assemble([tile], (1, 1), (64, 64)).tobytes() == picture.tobytes()


def test_cut_scales_every_tile_to_the_square(photo):
    assert [tile.size for tile in tiling.cut(photo(100, 30), (2, 3), 16)] == [(16, 16)] * 6


@pytest.mark.parametrize(
    ("size", "side", "grid"),
    [
        ((768, 512), 256, (2, 3)),
        ((512, 768), 256, (3, 2)),
        ((256, 256), 256, (1, 1)),
        ((100, 90), 256, (1, 1)),
        ((4000, 3000), 256, (12, 16)),
        ((2000, 200), 256, (1, 8)),
        ((1, 16_384), 256, (64, 1)),
    ],
)
def test_auto_follows_aspect_ratio_and_size(size, side, grid):
    assert tiling.auto_grid(size, side) == grid
    assert tiling.parse_grid("auto", size, side) == grid


def test_grids_are_rows_times_columns():
    assert tiling.parse_grid("2x3", (768, 512), 256) == (2, 3)
    assert tiling.parse_grid((2, 3), (768, 512), 256) == (2, 3)


@pytest.mark.parametrize("text", ["", "2", "2x", "x3", "2X3", "0x1", "1x257", "-1x2", "2x3x4", " 2x3", (0, 1), "9x1"])
def test_impossible_grids_are_usage_errors(text):
    with pytest.raises(UsageError):
        tiling.parse_grid(text, (300, 8), 256)


def test_candidates_of_a_kodak_picture():
    def candidates(fewest, most, fits=lambda _: True):
        return tiling.candidate_grids((768, 512), 256, fewest, most, fits, 8)

    assert candidates(1, 4) == [(1, 1), (1, 2), (1, 3), (2, 2)]
    assert candidates(5, 20) == [(2, 3), (2, 4), (2, 5), (3, 4), (3, 5), (4, 4), (4, 5)]
    assert candidates(5, 20, lambda grid: grid[0] < 3) == [(2, 3), (2, 4), (2, 5)]
    assert candidates(6, 6, lambda grid: grid != (2, 3)) == [(2, 2)]


def test_candidates_of_a_strip_may_be_oblong():
    assert tiling.candidate_grids((20_000, 256), 256, 3, 5, lambda _: True, 8) == [(1, 3), (1, 4), (1, 5)]


def test_candidates_may_be_oblong_where_they_are_few():
    def candidates(size, fewest, most):
        return tiling.candidate_grids(size, 256, fewest, most, lambda _: True, 8, oblong=True)

    assert candidates((256, 256), 1, 5) == [
        *((1, 1), (1, 2), (2, 1), (1, 3), (3, 1)),
        *((1, 4), (2, 2), (4, 1), (1, 5), (5, 1)),
    ]
    assert candidates((256, 256), 13, 15) == [(2, 7), (7, 2), (3, 5), (5, 3)]
    assert candidates((768, 512), 4, 6) == [(1, 4), (2, 2), (4, 1), (1, 5), (1, 6), (2, 3), (3, 2)]
    assert candidates((768, 512), 16, 17) == [(2, 8), (4, 4), (8, 2)]
    assert candidates((768, 512), 17, 20) == [(3, 6), (4, 5)]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 400), st.integers(1, 400), st.booleans())
def test_candidates_are_few_distinct_and_within_the_budget(width, height, a, b, oblong):
    fewest, most = sorted((a, b))
    grids = tiling.candidate_grids((width, height), 256, fewest, most, lambda _: True, 8, oblong)
    assert 1 <= len(grids) <= (40 if oblong else 16)
    assert len({rows * columns for rows, columns in grids}) <= 8
    assert len(set(grids)) == len(grids)
    for rows, columns in grids:
        assert rows <= height
        assert columns <= width
        assert rows * columns <= most


@pytest.mark.parametrize("tiles", [5, (1,), (1, 2, 3), ("1", "2"), b"1x2"])
def test_what_is_no_grid_is_a_usage_error(tiles):
    with pytest.raises(UsageError, match=r"expected \(rows, columns\), "):
        tiling.parse_grid(tiles, (96, 64), 32)
