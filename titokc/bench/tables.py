"""A summary as plain text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from titokc.bench.columns import COLUMNS, OF_GROUPS, shown, used
from titokc.bench.rows import EQUAL_BYTES
from titokc.bench.summary import Group, notes
from titokc.judge.table import METRICS


def summary_text(summary: dict[str, Any]) -> str:
    """Means at each budget, the floors of the formats, differences to the best baseline, and what could not run."""
    parts = [f"{summary['pictures']} pictures, crop {summary['crop']}; means, whole files"]
    budgets = sorted({group["budget"] for group in summary["groups"] if group["view"] == EQUAL_BYTES})
    for budget in budgets:
        parts.append(f"\nat most {budget} bytes")
        parts.append(_group_table([group for group in summary["groups"] if group["budget"] == budget], summary))
    if floors := [group for group in summary["groups"] if group["view"] != EQUAL_BYTES]:
        parts += ["\nnative size, lowest quality", _group_table(floors, summary)]
    if lines := _differences(summary):
        parts += ["\nours - best baseline at equal bytes, with 95 % intervals", *lines]
    if lines := _bjontegaard(summary):
        parts += ["\nBjontegaard deltas", *lines]
    reasons = summary["unavailable"]
    for why in dict.fromkeys(reasons.values()):
        names = [METRICS[name].label for name in reasons if reasons[name] == why]
        parts.append(f"\n{', '.join(names)} n/a: {why}")
    return "\n".join([*parts, "", *notes(summary)] if notes(summary) else parts)


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs)
        ).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in (headings, *rows))
    )


def _group_table(groups: Sequence[Group], summary: dict[str, Any]) -> str:
    names = used(OF_GROUPS, (group["mean"] for group in groups))
    memory = summary["peak_memory"]
    headings = ["", *(COLUMNS[name].heading for name in names), *(["MB"] if memory else [])]
    rows, impossible = [], []
    for group in groups:
        if not group["count"]:
            impossible.append(f"{group['codec']}: none ({group['reason']})")
            continue
        total = group["count"] + group["without_file"]
        label = group["codec"] + (f" ({group['count']} of {total})" if group["without_file"] else "")
        values = [shown(name, group["mean"].get(name)) for name in names]
        rows.append([label, *values, *([shown("peak_memory", memory.get(group["codec"]))] if memory else [])])
    return "\n".join([*([text_table(headings, rows)] if rows else []), *impossible])


def _differences(summary: dict[str, Any]) -> list[str]:
    rows = []
    for each in summary["comparisons"]:
        mean, low, high = (shown(each["metric"], each[name], "+") for name in ("mean", "low", "high"))
        rows.append(
            [
                f"{each['codec']} {each['budget']} B",
                METRICS[each["metric"]].label,
                mean,
                f"[{low}, {high}]",
                "" if each["significant"] else "not significant",
                f"better on {each['wins']} of {each['count']}",
                each["baseline"],
            ]
        )
    headings = ["", "metric", "difference", "interval", "", "", "against"]
    return [text_table(headings, rows)] if rows else []


def _bjontegaard(summary: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{each['codec']} against {each['baseline']}",
            f"{each['bd_rate_percent']:+.1f} %",
            f"{each['bd_psnr_db']:+.2f} dB",
        ]
        for each in summary["bjontegaard"]
        if each["bd_rate_percent"] is not None and each["bd_psnr_db"] is not None
    ]
    return [text_table(["", "BD-rate", "BD-PSNR"], rows)] if rows else []
