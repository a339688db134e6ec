"""Where training images come from, and that a batch is a pure function of seed and position."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from titokc.errors import InputError
from titokc.train.augment import Batch, Sampler, centre_square, tone_curves, uniforms
from titokc.train.data import ImageSet, find
from titokc.train.recipes import View


def picture(seed, size=(48, 40)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def jpeg(seed, size=(48, 40)):
    out = io.BytesIO()
    picture(seed, size).save(out, "JPEG")
    return out.getvalue()


def write_shard(path, count, seed=0, suffix="jpg"):
    with tarfile.open(path, "w") as tar:
        for at in range(count):
            data = jpeg(seed + at)
            info = tarfile.TarInfo(f"{at:04d}.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    (data / "deep" / "er").mkdir(parents=True)
    for at in range(6):
        (data / f"{at}.jpg").write_bytes(jpeg(at))
    picture(6).save(data / "deep" / "er" / "6.png")
    picture(7, (100, 120)).save(data / "deep" / "7.webp", lossless=True)
    (data / "notes.txt").write_text("no image")
    return data


@pytest.fixture
def images(folder, tmp_path):
    return ImageSet(find(folder)[0], 40, tmp_path / "cache")


def test_a_folder_is_searched_recursively(folder):
    training, validation = find(folder)
    assert [s.name for s in training] == [f"{i}.jpg" for i in range(6)] + ["deep/7.webp", "deep/er/6.png"]
    assert validation == []


def test_a_shard_folder_gives_its_shards_and_holds_out_val(tmp_path):
    write_shard(tmp_path / "train-0.tar", 3)
    write_shard(tmp_path / "train-1.tar", 2)
    write_shard(tmp_path / "val-0.tar", 4)
    (tmp_path / "kodak").mkdir()
    picture(0).save(tmp_path / "kodak" / "kodim01.png")
    (tmp_path / "val").mkdir()
    picture(1).save(tmp_path / "val" / "held-out.png")
    training, validation = find(tmp_path)
    assert [s.name for s in training] == [
        *(f"train-0.tar/000{i}.jpg" for i in range(3)),
        *(f"train-1.tar/000{i}.jpg" for i in range(2)),
    ]
    assert [s.name for s in validation] == [*(f"val-0.tar/000{i}.jpg" for i in range(4)), "held-out.png"]
    assert training[1].read() == jpeg(1)


def test_what_is_no_tar_and_no_folder_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(InputError, match=r"x\.tar: not an uncompressed tar shard"):
        find(tmp_path)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find(tmp_path / "nowhere")


def test_images_are_decoded_to_the_short_side(images):
    assert images.cached
    assert images.sizes.tolist() == [[40, 48]] * 6 + [[48, 40], [40, 48]]
    assert images.load(7).tolist() == np.asarray(picture(6)).tolist()


def test_unreadable_images_are_skipped_by_name(folder, tmp_path):
    (folder / "2.jpg").write_bytes(b"\xff\xd8 nonsense")
    (folder / "3.jpg").write_bytes(jpeg(3)[:400])
    images = ImageSet(find(folder)[0], 40, tmp_path / "cache")
    assert images.unreadable == ["2.jpg", "3.jpg"]
    assert images.names == ["0.jpg", "1.jpg", "4.jpg", "5.jpg", "deep/7.webp", "deep/er/6.png"]
    assert ImageSet(find(folder)[0], 40, tmp_path / "cache").unreadable == images.unreadable


def test_too_large_a_set_is_decoded_every_time_and_is_the_same(folder, images, tmp_path):
    direct = ImageSet(find(folder)[0], 40, tmp_path / "other", cache_bytes=1000)
    assert not direct.cached
    assert direct.sizes.tolist() == images.sizes.tolist()
    for at in range(len(images)):
        assert np.array_equal(direct.load(at), images.load(at))


def test_the_cache_is_built_once_and_again_when_a_file_changes(folder, images, tmp_path):
    (pixels,) = (tmp_path / "cache").glob("*.u8")
    before = pixels.stat().st_mtime_ns
    assert np.array_equal(ImageSet(find(folder)[0], 40, tmp_path / "cache").load(0), images.load(0))
    assert pixels.stat().st_mtime_ns == before
    (folder / "0.jpg").write_bytes(jpeg(77))
    assert not np.array_equal(ImageSet(find(folder)[0], 40, tmp_path / "cache").load(0), images.load(0))


def test_a_sample_depends_on_seed_and_position_only(images):
    view = View(side=32, batch_size=4)
    whole = Sampler(images, view, (3, 0)).batch(5, 6)
    parts = Batch.joined([Sampler(images, view, (3, 0)).batch(a, n) for a, n in ((5, 1), (6, 3), (9, 2))])
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)
    pixels = whole.images(torch.device("cpu"))
    assert pixels.shape == (6, 3, 32, 32)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert not torch.equal(whole.crops, Sampler(images, view, (4, 0)).batch(5, 6).crops)


def test_images_are_crops_through_their_curves():
    crops = torch.tensor([0, 10, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    curves = torch.arange(256).expand(1, 3, 256) / 255
    batch = Batch(crops, curves * torch.tensor([1, 0.5, 0.25])[:, None], torch.zeros(1), torch.zeros(1))
    assert batch.images(torch.device("cpu")).flatten().tolist() == pytest.approx([0, 5 / 255, 0.25])


def test_every_image_is_seen_once_an_epoch(images):
    sampler = Sampler(images, View(side=32, batch_size=8), (0,))
    epochs = [[sampler._pick(p)[0] for p in range(8 * e, 8 * e + 8)] for e in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_large_images_get_their_share(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for at in range(9):
        picture(at, (16, 16)).save(data / f"{at}.png")
    picture(9, (40, 40)).save(data / "9.png")
    sampler = Sampler(ImageSet(find(data)[0], 40, tmp_path), View(16, 4, large_share=0.25), (0,))
    picked = [sampler._pick(p)[0] for p in range(40)]
    assert picked.count(9) == 10


def test_too_small_a_set_is_refused(images):
    with pytest.raises(InputError, match=r"8 training images have a short side of at least 24 .* a batch takes 9"):
        Sampler(images, View(side=32, batch_size=9), (0,))
    with pytest.raises(InputError, match="0 training images have a short side of at least 192 pixels"):
        Sampler(images, View(side=256, batch_size=1), (0,))


def test_variants_number_the_crops_and_repeat(images):
    sampler = Sampler(images, View(side=32, batch_size=8, variants=2), (0,))
    first, third = sampler.batch(0, 8), sampler.batch(16, 8)
    assert sorted(first.numbers.tolist()) == list(range(0, 16, 2))
    by_number = dict(zip(third.numbers.tolist(), third.images(torch.device("cpu")), strict=True))
    for number, crop in zip(first.numbers.tolist(), first.images(torch.device("cpu")), strict=True):
        assert torch.equal(by_number[number], crop)
    assert sorted(sampler.batch(8, 8).numbers.tolist()) == list(range(1, 16, 2))


def test_draws_are_spread_evenly(images):
    draws = Sampler(images, View(side=32, batch_size=8), (0,)).batch(1000, 64).draws
    assert torch.bincount((draws * 4).long()).tolist() == pytest.approx([16] * 4, abs=1)


def test_uniforms_are_splitmix64():
    """The generator's own first outputs for the seed 1234567, and an even spread."""
    key = int(np.random.SeedSequence((7,)).generate_state(1, np.uint64)[0])
    shift = (1234567 - key) * pow(0x9E3779B97F4A7C15, -1, 2**64) % 2**64
    found = uniforms((7,), np.array([shift], np.uint64), 1), uniforms((7,), np.array([shift + 1], np.uint64), 1)
    expected = (6457827717110365317, 3203168211198807973)
    assert [int(f[0, 0] * 2**53) for f in found] == [value >> 11 for value in expected]
    many = uniforms((1, 2), np.arange(10_000), 3)
    assert many.mean(0) == pytest.approx([0.5] * 3, abs=0.01)
    assert np.corrcoef(many.T) == pytest.approx(np.eye(3), abs=0.04)


def test_tone_curves():
    same, brighter, warmer = tone_curves(np.array([[0, 0, 0, 0, 0], [0, 0, 0.2, 0, 0], [0, 0, 0, 0.4, 0]]))
    assert same == pytest.approx(np.tile(np.arange(256) / 255, (3, 1)), abs=1e-6)
    assert brighter[:, 0].tolist() == pytest.approx([0.1] * 3)
    assert warmer[:, 100].tolist() == pytest.approx([100 / 255 + 0.1, 100 / 255, 100 / 255 - 0.1])


def test_centre_square():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200
    assert (centre_square(pixels, 4) == 200).all()
    assert centre_square(pixels, 2).shape == (2, 2, 3)
