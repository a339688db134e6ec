"""The engine without torch is the torch definition: tokens, pixels, gradients. And it needs no torch."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from titokc import engines, weights
from titokc.engines import light
from titokc.engines.torch import TorchEngine
from titokc.errors import UsageError, WeightsError
from titokc.models.nano.config import NanoConfig
from titokc.models.nano.numpy import planes
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.weights.places import locate

SAMPLES = Path(__file__).parents[1] / "bench" / "samples"


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    """uint8 [6, 256, 256, 3]: parts of photographs, and what no photograph is."""
    parts = []
    for name in ("coffee.jpg", "chelsea.jpg"):
        with Image.open(SAMPLES / name) as image:
            whole = np.asarray(image.convert("RGB"))
            parts += [whole[:256, :256], whole[40:296, 60:316]]
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return np.stack([*parts, np.full((256, 256, 3), 200, np.uint8), noise])


def encoded(engine, tiles: np.ndarray, count: int, effort: int) -> np.ndarray:
    return np.stack(engine.encode(tiles, [count] * len(tiles), effort))


def decoded(engine, tokens: np.ndarray) -> np.ndarray:
    return np.stack(engine.decode(tokens, "faithful"))


@pytest.fixture(scope="module")
def both() -> tuple[light.LightEngine, TorchEngine]:
    return light.load(locate("nano"), 2), TorchEngine(weights.load("nano"), dtype="float32", batch_size=8, threads=2)


def test_both_engines_say_the_same_of_the_model(both) -> None:
    ours, reference = both
    assert ours.info == reference.info


@pytest.mark.parametrize("tokens", [128, 47])
def test_nearest_tokens_are_those_of_torch(both, tiles, tokens: int) -> None:
    """One of 10,000 may differ: two entries as near as float32 can tell. None did when this was written."""
    ours, reference = both
    a, b = encoded(ours, tiles, tokens, 0), encoded(reference, tiles, tokens, 0)
    assert a.dtype == np.int64
    assert a.shape == (6, tokens)
    assert (a != b).sum() <= a.size / 10_000


@pytest.mark.parametrize(("tokens", "effort"), [(64, 3), (12, 8)])
def test_searches_find_what_torch_finds_or_as_good(both, tiles, error, tokens: int, effort: int) -> None:
    """Two entries as near as float32 can tell lead elsewhere: of no picture when this was written. When torch's search
    also tried what had been made for an earlier start, 26 of 40 photographs differed after 16 rounds."""
    ours, reference = both
    a, b = encoded(ours, tiles, tokens, effort), encoded(reference, tiles, tokens, effort)
    assert (a == b).all(1).sum() >= 5
    for tile, *found in zip(tiles, a, b, strict=True):
        one, other = (error(tile, tokens) for tokens in found)
        assert one == pytest.approx(other, rel=0.05)


def test_pixels_are_those_of_torch_within_1(both, tiles) -> None:
    ours, reference = both
    for count in (1, 8, 31, 128):
        tokens = encoded(reference, tiles, 128, 0)[:, :count]
        a, b = decoded(ours, tokens).astype(int), decoded(reference, tokens)
        assert np.abs(a - b).max() <= 1
        assert (a != b).mean() < 1e-3


@pytest.mark.parametrize("choice", [0, 1, 2])
def test_what_is_made_may_begin_with_the_next_nearest_entry(both, tiles, choice: int) -> None:
    """After 5 kept tokens; the 6th alone, all after it are the nearest ones again. In both engines the same."""
    ours, reference = both
    own = ours._transform.analyse(planes(tiles[1]))
    kept, _, (state,) = ours._code.assign(own, 9, marks=[5])
    indices, quantised, _ = ours._code.assign(own, 9, state, choice=choice)
    alone = [np.square(own - ours._code.lookup(np.append(kept[:5], entry))).sum() for entry in range(4096)]
    assert indices[5] == np.argsort(alone)[choice]
    again, *_ = ours._code.assign(own, 9, ours._code.assign(own, 9, state, marks=[6], choice=choice)[2][0])
    assert indices[:5].tolist() == kept[:5].tolist()
    assert again.tolist() == indices.tolist()
    batch = [torch.from_numpy(array)[None] for array in (own, kept)]
    theirs, values = reference._tokenizer.quantizer.assign_after(*batch, [0, 5], torch.tensor([choice]))
    assert theirs.shape == (2, 1, 9)
    assert theirs[1, 0].tolist() == indices.tolist()
    assert np.allclose(values[1, 0].numpy(), quantised, atol=1e-6)


@pytest.fixture(scope="module")
def error(both):
    """The mean squared error of what tokens [K] decode to."""
    engine, _ = both

    def measure(tile: np.ndarray, tokens: np.ndarray) -> float:
        made = engine._decoder(engine._code.lookup(tokens), len(tokens)).picture
        return float(np.square(made - planes(tile)).mean())

    return measure


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no such processes here")
def test_a_fork_has_threads_of_its_own() -> None:
    """Of the parent's none come along: several tiles waited for them for ever."""
    script = (
        "import os, sys, titokc\n"
        "make = lambda: titokc.encode(sys.argv[1], tiles='1x2', effort=0)\n"
        "before, child = make(), os.fork()\n"
        "if not child: os._exit(make() != before)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    command = [sys.executable, "-c", script, str(SAMPLES / "coffee.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "0\n"


def test_more_effort_is_never_worse(both, tiles, error) -> None:
    for tile in tiles[[0, 3]]:
        errors = [error(tile, encoded(both[0], tile[None], 48, effort)[0]) for effort in (0, 1, 2, 4, 6, 9)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.98 * errors[0]


def test_of_several_searches_those_that_have_been_made_are_not_made_again(tiles, monkeypatch) -> None:
    engine, real, made = light.load(locate("nano"), 1), light.search, []
    monkeypatch.setattr(light, "search", lambda *given: made.append(given[-2:]) or real(*given))
    engine.encode(tiles[:1], [8], 7)
    (found,) = engine.encode(tiles[:1], [8], 9)
    assert made == [(16, 0.4), (16, 0.32), (16, 0.5)]
    assert found.tolist() == encoded(light.load(locate("nano"), 1), tiles[:1], 8, 9)[0].tolist()
    found[:] = 0  # the caller's own
    assert encoded(engine, tiles[:1], 8, 9).any()
    assert len(made) == 6


def test_a_search_gives_no_less_than_the_start_of_a_longer_one(both, error) -> None:
    """83 of 128 tokens were .13 dB better than a search for 83 when steps only shrank after a first one in vain."""
    with Image.open(SAMPLES / "chelsea.jpg") as image:
        whole = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.LANCZOS))[None]
    longer = encoded(both[0], whole, 128, 6)[0]
    for count in (82, 83, 101):
        found = encoded(both[0], whole, count, 6)[0]
        assert error(whole[0], found) < 10**0.005 * error(whole[0], longer[:count])


def test_a_flat_picture_is_not_searched_for(both, tiles) -> None:
    assert np.array_equal(encoded(both[0], tiles[4:5], 40, 9), encoded(both[0], tiles[4:5], 40, 0))


def test_what_is_left_after_so_many_tokens(both, tiles) -> None:
    """Of the linear code alone, and in both engines the same: by it tokens are shared out among tiles."""
    ours = both[0]
    found, same = (np.stack(engine.distortions(tiles, 128)) for engine in both)
    assert found.shape == (6, 129)
    assert np.abs(found - same).max() < 1e-6
    code, picture = ours._code, planes(tiles[1])
    for count in (0, 8, 64, 128):
        indices, *_ = code.assign(ours._transform.analyse(picture), count)
        thumb = ours._transform.thumbnail(code.lookup(indices))
        enlarged = ours._transform.enlarge @ thumb @ ours._transform.enlarge.T + 0.5
        assert found[1, count] == pytest.approx(float(np.square(enlarged - picture).mean()), rel=0.02)


def test_what_is_kept_stays(both, tiles) -> None:
    code, own = both[0]._code, both[0]._transform.analyse(planes(tiles[1]))
    indices, coefficients, (state,) = code.assign(own, 32, marks=(20,))
    other, *_ = code.assign(own * 1.5, 32, state)
    assert np.array_equal(other[:20], indices[:20])
    assert not np.array_equal(other, indices)
    again, same, _ = code.assign(own, 32, state)
    assert np.array_equal(again, indices)
    assert np.array_equal(same, coefficients)


def test_the_gradient_is_that_of_torch(both, tiles) -> None:
    ours, reference = both
    model = reference._tokenizer
    picture = planes(tiles[0])
    coefficients = ours._code.assign(ours._transform.analyse(picture), 96)[1]
    made, _, backward = ours._decoder(coefficients, 96)
    gradient = backward(made - picture)
    leaf = torch.from_numpy(coefficients)[None].requires_grad_()
    wanted, _ = model._synthesise(leaf, torch.tensor([96]), 256)
    (0.5 * (wanted - torch.from_numpy(picture)).square()).sum().backward()
    expected = leaf.grad[0].numpy()
    assert np.abs(made - wanted[0].detach().numpy()).max() < 1e-5
    assert np.linalg.norm(gradient - expected) < 1e-5 * np.linalg.norm(expected)


def test_tokens_depend_neither_on_threads_nor_on_company(both, tiles) -> None:
    ours, _ = both
    together = encoded(ours, tiles, 32, 2)
    alone = light.load(locate("nano"), 1)
    assert np.array_equal(together, np.concatenate([encoded(alone, tile[None], 32, 2) for tile in tiles]))


def test_a_saved_model_in_8_or_32_bits_is_read(tmp_path, tiles) -> None:
    torch.manual_seed(1)
    config = NanoConfig(64, 32, 8, 100, 8, 2, 16, 4, 16, 2, 32, 2, 1, lap=1)
    tokenizer = NanoTokenizer(config).eval()
    generator = torch.Generator().manual_seed(2)
    tokenizer.coded.copy_(torch.arange(100))
    tokenizer.quantizer.base.copy_(torch.arange(100, 0, -1).clamp(max=80))
    tokenizer.quantizer.unit.fill_(1e-5)
    tokenizer.quantizer.codebooks.copy_(torch.randint(-90, 90, (8, 4, 16), generator=generator))
    for parameter in tokenizer.decoder.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    small = tiles[:, 100:164, 100:164]
    for bits in (32, 8):
        weights.save(tokenizer, tmp_path / str(bits), bits=bits)
        path = tmp_path / str(bits)
        ours, reference = engines.open(path), engines.open(path, engine="torch")
        assert isinstance(ours, light.LightEngine)
        assert ours.info == reference.info
        tokens = encoded(ours, small, 8, 1)
        assert np.array_equal(tokens, encoded(reference, small, 8, 1))
        assert np.abs(decoded(ours, tokens).astype(int) - decoded(reference, tokens)).max() <= 1


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path) -> None:
    config = NanoConfig(64, 32, 8, 100, 8, 2, 16, 4, 16, 2, 32, 2, 1, lap=1)
    weights.save(NanoTokenizer(config), tmp_path / "model")
    text = (tmp_path / "model" / "config.json").read_text()
    for field, found in (('"num_tokens": 8', "quantizer.codebooks is int8"), ('"width": 32', "decoder.blocks.0")):
        name, number = field.split(": ")
        (tmp_path / "model" / "config.json").write_text(text.replace(field, f"{name}: {2 * int(number)}"))
        with pytest.raises(WeightsError, match=found):
            light.load(locate(tmp_path / "model")).decode(np.zeros((1, 2), np.int64), "faithful")


def test_engines_by_name(both) -> None:
    assert isinstance(engines.open("nano"), light.LightEngine)
    assert isinstance(engines.open("nano", "cpu"), light.LightEngine)
    assert isinstance(engines.open("nano", engine="torch"), TorchEngine)
    assert isinstance(engines.open("nano", dtype="bfloat16"), TorchEngine)
    with pytest.raises(UsageError, match="engine 'light' runs nano from its files, in float32"):
        engines.open(both[1]._tokenizer, engine="light")


def test_torch_is_not_imported() -> None:
    program = (
        "import sys, numpy as np; sys.modules['torch'] = None; from titokc import engines; e = engines.open('nano');"
        "print(e.decode(e.encode(np.zeros((1, 256, 256, 3), np.uint8), [32], 1), 'faithful')[0].max())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20


def test_what_needs_torch_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from titokc import engines\n"
        "try: engines.open('nano', dtype='bfloat16')\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ModelNotFoundError only nano runs without torch")
    assert "pip install 'titokc[torch]'" in done.stdout
