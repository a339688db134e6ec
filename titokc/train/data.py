"""Training images from a folder or WebDataset tar shards, decoded once into a memory-mapped cache.

`titokc.train.augment` cuts the crops out of what `ImageSet.load` returns. Which image feeds which sample is a pure
function of the seed and the sample's position, so a run resumes exactly and no order is lost to worker processes.
"""

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from titokc.errors import InputError
from titokc.imaging import DECODER_ERRORS

SUFFIXES = frozenset(Image.registered_extensions()) - {".pdf", ".mpg", ".mpeg", ".tok", ".hdf", ".h5"}


@dataclass(frozen=True)
class Source:
    """Where one encoded image lies: a whole file (offset 0), or `size` bytes of a tar shard."""

    path: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def find(data: Path) -> tuple[list[Source], list[Source]]:
    """(training, validation) images of a folder or a tar shard, sorted by name.

    A folder that holds .tar shards is a shard folder: its shards are read, `val*` shards and a folder `val` being for
    validation, and other loose images are not. Any other folder is searched recursively and holds no validation set.
    """
    if data.is_file():
        return _shard(data), []
    if not data.is_dir():
        raise InputError(f"{data}: no such folder or tar shard")
    shards = sorted(data.glob("*.tar"))
    if shards:
        train = [source for shard in shards if not shard.name.startswith("val") for source in _shard(shard)]
        held_out = [source for shard in shards if shard.name.startswith("val") for source in _shard(shard)]
        return train, held_out + (find(data / "val")[0] if (data / "val").is_dir() else [])
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return [Source(p, str(p.relative_to(data)), 0, p.stat().st_size) for p in files], []


def _shard(path: Path) -> list[Source]:
    try:
        with tarfile.open(path, "r:") as tar:
            return [
                Source(path, f"{path.name}/{member.name}", member.offset_data, member.size)
                for member in tar
                if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES
            ]
    except tarfile.TarError as error:
        raise InputError(f"{path}: not an uncompressed tar shard ({error})") from error


def decode(source: Source, max_side: int) -> np.ndarray | None:
    """uint8 RGB [H, W, 3] with a short side of at most `max_side` pixels, or None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(source.read())) as image:
            image.draft("RGB", (max_side, max_side))
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None
    short = min(upright.size)
    if short > max_side:
        scale = max_side / short
        size = (max(max_side, round(upright.width * scale)), max(max_side, round(upright.height * scale)))
        upright = upright.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(upright)


class ImageSet:
    """Images as uint8 arrays [H, W, 3]; `sizes` [N, 2] holds (H, W), `names` and `unreadable` their names.

    Decoded once into `folder` as one flat memory-mapped file when that takes at most `cache_bytes`; else decoded each
    time they are loaded. The file is named by `digest`, which covers the sources, so runs may share a folder.
    """

    def __init__(
        self,
        sources: list[Source],
        max_side: int,
        folder: Path,
        cache_bytes: float = 8 << 30,
        threads: int = 2,
        progress: Callable[[list[Source]], Iterable[Source]] = iter,
    ) -> None:
        self._max_side = max_side
        files = {path: (str(path.resolve()), path.stat().st_mtime_ns) for path in {s.path for s in sources}}
        places = [(files[s.path], s.offset, s.size) for s in sources]
        self.digest = hashlib.sha256(repr((max_side, places)).encode()).hexdigest()[:16]
        stem = folder / self.digest
        index_path, pixels_path = stem.with_suffix(".json"), stem.with_suffix(".u8")
        if not index_path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._build(sources, index_path, pixels_path, cache_bytes, threads, progress)
        index = json.loads(index_path.read_text())
        good = [s for s, size in zip(sources, index["sizes"], strict=True) if size]
        self.unreadable = [s.name for s, size in zip(sources, index["sizes"], strict=True) if not size]
        self.names = [s.name for s in good]
        self.sizes = np.array([size for size in index["sizes"] if size], dtype=np.int64).reshape(-1, 2)
        self._sources = good
        self._starts = np.concatenate([[0], np.cumsum(self.sizes.prod(1) * 3)])
        self.cached = bool(index["cached"])
        self._pixels = np.asarray(np.memmap(pixels_path, np.uint8, "r")) if self.cached and len(good) else None

    def __len__(self) -> int:
        return len(self.names)

    def load(self, at: int) -> np.ndarray:
        """uint8 RGB [H, W, 3]; a file that has become unreadable since it was indexed is an InputError."""
        height, width = self.sizes[at]
        if self._pixels is not None:
            return self._pixels[self._starts[at] : self._starts[at + 1]].reshape(height, width, 3)
        pixels = decode(self._sources[at], self._max_side)
        if pixels is None:
            raise InputError(f"{self.names[at]}: has become unreadable during the training")
        return pixels

    def _build(
        self,
        sources: list[Source],
        index_path: Path,
        pixels_path: Path,
        cache_bytes: float,
        threads: int,
        progress: Callable[[list[Source]], Iterable[Source]],
    ) -> None:
        """Writes the pixels and then, as the sign that they are complete, the index."""
        sizes: list[list[int]] = []
        total, part = 0, pixels_path.with_suffix(f".part{os.getpid()}")
        chunk = 64 * threads
        with ThreadPoolExecutor(threads) as pool, part.open("wb") as file:
            shown = iter(progress(sources))
            while batch := list(itertools.islice(shown, chunk)):
                for pixels in pool.map(lambda s: decode(s, self._max_side), batch):
                    sizes.append([] if pixels is None else list(pixels.shape[:2]))
                    if pixels is None:
                        continue
                    total += pixels.nbytes
                    if total <= cache_bytes:
                        file.write(pixels.tobytes())
        cached = total <= cache_bytes
        if cached:
            part.replace(pixels_path)
        else:
            part.unlink()
        written = index_path.with_suffix(f".part{os.getpid()}")
        written.write_text(json.dumps({"cached": cached, "sizes": sizes}))
        written.replace(index_path)
