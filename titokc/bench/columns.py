"""The columns of every table of a benchmark: their order, headings and digits, and which of them have values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from titokc.judge.table import METRICS, PICTURE_METRICS, SET_METRICS


class Column(NamedTuple):
    heading: str
    digits: int
    higher_is_better: bool = False


COLUMNS = {
    "bytes": Column("bytes", 1),
    "bpp": Column("bpp", 4),
    "ratio": Column("ratio", 0),
    **{name: Column(METRICS[name].label, METRICS[name].digits, METRICS[name].higher_is_better) for name in METRICS},
    "encode_ms": Column("encode ms", 1),
    "decode_ms": Column("decode ms", 1),
}
OF_ROWS = ("bytes", "bpp", "ratio", *PICTURE_METRICS, "encode_ms", "decode_ms")
OF_GROUPS = ("bytes", "bpp", "ratio", *PICTURE_METRICS, *SET_METRICS, "encode_ms", "decode_ms")


def used(names: Iterable[str], values: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those of the columns that have a value somewhere."""
    there = {name for each in values for name, value in each.items() if value is not None}
    return [name for name in names if name in there]


def shown(name: str, value: float | None, sign: str = "") -> str:
    """A value as text; sign: "+" for differences."""
    return "n/a" if value is None else f"{value:{sign}.{COLUMNS[name].digits}f}"
