"""The README's picture: photos in rows; the original, titokc at three sizes, and the best WebP at the largest of them.

python bench/figure.py KODAK -o bench/figures/kodak-256.png
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import titokc
from titokc.bench.codecs import WebP
from titokc.bench.images import load
from titokc.bench.search import Found, best_files, enlarged

TOKENS = (32, 64, 128)
SIDE, GAP, CAPTION = 224, 4, 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    codec = titokc.Codec()
    rows = []
    for path in arguments.photos:
        photo = load(path, "center-square-256")
        panels = [(photo, "original")]
        for tokens in TOKENS:
            data = codec.encode(photo, tokens=tokens)
            panels.append((codec.decode(data), f"titokc, {len(data)} bytes"))
        found = best_files(WebP(), photo, [len(data)])[len(data)]
        if isinstance(found, Found):
            small = WebP().decode(found.data)
            panels.append((enlarged(small, photo.size, found.enlarge), f"WebP, {len(found.data)} bytes"))
        rows.append(panels)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(arguments.output, optimize=True)


def sheet(rows: list[list[tuple[Image.Image, str]]]) -> Image.Image:
    """Rows of pictures with their captions below."""
    high = SIDE + CAPTION
    made = Image.new("RGB", (len(rows[0]) * (SIDE + GAP) - GAP, len(rows) * high), "white")
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(14)
    for row, panels in enumerate(rows):
        for column, (picture, caption) in enumerate(panels):
            left = column * (SIDE + GAP)
            made.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, row * high))
            draw.text((left + 2, row * high + SIDE + 2), caption, fill="black", font=font)
    return made


if __name__ == "__main__":
    main()
