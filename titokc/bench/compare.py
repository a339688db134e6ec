"""Two runs side by side: what changed for each codec, budget and metric, picture by picture, and whether it matters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from titokc.bench.rows import Row
from titokc.bench.summary import by_point, difference
from titokc.bench.tables import difference_table
from titokc.errors import InputError
from titokc.judge.table import PICTURE_METRICS


def compare(first: Sequence[Row], second: Sequence[Row]) -> list[dict[str, Any]]:
    """second - first on the pictures that both have, for each codec of one name (or the only model of each run).

    Raises InputError if the runs share nothing, or if a picture of one name is not the same picture.
    """
    before, after = by_point(first), by_point(second)
    renamed = _only_models(first, second)
    found = []
    for (codec, view, budget), rows in after.items():
        old_codec = renamed.get(codec, codec)
        old_rows = before.get((old_codec, view, budget), {})
        for name, row in rows.items():
            if name in old_rows and row["digest"] != old_rows[name]["digest"]:
                raise InputError(f"{name} is not the same picture in both runs: other files, or another crop")
        point = {"codec": codec, "before": old_codec, "view": view, "budget": budget}
        entries = (difference(rows, old_rows, metric) for metric in ("bytes", *PICTURE_METRICS))
        found += [point | entry for entry in entries if entry is not None]
    if not found:
        raise InputError("the two runs have no codec, budget and picture in common")
    return found


def comparison_text(found: Iterable[dict[str, Any]]) -> str:
    """A table; "*" marks differences whose 95 % interval leaves out 0 (on six pictures or more)."""
    return difference_table(found, {"before": "before", "first": "first", "second": "second"}).text()


def _only_models(first: Iterable[Row], second: Iterable[Row]) -> dict[str, str]:
    """{name in the second run: name in the first}, if each has one model and they are named differently."""
    old, new = ({row["codec"] for row in rows if row["kind"] == "model"} for rows in (first, second))
    return {new.pop(): old.pop()} if len(old) == len(new) == 1 and old != new else {}
