"""formats/nano-code.md kept: a second decoder written from it, of plain Python and NumPy, and titokc's own give the
frozen integers; decoded pictures are within 2 of 255 of the golden ones."""

import json
import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FORMATS = Path(__file__).parents[1] / "formats"
SPEC = (FORMATS / "nano-code.md").read_text("utf-8")
VECTORS = json.loads((FORMATS / "nano" / "vectors.json").read_text("utf-8"))
CODE = VECTORS.pop("code")
MODEL = Path(__file__).parents[1] / "titokc" / "weights" / "nano.safetensors"
REFRESH, COEFFICIENTS, SLOTS = 4, 2048, 10


def tables() -> list[list[int]]:
    """The two tables of the specification."""
    return [list(map(int, block.split())) for block in re.findall(r"```\n([-\d\s]+)```", SPEC)]


STEP, EVIDENCE = tables()


def read_tensors() -> dict[str, np.ndarray]:
    """A safetensors file by its specification: 8 bytes of length, a JSON header, the data."""
    data = MODEL.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    kinds = {"I8": "<i1", "I32": "<i4", "F32": "<f4"}
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name.startswith(("quantizer.", "coded")):
            start, stop = (8 + length + at for at in entry["data_offsets"])
            array = np.frombuffer(data[start:stop], kinds[entry["dtype"]]).reshape(entry["shape"])
            found[name.removeprefix("quantizer.")] = array if entry["dtype"] == "F32" else array.astype(np.int64)
    return found


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return read_tensors()


def decode(tensors: dict[str, np.ndarray], indices: list[int]) -> tuple[list[list[int]], list[int], list[int]]:
    """Indices -> (the coefficients that each chose, the value and the level of every coefficient)."""
    base = tensors["base"].tolist()
    value, level, touched = [0] * COEFFICIENTS, list(base), [False] * COEFFICIENTS
    choices = []
    for k, index in enumerate(indices):
        if k and k % REFRESH == 0:
            e = [0] * COEFFICIENTS
            for c in range(COEFFICIENTS):
                if touched[c]:
                    e[c] = EVIDENCE[min(127, (12 * abs(value[c])) >> (6 + (base[c] >> 3)))]
            sums = (tensors["into_bias"] + tensors["into"] @ np.array(e)).tolist()
            y = [min(127, max(0, s >> int(tensors["shifts"][0]))) for s in sums]
            sums = (tensors["out_bias"] + tensors["out"] @ np.array(y)).tolist()
            for c in range(COEFFICIENTS):
                if not touched[c]:
                    level[c] = min(96, max(0, base[c] + (sums[c] >> int(tensors["shifts"][1]))))
        chosen = sorted(range(COEFFICIENTS), key=lambda c: (-level[c], c))[:SLOTS]
        for t, c in enumerate(chosen):
            value[c] += int(tensors["codebooks"][k, t, index]) * STEP[level[c]]
            level[c] = min(96, max(0, level[c] + int(tensors["drops"][k, t])))
            touched[c] = True
        choices.append(chosen)
    return choices, value, level


def dense(pairs: list[list[int]]) -> list[int]:
    value = [0] * COEFFICIENTS
    for place, number in pairs:
        value[place] = number
    return value


@pytest.mark.parametrize("name", VECTORS)
def test_the_second_decoder_gives_the_frozen_integers(tensors: dict[str, np.ndarray], name: str) -> None:
    vector = VECTORS[name]
    assert decode(tensors, vector["indices"]) == (vector["choices"], dense(vector["values"]), vector["levels"])


@pytest.mark.parametrize("name", VECTORS)
def test_titokc_gives_the_frozen_integers(name: str) -> None:
    import torch

    from titokc import weights

    nano, vector = weights.load("nano"), VECTORS[name]
    assert nano.info.code.hex() == CODE
    indices = torch.tensor([vector["indices"]])
    known, network = nano.quantizer.start(1), nano.quantizer.network()
    for token, expected in enumerate(vector["choices"]):
        nano.quantizer.predict(known, token, network)
        chosen, steps = nano.quantizer.choose(known)
        assert chosen[0].tolist() == expected
        nano.quantizer.update(known, token, chosen, nano.quantizer.codebooks[token].T[indices[:, token]] * steps)
    assert known.values[0].tolist() == dense(vector["values"])
    assert known.levels[0].tolist() == vector["levels"]
    assert torch.equal(nano.quantizer.lookup(indices), known.values * nano.quantizer.unit)


@pytest.mark.parametrize("name", VECTORS)
def test_titokc_without_torch_gives_the_frozen_integers(name: str) -> None:
    from titokc.models.nano.code_numpy import Code
    from titokc.models.nano.config import NanoConfig
    from titokc.weights import arrays

    code = Code(NanoConfig(), arrays.read(MODEL))
    values = code.lookup(np.array(VECTORS[name]["indices"])) / code.unit
    assert values.round().astype(int).tolist() == dense(VECTORS[name]["values"])


def test_the_tables_are_what_the_specification_says_they_are() -> None:
    from titokc.models.nano import code_numpy as code

    assert STEP == code.STEPS.tolist() == [round(2 ** (2 + level / 8)) for level in range(97)]
    assert EVIDENCE == code.EVIDENCE.tolist() == [round(8 * (math.sqrt(x / 12) - 3 / 4)) for x in range(128)]


def test_integers_become_the_linear_picture(tensors: dict[str, np.ndarray]) -> None:
    """The last section of the specification, in float64, against titokc's linear part."""
    import torch

    from titokc import weights

    vector = VECTORS["coffee-128"]
    spectra = np.zeros(3 * 64 * 64)
    spectra[tensors["coded"]] = np.array(dense(vector["values"])) * float(tensors["unit"][0]) * 64
    frequency, place = np.arange(64)[:, None], np.arange(64)
    dct = np.cos(np.pi / 64 * frequency * (place + 0.5)) * math.sqrt(2 / 64)
    dct[0] /= math.sqrt(2)
    brightness, red_blue, green_magenta = dct.T @ spectra.reshape(3, 64, 64) @ dct
    grey, across, along = brightness / math.sqrt(3), red_blue / math.sqrt(2), green_magenta / math.sqrt(6)
    expected = np.stack([grey + across + along, grey - 2 * along, grey - across + along])
    nano = weights.load("nano")
    coefficients = nano.quantizer.lookup(torch.tensor([vector["indices"]]))
    assert np.abs(nano._linear(coefficients)[0].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("engine", ["torch", "light"])
@pytest.mark.parametrize("name", ["coffee-128", "chelsea-32"])
def test_decoded_pictures_are_within_2_of_the_golden_ones(name: str, engine: str) -> None:
    from titokc import engines

    golden = np.asarray(Image.open(FORMATS / "nano" / f"{name}.png")).astype(int)
    tokens = np.array([VECTORS[name]["indices"]])
    decoded = engines.open("nano", "cpu", engine).decode(tokens, "faithful")[0].astype(int)
    assert golden.shape == decoded.shape == (256, 256, 3)
    assert np.abs(decoded - golden).max() <= 2
