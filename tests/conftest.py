"""What all tests share: no network, tiny tokenizers, pictures, and how much hypothesis tries.

`--hypothesis-profile=thorough` tries 2,000 examples of each property instead of 100.
"""

import hashlib
import socket

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("quick", deadline=None, max_examples=100)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing may connect to anything but this machine."""

    def guarded(name):
        original = getattr(socket.socket, name)

        def refuse(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
                raise AssertionError(f"a test tried to connect to {address}")
            return original(self, address)

        monkeypatch.setattr(socket.socket, name, refuse)

    guarded("connect")
    guarded("connect_ex")


@pytest.fixture(scope="session")
def write_photos():
    """A function that fills a folder with smooth random pictures, 48x36 pixels, the same ones each time."""

    def write(folder, count):
        rng = np.random.default_rng(0)
        for at in range(count):
            small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
            small.resize((48, 36), Image.Resampling.BICUBIC).save(folder / f"{at}.png")

    return write


@pytest.fixture(scope="session")
def make_tiny():
    """A function that makes tiny tokenizers: real ones, nested, deterministic, a millisecond a picture.

    Token k is the mean colour of one of 8 x 16 cells, 4 bits a channel. Cells come in scattered order, and decoding
    gives every cell the colour of the nearest one that the code has, so that any prefix is a poorer picture.
    """
    import torch
    from torch import nn

    from titokc.models.info import ModelInfo
    from titokc.models.interface import Code, Reconstruction, Tokenizer

    class Tiny(Tokenizer):
        def __init__(self, *, model_id=1, nested=True, image_size=64, seed=b"tiny"):
            super().__init__()
            name, digest = "nano-1" if model_id == 1 else "tiny", hashlib.sha256(seed).digest()
            least = 32 if nested else 128
            self.info = ModelInfo(
                4096, least, 128, nested, image_size, name=name, id=model_id, code=digest, weights=digest
            )
            self.batches = []  # sizes of those that came through
            self.levels = nn.Parameter(torch.full((1,), 15.0))
            self.register_buffer("order", torch.tensor([int(f"{i:07b}"[::-1], 2) for i in range(128)]))
            places = torch.cartesian_prod(torch.arange(8.0) * 2, torch.arange(16.0))
            self.register_buffer("distance", torch.cdist(places, places[self.order]))

        def encode(self, images, tokens=None, effort=0, distance=None):
            self.batches.append(len(images))
            means = nn.functional.adaptive_avg_pool2d(images.float(), (8, 16)).flatten(2)
            red, green, blue = (means * self.levels).round().long().unbind(1)
            return (red * 256 + green * 16 + blue)[:, self.order][:, : tokens or self.info.max_tokens]

        def decode(self, indices, look="faithful"):
            self.batches.append(len(indices))
            codes = indices[:, self.distance[:, : indices.shape[1]].argmin(1)]
            colours = torch.stack([codes // 256, codes // 16 % 16, codes % 16], 1) / self.levels
            square = (self.info.side, self.info.side)
            return nn.functional.interpolate(colours.view(-1, 3, 8, 16), square, mode="bilinear")

        def distortions(self, image, tokens):
            x = torch.tensor(image).permute(2, 0, 1)[None] / 255
            with torch.no_grad():
                indices, marks = self.encode(x), range(8, 129, 8)
                left = [float((self.decode(indices[:, :count]) - x).square().mean()) for count in marks]
            return np.interp(range(tokens + 1), marks, left)

        def code(self):
            return Code(1, {}, {})

        def reconstruct(self, images, keep=None, latents=None):
            indices = self.encode(images)
            return Reconstruction(self.decode(indices), indices, images.new_zeros(()))

    return Tiny


@pytest.fixture
def tiny(make_tiny):
    return make_tiny()


@pytest.fixture(scope="session")
def onnx_folder(tmp_path_factory):
    """The embedded model as `titokc models export nano --onnx` writes it: 15 seconds of processor time."""
    pytest.importorskip("onnxscript")
    from titokc.weights import onnx

    folder = tmp_path_factory.mktemp("onnx") / "nano"
    onnx.export("nano", folder)
    return folder


@pytest.fixture(scope="session")
def photo():
    """A function that makes smooth pictures with some texture, the same for the same size and seed."""

    def make(width=96, height=64, seed=0):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), 3)
        noise = rng.integers(-12, 13, (height, width, 3))
        return Image.fromarray(np.clip(np.asarray(small).astype(int) + noise, 0, 255).astype(np.uint8))

    return make
