"""What the codec tells of its results, what it refuses of its callers, and that threads can share it."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import titokc
from titokc import container, tiling
from titokc.codec import Codec
from titokc.errors import ModelMismatchError, UsageError
from titokc.options import EncodeOptions


@pytest.fixture
def codec(tiny):
    return Codec(tokenizer=tiny)


def detail(codec, picture, **options):
    return next(codec.encode_many([picture], details=True, **options))


class TestDetails:
    @pytest.mark.parametrize("form", ["tok", "bare", "base64"])
    def test_grid_tokens_and_size_are_told_in_every_form(self, codec, photo, form):
        found = detail(codec, photo(192, 128), form=form, tokens=40, tiles="2x3")
        header = found.header
        assert (header.width, header.height, header.rows, header.columns) == (192, 128, 2, 3)
        assert (header.tokens_per_tile, found.psnr, found.notes) == (40, None, ())
        assert found.data == codec.encode(photo(192, 128), form=form, tokens=40, tiles="2x3")

    @pytest.mark.parametrize("form", ["bare", "base64"])
    def test_a_budget_alone_chooses_no_grid_that_nobody_is_told(self, codec, photo, form):
        header = detail(codec, photo(192, 128), form=form, target_size=1000).header
        assert (header.rows, header.columns, header.tokens_per_tile) == (1, 1, 128)
        header = detail(codec, photo(192, 128), form=form, target_size=1000, tiles="2x3").header
        assert (header.rows, header.columns) == (2, 3)

    def test_psnr_is_that_of_the_decoded_picture(self, codec, photo):
        picture = photo(192, 128)
        found = detail(codec, picture, tiles="2x3", psnr=True)
        error = np.asarray(codec.decode(found.data)).astype(float) - np.asarray(picture)
        assert found.psnr == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)), abs=1e-9)

    def test_notes_of_pictures(self, codec, photo):
        out = io.BytesIO()
        photo().save(out, "GIF", save_all=True, append_images=[photo(seed=1), photo(seed=2)])
        assert detail(codec, out.getvalue()).notes == ("the first of 3 frames",)

    def test_of_cut_files_what_is_left(self, codec, photo):
        data = codec.encode(photo())
        header = titokc.read_header(data)

        def decoded(data, **options):
            return next(codec.decode_many([data], partial=True, details=True, **options))

        assert decoded(data).notes == ()
        assert decoded(data).header == header
        cut = decoded(data[:-1])
        assert cut.header.tokens_per_tile == 128
        assert cut.notes == ("128 tokens a tile are there, of 128; the checksum is not: they may be wrong",)
        cut = decoded(data[:100])
        assert cut.header.tokens_per_tile == 59
        assert cut.notes == ("59 tokens a tile are there, of 128; the checksum is not: they may be wrong",)
        bare = codec.encode(photo(), form="bare")
        cut = decoded(bare[:95], form="bare")
        assert cut.header.tokens_per_tile == 63
        assert cut.notes == ("63 tokens a tile are there; a payload alone has no checksum",)


class TestProgress:
    def calls(self, tiny, run, **options):
        calls = []
        codec = Codec(tokenizer=tiny, threads=1, progress=lambda done, total: calls.append((done, total)), **options)
        run(codec)
        return calls

    def test_counts_the_tiles(self, tiny, photo):
        data = Codec(tokenizer=tiny).encode(photo(), tiles="2x2")
        expected = [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert self.calls(tiny, lambda codec: codec.encode(photo(), tiles="2x2")) == expected
        assert self.calls(tiny, lambda codec: codec.decode(data)) == expected

    def test_of_a_budget_all_candidates_count(self, tiny, photo):
        calls = self.calls(tiny, lambda codec: codec.encode(photo(192, 128), target_size=800, effort=0))
        assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
        assert {total for _, total in calls} == {len(calls)}


def test_grids_of_a_large_picture_are_compared_on_a_smaller_one(tiny, photo, monkeypatch):
    """What is told and decoded first is that; the tokens are those of the picture itself."""
    sizes, real = [], tiling.assemble
    monkeypatch.setattr(
        tiling, "assemble", lambda tiles, grid, size, **more: sizes.append(size) or real(tiles, grid, size, **more)
    )
    codec, picture = Codec(tokenizer=tiny, threads=1), photo(1200, 800)
    found = detail(codec, picture, target_size=200, effort=1)
    assert len(sizes) > 2
    assert sizes == sorted(sizes)
    assert set(sizes) <= {(172, 115), (1200, 800)}
    grid = (found.header.rows, found.header.columns)
    assert found.data == codec.encode(picture, target_size=200, effort=1, tiles=grid)
    assert found.data != codec.encode(picture.reduce(7), target_size=200, effort=1, tiles=grid)


def test_a_budget_searches_where_it_is_nearest_without(make_tiny, photo):
    """All are coded and decoded tile by tile without a search first; what won is not coded again."""
    tiny, efforts = make_tiny(), []
    real = tiny.encode
    tiny.encode = lambda images, tokens=None, effort=0, distance=None: efforts.append(effort) or real(images, tokens)
    codec, picture = Codec(tokenizer=tiny, threads=1), photo(192, 128)
    header = detail(codec, picture, target_size=800, effort=0).header
    without = len(efforts)
    efforts.clear()
    codec.encode(picture, target_size=800, effort=1)
    assert efforts.count(0) == without
    assert header.tiles <= efforts.count(1) < without / 2
    efforts.clear()
    codec.encode(picture, target_size=800, effort=1, tiles=(header.rows, header.columns))
    assert efforts.count(1) == header.tiles
    efforts.clear()
    codec.encode(picture, target_size=800)
    assert efforts.count(6) == len(efforts) - without == header.tiles
    efforts.clear()
    small = detail(codec, picture, target_size=600).header
    assert efforts.count(9) == small.tiles
    efforts.clear()
    codec.encode(picture)
    assert efforts == [6]


def test_the_effort_that_is_meant_where_none_is_given():
    meant = [{}, {"target_size": 600}, {"target_size": 601}, {"tune": "natural"}, {"tune": "natural", "effort": 2}]
    assert [EncodeOptions(**options).search_effort for options in meant] == [6, 9, 6, 8, 2]


class TestOtherModels:
    def test_a_part_of_a_code_that_is_not_nested_is_refused_by_name(self, make_tiny, photo):
        codec = Codec(tokenizer=make_tiny(model_id=0, nested=False))
        data, bare = codec.encode(photo()), codec.encode(photo(), form="bare")
        with pytest.raises(ModelMismatchError, match="60 of 128 tokens: with tiny a part of a code is no picture"):
            codec.decode(data[: 12 + 90], partial=True)
        with pytest.raises(UsageError, match="63 tokens a tile, expected 128 for tiny"):
            codec.decode(bare[:95], form="bare", partial=True)
        with pytest.raises(UsageError, match="32 tokens a tile, expected 128 for tiny"):
            codec.decode(bytes(48), form="bare")
        assert codec.decode(data, partial=True).tobytes() == codec.decode(data).tobytes()

    @pytest.mark.parametrize("changed", [{"model_id": 2, "tokens_per_tile": 32, "nested": False}, {"model_id": 0}])
    def test_a_header_that_contradicts_the_model_is_refused(self, codec, photo, changed):
        """Of the same code: one says another known model, one that its tokens are not nested."""
        values = {**vars(titokc.read_header(codec.encode(photo()))), "nested": False, **changed}
        header = container.Header(**values)
        data = container.pack(header, [0] * header.tokens_per_tile)
        with pytest.raises(ModelMismatchError, match="the model at hand is nano-1"):
            codec.decode(data)


class TestMisuse:
    @pytest.mark.parametrize("data", [None, [b"x"], 3, io.StringIO("x")])
    def test_of_files(self, codec, data):
        with pytest.raises(UsageError, match=f"found {type(data).__name__}"):
            codec.decode(data)

    def test_base64_text_is_no_name(self, codec, photo):
        text = codec.encode(photo(), form="base64").decode()
        assert codec.decode(text, form="base64").tobytes() == codec.decode(text.encode(), form="base64").tobytes()

    @pytest.mark.parametrize("one", ["a.png", b"a", bytearray(b"a"), Image.new("RGB", (2, 2)), 3])
    def test_one_picture_instead_of_many(self, codec, one):
        for call in (codec.encode_many, codec.decode_many):
            with pytest.raises(UsageError, match="expected a list or an iterator, found one"):
                call(one)

    @pytest.mark.parametrize(
        "options",
        [
            {"tokens": "64"},
            {"tokens": 64.0},
            {"effort": "6"},
            {"effort": -1},
            {"effort": 10},
            {"target_size": "9"},
            {"tiles": 3},
            {"tiles": (1, 2, 3)},
            {"tiles": (1.5, 2)},
            {"background": 3},
            {"background": (1, 2, 300)},
            {"background": ("a", "b", "c")},
            {"form": "hex"},
        ],
    )
    def test_of_options(self, codec, options):
        with pytest.raises(UsageError, match=next(iter(options)).replace("_", ".")):
            codec.encode(Image.new("RGBA", (9, 9)), **options)

    @pytest.mark.parametrize(
        "options", [{"size": "3x4"}, {"size": 3}, {"size": (0, 3)}, {"size": (1.5, 3)}, {"form": "hex"}]
    )
    def test_of_options_of_decoding(self, codec, photo, options):
        with pytest.raises(UsageError, match=next(iter(options))):
            codec.decode(codec.encode(photo()), **options)

    def test_unknown_options(self, codec, photo):
        with pytest.raises(TypeError, match="return_errors"):
            codec.encode(photo(), return_errors=True)


def test_threads_share_a_codec(tiny, photo, monkeypatch):
    """It loads once, and everyone gets the own picture's file."""
    loads = []
    monkeypatch.setattr("titokc.weights.load", lambda name, device: loads.append(name) or tiny)
    codec = Codec(device="cpu", engine="torch")
    pictures = [photo(seed=seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda picture: codec.encode(picture, effort=0), pictures))
    assert loads == ["nano"]
    assert files == [Codec(tokenizer=tiny).encode(picture) for picture in pictures]


def test_an_iterator_that_is_left_early_leaves_nothing_running(tiny, photo):
    codec = Codec(tokenizer=tiny, threads=1)
    results = codec.encode_many(photo(seed=seed) for seed in range(1000))
    next(results)
    results.close()
    assert len(tiny.batches) < 10
