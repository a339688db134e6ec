"""report.html: everything of a run on one self-contained page, from its rows, summary and pictures.

The page's own files are report.html (a template), report.css and report.js beside this module. Names come from
outside: all text is escaped here, or set as text by the script.
"""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from titokc.bench.columns import COLUMNS, OF_GROUPS, OF_ROWS, shown, used
from titokc.bench.plots import draw, plotted
from titokc.bench.published import published
from titokc.bench.rows import EQUAL_BYTES, FLOOR, Row, picture_path
from titokc.bench.summary import Group, notes
from titokc.files import write_atomic
from titokc.judge.table import METRICS, PICTURE_METRICS

GALLERY_QUALITY = 90
DEFAULT_GALLERY = 100


def write_report(
    folder: Path,
    rows: Sequence[Row],
    summary: dict[str, Any],
    environment: dict[str, Any],
    gallery: int = DEFAULT_GALLERY,
) -> Path:
    """Writes report.html into `folder`. `gallery`: at most so many pictures, those that the first model does worst."""
    shown, note = _gallery_names(rows, summary, gallery)
    page = Template(_asset("report.html")).substitute(
        title=escape(f"titokc bench: {summary['pictures']} pictures, crop {summary['crop']}"),
        lead=escape(_lead(summary)),
        style=_asset("report.css"),
        script=_asset("report.js"),
        equal=_group_table([group for group in summary["groups"] if group["view"] == EQUAL_BYTES], summary),
        notes="".join(f"<p><b>{escape(note)}</b></p>" for note in notes(summary)),
        floors=_group_table([group for group in summary["groups"] if group["view"] == FLOOR], summary),
        differences=_difference_table(summary["comparisons"]),
        bjontegaard=_bjontegaard_table(summary["bjontegaard"]),
        plots="\n".join(_plot(summary, name) for name in plotted(summary)),
        row_count=len(rows),
        rows=_row_table(rows),
        published=_published_table(),
        protocol=_protocol(summary, environment),
        gallery_quality=GALLERY_QUALITY,
        gallery_note=escape(note),
        data=_json_in_html(_gallery(folder, rows, summary, shown)),
    )
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def _asset(name: str) -> str:
    return resources.files("titokc.bench").joinpath(name).read_text(encoding="utf-8")


def _json_in_html(content: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")


def _lead(summary: dict[str, Any]) -> str:
    """The result in a sentence: PSNR against the best baseline at each budget."""
    parts = [
        f"{each['codec']} against {each['baseline']} at {each['budget']} bytes: {each['mean']:+.2f} dB, "
        f"better on {each['wins']} of {each['count']}"
        for each in summary["comparisons"]
        if each["metric"] == "psnr"
    ]
    return "PSNR: " + "; ".join(parts) + "." if parts else "No model and baseline share a budget."


def _number(value: float | None, name: str, interval: Sequence[float] | None = None, why: str = "") -> str:
    """A table cell."""
    if value is None:
        return f'<td class="missing" title="{escape(why)}">n/a</td>'
    between = f" <small>[{shown(name, interval[0])}, {shown(name, interval[1])}]</small>" if interval else ""
    return f'<td data-value="{value!r}" title="{escape(why)}">{shown(name, value)}{between}</td>'


def _text(value: object) -> str:
    return f'<td class="text">{escape(str(value))}</td>'


def _table(headings: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{"".join(rows)}</tbody></table></div>'


def _group_table(groups: Sequence[Group], summary: dict[str, Any]) -> str:
    unavailable = summary["unavailable"]
    names = used(OF_GROUPS, (group["mean"] for group in groups))
    memory = summary["peak_memory"]
    headings = ["codec", "budget", "pictures", *(COLUMNS[name].heading for name in names)]
    rows = []
    for group in groups:
        why = group["reason"] or "not measured"
        cells = [_text(group["codec"]), _number(group["budget"], "ratio"), _counted(group)]
        cells += [
            _number(
                group["mean"].get(name),
                name,
                group["interval"].get(name),
                group["notes"].get(name) or ("" if name in group["mean"] else unavailable.get(name, why)),
            )
            for name in names
        ]
        cells += [_number(memory.get(group["codec"]), "peak_memory")] if memory else []
        rows.append(f'<tr class="{escape(group["kind"])}">{"".join(cells)}</tr>\n')
    return _table([*headings, METRICS["peak_memory"].label] if memory else headings, rows)


def _counted(group: Group) -> str:
    total = group["count"] + group["without_file"]
    text = str(total) if not group["without_file"] else f"{group['count']} of {total}"
    return f'<td data-value="{group["count"]}" title="{escape(group["reason"] or "")}">{text}</td>'


def _difference_table(comparisons: Sequence[dict[str, Any]]) -> str:
    rows = []
    for each in comparisons:
        text, low, high = (shown(each["metric"], each[name], "+") for name in ("mean", "low", "high"))
        interval = f" <small>[{low}, {high}]</small>"
        cells = [_text(each["codec"]), _number(each["budget"], "ratio"), _text(METRICS[each["metric"]].label)]
        cells += [_text(each["baseline"])]
        cells.append(
            f'<td data-value="{each["mean"]!r}">{f"<b>{text}</b>" if each["significant"] else text}{interval}</td>'
        )
        cells.append(f'<td data-value="{each["wins"]}">{each["wins"]} of {each["count"]}</td>')
        p_value = each["p_value"]
        cells.append(
            '<td class="missing">n/a</td>' if p_value is None else f'<td data-value="{p_value!r}">{p_value:.2g}</td>'
        )
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return _table(["codec", "budget", "metric", "best baseline", "difference", "better on", "Wilcoxon p"], rows)


def _bjontegaard_table(deltas: Sequence[dict[str, Any]]) -> str:
    why = "the curves do not overlap, or have fewer than three points"
    rows = []
    for each in deltas:
        cells = [_text(each["codec"]), _text(each["baseline"])]
        cells += [_number(each["bd_rate_percent"], "encode_ms", why="" if each["bd_rate_percent"] is not None else why)]
        cells += [_number(each["bd_psnr_db"], "psnr", why="" if each["bd_psnr_db"] is not None else why)]
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return _table(["codec", "baseline", "BD-rate %", "BD-PSNR dB"], rows)


def _plot(summary: dict[str, Any], name: str) -> str:
    uri = _uri(draw(summary, name, ["svg"])["svg"], "image/svg+xml")
    return f'<img class="plot" alt="{escape(METRICS[name].label)} over bytes" src="{uri}">'


def _row_table(rows: Sequence[Row]) -> str:
    names = used([name for name in OF_ROWS if name != "ratio"], rows)
    lines = []
    for row in rows:
        point = ", ".join(f"{key} {value}" for key, value in (row["point"] or {}).items())
        cells = [_text(row["image"]), _text(row["codec"]), _text(row["view"])]
        cells.append(_number(row["budget"], "ratio", why="no budget"))
        cells += [
            _number(row.get(name), name, why="" if row.get(name) is not None else row["reason"] or "") for name in names
        ]
        cells.append(_text(point if row["reason"] is None else row["reason"]))
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    labels = [COLUMNS[name].heading for name in names]
    return _table(["picture", "codec", "view", "budget", *labels, "setting"], lines)


def _published_table() -> str:
    columns = {"psnr": "psnr", "ssim": "ssim", "ms_ssim": "ms_ssim", "lpips": "lpips_alex", "rfid": "rfid"}
    lines = []
    for each in published():
        cells = [_text(each.codec), _text(each.data), _number(each.size_bytes, "ratio"), _number(each.bpp, "bpp")]
        cells += [_number(getattr(each, name), columns[name], why="not given") for name in columns]
        lines.append(f"<tr>{''.join([*cells, _text(each.source)])}</tr>\n")
    labels = ("PSNR (dB)", "SSIM", "MS-SSIM", "LPIPS (trunk not given)", "rFID")
    return _table(["codec", "data", "bytes", "bpp", *labels, "source"], lines)


def _protocol(summary: dict[str, Any], environment: dict[str, Any]) -> str:
    lines = [f"<li><b>{escape(metric.label)}</b>: {escape(metric.definition)}</li>" for metric in METRICS.values()]
    lines += [
        f"<li><b>{escape(METRICS[name].label)}</b> could not run: {escape(why)}</li>"
        for name, why in summary["unavailable"].items()
    ]
    lines += [
        f"<li>weights of <b>{escape(METRICS[name].label)}</b>: "
        + escape(", ".join(f"{file}, SHA-256 {sha256}" for file, sha256 in files.items()))
        + "</li>"
        for name, files in environment.get("metric_weights", {}).items()
        if name in METRICS
    ]
    lines.append("<li>Transparent pictures are laid on white.</li>")
    text = escape(json.dumps(environment, indent=1, ensure_ascii=False))
    return f"<ul>{''.join(lines)}</ul><pre>{text}</pre>"


def _gallery_names(rows: Sequence[Row], summary: dict[str, Any], most: int) -> tuple[list[str], str]:
    """The pictures that the gallery shows, and what to say about that."""
    names = list(dict.fromkeys(row["image"] for row in rows))
    if len(names) <= most:
        return names, ""
    first = next((group["codec"] for group in summary["groups"] if group["kind"] == "model"), rows[0]["codec"])
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["codec"] == first and row.get("psnr") is not None:
            scores.setdefault(row["image"], []).append(row["psnr"])
    worst = sorted(names, key=lambda name: sum(scores.get(name, [])) / max(1, len(scores.get(name, []))))
    return sorted(worst[:most]), f"Of {len(names)}, the {most} with the lowest PSNR of {first}."


def _gallery(folder: Path, rows: Sequence[Row], summary: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What the page's script shows."""
    names_used = used(PICTURE_METRICS, rows)
    images: dict[str, dict[str, Any]] = {}
    for row in rows:
        name, budget = row["image"], row["budget"]
        original = picture_path(folder, "original", None, name)
        if name not in names or row["view"] != EQUAL_BYTES or not original.exists():
            continue
        if name not in images:
            size = {"width": row["width"], "height": row["height"]}
            images[name] = {"name": name, **size, "original": _picture_uri(original), "files": {}}
        entry: dict[str, Any] = {"reason": row["reason"]}
        path = picture_path(folder, row["codec"], budget, name)
        if row["reason"] is None and path.exists():
            entry = {"uri": _picture_uri(path), "bytes": row["bytes"]}
            entry |= {metric: row.get(metric) for metric in names_used}
        images[name]["files"].setdefault(row["codec"], {})[str(budget)] = entry
    equal = [group for group in summary["groups"] if group["view"] == EQUAL_BYTES]
    models_first = sorted(equal, key=lambda group: group["kind"] != "model")
    return {
        "codecs": list(dict.fromkeys(group["codec"] for group in models_first)),
        "budgets": sorted({group["budget"] for group in equal}),
        "metrics": [
            {
                "name": name,
                "label": METRICS[name].label,
                "digits": COLUMNS[name].digits,
                "higher": METRICS[name].higher_is_better,
            }
            for name in names_used
        ],
        "images": [images[name] for name in names if name in images],
    }


def _picture_uri(path: Path) -> str:
    stream = io.BytesIO()
    with Image.open(path) as picture:
        picture.save(stream, "WEBP", quality=GALLERY_QUALITY, method=4)
    return _uri(stream.getvalue(), "image/webp")


def _uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{b64encode(data).decode()}"
