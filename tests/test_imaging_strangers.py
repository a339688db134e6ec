"""Pictures that other programs make and Pillow alone shows wrong or refuses: what becomes of each, or what is said."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import titokc
from titokc import imaging
from titokc.errors import InputError
from titokc.imaging import colour

pytestmark = pytest.mark.filterwarnings("ignore")
NOISE = Image.effect_noise((64, 48), 50).convert("RGB")


def saved(image, name, **options):
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def read(data):
    """The picture's mean, rounded, and the notes."""
    notes = []
    return np.asarray(imaging.read(data, notes=notes)).mean((0, 1)).round().astype(int).tolist(), notes


def chunk(kind, body, checksum=None):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum or zlib.crc32(kind + body))


def png(*chunks, picture=None):
    """A PNG file with chunks after its header."""
    data = saved(picture or Image.new("RGB", (8, 4), (128, 128, 128)), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def tiff(*pages, order="<"):
    """A TIFF file of pages, each (tags, strip), with one strip of data each."""
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for tags, strip in pages:
        at = len(data)
        data += strip + b"\0" * (len(strip) % 2)
        tags = dict(sorted((tags | {273: at, 279: len(strip)}).items()))
        struct.pack_into(order + "I", data, link, len(data))
        extra = len(data) + 2 + 12 * len(tags) + 4
        tail = b""
        data += struct.pack(order + "H", len(tags))
        for tag, value in tags.items():
            values = value if isinstance(value, tuple) else (value,)
            packed = struct.pack(f"{order}{len(values)}I", *values)
            if len(values) > 1:
                packed, tail = struct.pack(order + "I", extra + len(tail)), tail + packed
            data += struct.pack(order + "HHI", tag, 4, len(values)) + packed
        link = len(data)
        data += bytes(4) + tail
    return bytes(data)


def grey(width, height, value, **more):
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: height}
    return tags | {int(key[1:]): item for key, item in more.items()}, bytes([value]) * (width * height)


def test_twelve_bit_grey_of_a_tiff_is_scaled_by_4095():
    tags, _ = grey(4, 2, 0, t258=12)
    assert read(tiff((tags, bytes.fromhex("7ff7ff" * 4)))) == ([127] * 3, [])
    assert read(tiff((tags, b"\xff" * 12))) == ([255] * 3, [])


def test_sixteen_bit_grey_whose_white_is_zero():
    tags, _ = grey(4, 2, 0, t258=16, t262=0)
    assert read(tiff((tags, bytes(16)))) == ([255] * 3, [])


@pytest.mark.parametrize(
    ("pages", "mean", "note"),
    [
        ([grey(24, 16, 9, t254=1), grey(48, 32, 200)], 200, "page 2 of 2: the first is a small copy (24x16)"),
        ([grey(24, 16, 9), grey(96, 64, 200)], 200, "page 2 of 2: the first is a small copy (24x16)"),
        ([grey(96, 64, 200), grey(24, 16, 9, t254=1)], 200, "the first of 2 pages"),
        ([grey(24, 16, 9), grey(30, 20, 200)], 9, "the first of 2 pages"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_of_a_tiff_the_full_page_is_taken(pages, mean, note, order):
    assert read(tiff(*pages, order=order)) == ([mean] * 3, [note])


@pytest.mark.parametrize(
    "tags", [{"t254": 1, "t330": 8}, {"t254": 1, "t50706": 0x401}, {"t50706": 0x401}, {"t262": 32_803}]
)
def test_camera_raw_is_refused_by_name(tags):
    with pytest.raises(InputError, match=r"a camera raw picture, of which only a preview \(48x32\) is read: convert"):
        read(tiff(grey(48, 32, 9, **tags)))


@pytest.mark.parametrize(
    ("bits", "channels", "message"),
    [
        (64, 1, "64-bit floats are not read"),
        (16, 1, "16-bit floats are not read"),
        (32, 3, "32-bit floats in 3 channels are not read"),
    ],
)
def test_floats_of_a_tiff_are_named(bits, channels, message):
    tags, _ = grey(4, 2, 0, t339=(3,) * channels if channels > 1 else 3, t277=channels, t262=1 if channels == 1 else 2)
    tags[258] = (bits,) * channels if channels > 1 else bits
    with pytest.raises(InputError, match=message):
        read(tiff((tags, bytes(8 * bits // 8 * channels))))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "an HEIC picture"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0heic", "an HEIC picture"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", r"a camera raw picture \(CR3\)"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a film"),
        (b"\xff\x0a\0\0", "a JPEG XL picture"),
        (b"8BPS\0\1", "a Photoshop picture"),
    ],
)
def test_foreign_formats_are_named(start, name):
    with pytest.raises(InputError, match=f"^{name}: convert it first$"):
        read(start + bytes(100))


def test_gamma_of_a_png_is_applied_as_browsers_do():
    """Half of the light is sRGB level 188; of 1.8 (old Macs) 146; 1/2.2 means sRGB, which wins where it is named."""
    assert read(png(chunk(b"gAMA", struct.pack(">I", 100_000)))) == ([188] * 3, [])
    assert read(png(chunk(b"gAMA", struct.pack(">I", 55_556)))) == ([146] * 3, [])
    assert read(png(chunk(b"gAMA", struct.pack(">I", 45_455)))) == ([128] * 3, [])
    assert read(png(chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000)))) == ([128] * 3, [])
    grey = Image.new("L", (8, 4), 128)
    assert read(png(chunk(b"gAMA", struct.pack(">I", 100_000)), picture=grey)) == ([188] * 3, [])


def test_primaries_of_a_png_are_converted():
    """Adobe RGB's green is outside of sRGB; its greys stay."""
    adobe = struct.pack(">8I", 31_270, 32_900, 64_000, 33_000, 21_000, 71_000, 15_000, 6_000)
    assert read(png(chunk(b"cHRM", adobe))) == ([128] * 3, [])
    mean, _ = read(png(chunk(b"cHRM", adobe), picture=Image.new("RGB", (8, 4), (100, 150, 100))))
    assert mean[0] < 70 < 145 < mean[1] < 155


@pytest.mark.parametrize(("transfer", "name"), [(16, "pq"), (18, "hlg")])
def test_high_dynamic_range_is_converted(transfer, name):
    """Paper white (203 cd/m2) is 58 % of PQ's signal and 75 % of HLG's (ITU-R BT.2408)."""
    level = {"pq": 148, "hlg": 191}[name]
    mean, notes = read(png(chunk(b"cICP", bytes([9, transfer, 0, 1])), picture=Image.new("RGB", (8, 4), (level,) * 3)))
    assert min(mean) >= 252
    assert notes == [f"high dynamic range ({name}): what is brighter than paper (203 cd/m2) is white"]
    mean, _ = read(png(chunk(b"cICP", bytes([9, transfer, 0, 1])), picture=Image.new("RGB", (8, 4), (level // 2,) * 3)))
    assert 40 < mean[0] < 130


def test_code_points_that_are_not_known_are_said():
    assert read(png(chunk(b"cICP", bytes([9, 17, 0, 1])))) == (
        [128] * 3,
        ["colours as cICP 9/17/0/1 are not known: taken as sRGB"],
    )
    assert read(png(chunk(b"cICP", bytes([1, 13, 0, 1])))) == ([128] * 3, [])


def test_pq_is_that_of_the_standard():
    """SMPTE ST 2084: half of the signal is 92.2 cd/m2."""
    assert colour._light(np.array([0.5]), "pq")[0] * 203 == pytest.approx(92.2, abs=0.1)
    assert colour._light(np.array([0.5, 1.0]), "hlg") == pytest.approx([1 / 12, 1], abs=1e-5)


def test_long_texts_and_profiles_of_a_png_are_passed_over():
    text = zlib.compress(b"x" * 2_000_000)
    assert read(png(chunk(b"zTXt", b"prompt\0\0" + text))) == ([128] * 3, [])
    assert read(png(chunk(b"iTXt", b"prompt\0\1\0\0\0" + text))) == ([128] * 3, [])
    assert read(png(chunk(b"iCCP", b"icc\0\0" + text))) == ([128] * 3, ["a colour profile of more than 1 MB: ignored"])


def test_a_wrong_checksum_matters_only_where_pixels_need_the_chunk():
    assert read(png(chunk(b"pHYs", bytes(9), checksum=1))) == ([128] * 3, [])
    assert read(png(chunk(b"gAMA", struct.pack(">I", 100_000), checksum=1))) == (
        [128] * 3,
        ["gAMA has a wrong checksum: ignored"],
    )
    data = bytearray(png())
    data[20] ^= 1
    with pytest.raises(InputError, match="damaged PNG: wrong checksum in IHDR"):
        read(bytes(data))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_a_jpeg_file_that_lacks_only_its_end_is_read(options):
    whole = saved(NOISE, "JPEG", **options)
    notes = []
    picture = imaging.read(whole[:-2], notes=notes)
    assert picture.tobytes() == imaging.read(whole).tobytes()
    assert notes == ["a JPEG file without its end: all pixels are there"]
    assert imaging.read(whole[:-1]).tobytes() == picture.tobytes()
    for cut in (20, 200, len(whole) // 2):
        with pytest.raises(InputError, match="truncated"):
            imaging.read(whole[:-cut])


def test_an_alpha_channel_of_a_bmp_that_nobody_filled_is_opaque():
    header = struct.pack("<IiiHHIIiiII4I", 108, 2, -1, 1, 32, 3, 8, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header += bytes(108 - len(header))
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + header
    assert read(data + bytes([10, 20, 30, 0]) * 2) == ([30, 20, 10], [])
    assert read(data + bytes([10, 20, 30, 0, 10, 20, 30, 255]))[0] == [142, 138, 132]


def test_what_is_transparent_everywhere_is_said():
    data = saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG")
    assert read(data) == ([255] * 3, ["transparent everywhere: nothing but background"])


def test_profiles_that_do_not_fit_are_said():
    data = saved(Image.new("RGB", (4, 4)), "PNG", icc_profile=b"junk")
    assert read(data) == ([0] * 3, ["a colour profile that does not fit: ignored"])


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_read_and_that_is_said(name):
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (200, 100, 0)]
    data = saved(frames[0], name, save_all=True, append_images=frames[1:])
    mean, notes = read(data)
    assert abs(mean[0] - 200) < 8
    assert notes == [f"the first of 3 {'pages' if name == 'TIFF' else 'frames'}"]


@pytest.mark.parametrize("data", [png(), saved(NOISE, "JPEG")], ids=["png", "jpeg"])
def test_the_hosts_guard_against_bombs_stays_meanwhile(data):
    """It belongs to the whole process: what is seen between two reads is what other threads see."""
    seen = []

    class Watched(io.BytesIO):
        def read(self, *args):
            seen.append(Image.MAX_IMAGE_PIXELS)
            return super().read(*args)

    cap = Image.MAX_IMAGE_PIXELS
    titokc.encode(Watched(data), effort=0)
    assert len(seen) > 2
    assert set(seen) == {cap}
