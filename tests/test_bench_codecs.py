"""The codecs under test and the search for a baseline's best file."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("scipy")

from titokc.bench.contenders import BASELINES, formats, open_contender, search
from titokc.bench.contenders.cache import best_files
from titokc.bench.contenders.interface import RESAMPLING, Found, Impossible, enlarged
from titokc.bench.contenders.search import Format, coarse_sides, reduced
from titokc.errors import InputError, UsageError
from titokc.judge import pixels

PRESENT = [name for name, baseline in BASELINES.items() if baseline.missing() is None]
FORMATS = [name for name in PRESENT if issubclass(BASELINES[name], Format)]


def psnr(original, picture):
    return pixels.psnr(np.asarray(original), np.asarray(picture))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_encode_a_reduced_picture(name, photo):
    codec = open_contender(name)
    point = {"width": 24, "height": 16, "filter": "lanczos", "quality": codec.ladder[-1]}
    for variant in codec.variants:
        data = codec.encode(photo(), point | variant | codec.finishes[0])
        picture = codec.decode(data)
        assert (picture.mode, picture.size) == ("RGB", (24, 16))
        assert data == codec.encode(photo(), point | variant | codec.finishes[0])
        assert psnr(photo().resize((24, 16), Image.Resampling.LANCZOS), picture) > 15
    assert codec.version


@pytest.mark.parametrize("name", FORMATS)
def test_files_grow_along_the_ladder(name, photo):
    codec = open_contender(name)
    point = {"width": 48, "height": 32, "filter": "lanczos"} | codec.variants[0] | codec.finishes[0]
    sizes = [
        len(codec.encode(photo(), point | {"quality": quality})) for quality in codec.ladder[:: len(codec.ladder) // 4]
    ]
    assert sizes == sorted(sizes)
    assert list(codec.ladder) == sorted(set(codec.ladder))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_take_a_single_pixel(name):
    codec = open_contender(name)
    point = {"width": 1, "height": 1, "filter": "lanczos", "quality": codec.ladder[0]}
    point |= codec.variants[-1] | codec.finishes[-1]
    assert codec.decode(codec.encode(Image.new("RGB", (40, 30), "teal"), point)).size == (1, 1)


@pytest.mark.skipif("av1" not in PRESENT, reason="this Pillow was built without AVIF")
@pytest.mark.parametrize("size", [(1, 1), (23, 17), (96, 64)])
def test_av1_is_what_avif_holds_in_275_bytes_of_boxes(size, photo):
    whole, bare = open_contender("avif"), open_contender("av1")
    assert bare.variants == whole.variants
    for variant in bare.variants:
        point = {"width": size[0], "height": size[1], "filter": "lanczos", "quality": 30} | variant
        file, stream = whole.encode(photo(), point), bare.encode(photo(), point)
        assert len(file) - len(stream) == 275
        assert stream == file[275:]
        assert bare.decode(stream) == whole.decode(file)
    with pytest.raises(InputError, match="no AV1 stream"):
        bare.decode(file)


def test_webp_has_a_quality_for_each_quantiser():
    assert len(formats.WebP.ladder) == 128
    assert formats.WebP.ladder[0] == 0
    assert formats.WebP.ladder[-1] > 98


def test_webp_begins_with_libwebps_own_loop_filter(photo):
    import webp

    codec, config = formats.WebP(), webp.WebPConfig.new(quality=20, method=6)
    point = {"quality": 20, "noise_shaping": 50, "segments": 4} | codec.finishes[0]
    assert codec.save(photo(), point) == bytes(webp.WebPPicture.from_pil(photo()).encode(config).buffer())


def test_the_loop_filter_of_webp_costs_no_byte_and_changes_the_picture(photo):
    codec = formats.WebP()
    point = {"width": 96, "height": 64, "filter": "lanczos", "quality": 10} | codec.variants[0]
    files = [codec.encode(photo(), point | finish) for finish in codec.finishes]
    assert len({len(file) for file in files}) == 1
    assert len({codec.decode(file).tobytes() for file in files}) > 2


def test_the_loop_filter_is_chosen_by_psnr(photo, monkeypatch):
    image = photo(64, 48)
    found = formats.WebP().best(image, 80, 140)
    monkeypatch.setattr(formats.WebP, "finishes", formats.WebP.finishes[:1])
    gains = [new.psnr - old.psnr for new, old in zip(found, formats.WebP().best(image, 80, 140), strict=True)]
    assert min(gains) >= 0
    assert max(gains) > 0.01


def test_one_quantisation_table_saves_67_bytes(photo):
    codec = formats.JPEG()
    point = {"width": 96, "height": 64, "filter": "lanczos", "quality": 1}
    one, two = (codec.encode(photo(), point | {"tables": count, "chroma": "4:2:0"}) for count in (1, 2))
    with Image.open(io.BytesIO(one)) as a, Image.open(io.BytesIO(two)) as b:
        assert a.quantization[0] == b.quantization[0]
    assert len(one) <= len(two) - 60


@pytest.mark.skipif("jpeg2000" not in PRESENT, reason="Pillow without JPEG 2000")
def test_jpeg2000_spends_no_bytes_on_the_encoders_name(photo):
    codec = formats.JPEG2000()
    point = {"width": 96, "height": 64, "filter": "lanczos", "quality": 1.0, "more": 0}
    data = codec.encode(photo(), point)
    assert data.startswith(b"\xff\x4f\xff\x51")
    assert b"OpenJPEG" not in data


@pytest.mark.parametrize("name", [name for name in ("thumbhash", "blurhash") if name in PRESENT])
def test_placeholders(name, capsys):
    """A picture with a bright half keeps it: not one colour, as a package's decoder made of every ThumbHash."""
    codec = open_contender(name)
    half = Image.new("RGB", (96, 64), "white")
    half.paste("navy", (0, 0, 48, 64))
    data = codec.encode(half, codec.points[-1])
    assert len(data) <= 170
    assert psnr(half, enlarged(codec.decode(data), half.size, "bicubic")) > 10  # one colour: 7
    assert capsys.readouterr().out == ""


@pytest.mark.skipif("blurhash" not in PRESENT, reason="needs blurhash-python")
def test_blurhash_file_sizes():
    codec = open_contender("blurhash")
    image = Image.new("RGB", (8, 8), "teal")
    assert [len(codec.encode(image, {"x": x, "y": y})) for x, y in ((1, 1), (4, 3), (9, 9))] == [6, 28, 166]


def test_names_of_models():
    assert open_contender("mine=some/where").name == "mine"
    assert open_contender("runs/model-2").name == "model-2"
    for spec in ("x/webp", "../x=model", "original=model", ".."):
        with pytest.raises(UsageError, match="cannot be the name of a model"):
            open_contender(spec)


def test_a_baseline_that_is_missing_says_why(monkeypatch):
    monkeypatch.setattr(formats.shutil, "which", lambda _: None)
    monkeypatch.setattr(formats.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="neither pillow-jxl-plugin nor cjxl"):
        open_contender("jpegxl")
    with pytest.raises(UsageError, match="package fast_thumbhash is not installed"):
        open_contender("thumbhash")


def test_jpeg_xl_distance():
    """libjxl's JxlEncoderDistanceFromQuality."""
    assert [formats._jxl_distance(quality) for quality in (100, 90, 30, 0)] == pytest.approx([0.1, 1.0, 6.4, 25])
    assert formats._jxl_distance(20) == pytest.approx(9.0667, abs=1e-3)


def test_reduced_keeps_the_aspect_ratio():
    assert reduced((768, 512), 48) == (48, 32)
    assert reduced((512, 768), 50) == (33, 50)
    assert reduced((1000, 1), 10) == (10, 1)


def test_sizes_that_the_search_starts_with():
    sides = coarse_sides((256, 256))
    assert sides[:8] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert {16, 32, 48, 64, 256} <= set(sides)
    assert {24, 48, 72} <= set(coarse_sides((768, 512)))  # 16 and 32 rows, 48 rows
    assert coarse_sides((1, 1)) == [1]


def test_the_projected_error_is_the_real_one(photo):
    image = photo(80, 60)
    size = search._Size(np.asarray(image, np.float32).transpose(2, 0, 1), (20, 15))
    small = image.resize((20, 15), Image.Resampling.BOX)
    real = max(psnr(image, enlarged(small, image.size, way)) for way in search.ENLARGERS)
    assert size.psnr(small) == pytest.approx(real, abs=0.03)
    assert size.bound > size.psnr(small)


def everything(codec, image, budget):
    """The best PSNR of all sizes, filters, variants, finishes and qualities."""
    best = 0.0
    for side in range(search.SMALLEST_SIDE, max(image.size) + 1):
        for kind, variant, finish in itertools.product(RESAMPLING, codec.variants, codec.finishes):
            width, height = reduced(image.size, side)
            small = image.resize((width, height), RESAMPLING[kind])
            for quality in codec.ladder:
                data = codec.save(small, variant | finish | {"quality": quality})
                if len(data) <= budget:
                    decoded = codec.decode(data)
                    best = max(best, *(psnr(image, enlarged(decoded, image.size, way)) for way in search.ENLARGERS))
    return best


def test_the_search_finds_what_trying_everything_finds(photo):
    image, codec = photo(20, 14), formats.WebP()
    codec.ladder, codec.finishes = codec.ladder[::2], codec.finishes[:2]
    [found] = codec.best(image, 64)
    assert found.psnr == pytest.approx(everything(codec, image, 64), abs=0.02)
    assert len(found.data) <= 64
    assert codec.encode(image, found.point) == found.data
    assert psnr(image, enlarged(codec.decode(found.data), image.size, found.enlarge)) == found.psnr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "budget", "seed"), [("webp", 110, 1), ("webp", 80, 2), ("jpeg", 300, 1), ("jpeg2000", 170, 3)]
)
def test_the_search_loses_nothing_on_larger_pictures(name, budget, seed, photo):
    image, codec = photo(64, 48, seed), open_contender(name)
    codec.ladder, codec.finishes = codec.ladder[:: len(codec.ladder) // 90], codec.finishes[:1]
    assert codec.best(image, budget)[0].psnr > everything(codec, image, budget) - 0.05


def test_what_is_found_does_not_depend_on_other_budgets(photo):
    codec = formats.WebP()
    assert codec.best(photo(), 60, 90, 200)[1:2] == codec.best(photo(), 90)


def test_a_budget_below_the_format_is_impossible(photo):
    [found] = formats.JPEG().best(photo(), 100)
    assert isinstance(found, Impossible)
    assert 150 < found.smallest < 300


def test_what_is_impossible_is_found_out_cheaply(photo, monkeypatch):
    """A format that cannot hold a block within the budget is not tried on large pictures."""
    tried = []
    save = formats.JPEG.save

    def counted(self, image, point):
        tried.append(image)
        return save(self, image, point)

    monkeypatch.setattr(formats.JPEG, "save", counted)
    assert isinstance(formats.JPEG().best(photo(256, 256), 150)[0], Impossible)
    assert len(tried) < 60  # with colours at half and at full size
    assert max(image.width for image in tried) <= 20


def test_a_picture_larger_than_the_format_holds(photo):
    assert formats.WebP().floor(photo(17_000, 20)) == Impossible(None)
    assert isinstance(formats.WebP().best(photo(17_000, 20), 90)[0], Found)


def test_the_floor_is_the_smallest_file_at_native_size(photo):
    codec = formats.JPEG()
    found = codec.floor(photo())
    assert found.point == {"width": 96, "height": 64, "filter": "lanczos", "quality": 1, "tables": 1, "chroma": "4:2:0"}
    assert codec.decode(found.data).size == (96, 64)


@pytest.mark.skipif("blurhash" not in PRESENT, reason="needs blurhash-python")
def test_placeholders_are_searched_over_all_points(photo):
    image, codec = photo(), open_contender("blurhash")
    too_small, small, large = codec.best(image, 5, 30, 1000)
    assert isinstance(too_small, Impossible)
    assert len(small.data) <= 30
    assert large.psnr >= small.psnr


def test_searches_are_kept_on_disk(photo, tmp_path, monkeypatch):
    codec, image = formats.WebP(), photo(24, 16)
    first, _ = best_files(codec, image, [60, 100], tmp_path)
    monkeypatch.setattr(formats.WebP, "save", lambda *_: pytest.fail("searched again"))
    assert best_files(codec, image, [100, 60], tmp_path) == (first, None)
    assert isinstance(first[60], Found)
    with pytest.raises(BaseException, match="searched again"):
        best_files(formats.WebP(), image, [101], tmp_path)


def test_a_damaged_cache_is_searched_again(photo, tmp_path):
    codec, image = formats.WebP(), photo(24, 16)
    first = best_files(codec, image, [60], tmp_path)
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")
    assert best_files(codec, image, [60], tmp_path) == first
