"""Loading and running a model whatever the program around has set in torch, and without a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from titokc import weights
from titokc.models.interface import Tokenizer
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.tokenizer import TiTok


def made(nano: Tokenizer) -> tuple[list[int], torch.Tensor]:
    image = torch.linspace(0, 1, 3 * 256 * 256, dtype=torch.float32, device="cpu").view(1, 3, 256, 256)
    with torch.inference_mode():
        tokens = nano.encode(image, 32, 1)
        return tokens[0].tolist(), nano.decode(tokens)


@pytest.fixture(scope="module")
def expected() -> tuple[list[int], torch.Tensor]:
    return made(weights.load("nano"))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


HOSTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("host", HOSTS)
def test_what_the_host_has_set_makes_no_difference(host: str, expected: tuple[list[int], torch.Tensor]) -> None:
    before = weights.load("nano")
    with HOSTS[host]():
        inside = weights.load("nano")
        results = [made(inside), made(before)]
    for tokens, pixels in [*results, made(inside)]:
        assert tokens == expected[0]
        assert torch.equal(pixels, expected[1])
    assert not next(inside.parameters()).is_inference()


def test_random_numbers_of_the_host_are_left_alone() -> None:
    torch.manual_seed(3)
    alone = torch.rand(2)
    torch.manual_seed(3)
    made(weights.load("nano"))
    assert torch.equal(torch.rand(2), alone)


def test_no_random_numbers_are_drawn_for_weights_that_are_read(tmp_path: Path) -> None:
    size = ViTSize(64, 1, 1)
    weights.save(TiTok(TiTokConfig(size, size, 4, 1024, 12, pixel_channels=32)), tmp_path / "titok")
    torch.manual_seed(3)
    alone = torch.rand(2)
    torch.manual_seed(3)
    weights.load(tmp_path / "titok")
    assert torch.equal(torch.rand(2), alone)
