"""The tables of the README and of the model card, from the committed rows in bench/results/.

python bench/publish.py            writes them between the markers
python bench/publish.py --check    exits with 1 if they differ from what is there
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
COLUMNS = ("nano", "webp", "avif", "jpeg2000", "jpeg")
LABELS = {"nano": "titokc nano-1", "webp": "WebP", "avif": "AVIF", "jpeg2000": "JPEG 2000", "jpeg": "JPEG"}

Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    """The rows of one run; a later row of the same measurement replaces an earlier one."""
    text = (RESULTS / name).read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return list(
        {
            tuple(row.get(k) for k in ("image", "codec", "view", "budget", "tiles", "tokens")): row for row in found
        }.values()
    )


def equal_bytes(rows: Iterable[Row], columns: tuple[str, ...]) -> list[str]:
    """A line for each byte budget: mean PSNR and SSIM of every codec that has a file of at most so many bytes."""
    groups: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["view"] == "equal-bytes":
            groups[row["budget"]][row["codec"]].append(row)
    lines = [
        "| at most | " + " | ".join(LABELS[name] for name in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for budget, codecs in sorted(groups.items()):
        cells = [_quality(codecs.get(name, [])) for name in columns]
        lines.append(f"| {budget} B | " + " | ".join(cells) + " |")
    return lines


def _quality(rows: list[Row]) -> str:
    if not rows:
        return "not run"
    if any(row["bytes"] is None for row in rows):
        return "impossible"
    return f"{fmean(row['psnr'] for row in rows):.2f} dB, {fmean(row['ssim'] for row in rows):.3f}"


def by_tokens(rows: Iterable[Row]) -> list[str]:
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["tiles"], row["tokens"]].append(row)
    lines = ["| tiles | tokens | bytes | bpp | PSNR | SSIM |", "|---|---|---|---|---|---|"]
    for (tiles, tokens), group in sorted(groups.items()):

        def mean(key: str, group: list[Row] = group) -> float:
            return fmean(row[key] for row in group)

        name = {1: "1x1", 6: "2x3 or 3x2"}[tiles]
        lines.append(
            f"| {name} | {tokens} | {max(row['bytes'] for row in group)} | {mean('bpp'):.5f} "
            f"| {mean('psnr'):.2f} dB | {mean('ssim'):.3f} |"
        )
    return lines


def tables() -> str:
    kodak, val = rows_of("kodak-256/rows.jsonl"), rows_of("val-256/rows.jsonl")
    native = rows_of("kodak-native-tiles.jsonl")
    return "\n".join(
        [
            "Kodak, 24 photos, centre square at 256x256; whole files counted; mean PSNR and SSIM. Every baseline at",
            "its best: all sensible downscales, filters, qualities, the best file that fits (`titokc bench kodak/`).",
            "",
            *equal_bytes(kodak, COLUMNS),
            "",
            "100 ImageNet photographs that were in no training set, the same way:",
            "",
            *equal_bytes(val, ("nano", "webp")),
            "",
            "Larger budgets, Kodak again: where it stops being worth it.",
            "",
            *equal_bytes(rows_of("kodak-larger/rows.jsonl"), ("nano", "webp")),
            "",
            "Kodak whole, at 768x512, as one tile and as six (`python bench/native.py kodak/`):",
            "",
            *by_tokens(native),
        ]
    )


def write(path: Path, marker: str, make: Callable[[], str], check: bool) -> bool:
    """Puts the text between `<!-- marker -->` and `<!-- /marker -->`; True if it was there already."""
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
    old, end, after = rest.partition(f"<!-- /{marker} -->")
    if not start or not end:
        sys.exit(f"{path}: no <!-- {marker} --> ... <!-- /{marker} -->")
    new = f"\n{make()}\n\n"
    if not check:
        path.write_text(before + start + new + end + after, encoding="utf-8")
    return new == old


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    same = [
        write(ROOT / "README.md", "results", tables, check),
        write(ROOT / "titokc" / "weights" / "nano.md", "figures", tables, check),
    ]
    if check and not all(same):
        sys.exit("the tables differ from the committed rows: run python bench/publish.py")


if __name__ == "__main__":
    main()
