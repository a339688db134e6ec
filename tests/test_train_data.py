"""Where training images come from, and that a batch is a pure function of seed and position."""

import io
import os
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from titokc.errors import InputError
from titokc.train.augment import Batch, Sampler, tone_curves, uniforms
from titokc.train.data import ImageSet, find
from titokc.train.recipes.schema import View


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
    return ImageSet(find(folder).training, 40, tmp_path / "cache")


def test_a_folder_is_searched_recursively(folder):
    found = find(folder)
    training, validation = found.training, found.validation
    assert [s.name for s in training] == [f"{i}.jpg" for i in range(6)] + ["deep/7.webp", "deep/er/6.png"]
    assert validation == []
    assert found.notes == [f"{folder}: 1 other file (.txt) left out"]


def test_a_shard_folder_gives_its_shards_and_holds_out_val(tmp_path):
    write_shard(tmp_path / "train-0.tar", 3)
    write_shard(tmp_path / "train-1.tar", 2)
    write_shard(tmp_path / "val-0.tar", 4)
    (tmp_path / "kodak").mkdir()
    picture(0).save(tmp_path / "kodak" / "kodim01.png")
    (tmp_path / "val").mkdir()
    picture(1).save(tmp_path / "val" / "held-out.png")
    found = find(tmp_path)
    training, validation = found.training, found.validation
    assert found.notes == [f"1 images beside the shards in {tmp_path} are left out"]
    assert [s.name for s in training] == [
        *(f"train-0.tar/000{i}.jpg" for i in range(3)),
        *(f"train-1.tar/000{i}.jpg" for i in range(2)),
    ]
    assert [s.name for s in validation] == [*(f"val-0.tar/000{i}.jpg" for i in range(4)), "held-out.png"]
    assert training[1].read() == jpeg(1)


def names(sources):
    return [source.name for source in sources]


def test_train_and_val_folders_serve_pictures_and_shards(tmp_path):
    for place in ("train/cat", "val/cat", "test"):
        (tmp_path / place).mkdir(parents=True)
        picture(0).save(tmp_path / place / "1.png")
    found = find(tmp_path)
    assert (names(found.training), names(found.validation)) == (["cat/1.png"], ["cat/1.png"])
    assert found.training[0].path == tmp_path / "train" / "cat" / "1.png"
    assert found.notes == ["1 images beside train/ and val/ are left out"]
    write_shard(tmp_path / "train" / "s.tar", 2)
    found = find(tmp_path)
    assert (names(found.training), names(found.validation)) == (["s.tar/0000.jpg", "s.tar/0001.jpg"], ["cat/1.png"])
    assert f"1 images beside the shards in {tmp_path / 'train'} are left out" in found.notes


def test_linked_folders_are_followed_once(folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "one").symlink_to(folder)
    (linked / "again").symlink_to(folder)
    (folder / "loop").symlink_to(folder)
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "0.jpg").write_bytes(jpeg(0))
    assert len(find(linked).training) == 8


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if path == folder / "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    found = find(folder)
    assert len(found.training) == 6
    assert f"{folder / 'deep'} is left out: it cannot be read: permission denied" in found.notes


def test_what_can_be_read_of_damaged_shards_is_used(tmp_path):
    write_shard(tmp_path / "a.tar", 3)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "c.tar").write_bytes(b"")
    (tmp_path / "e.tar").write_bytes(whole[:2048])  # between two members
    (tmp_path / "d.tar").write_bytes(b"not a tar" * 100)
    found = find(tmp_path)
    assert names(found.training) == [f"a.tar/000{i}.jpg" for i in range(3)] + ["b.tar/0000.jpg", "e.tar/0000.jpg"]
    assert [re.sub(r" \(.*\)", "", note) for note in found.notes] == [
        f"{tmp_path / 'b.tar'} is cut short: its 1 whole images are used",
        f"{tmp_path / 'c.tar'} is no uncompressed tar shard",
        f"{tmp_path / 'd.tar'} is no uncompressed tar shard",
        f"{tmp_path / 'e.tar'} is cut short: its 1 whole images are used",
    ]


def test_one_picture_of_each_sample_of_a_shard(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("0.input.jpg", "0.output.jpg", "0.json", "deep/0.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg(0))
            tar.addfile(info, io.BytesIO(jpeg(0)))
    found = find(tmp_path)
    assert names(found.training) == ["s.tar/0.input.jpg", "s.tar/deep/0.jpg"]
    assert found.notes[0].startswith("1 further images of the same samples")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("0001", r".*: 1 other file \(no suffix\) left out"),
        ("s.tar.gz", "1 gzipped shards in .* are left out: unpack them with gunzip"),
        ("deep/s.tar", "1 shards in folders inside .* are left out: give the folder they are in"),
        ("a.eps", r".*: 1 other file \(\.eps\) left out"),
    ],
)
def test_where_no_image_is_found_it_says_what_there_is(tmp_path, name, complaint):
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(InputError, match=f"no images in it; {complaint}"):
        find(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find(tmp_path / "nowhere")


def test_pictures_are_read_as_the_codec_reads_them(tmp_path):
    """16-bit grey, transparency over white, colour profiles; nothing that Pillow alone can open."""
    Image.fromarray(np.full((20, 20), 32_768, np.uint16)).save(tmp_path / "grey16.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    picture(0).save(tmp_path / "renamed.eps")
    (tmp_path / "renamed.eps").rename(tmp_path / "eps.png")
    images = ImageSet(find(tmp_path).training, 20, tmp_path / "cache")
    assert images.unreadable == ["eps.png"]
    assert {name: images.load(at).mean() for at, name in enumerate(images.names)} == {
        "clear.png": 255,
        "grey16.png": 128,
    }


def test_litter_of_a_killed_build_goes(folder, tmp_path):
    litter = tmp_path / "cache" / ".titokc.0123abcd.part"
    litter.mkdir(parents=True)
    (litter / "pixels.u8").write_bytes(b"half")
    ImageSet(find(folder).training, 40, tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {""}


def test_the_digest_follows_the_pictures_not_their_place(folder, images, tmp_path):
    moved = folder.rename(tmp_path / "moved")
    assert ImageSet(find(moved).training, 40, tmp_path / "other").contents == images.contents
    (moved / "new.jpg").write_bytes(jpeg(9))
    assert ImageSet(find(moved).training, 40, tmp_path / "other").contents != images.contents


def test_images_are_decoded_to_the_short_side(images):
    assert images.cached
    assert images.sizes.tolist() == [[40, 48]] * 6 + [[48, 40], [40, 48]]
    assert images.load(7).tolist() == np.asarray(picture(6)).tolist()


def test_unreadable_images_are_skipped_by_name(folder, tmp_path):
    (folder / "2.jpg").write_bytes(b"\xff\xd8 nonsense")
    (folder / "3.jpg").write_bytes(jpeg(3)[:400])
    images = ImageSet(find(folder).training, 40, tmp_path / "cache")
    assert images.unreadable == ["2.jpg", "3.jpg"]
    assert images.names == ["0.jpg", "1.jpg", "4.jpg", "5.jpg", "deep/7.webp", "deep/er/6.png"]
    assert ImageSet(find(folder).training, 40, tmp_path / "cache").unreadable == images.unreadable


def test_too_large_a_set_is_decoded_every_time_and_is_the_same(folder, images, tmp_path):
    direct = ImageSet(find(folder).training, 40, tmp_path / "other", cache_bytes=1000)
    assert not direct.cached
    assert direct.sizes.tolist() == images.sizes.tolist()
    for at in range(len(images)):
        assert np.array_equal(direct.load(at), images.load(at))


def test_the_cache_is_built_once_and_again_when_a_file_changes(folder, images, tmp_path):
    (pixels,) = (tmp_path / "cache").glob("*/pixels.u8")
    before = pixels.stat().st_mtime_ns
    assert np.array_equal(ImageSet(find(folder).training, 40, tmp_path / "cache").load(0), images.load(0))
    assert pixels.stat().st_mtime_ns == before
    (folder / "0.jpg").write_bytes(jpeg(77))
    assert not np.array_equal(ImageSet(find(folder).training, 40, tmp_path / "cache").load(0), images.load(0))


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
    batch = Batch(crops, curves * torch.tensor([1, 0.5, 0.25])[:, None], torch.zeros(1))
    assert batch.images(torch.device("cpu")).flatten().tolist() == pytest.approx([0, 5 / 255, 0.25])


@pytest.mark.parametrize(
    ("settings", "smallest"),
    [({}, 80), ({"min_scale": 0.2}, 80), ({"min_scale": 0.2, "max_zoom": 3.0}, 100 / 3), ({"max_zoom": 3.0}, 50)],
)
def test_crops_are_enlarged_so_far(settings, smallest, tmp_path):
    """Of a picture of 100 pixels whose colour says the column, for squares of 100."""
    ramp = np.broadcast_to((2 * np.arange(100, dtype=np.uint8))[None, :, None], (100, 100, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    view = View(side=100, batch_size=1, jitter=0.0, **settings)
    crops = Sampler(ImageSet(find(tmp_path).training, 100, tmp_path / "cache"), view, (0,)).batch(0, 200).crops.numpy()
    widths = (crops.max((1, 2, 3)).astype(int) - crops.min((1, 2, 3))) / 2 + 1
    assert smallest - 1.5 <= widths.min() <= smallest + 1.5
    assert widths.max() == 100


def test_every_image_is_seen_once_an_epoch(images):
    sampler = Sampler(images, View(side=32, batch_size=8), (0,))
    epochs = [[sampler._pick(p) for p in range(8 * e, 8 * e + 8)] for e in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_large_images_get_their_share(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for at in range(9):
        picture(at, (16, 16)).save(data / f"{at}.png")
    picture(9, (40, 40)).save(data / "9.png")
    sampler = Sampler(ImageSet(find(data).training, 40, tmp_path), View(16, 4, large_share=0.25), (0,))
    picked = [sampler._pick(p) for p in range(40)]
    assert picked.count(9) == 10


def test_a_batch_may_take_more_images_than_there_are(images):
    sampler = Sampler(images, View(side=32, batch_size=20), (0,))
    crops = sampler.batch(0, 20).crops
    assert sampler.usable == 8
    assert len({crop.numpy().tobytes() for crop in crops}) == 20


def test_too_small_images_are_refused(images):
    with pytest.raises(InputError, match="none of the 8 training images has a short side of at least 192 pixels"):
        Sampler(images, View(side=256, batch_size=1), (0,))


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
