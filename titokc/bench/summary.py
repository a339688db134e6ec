"""Rows -> what they say: means with intervals, differences to the best baseline at equal bytes, Bjontegaard deltas.

All is derived from rows.jsonl, sets.json and environment.json of a report's folder, and can be made again at any time.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from titokc.bench.columns import COLUMNS, OF_ROWS, used
from titokc.bench.rows import EQUAL_BYTES, FLOOR, Row, write_json
from titokc.bench.statistics import Curve, bd_quality, bd_rate, bootstrap_interval, paired_difference
from titokc.files import write_atomic
from titokc.judge.pixels import IDENTICAL_PSNR
from titokc.judge.table import METRICS, PICTURE_METRICS, SET_METRICS, set_note

EXPLAINED = ("eld", "fd_lite0", "smooth", "busy")  # whose names are not the field's

Group = dict[str, Any]


def summarise(rows: Iterable[Row], sets: Sequence[dict[str, Any]], environment: dict[str, Any]) -> dict[str, Any]:
    """summary.json: "groups" (a codec at a budget), "comparisons" and "bjontegaard"."""
    rows = list(rows)
    groups = _groups(rows, sets)
    return {
        "crop": rows[0]["crop"],
        "pictures": len({row["image"] for row in rows}),
        "metrics": {name: metric.described() for name, metric in METRICS.items()},
        "enlarged": len({row["image"] for row in rows if row.get("enlarged")}),
        "unavailable": environment.get("unavailable", {}),
        "peak_memory": environment.get("peak_memory", {}),
        "groups": groups,
        "comparisons": _comparisons(rows, groups),
        "bjontegaard": _bjontegaard(groups),
    }


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """summary.json and summary.csv."""
    write_json(folder / "summary.json", summary)
    names = used((*OF_ROWS, *SET_METRICS), (group["mean"] for group in summary["groups"]))
    ends = [name for name in names if name in PICTURE_METRICS]
    fields = ("codec", "version", "view", "budget", "count", "without_file")
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    headings = [part for name in names for part in (name, *((f"{name}_low", f"{name}_high") if name in ends else ()))]
    table.writerow([*("pictures" if field == "count" else field for field in fields), *headings])
    for group in summary["groups"]:
        values: list[Any] = [group[field] for field in fields]
        for name in names:
            values += [group["mean"].get(name), *(group["interval"].get(name, [None, None]) if name in ends else [])]
        table.writerow(values)
    write_atomic(folder / "summary.csv", stream.getvalue().encode())


def by_point(rows: Iterable[Row]) -> dict[tuple[str, str, int | None], dict[str, Row]]:
    """The files that were made, by picture, of each codec, view and budget."""
    points: dict[tuple[str, str, int | None], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["reason"] is None:
            points[row["codec"], row["view"], row["budget"]][row["image"]] = row
    return points


def difference(rows: dict[str, Row], others: dict[str, Row], metric: str) -> dict[str, Any] | None:
    """rows - others by a metric, on the pictures where both have it ("first": the others' mean there); None without."""
    both = [(row.get(metric), others[name].get(metric)) for name, row in rows.items() if name in others]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    if not pairs:
        return None
    second, first = zip(*pairs, strict=True)
    found = paired_difference(second, first, COLUMNS[metric].higher_is_better)
    means = {"first": sum(first) / len(first), "second": sum(second) / len(second)}
    return {"metric": metric, **means, **vars(found), "significant": found.significant}


def notes(summary: dict[str, Any]) -> list[str]:
    """What must be said about the values of a metric, a line each."""
    groups = summary["groups"]
    said = sorted({f"{METRICS[name].label}: {note}" for group in groups for name, note in group["notes"].items()})
    used = {name for group in groups for name in group["mean"]}
    said += [f"{METRICS[name].label}: {METRICS[name].definition}" for name in EXPLAINED if name in used]
    for group in groups:
        if group["exact"]:
            where = FLOOR if group["budget"] is None else f"{group['budget']} B"
            said.append(f"{group['codec']}, {where}: {group['exact']} of {group['count']} exact, each counts as 100 dB")
    if summary["enlarged"]:
        said.append(f"{summary['enlarged']} pictures had a side under 256 pixels and were enlarged")
    return said


def _groups(rows: Sequence[Row], sets: Sequence[dict[str, Any]]) -> list[Group]:
    """One for each codec, view and budget: models first, then by view and budget."""
    together: dict[tuple[str, str, int | None], list[Row]] = defaultdict(list)
    for row in rows:
        together[row["codec"], row["view"], row["budget"]].append(row)
    of_set = {(entry["codec"], entry["budget"]): entry for entry in sets}
    groups = []
    for (codec, view, budget), members in together.items():
        made = [row for row in members if row["reason"] is None]
        group: Group = {"codec": codec, "kind": members[0]["kind"], "version": members[-1]["version"]}
        group |= {"view": view, "budget": budget, "count": len(made), "without_file": len(members) - len(made)}
        group["exact"] = sum(row.get("psnr") == IDENTICAL_PSNR for row in made)
        group["reason"] = next((row["reason"] for row in members if row["reason"]), None)
        group["mean"], group["interval"] = {}, {}
        for name in OF_ROWS:
            values = [row[name] for row in made if row.get(name) is not None]
            if values and len(values) == len(made):
                group["mean"][name] = sum(values) / len(values)
                if name in PICTURE_METRICS:
                    group["interval"][name] = list(bootstrap_interval(values))
        group["notes"] = {}
        entry = of_set.get((codec, budget)) if view == EQUAL_BYTES else None
        if entry and set(entry["pictures"]) == {row["image"] for row in made}:  # measured of these rows' pictures
            group["mean"] |= {name: entry[name] for name in SET_METRICS if entry.get(name) is not None}
            notes = {name: set_note(name, count) for name, count in entry["vectors"].items()}
            group["notes"] = {name: note for name, note in notes.items() if note}
        groups.append(group)
    return sorted(groups, key=lambda group: (group["view"] == FLOOR, group["budget"] or 0, group["kind"] != "model"))


def _comparisons(rows: Sequence[Row], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Each model against the best baseline at its budget, metric by metric, on the pictures that both have."""
    points = by_point(row for row in rows if row["view"] == EQUAL_BYTES)
    found = []
    for group in groups:
        if group["kind"] != "model" or group["view"] != EQUAL_BYTES:
            continue
        codec, budget = group["codec"], group["budget"]
        for name in PICTURE_METRICS:
            best = _best_baseline(groups, budget, name)
            if best is None or name not in group["mean"]:
                continue
            others = points[best["codec"], EQUAL_BYTES, budget]
            if (entry := difference(points[codec, EQUAL_BYTES, budget], others, name)) is not None:
                found.append({"codec": codec, "budget": budget, "baseline": best["codec"], **entry})
    return found


def _best_baseline(groups: Sequence[Group], budget: int, name: str) -> Group | None:
    """By the mean, among the baselines that have a file of the most pictures."""
    rivals = [
        group for group in groups if group["kind"] == "baseline" and group["budget"] == budget and name in group["mean"]
    ]
    most = max((group["count"] for group in rivals), default=0)
    rivals = [group for group in rivals if group["count"] == most]
    sign = 1 if METRICS[name].higher_is_better else -1
    return max(rivals, key=lambda group: sign * group["mean"][name], default=None)


def curve_of(groups: Iterable[Group], codec: str, name: str = "psnr") -> list[tuple[float, Group]]:
    """(mean bytes, group) of a codec's budgets, those with a file of every picture, smaller files first, none twice."""
    points = {
        group["mean"]["bytes"]: group
        for group in groups
        if (group["codec"], group["view"]) == (codec, EQUAL_BYTES)
        and group["count"]
        and not group["without_file"]
        and name in group["mean"]
    }
    return sorted(points.items(), key=lambda point: point[0])


def _bjontegaard(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """BD-rate (percent) and BD-PSNR (dB) of each model against each baseline; null where the curves do not overlap."""
    curves = {}
    for codec, kind in {group["codec"]: group["kind"] for group in groups}.items():
        points = curve_of(groups, codec)
        curves[codec] = (kind, Curve([size for size, _ in points], [group["mean"]["psnr"] for _, group in points]))
    return [
        {
            "codec": model,
            "baseline": baseline,
            "bd_rate_percent": bd_rate(curve, reference),
            "bd_psnr_db": bd_quality(curve, reference),
        }
        for model, (kind, curve) in curves.items()
        if kind == "model"
        for baseline, (other_kind, reference) in curves.items()
        if other_kind == "baseline" and len(reference.size_bytes)
    ]
