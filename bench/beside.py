"""The table "Beside the published systems" of bench/README.md: Kodak at 768x512, about 285 and 530 bytes a picture.

`bench/publish.py` writes it from the rows of the run kodak-beside and from `titokc.bench.published`.
"""

from pathlib import Path
from statistics import fmean

from titokc.bench.columns import shown
from titokc.bench.published import published
from titokc.bench.rows import EQUAL_BYTES, Row, Rows

RUN = "kodak-beside"
PUBLISHED_HERE = ("StableCodec", "DiffEIC", "VTM, QP 52")
MOST_BYTES = 1100  # of the published rows shown
METRICS = ("psnr", "ms_ssim", "lpips_squeeze")
HEADINGS = ("codec", "bytes", "bpp", "PSNR (dB)", "MS-SSIM", "LPIPS (squeeze)", "measured")


def table(run: Path, labels: dict[str, str]) -> str:
    """Our rows, if the run is there, in the order of `labels`, and those that others published, each marked as such."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in Rows(run):
        if row["view"] == EQUAL_BYTES:
            groups.setdefault((row["budget"], row["codec"]), []).append(row)
    order = list(labels)
    points = sorted(groups, key=lambda point: (point[0], order.index(point[1])))
    lines = [_line(labels[codec], groups[budget, codec]) for budget, codec in points]
    if not groups:
        lines.append(_cells("ours and the formats", "285, 530", *["not run"] * 4, f"`make {RUN}`"))
    for each in published():
        if each.codec in PUBLISHED_HERE and each.pixels == 768 * 512 and each.size_bytes <= MOST_BYTES:
            lpips = "n/a" if each.lpips is None else f"{each.lpips:.3f}, another trunk"
            values = [f"{each.size_bytes:.0f}", f"{each.bpp:.4f}", shown("psnr", each.psnr)]
            where = f"published elsewhere, another protocol: {each.source}"
            lines.append(_cells(each.codec, *values, shown("ms_ssim", each.ms_ssim), lpips, where))
    return "\n".join([_cells(*HEADINGS), "|---" * len(HEADINGS) + "|", *lines])


def _line(label: str, rows: list[Row]) -> str:
    made = [row for row in rows if row["bytes"] is not None]
    if len(made) < len(rows):
        return _cells(label, f"at most {rows[0]['budget']}", *["n/a"] * 4, f"has a file of {len(made)} of {len(rows)}")
    means = {name: fmean(row[name] for row in made) for name in ("bytes", "bpp")}
    for name in METRICS:
        values = [row[name] for row in made if row.get(name) is not None]
        means[name] = fmean(values) if len(values) == len(made) else None
    return _cells(label, *(shown(name, means[name]) for name in means), "here")


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
