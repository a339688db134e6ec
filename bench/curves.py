"""Plots of PSNR, LPIPS and FID-768 over bytes, from the committed rows of runs on the same pictures.

python bench/curves.py      bench/figures/curve-psnr.png, curve-lpips_squeeze.png, curve-fid_768_stand_in.png
"""

import argparse
from pathlib import Path

from titokc.bench.plots import draw
from titokc.bench.rows import EQUAL_BYTES, read_report
from titokc.bench.summary import summarise

ROOT = Path(__file__).parent
RUNS = ("kodak-256", "kodak-larger", "kodak-curve")
CODECS = ("nano", "nano:natural", "av1", "webp", "avif", "jpegxl", "jpeg")
METRICS = ("psnr", "lpips_squeeze", "fid_768_stand_in")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    folders = [ROOT / "results" / run for run in RUNS]
    reports = [read_report(folder) for folder in folders if folder.exists()]
    rows = [row for report in reports for row in report.rows if row["view"] == EQUAL_BYTES and row["codec"] in CODECS]
    sets = [entry for report in reports for entry in report.sets]
    summary = summarise(sorted(rows, key=lambda row: CODECS.index(row["codec"])), sets, {})
    for name in METRICS:
        (ROOT / "figures" / f"curve-{name}.png").write_bytes(draw(summary, name, ("png",))["png"])


if __name__ == "__main__":
    main()
