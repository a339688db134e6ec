"""Two runs side by side: what changed for each codec, budget and metric, picture by picture, and whether it matters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from titokc.bench.columns import COLUMNS, shown
from titokc.bench.rows import Row
from titokc.bench.statistics import paired_difference
from titokc.bench.tables import text_table
from titokc.errors import InputError
from titokc.judge.table import PICTURE_METRICS


def compare(first: Sequence[Row], second: Sequence[Row]) -> list[dict[str, Any]]:
    """second - first on the pictures that both have, for each codec of one name (or the only model of each run).

    Raises InputError if the runs share nothing, or if a picture of one name is not the same picture.
    """
    before, after = _by_point(first), _by_point(second)
    renamed = _only_models(first, second)
    found = []
    for (codec, view, budget), rows in after.items():
        old_rows = before.get((renamed.get(codec, codec), view, budget), {})
        shared = [name for name in rows if name in old_rows]
        for name in shared:
            if rows[name]["digest"] != old_rows[name]["digest"]:
                raise InputError(f"{name} is not the same picture in both runs: other files, or another crop")
        for metric in ("bytes", *PICTURE_METRICS):
            pairs = [(rows[name].get(metric), old_rows[name].get(metric)) for name in shared]
            pairs = [pair for pair in pairs if None not in pair]
            if pairs:
                new, old = zip(*pairs, strict=True)
                difference = paired_difference(new, old, COLUMNS[metric].higher_is_better)
                entry = {"codec": codec, "before": renamed.get(codec, codec), "view": view, "budget": budget}
                entry |= {"metric": metric, "first": sum(old) / len(old), "second": sum(new) / len(new)}
                found.append(entry | vars(difference) | {"significant": difference.significant})
    if not found:
        raise InputError("the two runs have no codec, budget and picture in common")
    return found


def comparison_text(found: Iterable[dict[str, Any]]) -> str:
    """A table; "*" marks differences whose 95 % interval leaves out 0 (on six pictures or more)."""
    rows = []
    for each in found:
        name = each["metric"]
        mean, low, high = (shown(name, each[value], "+") for value in ("mean", "low", "high"))
        codec = each["codec"] if each["codec"] == each["before"] else f"{each['before']} -> {each['codec']}"
        rows.append(
            [
                f"{codec} {each['view'] if each['budget'] is None else '{} B'.format(each['budget'])}",
                COLUMNS[name].heading,
                shown(name, each["first"]),
                shown(name, each["second"]),
                f"{mean}{'*' if each['significant'] else ' '}",
                f"[{low}, {high}]",
                f"{each['wins']} of {each['count']}",
                "n/a" if each["p_value"] is None else f"{each['p_value']:.2g}",
            ]
        )
    return text_table(["", "metric", "first", "second", "difference", "95 % interval", "better on", "p"], rows)


def _by_point(rows: Iterable[Row]) -> dict[tuple[str, str, int | None], dict[str, Row]]:
    points: dict[tuple[str, str, int | None], dict[str, Row]] = {}
    for row in rows:
        if row["reason"] is None:
            points.setdefault((row["codec"], row["view"], row["budget"]), {})[row["image"]] = row
    return points


def _only_models(first: Iterable[Row], second: Iterable[Row]) -> dict[str, str]:
    """{name in the second run: name in the first}, if each has one model and they are named differently."""
    old, new = ({row["codec"] for row in rows if row["kind"] == "model"} for rows in (first, second))
    return {new.pop(): old.pop()} if len(old) == len(new) == 1 and old != new else {}
