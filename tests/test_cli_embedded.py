"""The embedded model through the real command, in processes of its own: what a newcomer does first."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import titokc
from titokc import payload
from titokc.codec import Codec
from titokc.errors import UsageError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def codec():
    return Codec("nano", device="cpu")


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


def test_encode_and_decode(tmp_path, photo, codec):
    photo(300, 200).save(tmp_path / "photo.png")
    for args in (["encode", "photo.png"], ["decode", "photo.tok", "-o", "again.png"]):
        subprocess.run(
            [sys.executable, "-m", "titokc", *args, "--device", "cpu", "--threads", "1"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            check=True,
        )
    data = (tmp_path / "photo.tok").read_bytes()
    assert len(data) == 206
    assert titokc.read_header(data).model == "nano-1"
    assert data == codec.encode(photo(300, 200))  # another process, another number of threads
    again = Image.open(tmp_path / "again.png")
    assert again.size == (300, 200)
    assert psnr(again, photo(300, 200)) > 19


def test_bytes_and_quality_by_tokens(photo, codec):
    picture = photo(256, 256)
    files = [codec.encode(picture, tokens=tokens) for tokens in (32, 64, 96, 128)]
    assert [len(data) for data in files] == [59, 107, 155, 203]
    quality = [psnr(codec.decode(data), picture) for data in files]
    assert quality == sorted(quality)
    plain = [psnr(codec.decode(codec.encode(picture, tokens=tokens, effort=0)), picture) for tokens in (32, 128)]
    assert quality[0] >= plain[0]
    assert quality[3] >= plain[1]


def test_a_shorter_file_from_a_longer_one(photo, codec):
    picture = photo(256, 256)
    whole = codec.encode(picture, effort=0)
    for tokens in (32, 64, 96):
        assert titokc.truncate(whole, tokens) == codec.encode(picture, tokens=tokens, effort=0)
    shorter = psnr(codec.decode(titokc.truncate(codec.encode(picture), 32)), picture)
    assert shorter > psnr(codec.decode(titokc.truncate(whole, 32)), picture) - 0.5


def test_placeholders(photo, codec):
    """From 4 tokens on: 6 bytes, 8 characters, or a file of 17 bytes; fewer than 24 are not shared among tiles."""
    picture = photo(256, 256)
    bare = codec.encode(picture, tokens=4, form="bare")
    text = codec.encode(picture, target_size=10, form="base64")
    assert (len(bare), len(text), text.decode()) == (6, 8, payload.to_text(bare))
    for look in ("faithful", "natural"):
        assert (
            codec.decode(bare, form="bare", look=look).tobytes()
            == codec.decode(text, form="base64", look=look).tobytes()
        )
    mean = Image.new("RGB", (256, 256), tuple(np.asarray(picture).mean((0, 1)).round().astype(int).tolist()))
    assert psnr(codec.decode(bare, form="bare"), picture) > psnr(mean, picture) + 1
    assert codec.decode(text[:7], form="base64", partial=True, size=(60, 40), look="natural").size == (60, 40)
    for budget, tokens in ((17, 4), (46, 23)):
        header = titokc.read_header(codec.encode(picture, target_size=budget, effort=0))
        assert (header.tiles, header.tokens_per_tile) == (1, tokens)
    with pytest.raises(UsageError, match="16 bytes is too small: 4 tokens of nano-1 in 1x1 tiles take 17"):
        codec.encode(picture, target_size=16)
    with pytest.raises(UsageError, match="nano-1 makes 4 to 128"):
        codec.encode(picture, tokens=3)


def test_alone_and_in_a_batch(photo, codec):
    pictures = [photo(256, 256, seed=i) for i in range(3)]
    assert list(codec.encode_many(pictures)) == [codec.encode(picture) for picture in pictures]


def test_a_budget(photo, codec):
    picture = photo(300, 200)
    data = codec.encode(picture, target_size=600)
    assert 560 < len(data) <= 600
    assert psnr(codec.decode(data), picture) >= psnr(codec.decode(codec.encode(picture)), picture)
