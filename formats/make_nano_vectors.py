"""Writes the conformance vectors of nano's code and the golden pictures, with titokc's embedded model.

Vectors are frozen: a file that exists with other content is an error, never overwritten. `python make_nano_vectors.py`
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from titokc import imaging, weights

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "bench" / "samples"
PICTURES = {"coffee-128": ("coffee.jpg", 128), "chelsea-32": ("chelsea.jpg", 32)}


def photo(name: str) -> torch.Tensor:
    """The centre square at 256x256: RGB [1, 3, 256, 256] in [0, 1]."""
    square = imaging.centre_square(imaging.read(SAMPLES / name), 256)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255


def steps(quantizer, indices: list[int]) -> dict:
    """The coefficients that each token chose; values ([coefficient, value] where not 0) and levels at the end."""
    known, network, choices = quantizer.start(1), quantizer.network(), []
    for token, index in enumerate(indices):
        quantizer.predict(known, token, network)
        chosen, sizes = quantizer.choose(known)
        choices.append(chosen[0].tolist())
        quantizer.update(known, token, chosen, quantizer.codebooks[token].T[[index]] * sizes)
    places = known.values[0].nonzero().flatten().tolist()
    values = [[c, int(known.values[0, c])] for c in places]
    return {"indices": indices, "choices": choices, "values": values, "levels": known.levels[0].int().tolist()}


def main() -> None:
    nano, path = weights.load("nano"), HERE / "nano" / "vectors.json"
    codes = {"zeros": [0] * 128, "largest": [4095] * 128, "one-token": [2748]}
    codes["scattered"] = [40503 * (position + 1) % 4096 for position in range(128)]
    frozen = json.loads(path.read_bytes()) if path.exists() else {}
    with torch.inference_mode():
        for name, (file, tokens) in PICTURES.items():
            # Another machine may find another of two entries that are equally near.
            codes[name] = frozen[name]["indices"] if frozen else nano.encode(photo(file), tokens, 8)[0].tolist()
            pixels = nano.decode(torch.tensor([codes[name]])).clamp(0, 1).mul(255).round().to(torch.uint8)
            target = path.with_name(f"{name}.png")
            if not target.exists():
                Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(target, optimize=True)
        vectors = {name: steps(nano.quantizer, indices) for name, indices in codes.items()}
    lines = ",\n".join(f'"{name}": {json.dumps(vector, separators=(",", ":"))}' for name, vector in vectors.items())
    content = f'{{"code": "{nano.info.code.hex()}",\n{lines}}}\n'
    if frozen and path.read_text() != content:
        raise SystemExit(f"{path} exists with other content; vectors are frozen")
    path.write_text(content, newline="\n")


if __name__ == "__main__":
    main()
