"""Whole photos at their own size, as one tile and as about square tiles: a row for each photo, grid and token count.

python bench/native.py KODAK -o bench/results/kodak-native-tiles.jsonl
"""

import argparse
import json
from pathlib import Path

import titokc
from titokc.bench import images, metrics

TOKENS = (32, 64, 96, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results/kodak-native-tiles.jsonl"))
    arguments = parser.parse_args()
    codec = titokc.Codec()
    rows = []
    for name, path in images.find(arguments.photos):
        photo = images.load(path, "none")
        for grid in ((1, 1), (2, 3) if photo.width > photo.height else (3, 2)):
            for tokens in TOKENS:
                data = codec.encode(photo, tokens=tokens, tiles=grid)
                decoded = codec.decode(data)
                rows.append(
                    {
                        "image": name,
                        "tiles": grid[0] * grid[1],
                        "tokens": tokens,
                        "bytes": len(data),
                        "bpp": 8 * len(data) / (photo.width * photo.height),
                        "psnr": metrics.psnr(photo, decoded),
                        "ssim": metrics.ssim(photo, decoded),
                        "fingerprint": codec.tokenizer.fingerprint.hex()[:12],
                    }
                )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
