"""Every kind of picture that users have: each becomes upright 8-bit sRGB, or one clear line."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from titokc import imaging
from titokc.errors import InputError, LimitExceededError, UsageError
from titokc.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's remarks on damaged files
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def saved(image, name, **options):
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def near(picture, expected, tolerance=2):
    """Whether all pixels are `expected`, give or take."""
    return np.abs(np.asarray(picture).astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 95}, 6),
        ("JPEG", {"quality": 95, "progressive": True}, 6),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 90}, 12),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("GIF", {}, 6),
        ("AVIF", {"quality": 95}, 8),
    ],
)
def test_formats(name, options, tolerance, tmp_path):
    data = saved(Image.new("RGB", (16, 8), (200, 100, 50)), name, **options)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path, str(path), io.BytesIO(data)):
        picture = imaging.read(source)
        assert (picture.mode, picture.size) == ("RGB", (16, 8))
        assert near(picture, (200, 100, 50), tolerance)


def sixteen_bits(value):
    return Image.fromarray(np.full((8, 16), value, np.uint16))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (16, 8), 1), (255, 255, 255)),
        (Image.new("L", (16, 8), 77), (77, 77, 77)),
        (Image.new("LA", (16, 8), (0, 128)), (127, 127, 127)),
        (Image.new("RGBA", (16, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (16, 8), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("RGBa", (16, 8), (51, 0, 0, 51)), (255, 204, 204)),
        (Image.new("La", (16, 8), (0, 128)), (127, 127, 127)),
        (Image.new("RGB", (16, 8), RED).convert("P"), RED),
        (Image.new("RGB", (16, 8), RED).convert("PA"), RED),
        (Image.new("CMYK", (16, 8), (0, 255, 255, 0)), RED),
        (Image.new("YCbCr", (16, 8), (76, 85, 255)), (254, 0, 0)),
        (Image.new("HSV", (16, 8), (0, 255, 255)), RED),
        (Image.new("LAB", (16, 8), (255, 128, 128)), (255, 255, 255)),
        (sixteen_bits(0), (0, 0, 0)),
        (sixteen_bits(65_535), (255, 255, 255)),
        (sixteen_bits(128 * 257), (128, 128, 128)),
        (sixteen_bits(128 * 257 + 128), (128, 128, 128)),
        (sixteen_bits(128 * 257 + 129), (129, 129, 129)),
        (Image.new("I", (16, 8), 128 * 257), (128, 128, 128)),
        (Image.new("F", (16, 8), 0.5), (128, 128, 128)),
    ],
)
def test_modes(image, expected):
    picture = imaging.to_rgb(image)
    assert (picture.mode, picture.size) == ("RGB", (16, 8))
    assert near(picture, expected, 2 if image.mode == "LAB" else 1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_and_png(order):
    samples = np.full((8, 16), 200 * 257, np.uint16).astype(f"{order}u2")
    assert near(imaging.read(saved(Image.fromarray(samples), "TIFF")), (200, 200, 200), 0)
    assert near(imaging.read(saved(sixteen_bits(200 * 257), "PNG")), (200, 200, 200), 0)


def png_of_16_bits(pixels, key=None):
    """A row of pixels, each of one sample (grey) or three."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    samples = len(pixels[0])
    row = b"\0" + b"".join(struct.pack(f">{samples}H", *pixel) for pixel in pixels)
    data = b"\x89PNG\r\n\x1a\n"
    data += chunk(b"IHDR", struct.pack(">IIBBBBB", len(pixels), 1, 16, 2 if samples == 3 else 0, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(f">{samples}H", *key)) if key else b""
    return data + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def test_sixteen_bit_rgb_png():
    assert near(imaging.read(png_of_16_bits([(65_535, 32_896, 0)] * 2)), (255, 128, 0), 0)


@pytest.mark.parametrize("key", [(0x1234,), (0xFFFF,), (0x1234, 0x5678, 0x9ABC), (0, 0, 0x12)])
def test_a_colour_of_16_bits_can_be_transparent(key):
    other = (0x8000, *key[1:])
    picture = np.asarray(imaging.read(png_of_16_bits([key, other], key), background="red"))
    assert picture[0, 0].tolist() == [255, 0, 0]
    assert picture[0, 1, 0] == 128


@pytest.mark.parametrize(("mode", "value"), [("I", -1), ("I", 65_536), ("F", 1.5), ("F", -0.5), ("F", float("nan"))])
def test_samples_without_a_known_white_are_refused(mode, value):
    with pytest.raises(InputError, match="samples outside"):
        imaging.to_rgb(Image.new(mode, (4, 4), value))


@pytest.mark.parametrize(
    ("background", "expected"),
    [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("rgb(1, 2, 3)", (1, 2, 3)), ((4, 5, 6), (4, 5, 6))],
)
def test_background_shows_through(background, expected):
    data = saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG")
    assert near(imaging.read(data, background=background), expected, 0)


def test_transparent_palette_and_colour_key():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert near(imaging.read(saved(palette, "PNG", transparency=1), background="red"), RED, 0)
    assert near(imaging.read(saved(palette, "GIF", transparency=1), background="red"), RED, 0)
    key = saved(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert near(imaging.read(key, background="red"), RED, 0)


def test_unknown_background_is_a_usage_error():
    for background in ("bluish", 3, (1, 2), None):
        with pytest.raises(UsageError, match="no colour"):
            imaging.to_rgb(Image.new("RGBA", (2, 2)), background=background)


def corners(picture):
    w, h = picture.size
    return [picture.getpixel(at) for at in ((0, 0), (w - 1, 0), (0, h - 1))]


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(name, orientation):
    upright = Image.new("RGB", (32, 16), (128, 128, 128))
    upright.paste(RED, (0, 0, 8, 8))
    upright.paste(GREEN, (24, 0, 32, 8))
    upright.paste(BLUE, (0, 8, 8, 16))
    t = Image.Transpose
    undo = [
        None,
        None,
        t.FLIP_LEFT_RIGHT,
        t.ROTATE_180,
        t.FLIP_TOP_BOTTOM,
        t.TRANSPOSE,
        t.ROTATE_90,
        t.TRANSVERSE,
        t.ROTATE_270,
    ]
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
    picture = imaging.read(saved(stored, name, exif=exif, **lossless.get(name, {})))
    assert picture.size == (32, 16)
    for found, expected in zip(corners(picture), (RED, GREEN, BLUE), strict=True):
        assert np.abs(np.subtract(found, expected)).max() < 30


def test_damaged_exif_is_ignored():
    data = saved(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert near(imaging.read(data), RED, 6)


def linear_profile():
    """An RGB profile with sRGB's primaries and gamma 1, from sRGB's by replacing its tone curves."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", srgb, 128)[0]
    for entry in range(count):
        tag, offset, _ = struct.unpack_from(">4sII", srgb, 132 + 12 * entry)
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            srgb[offset : offset + 16] = b"para\0\0\0\0\0\0\0\0\0\x01\0\0"
    return bytes(srgb)


def test_icc_profiles_are_converted_to_srgb():
    """Half of the light is sRGB level 188."""
    for name in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        data = saved(Image.new("RGB", (16, 16), (128, 128, 128)), name, icc_profile=linear_profile())
        assert near(imaging.read(data), (188, 188, 188), 2), name


def test_icc_with_alpha():
    data = saved(Image.new("RGBA", (16, 16), (128, 128, 128, 255)), "PNG", icc_profile=linear_profile())
    assert near(imaging.read(data), (188, 188, 188), 1)


@pytest.mark.parametrize("profile", [b"", b"junk", linear_profile()[:200]])
def test_damaged_icc_profiles_are_ignored(profile):
    data = saved(Image.new("RGB", (16, 16), (128, 128, 128)), "PNG", icc_profile=profile)
    assert near(imaging.read(data), (128, 128, 128), 0)


def test_an_icc_profile_of_another_colour_space_is_ignored():
    data = saved(Image.new("L", (16, 16), 128), "PNG", icc_profile=linear_profile())
    assert near(imaging.read(data), (128, 128, 128), 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 16_000), (16_000, 1), (3, 2)])
def test_extreme_shapes(size):
    assert imaging.read(saved(Image.new("RGB", size, RED), "PNG")).size == size


def png_claiming(width, height):
    """A small PNG file whose header declares this size."""
    data = bytearray(saved(Image.new("RGB", (1, 1)), "PNG"))
    struct.pack_into(">II", data, 16, width, height)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "limits", "message"),
    [
        (png_claiming(1, 20_000), Limits(), "1x20000: the limit is 16384 pixels a side"),
        (png_claiming(16_000, 10_000), Limits(), "16000x10000 is 160000000 pixels, the limit is 89478485"),
        (png_claiming(1_000_000, 1_000_000), Limits(), "1000000000000"),
        (png_claiming(11, 10), Limits(max_pixels=100), "11x10 is 110 pixels, the limit is 100"),
        (png_claiming(101, 1), Limits(max_side=100), "101x1: the limit is 100 pixels a side"),
    ],
)
def test_bombs_are_refused_before_they_are_decoded(data, limits, message):
    with pytest.raises(LimitExceededError, match=message):
        imaging.read(data, limits=limits)


def test_limits_beyond_pillows_own_hold():
    data, cap = png_claiming(16_000, 14_000), Image.MAX_IMAGE_PIXELS
    with pytest.raises(LimitExceededError, match="16000x14000 is 224000000 pixels, the limit is 89478485"):
        imaging.read(data)
    with pytest.raises(InputError, match="not a readable picture"):  # it claims more than it holds
        imaging.read(data, limits=Limits(max_pixels=400_000_000))
    assert cap == Image.MAX_IMAGE_PIXELS


def test_what_pillow_refuses_while_it_decodes_is_a_limit_too(monkeypatch):
    data = saved(Image.new("1", (40, 30)), "TIFF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(LimitExceededError, match="more pixels than Pillow reads of this format"):
        imaging.read(data)


def test_images_from_memory_have_the_same_limits():
    with pytest.raises(LimitExceededError):
        imaging.to_rgb(Image.new("RGB", (101, 1)), limits=Limits(max_side=100))


JPEG = saved(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
PNG = saved(Image.effect_noise((64, 64), 50).convert("RGB"), "PNG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\xf5tok\x20\x01", "already a .tok file"),
        (b"hello world", "not a PNG, JPEG"),
        (bytes(range(256)) * 4, "not a PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a PNG, JPEG"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated|picture"),
        (PNG[:100] + b"garbage" + PNG[107:], "picture"),
        (b"P6 -5 5 255\n", "picture"),
        (b"GIF89a\1\0\1\0\0\0\0", "picture"),
        (saved(Image.new("RGB", (9, 9)), "TIFF")[:60], "picture"),
    ],
)
def test_what_is_no_picture_is_one_clear_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        imaging.read(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "AVIF"])
def test_damaged_files_give_a_picture_or_a_typed_error(name):
    """Every byte of a small file replaced or the file cut there."""
    whole = saved(Image.effect_noise((8, 8), 50).convert("RGB"), name)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 150):
        for data in (whole[:at], whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :]):
            with contextlib.suppress(InputError, LimitExceededError):
                assert imaging.read(data).mode == "RGB"


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        imaging.read(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a directory"):
        imaging.read(tmp_path)


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (20, 20)])
def test_centre_square(size):
    """The middle 20 x 20 pixels: what lies 5 pixels or more to either side of them is cut off."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, ((size[0] - 20) // 2, (size[1] - 20) // 2, (size[0] + 20) // 2, (size[1] + 20) // 2))
    assert imaging.centre_square(picture, 8).getcolors() == [(64, BLUE)]
    assert imaging.centre_square(picture, 20).getcolors() == [(400, BLUE)]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp", ".tif", ".tiff", ".bmp", ".ppm"])
def test_lossless_outputs_come_back_exactly(photo, suffix):
    picture = photo()
    assert imaging.read(imaging.picture_bytes(picture, suffix)).tobytes() == picture.tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".avif"])
def test_lossy_outputs_are_near(photo, suffix):
    picture = photo()
    again = imaging.read(imaging.picture_bytes(picture, suffix))
    assert np.abs(np.asarray(again).astype(int) - np.asarray(picture)).mean() < 4


@pytest.mark.parametrize("suffix", [".xyz", "", ".tok", ".pdf"])
def test_other_outputs_are_usage_errors(photo, suffix):
    with pytest.raises(UsageError, match="cannot write pictures as"):
        imaging.picture_bytes(photo(), suffix)


@pytest.mark.parametrize(
    ("size", "suffix", "message"),
    [
        ((17_000, 1), ".webp", "17000x1 picture cannot be written as WEBP: its sides are at most 16,383 pixels"),
        ((70_000, 2), ".jpg", "70000x2 picture cannot be written as JPEG: its sides are at most 65,535 pixels"),
    ],
)
def test_what_a_format_cannot_hold_is_a_usage_error(size, suffix, message):
    with pytest.raises(UsageError, match=message):
        imaging.picture_bytes(Image.new("RGB", size), suffix)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (np.zeros((4, 4, 3), np.uint8), "numpy.ndarray: Image.fromarray makes one"),
        (None, "NoneType"),
        ([b""], "list"),
        (3, "int"),
        (io.StringIO("P3 1 1 255 0 0 0"), "_io.StringIO"),
    ],
)
def test_what_is_no_picture_file_at_all_is_a_usage_error(source, found):
    with pytest.raises(UsageError, match=f"expected a Pillow image, a path, bytes or a binary file; found {found}$"):
        imaging.read(source)
