"""The tables of both READMEs and of the model card, from the committed rows in bench/results/.

python bench/publish.py            writes them between the markers
python bench/publish.py REPORTS    takes over the figures of the runs in that folder first
python bench/publish.py --check    exits with 1 if they differ from what is there
"""

import argparse
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import beside

from titokc.bench.rows import EQUAL_BYTES, Row, Rows, read_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
KEPT = ("rows.jsonl", "sets.json", "summary.json", "summary.csv", "environment.json")
LABELS = {
    "nano": "titokc nano-1",
    "nano:natural": "nano-1, natural",
    "av1": "AV1, bare",
    "webp": "WebP",
    "jpegxl": "JPEG XL",
    "avif": "AVIF",
    "jpeg2000": "JPEG 2000",
    "jpeg": "JPEG",
    "blurhash": "BlurHash",
    "thumbhash": "ThumbHash",
    "nano:base64": "nano-1, text",
    "nano:base64:natural": "the same, natural",
}


class Table(NamedTuple):
    """A run, and what is shown of it."""

    run: str
    heading: str
    columns: tuple[str, ...]


TABLES = (
    Table(
        "kodak-256",
        "Kodak, 24 photos, centre square at 256x256; whole files counted; mean PSNR and SSIM. Every baseline at\n"
        "its best: all sensible downscales, filters, qualities, the best file that fits (`titokc bench kodak/`).\n"
        "AV1, bare, is an AVIF file without its 275 bytes of boxes: nothing that programs open, but the best of the\n"
        "classical codecs here. Kodak and the 100 photographs below guided the design: they are development sets, not\n"
        "untouched tests.",
        ("nano", "av1", "webp", "jpegxl", "jpeg2000", "avif", "jpeg", "blurhash"),
    ),
    Table(
        "val-256",
        "100 ImageNet photographs that were in no training set, the same way:",
        ("nano", "av1", "webp", "jpegxl", "jpeg2000", "avif", "jpeg"),
    ),
    Table(
        "val-1k",
        "1,000 other photographs of 29 sources, in no training set, though some settings were compared on parts of\n"
        "them; the same way, but nano-1 always in one tile, as `titokc encode --tokens 32`, 64, 96 and 128 makes it:",
        ("nano", "webp", "jpegxl", "jpeg2000", "avif", "jpeg"),
    ),
    Table(
        "kodak-larger",
        "Larger budgets, Kodak again.",
        ("nano", "av1", "webp", "jpegxl", "jpeg2000", "avif", "jpeg"),
    ),
    Table(
        "kodak-curve",
        "Kodak once more, at the largest budgets that were measured.",
        ("nano", "webp", "jpegxl", "avif", "jpeg"),
    ),
    Table(
        "kodak-native",
        "Kodak whole, at 768x512 (`titokc bench kodak/ --crop none`): nano-1 in the grid of tiles that is best.",
        ("nano", "av1", "webp", "jpegxl", "jpeg2000", "avif", "jpeg"),
    ),
)
PLACEHOLDERS = Table(
    "placeholders",
    "Placeholders, Kodak at 256x256: PSNR, SSIM, LPIPS (squeeze). Counted are of nano-1 the whole file, which says\n"
    "its size and has a checksum, and the payload alone as base64 text, which does neither, as BlurHash does not; of\n"
    "BlurHash its text; of ThumbHash its bytes (a third more as text), which say the aspect ratio.",
    ("nano", "nano:base64", "nano:base64:natural", "blurhash", "thumbhash"),
)

# Runs whose pictures are compared as they look, and what is shown of them.
LOOKS = (("kodak-256", "Kodak"), ("val-256", "the 100 photographs"), ("val-1k", "the 1,000 photographs"))
LOOKING = ("nano", "nano:natural", "webp")
LOOKS_HEADING = (
    "How they look, at equal bytes, to judges that no training has seen: LPIPS (squeeze) and FID-768 (a stand-in for\n"
    "Inception's FID, comparable within this table only; lower is nearer), and PSNR. Both looks are of the same files."
)


def take_over(reports: Path) -> None:
    """Copies what is kept of each finished run in `reports` into bench/results/."""
    for run in (
        run for run in (*(table.run for table in TABLES), PLACEHOLDERS.run, beside.RUN) if (reports / run).is_dir()
    ):
        if not (reports / run / "environment.json").exists():
            sys.exit(f"{reports / run} is not finished")
        shutil.rmtree(RESULTS / run, ignore_errors=True)
        (RESULTS / run).mkdir(parents=True)
        for name in KEPT:
            if (reports / run / name).exists():
                shutil.copy(reports / run / name, RESULTS / run)


def tables() -> str:
    """All of them, each under its heading."""
    parts = []
    for table in TABLES:
        rows = rows_of(RESULTS / table.run)
        if rows:
            parts.append(f"{table.heading}\n\n" + "\n".join(equal_bytes(rows, table.columns, _quality)))
    if lines := looks():
        parts.insert(sum((RESULTS / run).is_dir() for run, _ in LOOKS), f"{LOOKS_HEADING}\n\n" + "\n".join(lines))
    if rows := rows_of(RESULTS / PLACEHOLDERS.run):
        lines = equal_bytes(rows, PLACEHOLDERS.columns, lambda rows: f"{_quality(rows)}, {_lpips(rows)}")
        parts.append(f"{PLACEHOLDERS.heading}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def looks_of_all() -> str:
    """LPIPS and FID-768 of every codec, a table for each run."""
    parts = []
    for table in TABLES:
        distances = distances_of(table.run)

        def judged(rows: list[Row], distances: dict[tuple[str, int], float] = distances) -> str:
            distance = distances.get((rows[0]["codec"], rows[0]["budget"]))
            return _lpips(rows) if distance is None else f"{_lpips(rows)}, {distance:.2f}"

        rows = rows_of(RESULTS / table.run)
        unjudged = {row["codec"] for row in rows if not row["reason"] and "lpips_squeeze" not in row}
        rows = [row for row in rows if row["codec"] not in unjudged]
        if rows:
            columns = ("nano", "nano:natural", *table.columns[1:])
            parts.append(f"{table.run}:\n\n" + "\n".join(equal_bytes(rows, columns, judged)))
    return "\n\n".join(parts)


def distances_of(run: str) -> dict[tuple[str, int], float]:
    """FID-768 by codec and budget."""
    sets = read_json(RESULTS / run / "sets.json", [])
    return {(each["codec"], each["budget"]): each["fid_768_stand_in"] for each in sets if "fid_768_stand_in" in each}


def looks() -> list[str]:
    """A line for each run and budget: what independent judges say of both looks and of WebP."""
    lines = []
    for run, title in LOOKS:
        distances = distances_of(run)
        groups: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in rows_of(RESULTS / run):
            groups[row["budget"]][row["codec"]].append(row)
        for budget, codecs in sorted(groups.items()):
            if not codecs["nano:natural"]:
                continue
            cells = [f"{title}, {budget} B"]
            for name in LOOKING:
                lpips, psnr = (fmean(row[metric] for row in codecs[name]) for metric in ("lpips_squeeze", "psnr"))
                distance = distances.get((name, budget))
                cells.append(f"{lpips:.3f} | {'' if distance is None else f'{distance:.2f}'} | {psnr:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    names = [f"{name}: LPIPS | FID-768 | PSNR" for name in ("faithful", "natural", "WebP")]
    return [f"| at most | {' | '.join(names)} |", "|---" * (1 + 3 * len(LOOKING)) + "|", *lines]


def rows_of(folder: Path) -> list[Row]:
    """The rows at equal bytes of a run; none if there is no run."""
    return [row for row in Rows(folder) if row["view"] == EQUAL_BYTES]


def equal_bytes(rows: list[Row], columns: tuple[str, ...], said: Callable[[list[Row]], str]) -> list[str]:
    """A line for each byte budget: what is said of every codec that has files of at most so many bytes."""
    groups: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["budget"]][row["codec"]].append(row)
    columns = tuple(name for name in columns if any(row["codec"] == name for row in rows))
    tiled = any(_tiles(row) > 1 for row in rows if row["codec"] == "nano" and row["point"])
    pixels = fmean(row["width"] * row["height"] for row in rows)
    headings = ["at most", "bpp", *(["tiles"] if tiled else []), *(LABELS[name] for name in columns)]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for budget, codecs in sorted(groups.items()):
        counts = sorted(_tiles(row) for row in codecs["nano"]) if tiled else []
        tiles = [str(n) if (n := counts[0]) == counts[-1] else f"{n} to {counts[-1]}"] if tiled else []
        cells = [f"{budget} B", f"{8 * budget / pixels:.4f}", *tiles, *(_cell(codecs[name], said) for name in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _tiles(row: Row) -> int:
    grid_rows, grid_columns = row["point"]["tiles"].split("x")
    return int(grid_rows) * int(grid_columns)


def _cell(rows: list[Row], said: Callable[[list[Row]], str]) -> str:
    made = [row for row in rows if row["bytes"] is not None]
    if not made:
        return "impossible" if rows else "not run"
    return said(made) if len(made) == len(rows) else f"on {len(made)} of {len(rows)}"


def _quality(rows: list[Row]) -> str:
    return f"{fmean(row['psnr'] for row in rows):.2f} dB, {fmean(row['ssim'] for row in rows):.3f}"


def _lpips(rows: list[Row]) -> str:
    return f"{fmean(row['lpips_squeeze'] for row in rows):.3f}"


def write(path: Path, marker: str, text: str, check: bool) -> bool:
    """Puts the text between `<!-- marker -->` and `<!-- /marker -->`; True if it was there already."""
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
    old, end, after = rest.partition(f"<!-- /{marker} -->")
    if not start or not end:
        sys.exit(f"{path}: no <!-- {marker} --> ... <!-- /{marker} -->")
    new = f"\n{text}\n\n"
    if not check:
        path.write_text(before + start + new + end + after, encoding="utf-8")
    return new == old


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="?", help="a folder of finished runs")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.reports and not arguments.check:
        take_over(arguments.reports)
    text = tables()
    same = [
        write(ROOT / "README.md", "results", text, arguments.check),
        write(ROOT / "titokc" / "weights" / "nano.md", "figures", text, arguments.check),
        write(ROOT / "bench" / "README.md", "looks", looks_of_all(), arguments.check),
        write(ROOT / "bench" / "README.md", "beside", beside.table(RESULTS / beside.RUN, LABELS), arguments.check),
    ]
    if arguments.check and not all(same):
        sys.exit("the tables differ from the committed rows: run python bench/publish.py")


if __name__ == "__main__":
    main()
