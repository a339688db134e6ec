"""Files of tokens: Parquet with one row a picture, or a WebDataset tar with one `.tok` file a picture."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from titokc.budget import header_of
from titokc.container import MAX_FILE_SIZE, SUFFIX, pack, unpack
from titokc.errors import InputError, ModelMismatchError, ModelNotFoundError
from titokc.ids import KNOWN_MODELS
from titokc.limits import Limits
from titokc.weights.places import find

if TYPE_CHECKING:
    import pyarrow as pa

    from titokc.models.info import ModelInfo

Samples = Sequence[tuple[str, bytes]]  # (key, .tok file of one tile)
Sample = bytes | dict[str, Any]


class Format(NamedTuple):
    suffix: str
    write: Callable[[Samples, ModelInfo, Limits], bytes]


def schema() -> pa.Schema:
    """width, height: the picture's, in pixels. tokens: in 0..codebook_size-1. fingerprint: of the model's code, in hex,
    whatever gives tokens their meaning."""
    import pyarrow as pa

    text, number = pa.string(), pa.int32()
    kinds = {"key": text, "width": number, "height": number, "tokens": pa.list_(pa.uint16())}
    return pa.schema({**kinds, "model": text, "fingerprint": text})


def write_parquet(samples: Samples, info: ModelInfo, limits: Limits) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for key, data in samples:
        header, indices = unpack(data, limits=limits)
        values = (key, header.width, header.height, indices, header.model, info.code.hex())
        rows.append(dict(zip(schema().names, values, strict=True)))
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), out, compression="zstd")
    return out.getvalue()


def write_webdataset(samples: Samples, info: ModelInfo, limits: Limits) -> bytes:  # noqa: ARG001 - Format's signature
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for key, data in samples:
            member = tarfile.TarInfo(key + SUFFIX)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


FORMATS = {"parquet": Format(".parquet", write_parquet), "webdataset": Format(".tar", write_webdataset)}


def read(path: Path) -> Iterator[tuple[str, Sample]]:
    """(key, sample) of a file of `titokc tokenize`, in order; samples are `.tok` files of a tar, rows of Parquet.

    Raises InputError for any other file. Keys and samples are as they were found.
    """
    if path.suffix.lower() == FORMATS["webdataset"].suffix:
        yield from _members(path)
    else:
        yield from ((row["key"] or "", row) for row in _rows(path, schema().names))


def _rows(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = pa.schema([schema().field(name) for name in names])
    try:
        with pq.ParquetFile(path) as file:
            if lacking := set(names) - set(file.schema_arrow.names):
                raise InputError(f"no column {', '.join(sorted(lacking))}: expected a file of `titokc tokenize`")
            for batch in file.iter_batches(1000, columns=names):
                yield from pa.Table.from_batches([batch]).select(names).cast(kinds).to_pylist()
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise InputError(f"cannot be read as Parquet: {' '.join(str(error).split())}") from error


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() and member.name.endswith(SUFFIX) else None
                if file:
                    yield member.name.removesuffix(SUFFIX), file.read(MAX_FILE_SIZE + 1)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"cannot be read as tar: {error}") from error


def model_of(sample: Sample) -> str | None:
    """The model for a file whose first sample this is, None if `titokc.Codec` finds it. Raises ModelNotFoundError."""
    if isinstance(sample, bytes) or sample["model"] in {known.name for known in KNOWN_MODELS.values()}:
        return None if isinstance(sample, bytes) else sample["model"]
    code = str(sample["fingerprint"])
    if re.fullmatch("[0-9a-f]{64}", code) and (folders := find(bytes.fromhex(code))):
        return str(folders[0])
    raise ModelNotFoundError(f"made with {sample['model']} (code {code[:16]}...), which is not installed: give --model")


def to_tok(row: dict[str, Any], info: ModelInfo) -> bytes:
    """The `.tok` file of a row. Raises ModelMismatchError, or InputError for a row that no picture has."""
    if None in row.values() or not row["tokens"] or None in row["tokens"]:
        raise InputError("a value of this row is missing")
    if row["fingerprint"] != info.code.hex():
        raise ModelMismatchError(
            f"the row was made with {row['model']} (code {row['fingerprint'][:16]}...), "
            f"the model at hand is {info.name} (code {info.code.hex()[:16]}...)"
        )
    return pack(header_of(info, (row["width"], row["height"]), (1, 1), len(row["tokens"])), row["tokens"])


def repeated_keys(paths: Sequence[Path]) -> list[str]:
    """The keys that stand in several of these files, or more than once in one; 8 bytes of memory for each key. Raises
    InputError for a file that was damaged since it was written."""
    import numpy as np

    hashes = [np.fromiter(map(hash, _keys(path)), np.int64) for path in paths]
    values, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *hashes]), return_counts=True)
    if not (twice := set(values[counts > 1].tolist())):
        return []
    found = Counter(key for path in paths for key in _keys(path) if hash(key) in twice)
    return sorted(key for key, count in found.items() if count > 1)


def _keys(path: Path) -> Iterator[str]:
    is_tar = path.suffix == FORMATS["webdataset"].suffix
    try:
        yield from (key for key, _ in _members(path)) if is_tar else (row["key"] for row in _rows(path, ["key"]))
    except InputError as error:
        raise InputError(f"{path}: {error}: remove it, and the same command makes it anew") from error
