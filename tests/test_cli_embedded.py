"""The embedded model through the real command, in processes of its own: what a newcomer does first."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import titokc
from titokc.codec import Codec

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


def test_alone_and_in_a_batch(photo, codec):
    pictures = [photo(256, 256, seed=i) for i in range(3)]
    assert list(codec.encode_many(pictures)) == [codec.encode(picture) for picture in pictures]


def test_a_budget(photo, codec):
    picture = photo(300, 200)
    data = codec.encode(picture, target_size=600)
    assert 560 < len(data) <= 600
    assert psnr(codec.decode(data), picture) >= psnr(codec.decode(codec.encode(picture)), picture)
