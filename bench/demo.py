"""Encodes a photo at four lengths and decodes it again: a table on the terminal and one picture of all of them.

    python bench/demo.py PHOTO -o FOLDER

Writes FOLDER/NAME-32.tok ... NAME-128.tok and FOLDER/NAME-side-by-side.png.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

import titokc
from titokc.judge.pixels import psnr, ssim

TOKENS = (32, 64, 96, 128)
CAPTION = 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    photo = ImageOps.exif_transpose(Image.open(arguments.photo)).convert("RGB")
    original = np.asarray(photo)
    codec = titokc.Codec()
    panels = [(photo, f"original, {arguments.photo.stat().st_size:,} bytes")]
    print(f"{arguments.photo.name}, {photo.width}x{photo.height}\n\ntokens  bytes      bpp   PSNR   SSIM")
    for tokens in TOKENS:
        data = codec.encode(photo, tokens=tokens)
        (arguments.output / f"{arguments.photo.stem}-{tokens}.tok").write_bytes(data)
        decoded = codec.decode(data)
        pixels = np.asarray(decoded)
        bpp = 8 * len(data) / (photo.width * photo.height)
        print(f"{tokens:6d}  {len(data):5d}  {bpp:.5f}  {psnr(original, pixels):5.2f}  {ssim(original, pixels):.3f}")
        panels.append((decoded, f"{len(data)} bytes"))
    picture = arguments.output / f"{arguments.photo.stem}-side-by-side.png"
    picture.write_bytes(side_by_side(panels))
    print(f"\n{picture}")


def side_by_side(panels: list[tuple[Image.Image, str]], height: int = 256) -> bytes:
    """The pictures in a row at one height, each with its caption below: a PNG."""
    width = round(panels[0][0].width * height / panels[0][0].height)
    sheet = Image.new("RGB", (len(panels) * (width + 4) - 4, height + CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for at, (image, caption) in enumerate(panels):
        left = at * (width + 4)
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, 0))
        draw.text((left + 2, height + 2), caption, fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
