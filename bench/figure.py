"""Photos in rows: the original, titokc at three sizes, the best WebP and bare AV1 at the largest of them.

python bench/figure.py PHOTO... -o bench/figures/kodak-256.png
python bench/figure.py FOLDER --worst ROWS -o bench/figures/worst.png    those of a run with the lowest PSNR
python bench/figure.py PHOTO... --looks -o bench/figures/looks.jpg       both looks of a file beside WebP, at 107 bytes
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import titokc
from titokc.bench.contenders.av1 import AV1
from titokc.bench.contenders.formats import WebP
from titokc.bench.contenders.interface import Found, enlarged
from titokc.bench.images import load
from titokc.bench.rows import Rows
from titokc.imaging.shards import Source

# Tokens and look of each picture between the original and the baselines.
SIZES = ((32, "natural"), (64, "natural"), (128, "natural"), (128, "faithful"))
LOOKS = ((64, "faithful"), (64, "natural"))
SIDE, GAP, CAPTION = 224, 4, 22
WORST = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--worst", type=Path, metavar="ROWS", help="rows.jsonl of a run on the folder PHOTOS")
    parser.add_argument("--looks", action="store_true", help="one size, both looks, in full size")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    photos = worst(arguments.worst, arguments.photos[0]) if arguments.worst else arguments.photos
    codec = titokc.Codec()
    rows = []
    for path in photos:
        photo = load(Source(path, path.name), "center-square-256")
        panels = [(photo, "original")]
        for tokens, look in LOOKS if arguments.looks else SIZES:
            data = codec.encode(photo, tokens=tokens)
            panels.append((codec.decode(data, look=look), f"{look}, {len(data)} bytes"))
        for name, baseline in (("WebP", WebP()), *([] if arguments.looks else [("AV1, bare", AV1())])):
            [found] = baseline.best(photo, len(data))
            if isinstance(found, Found):
                small = enlarged(baseline.decode(found.data), photo.size, found.enlarge)
                panels.append((small, f"{name}, {len(found.data)} bytes"))
        rows.append(panels)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows, 256 if arguments.looks else SIDE).save(arguments.output, optimize=True, quality=88)


def worst(rows: Path, folder: Path) -> list[Path]:
    """The photos of a run that nano does worst at the largest budget."""
    found = [row for row in Rows(rows.parent) if row["codec"] == "nano" and row["budget"] is not None]
    largest = max(row["budget"] for row in found)
    psnr = {row["image"]: row["psnr"] for row in found if row["budget"] == largest}
    return [folder / name for name in sorted(psnr, key=lambda name: psnr[name])[:WORST]]


def sheet(rows: list[list[tuple[Image.Image, str]]], side: int) -> Image.Image:
    """Rows of pictures with their captions below."""
    high = side + CAPTION
    made = Image.new("RGB", (len(rows[0]) * (side + GAP) - GAP, len(rows) * high), "white")
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(14)
    for row, panels in enumerate(rows):
        for column, (picture, caption) in enumerate(panels):
            left = column * (side + GAP)
            made.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, row * high))
            draw.text((left + 2, row * high + side + 2), caption, fill="black", font=font)
    return made


if __name__ == "__main__":
    main()
