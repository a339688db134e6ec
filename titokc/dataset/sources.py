"""Where a data set's pictures lie, cut into shards, and the (key, picture) pairs of a shard. All of it is hostile.

`titokc.imaging` reads the pictures; nothing is unpacked, and no path in a shard is ever followed.
"""

from __future__ import annotations

import glob
import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from titokc.errors import InputError, TitokcError, UsageError
from titokc.imaging.shards import index
from titokc.limits import Limits

if TYPE_CHECKING:
    import pyarrow as pa

# Pictures in files are cut into shards of so many, sorted by key.
PICTURES_PER_SHARD = 1000
SHARD_SUFFIXES = frozenset({".tar", ".parquet"})
KEY_COLUMNS = ("key", "__key__")
_ROWS_AT_ONCE = 16
# Characters; folders of one letter are then still fewer than Python's calls may be deep.
_LONGEST_KEY = 500


@dataclass(frozen=True)
class Shard:
    """What becomes one file, called `name` and a suffix: a tar or Parquet file, or (key, file) of some pictures.

    state: a digest of its keys and sizes, by which a run that goes on knows it again.
    """

    name: str
    files: tuple[tuple[str, Path], ...]
    state: str

    @property
    def is_files(self) -> bool:
        return self.files[0][1].suffix.lower() not in SHARD_SUFFIXES


def shards(sources: Sequence[str], files: Sequence[Path]) -> list[Shard]:
    """The shards of `files`, which is what `sources` (folders, globs, files) mean: the same for the same files.

    A picture's key is its path below the folder that all sources have in common, without its suffix. Raises UsageError
    where two shards would become one file.
    """
    whole, loose = [
        sorted(Path(os.path.abspath(path)) for path in files if (path.suffix.lower() in SHARD_SUFFIXES) is is_shard)  # noqa: PTH100
        for is_shard in (True, False)
    ]
    found = [Shard(path.stem, (("", path),), _state([(path.name, path)])) for path in whole]
    folders = [_base(s) for s in sources if Path(s).is_dir() or Path(s).suffix.lower() not in SHARD_SUFFIXES]
    root = os.path.commonpath(folders) if folders else ""
    pictures = sorted((path.relative_to(root).with_suffix("").as_posix(), path) for path in loose)
    while pictures:
        end = min(PICTURES_PER_SHARD, len(pictures))
        while end < len(pictures) and pictures[end][0] == pictures[end - 1][0]:  # one key stays in one shard
            end += 1
        number = len(found) - len(whole)
        found.append(Shard(f"pictures-{number:05}", tuple(pictures[:end]), _state(pictures[:end])))
        del pictures[:end]
    by_name: dict[str, Shard] = {}
    for shard in found:
        if by_name.setdefault(shard.name, shard) is not shard:
            both = f"{by_name[shard.name].files[0][1]} and {shard.files[0][1]}"
            raise UsageError(f"{both} would both become {shard.name}: tokenize them into two folders")
    return found


def pictures(shard: Shard, limits: Limits) -> Iterator[tuple[str, bytes | Path | TitokcError]]:
    """(key, picture, or why there is none) of all pictures, in order. Raises InputError for a shard that is none."""
    path = shard.files[0][1]
    if shard.is_files:
        yield from shard.files
    elif path.suffix.lower() == ".tar":
        yield from _in_tar(path, limits)
    else:
        yield from _in_parquet(path, limits)


def check_key(key: str) -> None:
    """InputError for a key that is no path below a folder, on some system, or that cannot be shown."""
    path = PureWindowsPath(key)  # knows the separators and drives of all systems
    odd = len(key) > _LONGEST_KEY or path.anchor or ".." in path.parts or path.as_posix() != key
    if odd or any(unicodedata.category(character) in {"Cc", "Cs"} for character in key):
        raise InputError(
            f"not a usable key: expected a relative path such as cats/0001, of at most {_LONGEST_KEY} characters"
        )


def _in_tar(path: Path, limits: Limits) -> Iterator[tuple[str, bytes | TitokcError]]:
    found = index(path)
    if found.problem and not found.pictures:
        raise InputError(found.problem)
    for key, source in found.pictures.items():
        try:
            yield key, InputError(_too_long(source.size)) if source.size > limits.picture_bytes else source.read()
        except OSError as error:
            raise InputError(f"cannot be read: {error}") from error
    for key, source in found.more:
        yield key, InputError(f"{source.name} is a further picture of this sample")
    if found.problem:
        yield path.name, InputError(found.problem)


def _in_parquet(path: Path, limits: Limits) -> Iterator[tuple[str, bytes | TitokcError]]:
    """Of the column "image", or else the only one of bytes or of Hugging Face's {bytes, path}. Keys are those of a
    column "key" or "__key__", or else, where it is null too, the file's name and the number of the row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    at = 0
    try:
        with pq.ParquetFile(path) as file:
            image, key = _columns(file.schema_arrow)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[image, *([key] if key else [])]):
                for row in batch.to_pylist():
                    value = row[image]
                    data = value.get("bytes") if isinstance(value, dict) else value
                    name = f"{path.stem}/{at:08}" if key is None or row[key] is None else str(row[key])
                    at += 1
                    if data is None:
                        yield name, InputError("no bytes in this row")
                    else:
                        yield name, InputError(_too_long(len(data))) if len(data) > limits.picture_bytes else data
    except (pa.ArrowException, OSError, UnicodeError) as error:
        problem = f"cannot be read as Parquet: {' '.join(str(error).split())}"
        if not at:
            raise InputError(problem) from error
        yield f"{path.stem}/{at:08}", InputError(f"from here on {path.name} {problem}")


def _columns(schema: pa.Schema) -> tuple[str, str | None]:
    import pyarrow.types as types

    def holds_bytes(kind: pa.DataType) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return types.is_binary(kind) or types.is_large_binary(kind)

    usable = [field.name for field in schema if holds_bytes(field.type)]
    image = "image" if "image" in usable else usable[0] if len(usable) == 1 else None
    if image is None:
        raise InputError(f"no image column: found {', '.join(schema.names)}, expected one of bytes, called image")
    return image, next((name for name in KEY_COLUMNS if name in schema.names), None)


def _too_long(size: int) -> str:
    return f"{size:,} bytes, which is longer than any picture within the limits"


def _base(source: str) -> Path:
    """The folder below which all lies that a source means."""
    path = Path(os.path.abspath(source))  # noqa: PTH100
    return path if path.is_dir() else next(folder for folder in path.parents if not glob.has_magic(str(folder)))


def _state(files: Sequence[tuple[str, Path]]) -> str:
    sizes = [(key, path.stat().st_size if path.is_file() else None) for key, path in files]
    return hashlib.sha256(repr(sizes).encode("utf-8", "backslashreplace")).hexdigest()[:16]
