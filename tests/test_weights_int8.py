"""Weights in one byte each: literal values, and a model that is the same after every round trip."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from titokc import weights
from titokc.models.nano.config import NanoConfig
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.weights.tensors import compact, expand

TINY = NanoConfig(32, 16, 4, 96, 6, 2, 32, 3, 8, 2, 16, 2, 1)


def test_rows_are_scaled_to_127() -> None:
    packed = compact({"w": torch.tensor([[0.0, 1.27, -0.635], [0.0, 0.0, 0.0]]), "b": torch.tensor([0.1])})
    assert packed["w"].dtype == torch.int8
    assert packed["w"].tolist() == [[0, 127, -64], [0, 0, 0]]
    torch.testing.assert_close(packed["w.scale"][0], torch.tensor([0.01]))
    assert packed["b"].tolist() == torch.tensor([0.1]).tolist()
    restored = expand(packed)
    assert set(restored) == {"w", "b"}
    torch.testing.assert_close(restored["w"], torch.tensor([[0.0, 1.27, -0.64], [0.0, 0.0, 0.0]]))


def test_a_saved_model_is_the_one_at_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = NanoTokenizer(TINY)
    weights.save(tokenizer, tmp_path / "eight", bits=8)
    weights.save(tokenizer, tmp_path / "plain")
    eight, plain = weights.load(tmp_path / "eight"), weights.load(tmp_path / "plain")
    assert eight.info.weights == plain.info.weights == weights.fingerprints(tokenizer).weights
    stored = load_file(tmp_path / "eight" / "model.safetensors")
    assert {stored[name].dtype for name in ("decoder.embed.weight", "quantizer.codebooks")} == {torch.int8}
