"""The tables of a benchmark: what stands in them, as text for the terminal and as HTML for the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from titokc.bench.columns import COLUMNS, OF_GROUPS, shown, used
from titokc.bench.rows import FLOOR
from titokc.bench.summary import Group, notes
from titokc.judge.table import METRICS


class Cell(NamedTuple):
    """`value`: what a number is sorted by, None if it is missing. `more` and `why` are shown on the page only."""

    text: str
    value: float | None = None
    is_number: bool = True
    more: str = ""
    why: str = ""

    def html(self) -> str:
        title = f' title="{escape(self.why)}"' if self.why else ""
        if not self.is_number:
            return f'<td class="text"{title}>{escape(self.text)}</td>'
        value = 'class="missing"' if self.value is None else f'data-value="{self.value!r}"'
        more = f" <small>{escape(self.more)}</small>" if self.more else ""
        return f"<td {value}{title}>{escape(self.text)}{more}</td>"


class Table(NamedTuple):
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def without(self, heading: str) -> Table:
        at = self.headings.index(heading)
        rows = [[*row[:at], *row[at + 1 :]] for row in self.rows]
        return Table([*self.headings[:at], *self.headings[at + 1 :]], rows)

    def text(self) -> str:
        """Aligned columns, the first to the left."""
        lines = [self.headings, *([cell.text for cell in row] for row in self.rows)]
        first, *rest = [max(map(len, column)) for column in zip(*lines, strict=True)]
        form = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in rest)])
        return "\n".join(form.format(*line).rstrip() for line in lines)

    def html(self, kinds: Sequence[str] = ()) -> str:
        """`kinds`: a class for each row."""
        head = "".join(f"<th>{escape(heading)}</th>" for heading in self.headings)
        classes = [f' class="{escape(kind)}"' for kind in kinds] or [""] * len(self.rows)
        lines = [
            f"<tr{kind}>{''.join(cell.html() for cell in row)}</tr>\n"
            for kind, row in zip(classes, self.rows, strict=True)
        ]
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{"".join(lines)}</tbody></table></div>'


def words(value: object) -> Cell:
    return Cell(str(value), is_number=False)


def number(value: float | None, name: str, interval: Sequence[float] | None = None, why: str = "") -> Cell:
    """A value of the column `name`."""
    more = f"[{shown(name, interval[0])}, {shown(name, interval[1])}]" if interval else ""
    return Cell(shown(name, value), value, more=more, why=why)


def bytes_of(budget: int | None) -> Cell:
    return words(FLOOR) if budget is None else Cell(str(budget), budget)


def group_table(groups: Sequence[Group], summary: dict[str, Any]) -> Table:
    """Means of a codec at a budget, a row each."""
    names = used(OF_GROUPS, (group["mean"] for group in groups))
    memory = summary["peak_memory"]
    rows = []
    for group in groups:
        missing = group["reason"] or "not measured"
        pictures = f"{group['count']} of {group['count'] + group['without_file']}"
        row = [words(group["codec"]), bytes_of(group["budget"])]
        row.append(
            Cell(pictures if group["without_file"] else str(group["count"]), group["count"], why=group["reason"])
        )
        for name in names:
            mean = group["mean"].get(name)
            why = summary["unavailable"].get(name, missing) if mean is None else ""
            row.append(number(mean, name, group["interval"].get(name), group["notes"].get(name) or why))
        rows.append(row + ([number(memory.get(group["codec"]), "peak_memory")] if memory else []))
    headings = ["codec", "budget", "pictures", *(COLUMNS[name].heading for name in names)]
    return Table(headings + ([COLUMNS["peak_memory"].heading] if memory else []), rows)


def difference_table(differences: Iterable[dict[str, Any]], columns: dict[str, str]) -> Table:
    """What `summary.difference` found; "*": the interval leaves out 0. `columns`: heading -> field of further ones."""
    rows = []
    for each in differences:
        name, p_value = each["metric"], each["p_value"]
        mean, low, high = (shown(name, each[value], "+") for value in ("mean", "low", "high"))
        more = [each[field] for field in columns.values()]
        row = [words(each["codec"]), bytes_of(each["budget"]), words(COLUMNS[name].heading)]
        row += [words(value) if isinstance(value, str) else number(value, name) for value in more]
        row += [Cell(f"{mean}*" if each["significant"] else mean, each["mean"]), words(f"[{low}, {high}]")]
        row.append(Cell(f"{each['wins']} of {each['count']}", each["wins"]))
        row.append(Cell("n/a" if p_value is None else f"{p_value:.2g}", p_value))
        rows.append(row)
    return Table(["codec", "budget", "metric", *columns, "difference", "95 % interval", "better on", "p"], rows)


def bjontegaard_table(deltas: Iterable[dict[str, Any]]) -> Table:
    rows = []
    for each in deltas:
        rate, psnr = each["bd_rate_percent"], each["bd_psnr_db"]
        why = "the curves do not overlap, or have fewer than three points" if rate is None or psnr is None else ""
        row = [words(each["codec"]), words(each["baseline"])]
        row.append(Cell("n/a" if rate is None else f"{rate:+.1f}", rate, why=why))
        rows.append([*row, Cell("n/a" if psnr is None else f"{psnr:+.2f}", psnr, why=why)])
    return Table(["codec", "baseline", "BD-rate %", "BD-PSNR dB"], rows)


def summary_text(summary: dict[str, Any]) -> str:
    """Means at each budget, the floors of the formats, differences to the best baseline, and what could not run."""
    parts = [f"{summary['pictures']} pictures, crop {summary['crop']}; means, whole files"]
    for budget in sorted({group["budget"] for group in summary["groups"]}, key=lambda budget: budget or float("inf")):
        groups = [group for group in summary["groups"] if group["budget"] == budget]
        parts.append("\nnative size, lowest quality" if budget is None else f"\nat most {budget} bytes")
        if there := [group for group in groups if group["count"]]:
            parts.append(group_table(there, summary).without("budget").text())
        parts += [f"{group['codec']}: none ({group['reason']})" for group in groups if not group["count"]]
    if differences := summary["comparisons"]:
        parts.append("\nours - best baseline at equal bytes (*: the interval leaves out 0, on six pictures or more)")
        parts.append(difference_table(differences, {"against": "baseline"}).text())
    if deltas := [each for each in summary["bjontegaard"] if None not in each.values()]:
        parts += ["\nBjontegaard deltas", bjontegaard_table(deltas).text()]
    reasons = summary["unavailable"]
    for why in dict.fromkeys(reasons.values()):
        names = [METRICS[name].label for name in reasons if reasons[name] == why]
        parts.append(f"\n{', '.join(names)} n/a: {why}")
    return "\n".join([*parts, "", *notes(summary)] if notes(summary) else parts)
