"""Training images from a folder or WebDataset tar shards, decoded once into a memory-mapped cache.

`titokc.imaging` reads the files, `titokc.train.augment` cuts the crops out of what `ImageSet.load` returns. Which image
feeds which sample is a pure function of the seed and the sample's position, so no order is lost to worker processes.
"""

import hashlib
import itertools
import json
import shutil
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from titokc import imaging
from titokc.errors import InputError, TitokcError
from titokc.files import LITTER, Tree, search, staged
from titokc.imaging.shards import Source, index
from titokc.train.checkpoint import locked

# Of what decoding makes of a file: caches of another version are not used.
_VERSION = 2
_THREADS = 2


@dataclass(frozen=True)
class Found:
    """training, validation: the images, sorted by name. notes: what else there is and why it is not among them."""

    training: list[Source]
    validation: list[Source]
    notes: list[str]


def find(data: Path) -> Found:
    """The images of a folder or of one tar shard; InputError where there are none.

    In a folder, `val/` is for validation, and for training `train/` where there is one, else everything else. A folder
    that has .tar shards in it (also as `train/` or `val/`) gives these alone, those named val* for validation; any
    other is searched with all its folders, linked ones too, without hidden ones.
    """
    notes: list[str] = []
    if data.is_file():
        found = Found(_shard(data, notes), [], notes)
    elif data.is_dir():
        val, train = data / "val", data / "train"
        root = train if train.is_dir() else data
        training, validation = _folder(root, notes, without=val)
        if val.is_dir():
            validation += [source for part in _folder(val, notes) for source in part]
        beside = search(data, imaging.READABLE_SUFFIXES, {train, val}.__contains__) if root != data else Tree()
        if beside.files:
            notes.append(f"{len(beside.files)} images beside train/ and val/ are left out")
        found = Found(training, validation, notes)
    else:
        raise InputError(f"{data}: no such folder or tar shard")
    if not found.training:
        raise InputError("; ".join([f"{data}: no images in it", *notes]))
    return found


def _folder(folder: Path, notes: list[str], without: Path | None = None) -> tuple[list[Source], list[Source]]:
    """(training, validation) images of one folder, itself searched without the folder `without`."""
    tree = search(folder, {*imaging.READABLE_SUFFIXES, ".tar", ".gz", ".tgz"}, lambda path: path == without)
    images = [path for path in tree.files if path.suffix.lower() in imaging.READABLE_SUFFIXES and path.exists()]
    tars = [path for path in tree.files if path.suffix.lower() == ".tar"]
    shards = [path for path in tars if path.parent == folder]
    if gzipped := sum(path.name.endswith((".tar.gz", ".tgz")) for path in tree.files):
        notes.append(f"{gzipped} gzipped shards in {folder} are left out: unpack them with gunzip")
    if deeper := len(tars) - len(shards):
        notes.append(f"{deeper} shards in folders inside {folder} are left out: give the folder they are in")
    if tree.left_out:
        notes.append(f"{folder}: {tree.left_out} left out")
    notes += [f"{inside} is left out: it cannot be read: {why}" for inside, why in tree.unreadable.items()]
    if shards:
        if images:
            notes.append(f"{len(images)} images beside the shards in {folder} are left out")
        training: list[Source] = []
        validation: list[Source] = []
        for shard in shards:
            (validation if shard.name.startswith("val") else training).extend(_shard(shard, notes))
        return training, validation
    return [Source(path, str(path.relative_to(folder)), 0, path.stat().st_size) for path in images], []


def _shard(path: Path, notes: list[str]) -> list[Source]:
    """The images of a tar shard, one of each sample."""
    found = index(path)
    if found.problem:
        used = f": its {len(found.pictures)} whole images are used" if found.pictures else ""
        notes.append(f"{path} {found.problem}{used}")
    if more := len(found.more):
        notes.append(f"{more} further images of the same samples in {path} are left out (names up to the first dot)")
    return [source._replace(name=f"{path.name}/{source.name}") for source in found.pictures.values()]


def decode(data: bytes, max_side: int) -> np.ndarray | None:
    """uint8 RGB [H, W, 3] with a short side of at most `max_side` pixels, or None if it cannot be read."""
    try:
        picture = imaging.read(data, at_least=max_side)
    except TitokcError:
        return None
    short = min(picture.size)
    if short > max_side:
        scale = max_side / short
        size = (max(max_side, round(picture.width * scale)), max(max_side, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(picture)


class ImageSet:
    """Images as uint8 arrays [H, W, 3]; `sizes` [N, 2] holds (H, W), `names` and `unreadable` their names.

    Decoded once into `folder` as one flat memory-mapped file when that takes at most `cache_bytes`; else decoded each
    time they are loaded. The cache is named by where the sources lie, so runs may share a folder.
    contents: a digest of the encoded images in their order, wherever they lie.
    """

    def __init__(
        self,
        sources: list[Source],
        max_side: int,
        folder: Path,
        cache_bytes: float = 8 << 30,
        progress: Callable[[list[Source]], Iterable[Source]] = iter,
    ) -> None:
        self._max_side = max_side
        files = {path: (str(path.resolve()), path.stat().st_mtime_ns) for path in {s.path for s in sources}}
        places = [(files[s.path], s.offset, s.size) for s in sources]
        cache = folder / hashlib.sha256(repr((_VERSION, max_side, places)).encode()).hexdigest()[:16]
        if not cache.exists():
            with locked(folder, wait=True):
                for litter in folder.glob(LITTER):  # of builds that were killed
                    shutil.rmtree(litter)
                if not cache.exists():
                    self._build(progress(sources), cache, cache_bytes)
        index = json.loads((cache / "index.json").read_text())
        good = [(s, size) for s, size in zip(sources, index["sizes"], strict=True) if size]
        self.unreadable = [s.name for s, size in zip(sources, index["sizes"], strict=True) if not size]
        self.names = [s.name for s, _ in good]
        self.sizes = np.array([size for _, size in good], dtype=np.int64).reshape(-1, 2)
        self.contents = index["contents"]
        self._sources = [s for s, _ in good]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])
        pixels = cache / "pixels.u8"
        self.cached = pixels.exists()
        self._pixels = np.asarray(np.memmap(pixels, np.uint8, "r")) if self.cached and len(good) else None

    def __len__(self) -> int:
        return len(self.names)

    def load(self, at: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]; a file that has become unreadable since it was indexed is an InputError."""
        height, width = self.sizes[at]
        if self._pixels is not None:
            return self._pixels[self._starts[at] : self._starts[at + 1]].reshape(height, width, 3)
        try:
            pixels = decode(self._sources[at].read(), self._max_side)
        except OSError:
            pixels = None
        if pixels is None:
            raise InputError(f"{self.names[at]}: has become unreadable during the training")
        return pixels

    def _build(self, sources: Iterable[Source], cache: Path, cache_bytes: float) -> None:
        """Makes the folder `cache`: index.json, and pixels.u8 if they are not too many."""

        def read(source: Source) -> tuple[int, np.ndarray | None]:
            try:
                data = source.read()
            except OSError:
                return 0, None
            return zlib.crc32(data), decode(data, self._max_side)

        sizes: list[list[int]] = []
        total, contents = 0, hashlib.sha256()
        with staged(cache) as part:
            with ThreadPoolExecutor(_THREADS) as pool, (part / "pixels.u8").open("wb") as file:
                shown = iter(sources)
                while batch := list(itertools.islice(shown, 64 * _THREADS)):
                    for checksum, pixels in pool.map(read, batch):
                        contents.update(checksum.to_bytes(4, "big"))
                        sizes.append([] if pixels is None else list(pixels.shape[:2]))
                        if pixels is None:
                            continue
                        total += pixels.nbytes
                        if total <= cache_bytes:
                            file.write(pixels.tobytes())
                        elif file.tell():
                            file.seek(0)
                            file.truncate()
            if total > cache_bytes:
                (part / "pixels.u8").unlink()
            (part / "index.json").write_text(json.dumps({"sizes": sizes, "contents": contents.hexdigest()[:16]}))
