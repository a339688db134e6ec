"""Engines: arrays in, arrays out; threads, batches and the host's settings of torch. On a tiny tokenizer."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from titokc import engines
from titokc.engines.torch import find_dtype
from titokc.errors import UsageError
from titokc.models.precision import full_precision


def tiles(count, side=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def test_arrays_in_arrays_out(tiny):
    engine = engines.open(tiny, threads=2)
    tokens = np.stack(engine.encode(tiles(3), [40] * 3, 0))
    assert (tokens.shape, tokens.dtype) == ((3, 40), np.int64)
    pixels = np.stack(engine.decode(tokens, "faithful"))
    assert (pixels.shape, pixels.dtype) == ((3, 64, 64, 3), np.uint8)
    info = engine.info
    assert (info.name, info.id, info.bits, info.min_tokens, info.max_tokens) == ("nano-1", 1, 12, 32, 128)
    assert (info.nested, info.side, info.looks, info.code) == (True, 64, ("faithful",), tiny.info.code)


def test_engines_that_are_not_there(tiny):
    with pytest.raises(UsageError, match="engine 'onnx': expected one of auto, light, torch"):
        engines.open(tiny, engine="onnx")


class TestThreads:
    def test_a_loaded_tokenizer_runs_on_as_many_as_asked_for(self, make_tiny):
        """Four tiles meet at a barrier: it opens only if four threads work at the same time."""
        tiny, barrier, inside = make_tiny(), threading.Barrier(4, timeout=20), []
        real = tiny.encode

        def encode(images, tokens=None, effort=0, distance=None):
            barrier.wait()
            inside.append(torch.get_num_threads())
            return real(images, tokens, effort)

        tiny.encode = encode
        engine = engines.open(tiny, threads=4, batch_size=1)
        assert np.stack(engine.encode(tiles(4), [32] * 4, 0)).shape == (4, 32)
        assert inside == [1, 1, 1, 1]

    def test_few_tiles_are_decoded_by_all_threads_together(self, make_tiny):
        tiny, inside = make_tiny(), []
        real = tiny.decode
        tiny.decode = lambda tokens, look: inside.append((len(tokens), torch.get_num_threads())) or real(tokens, look)
        engine = engines.open(tiny, threads=3)
        tokens = np.zeros((4, 32), np.int64)
        engine.decode(tokens[:2], "faithful")
        engine.decode(tokens, "faithful")
        assert inside == [(1, 3)] * 2 + [(1, 1)] * 4

    def test_few_tiles_are_encoded_by_all_threads_where_tokens_allow_it(self, make_tiny):
        tiny, inside = make_tiny(), []
        real = tiny.encode
        tiny.encode = lambda *args: inside.append(torch.get_num_threads()) or real(*args)
        engines.open(tiny, threads=3).encode(tiles(2), [32] * 2, 0)
        tiny.shares_threads = True
        engine = engines.open(tiny, threads=3)
        engine.encode(tiles(2), [32] * 2, 0)
        engine.encode(tiles(3), [32] * 3, 0)
        assert inside == [1, 1, 3, 3, 1, 1, 1]

    def test_the_hosts_settings_stay(self, tiny):
        before = torch.get_num_threads()
        other = []
        try:
            torch.set_num_threads(5)
            engine = engines.open(tiny, threads=2)
            engine.decode(engine.encode(tiles(2), [32] * 2, 0)[:1], "faithful")
            assert torch.get_num_threads() == 5
            thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert other == [5]
        finally:
            torch.set_num_threads(before)

    def test_callers_at_the_same_time_get_their_own(self, tiny):
        engine = engines.open(tiny, threads=3)
        jobs = [
            (tiles(1 + seed % 4, seed=seed), [32 + (seed + n) % 3 * 48 for n in range(1 + seed % 4)])
            for seed in range(24)
        ]
        expected = [engine.encode(pixels, counts, 0) for pixels, counts in jobs]
        assert [len(of_tile) for of_tile in expected[7]] == [80, 128, 32, 80]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda job: engine.encode(*job, 0), jobs))
            decoded = list(pool.map(lambda tokens: engine.decode(tokens, "faithful"), expected))
        for a, b in zip(found, expected, strict=True):
            assert all(np.array_equal(*tokens) for tokens in zip(a, b, strict=True))
        assert all(np.array_equal(a, engine.decode(b, "faithful")) for a, b in zip(decoded, expected, strict=True))

    def test_an_error_is_its_callers_and_the_engine_goes_on(self, make_tiny):
        tiny = make_tiny()
        real = tiny.encode

        def encode(images, tokens=None, effort=0, distance=None):
            if effort == 7:
                raise RuntimeError("seven")
            return real(images, tokens, effort)

        tiny.encode = encode
        engine = engines.open(tiny, threads=2)
        with pytest.raises(RuntimeError, match="seven"):
            engine.encode(tiles(5), [32] * 5, 7)
        assert np.stack(engine.encode(tiles(5), [32] * 5, 0)).shape == (5, 32)


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_decoder_is_in_bfloat16_where_the_processor_has_it(monkeypatch, has, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    assert find_dtype(None, torch.device("cpu")) == expected
    assert find_dtype("float32", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    "setting", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_what_the_host_has_set_for_its_thread_does_not_matter(make_tiny, setting):
    tiny = make_tiny()
    seen = []
    real = tiny.encode
    tiny.encode = lambda *args: seen.append(torch.is_autocast_enabled("cpu")) or real(*args)
    engine = engines.open(tiny, threads=1)
    expected = engine.encode(tiles(1), [32] * 1, 0)
    with setting():
        assert np.array_equal(engine.encode(tiles(1), [32] * 1, 0), expected)
    assert seen == [False, False]


def test_float32_products_stay_whole_while_another_thread_leaves():
    """Two overlap, the first to come is the first to go: the host's setting comes back with the last one only."""
    before = torch.get_float32_matmul_precision()
    cpu = torch.device("cpu")
    try:
        torch.set_float32_matmul_precision("medium")
        first, second = full_precision(cpu), full_precision(cpu)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
