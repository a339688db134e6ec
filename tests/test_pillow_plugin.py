"""Image.open("x.tok") and image.save("x.tok"), after `import titokc.pillow_plugin`."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

import titokc
import titokc.pillow_plugin
from titokc import codec as codec_module


@pytest.fixture(autouse=True)
def _tiny_nano(tiny, monkeypatch):
    monkeypatch.setattr("titokc.weights.load", lambda name, device: tiny)
    codec_module._shared.cache_clear()
    yield
    codec_module._shared.cache_clear()


@pytest.fixture
def tok(photo, tmp_path):
    path = tmp_path / "x.tok"
    photo().save(path)
    return path


def test_saving_is_encoding(tok, photo):
    assert tok.read_bytes() == titokc.encode(photo())


def test_options_of_saving(photo, tmp_path):
    out = io.BytesIO()
    photo().save(out, "TOK", tokens=40, tiles="2x3")
    assert out.getvalue() == titokc.encode(photo(), tokens=40, tiles="2x3")
    with pytest.raises(titokc.UsageError):
        photo().save(tmp_path / "y.tok", tokens=500)
    assert not (tmp_path / "y.tok").exists()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_any_mode_can_be_saved(photo, tmp_path, mode):
    photo().convert("L" if mode == "I;16" else "RGB").convert(mode).save(tmp_path / "y.tok")
    assert Image.open(tmp_path / "y.tok").size == (96, 64)


def test_opening_tells_size_and_loads_when_needed(tok, tiny):
    tiny.batches.clear()
    with Image.open(tok) as image:
        assert (image.format, image.mode, image.size) == ("TOK", "RGB", (96, 64))
        assert image.get_format_mimetype() == "image/x-titokc"
        assert image.info == {"model": "nano-1", "tokens_per_tile": 128}
        assert tiny.batches == []
        assert image.tobytes() == titokc.decode(tok).tobytes()
        assert image.format == "TOK"
        assert image.getpixel((0, 0)) == titokc.decode(tok).getpixel((0, 0))


def test_the_most_tokens_of_tiles_with_unequal_numbers(tmp_path):
    path = Path(__file__).parents[1] / "formats" / "vectors" / "valid" / "nano-1-2x2-tiles-of-4-shares.tok"
    with Image.open(path) as image:
        assert (image.size, image.info) == ((512, 512), {"model": "nano-1", "tokens_per_tile": 32})


def test_another_look_is_asked_for_on_loading(photo, tmp_path):
    path = tmp_path / "looks.tok"
    path.write_bytes(titokc.Codec("nano", device="cpu").encode(photo(), tokens=32, effort=0))
    with Image.open(path) as image:
        image.load(look="natural")
        assert image.tobytes() == titokc.decode(path, look="natural").tobytes()
        image.load(look="faithful")
        assert image.tobytes() == titokc.decode(path).tobytes()
        with pytest.raises(OSError, match="look 'pretty': expected faithful or natural"):
            image.load(look="pretty")


def test_what_one_does_with_images(tok):
    expected = titokc.decode(tok)
    assert Image.open(tok).convert("L").tobytes() == expected.convert("L").tobytes()
    assert Image.open(tok).resize((9, 9)).tobytes() == expected.resize((9, 9)).tobytes()
    copy = Image.open(tok).copy()
    copy.putpixel((0, 0), (1, 2, 3))
    image = Image.open(tok)
    image.putpixel((0, 0), (1, 2, 3))
    assert image.tobytes() == copy.tobytes()
    image.thumbnail((10, 10))
    assert image.size == (10, 7)
    Image.open(tok).verify()


def test_open_from_memory_and_closed_files(tok):
    assert Image.open(io.BytesIO(tok.read_bytes())).tobytes() == titokc.decode(tok).tobytes()
    with tok.open("rb") as stream:
        image = Image.open(stream)
    assert image.tobytes() == titokc.decode(tok).tobytes()


def test_damaged_files_say_what_is_wrong(tok):
    """To those who catch Pillow's errors (UnidentifiedImageError, OSError) as well as titokc's."""
    data = tok.read_bytes()
    for kind in (titokc.ContainerError, UnidentifiedImageError, OSError):
        for damaged, message in ((data[:-1] + bytes([data[-1] ^ 1]), "checksum"), (data[:9], "cut|short|byte")):
            with pytest.raises(kind, match=message):
                Image.open(io.BytesIO(damaged))
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"\xf5to" + data[4:]))


def test_without_its_model_loading_is_an_oserror(tok, monkeypatch):
    def missing(*_, **__):
        raise titokc.ModelNotFoundError("nano: not here")

    codec_module._shared.cache_clear()
    monkeypatch.setattr("titokc.engines.open", missing)
    for kind in (OSError, titokc.TitokcError):
        image = Image.open(tok)
        with pytest.raises(kind, match="nano: not here"):
            image.load()


@pytest.mark.filterwarnings("error")
def test_loaded_images_hold_no_file_open(tok, tmp_path):
    folder = Path("/proc/self/fd")
    images = [Image.open(tok) for _ in range(30)]
    for image in images:
        image.load()
    assert all(image.fp is None for image in images)
    if folder.exists():
        assert tok not in {link.readlink() for link in folder.iterdir() if link.is_symlink()}
    with tok.open("rb") as stream:
        Image.open(stream).load()
        assert not stream.closed  # the caller's own
    with Image.open(tok) as image:
        image.load()
    image.save(tmp_path / "again.png")
    image.close()


def test_options_of_other_formats_are_ignored_in_saving(photo):
    out = io.BytesIO()
    others = {"quality": 80, "optimize": True, "progressive": True, "dpi": (72, 72), "exif": b"", "icc_profile": b""}
    photo().save(out, "TOK", tokens=40, **others)
    assert out.getvalue() == titokc.encode(photo(), tokens=40)


@pytest.mark.parametrize("option", [{"form": "base64"}, {"return_errors": True}, {"details": True}])
def test_what_makes_no_tok_file_is_refused_in_saving(photo, tmp_path, option):
    with pytest.raises(titokc.UsageError, match=f"{next(iter(option))} is no option of saving"):
        photo().save(tmp_path / "y.tok", **option)
    assert not (tmp_path / "y.tok").exists()


def test_size_without_a_model(tok):
    """A process that only asks for the size imports no torch and no numpy."""
    code = (
        "import sys, titokc.pillow_plugin; from PIL import Image; print(Image.open(sys.argv[1]).size);"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code, tok], capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout == "(96, 64)\n"
