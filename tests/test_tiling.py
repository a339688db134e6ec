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
        (512, 2, [(0, 265), (247, 512)]),
        (768, 3, [(0, 268), (250, 518), (500, 768)]),
        (5, 5, [(0, 2), (1, 3), (2, 4), (2, 4), (3, 5)]),
        (2, 2, [(0, 2), (0, 2)]),
        (1, 1, [(0, 1)]),
    ],
)
def test_spans_are_those_of_the_specification(length, count, expected):
    assert tiling.spans(length, count) == expected


@given(st.integers(1, 70_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, min(n, 256)))))
def test_spans_cover_the_axis_with_tiles_of_one_length(case):
    length, count = case
    spans = tiling.spans(length, count)
    assert len(spans) == count
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert len({stop - start for start, stop in spans}) == 1
    assert all(a[0] <= b[0] <= a[1] for a, b in pairwise(spans))


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 4), (64, 96)])
def test_tiles_that_were_not_changed_come_back_as_the_picture(photo, grid):
    picture = photo()
    tiles = [picture.crop(box) for box in tiling.boxes(picture.size, grid)]
    assert tiling.assemble(tiles, grid, picture.size).tobytes() == picture.tobytes()


def test_seams_are_linear_ramps_over_the_overlap():
    black, white = Image.new("RGB", (265, 8)), Image.new("RGB", (265, 8), "white")
    row = np.asarray(tiling.assemble([black, white], (1, 2), (512, 8)))[0, :, 0].astype(int)
    assert row[:247].max() == 0
    assert row[265:].min() == 255
    assert row[247:265].tolist() == [7, 21, 35, 50, 64, 78, 92, 106, 120, 135, 149, 163, 177, 191, 205, 220, 234, 248]
    column = np.asarray(tiling.assemble([black.resize((8, 265)), white.resize((8, 265))], (2, 1), (8, 512)))[:, 0, 0]
    assert column.tolist() == row.tolist()


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
    assert tiling.candidate_grids((768, 512), 256, 1, 4, 8) == [(1, 1), (1, 2), (1, 3), (2, 2)]
    assert tiling.candidate_grids((768, 512), 256, 5, 20, 8) == [(2, 3), (2, 4), (2, 5), (3, 4), (3, 5), (4, 4), (4, 5)]


def test_candidates_of_a_strip_may_be_oblong():
    assert tiling.candidate_grids((20_000, 256), 256, 3, 5, 8) == [(1, 3), (1, 4), (1, 5)]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 400), st.integers(1, 400))
def test_candidates_are_few_distinct_and_within_the_budget(width, height, a, b):
    fewest, most = sorted((a, b))
    grids = tiling.candidate_grids((width, height), 256, fewest, most, 8)
    assert 1 <= len(grids) <= 8
    assert len(set(grids)) == len(grids)
    for rows, columns in grids:
        assert rows <= height
        assert columns <= width
        assert rows * columns <= most
