"""report.html: everything of a run on one self-contained page, from its rows, summary and pictures.

The page's own files are report.html (a template), report.css and report.js beside this module. Names come from
outside: all text is escaped here, or set as text by the script.
"""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from titokc.bench.columns import COLUMNS, OF_ROWS, used
from titokc.bench.plots import draw, plotted
from titokc.bench.published import published
from titokc.bench.rows import EQUAL_BYTES, FLOOR, Row, picture_path
from titokc.bench.summary import notes
from titokc.bench.tables import Table, bjontegaard_table, bytes_of, difference_table, group_table, number, words
from titokc.files import write_atomic
from titokc.judge.table import METRICS, PICTURE_METRICS

GALLERY_QUALITY = 90


def write_report(
    folder: Path, rows: Sequence[Row], summary: dict[str, Any], environment: dict[str, Any], gallery: int = 100
) -> Path:
    """Writes report.html into `folder`. `gallery`: at most so many pictures, those that the first model does worst."""
    names, note = _gallery_names(rows, summary, gallery)
    equal, floors = ([group for group in summary["groups"] if group["view"] == view] for view in (EQUAL_BYTES, FLOOR))
    page = Template(_asset("report.html")).substitute(
        title=escape(f"titokc bench: {summary['pictures']} pictures, crop {summary['crop']}"),
        lead=escape(_lead(summary)),
        style=_asset("report.css"),
        script=_asset("report.js"),
        equal=group_table(equal, summary).html([group["kind"] for group in equal]),
        notes="".join(f"<p><b>{escape(note)}</b></p>" for note in notes(summary)),
        floors=group_table(floors, summary).html(),
        differences=difference_table(summary["comparisons"], {"best baseline": "baseline"}).html(),
        bjontegaard=bjontegaard_table(summary["bjontegaard"]).html(),
        plots="\n".join(_plot(summary, name) for name in plotted(summary)),
        row_count=len(rows),
        rows=_row_table(rows).html(),
        published=_published_table().html(),
        protocol=_protocol(summary, environment),
        gallery_quality=GALLERY_QUALITY,
        gallery_note=escape(note),
        data=_json_in_html(_gallery(folder, rows, summary, names)),
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


def _plot(summary: dict[str, Any], name: str) -> str:
    uri = _uri(draw(summary, name, ["svg"])["svg"], "image/svg+xml")
    return f'<img class="plot" alt="{escape(METRICS[name].label)} over bytes" src="{uri}">'


def _row_table(rows: Sequence[Row]) -> Table:
    names = used([name for name in OF_ROWS if name != "ratio"], rows)
    lines = []
    for row in rows:
        setting = row["reason"] or ", ".join(f"{key} {value}" for key, value in row["point"].items())
        line = [words(row["image"]), words(row["codec"]), bytes_of(row["budget"])]
        line += [number(row.get(name), name, why=row["reason"] or "") for name in names]
        lines.append([*line, words(setting)])
    return Table(["picture", "codec", "budget", *(COLUMNS[name].heading for name in names), "setting"], lines)


def _published_table() -> Table:
    columns = {"psnr": "psnr", "ssim": "ssim", "ms_ssim": "ms_ssim", "lpips": "lpips_alex", "rfid": "rfid"}
    lines = []
    for each in published():
        line = [words(each.codec), words(each.data), number(each.size_bytes, "ratio"), number(each.bpp, "bpp")]
        line += [number(getattr(each, name), column, why="not given") for name, column in columns.items()]
        lines.append([*line, words(each.source)])
    labels = ("PSNR (dB)", "SSIM", "MS-SSIM", "LPIPS (trunk not given)", "rFID")
    return Table(["codec", "data", "bytes", "bpp", *labels, "source"], lines)


def _protocol(summary: dict[str, Any], environment: dict[str, Any]) -> str:
    said = [(metric.label, metric.definition) for metric in METRICS.values()]
    said += [(METRICS[name].label, f"could not run: {why}") for name, why in summary["unavailable"].items()]
    for name, files in environment.get("metric_weights", {}).items():
        if name in METRICS:
            hashes = ", ".join(f"{file}, SHA-256 {sha256}" for file, sha256 in files.items())
            said.append((METRICS[name].label, f"weights {hashes}"))
    said.append(("transparent pictures", "laid on white"))
    lines = [f"<li><b>{escape(what)}</b>: {escape(text)}</li>" for what, text in said]
    text = escape(json.dumps(environment, indent=1, ensure_ascii=False))
    return f"<ul>{''.join(lines)}</ul><pre>{text}</pre>"


def _gallery_names(rows: Sequence[Row], summary: dict[str, Any], most: int) -> tuple[list[str], str]:
    """The pictures that the gallery shows, and what to say about that."""
    names = list(dict.fromkeys(row["image"] for row in rows))
    if len(names) <= most:
        return names, ""
    first = next((group["codec"] for group in summary["groups"] if group["kind"] == "model"), rows[0]["codec"])
    scores: dict[str, list[float]] = {name: [] for name in names}
    for row in rows:
        if row["codec"] == first and row.get("psnr") is not None:
            scores[row["image"]].append(row["psnr"])
    worst = sorted(names, key=lambda name: sum(scores[name]) / max(1, len(scores[name])))
    return sorted(worst[:most]), f"Of {len(names)}, the {most} with the lowest PSNR of {first}."


def _gallery(folder: Path, rows: Sequence[Row], summary: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What the page's script shows."""
    metrics = used(PICTURE_METRICS, rows)
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
            entry = {"uri": _picture_uri(path), **{field: row.get(field) for field in ("bytes", *metrics)}}
        images[name]["files"].setdefault(row["codec"], {})[str(budget)] = entry
    equal = [group for group in summary["groups"] if group["view"] == EQUAL_BYTES]
    models_first = sorted(equal, key=lambda group: group["kind"] != "model")
    fields = {"label": "heading", "digits": "digits", "higher": "higher_is_better"}
    return {
        "codecs": list(dict.fromkeys(group["codec"] for group in models_first)),
        "budgets": sorted({group["budget"] for group in equal}),
        "metrics": [
            {"name": name} | {field: getattr(COLUMNS[name], of) for field, of in fields.items()} for name in metrics
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
