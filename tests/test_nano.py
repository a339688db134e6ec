"""nano on a tiny configuration: the linear code, prefixes, sizes, and the gradients that train it."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from titokc.errors import UsageError
from titokc.models.nano.config import NanoConfig
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.models.nano.transform import dct_matrix, resizing

TINY = NanoConfig(
    image_size=32,
    thumb_size=16,
    patch_size=4,
    coefficients=96,
    num_tokens=6,
    min_tokens=2,
    codebook_size=32,
    token_size=3,
    hidden=8,
    refresh=2,
    width=16,
    heads=2,
    layers=1,
)


def pictures(count: int, seed: int, side: int = 32) -> torch.Tensor:
    """Smooth random pictures [count, 3, side, side] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def fitted() -> NanoTokenizer:
    torch.manual_seed(0)
    tokenizer = NanoTokenizer(TINY)
    assert list(tokenizer.fit(pictures(64, seed) for seed in range(100)))[-1] == tokenizer.fit_steps
    return tokenizer.eval()


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    matrix = torch.from_numpy(resizing(images.shape[-1], size))
    return matrix @ images @ matrix.T


def test_dct_of_two_points() -> None:
    half = 1 / math.sqrt(2)
    torch.testing.assert_close(torch.from_numpy(dct_matrix(2, 2)), torch.tensor([[half, half], [half, -half]]))


def test_dct_is_orthonormal() -> None:
    matrix = torch.from_numpy(dct_matrix(64, 64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64), atol=1e-5, rtol=0)


def test_resize_keeps_constant_pictures_and_low_frequencies() -> None:
    torch.testing.assert_close(resize(torch.full((1, 3, 32, 32), 0.25), 16), torch.full((1, 3, 16, 16), 0.25))
    small = pictures(2, 1, 16)
    torch.testing.assert_close(resize(resize(small, 32), 16), small, atol=1e-5, rtol=0)


def test_the_embedded_configuration() -> None:
    with torch.device("meta"):
        tokenizer = NanoTokenizer(NanoConfig())
    assert (tokenizer.info.bits, tokenizer.info.side) == (12, 256)
    assert (tokenizer.info.min_tokens, tokenizer.info.max_tokens, tokenizer.info.nested) == (4, 128, True)


def test_untrained_nano_is_the_linear_code(fitted: NanoTokenizer) -> None:
    images = pictures(8, 999)
    indices = fitted.encode(images)
    assert indices.shape == (8, 6)
    assert indices.dtype == torch.int64
    assert 0 <= int(indices.min()) <= int(indices.max()) < 32
    opponent = torch.einsum("dc,bchw->bdhw", fitted.opponent, resize(images - 0.5, 16))
    spectrum = (fitted.dct @ opponent @ fitted.dct.T).flatten(1) / 16
    places = fitted.coded.long()
    quantised = torch.zeros_like(spectrum)
    quantised[:, places] = fitted.quantizer.lookup(indices)
    error = float((spectrum - quantised).square().sum(1).mean())
    assert error < 0.7 * float(spectrum.square().sum(1).mean())
    expected = fitted.dct.T @ quantised.view(-1, 3, 16, 16) @ fitted.dct * 16
    expected = resize(torch.einsum("dc,bdhw->bchw", fitted.opponent, expected), 32) + 0.5
    torch.testing.assert_close(fitted.decode(indices), expected, atol=1e-5, rtol=0)


def test_every_prefix_is_a_code_and_more_tokens_are_better(fitted: NanoTokenizer) -> None:
    images = pictures(64, 7)
    whole = fitted.encode(images)
    errors = []
    for count in range(2, 7):
        prefix = fitted.encode(images, count)
        assert torch.equal(prefix, whole[:, :count])
        errors.append(float((fitted.decode(prefix) - images).detach().square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.85 * errors[0]


def test_a_picture_has_the_same_tokens_alone_and_among_others(fitted: NanoTokenizer) -> None:
    images = pictures(9, 3)
    assert torch.equal(fitted.encode(images)[4], fitted.encode(images[4:5])[0])


@pytest.mark.parametrize("count", [0, 1, 7])
def test_token_counts_outside_the_range_are_refused(fitted: NanoTokenizer, count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} tokens: this model makes 2 to 6"):
        fitted.encode(pictures(1, 0), count)


@pytest.mark.parametrize("side", [16, 32])
def test_training_pass_equals_decoding_what_was_encoded(fitted: NanoTokenizer, side: int) -> None:
    images = pictures(4, 5, side)
    counts = torch.tensor([2, 6, 3, 4])
    made = fitted.reconstruct(images, counts)
    assert made.images.shape == images.shape
    for row, count in enumerate(counts.tolist()):
        assert not made.indices[row, count:].any()
        if side == 32:
            decoded = fitted.decode(made.indices[row : row + 1, :count])[0]
            torch.testing.assert_close(made.images[row], decoded, atol=1e-5, rtol=0)


def test_tokens_do_not_depend_on_autocast(fitted: NanoTokenizer) -> None:
    images = pictures(16, 13)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fitted.encode(images), fitted.reconstruct(images).indices)
    assert torch.equal(fitted.encode(images), fitted.reconstruct(images).indices)


def test_what_patches_add_overlaps_by_the_lap() -> None:
    """Patches of 4 pixels that reach 1 pixel into their neighbours, with corrections of a tenth everywhere: what lies
    within the lap of a border between patches gets it twice, in both directions four times."""
    decoder = NanoTokenizer(replace(TINY, lap=1)).decoder
    torch.nn.init.ones_(decoder.to_thumb.bias)
    torch.nn.init.ones_(decoder.to_detail.bias)
    _, thumb, detail = decoder(torch.zeros(1, 3, 16, 16), torch.ones(1), detail=True)
    line = torch.tensor([1.0, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 1])
    torch.testing.assert_close(thumb, (torch.outer(line, line) / 10).expand(1, 3, 16, 16))
    line = line.repeat_interleave(2)
    torch.testing.assert_close(detail, (torch.outer(line, line) / 10).expand(1, 3, 32, 32))


def test_patches_of_no_lap_lie_side_by_side() -> None:
    decoder = NanoTokenizer(replace(TINY, lap=0)).decoder
    torch.nn.init.normal_(decoder.to_thumb.bias)
    _, thumb, _ = decoder(torch.zeros(1, 3, 16, 16), torch.ones(1), detail=False)
    patch = decoder.to_thumb.bias.detach().view(1, 3, 4, 4) / 10
    torch.testing.assert_close(thumb, patch.repeat(1, 1, 4, 4))


def test_gradients_reach_the_decoder_and_not_the_codebooks() -> None:
    torch.manual_seed(0)
    tokenizer = NanoTokenizer(TINY)
    assert list(tokenizer.fit(pictures(64, seed) for seed in range(100)))[-1] == tokenizer.fit_steps
    images = pictures(16, 11)
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(100):
        loss = (tokenizer.reconstruct(images, torch.randint(2, 7, (16,))).images - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    named = dict(tokenizer.named_parameters())
    for name in ("decoder.embed.weight", "decoder.to_detail.weight", "decoder.count_embed.weight"):
        assert float(named[name].grad.abs().max()) > 0, name
    assert all(name.startswith("decoder.") for name in named)


def test_effort_finds_indices_that_decode_nearer(fitted: NanoTokenizer) -> None:
    tokenizer = copy.deepcopy(fitted)
    torch.manual_seed(1)
    torch.nn.init.normal_(tokenizer.decoder.to_thumb.weight, std=1.0)
    images = pictures(32, 17)

    def errors(effort: int) -> torch.Tensor:
        with torch.inference_mode():
            return (tokenizer.decode(tokenizer.encode(images, 4, effort)) - images).square().mean((1, 2, 3))

    plain, some, more = errors(0), errors(2), errors(8)
    assert bool((some <= plain).all())
    assert bool((more <= some).all())
    assert float(more.mean()) < 0.99 * float(plain.mean())
    assert torch.equal(errors(8), more)


def test_better_latents_of_the_linear_code_lead_to_the_pictures_own(fitted: NanoTokenizer) -> None:
    """Its decoder is the transform back, so the gradient knows the picture's coefficients exactly."""
    images = pictures(4, 19)
    own = fitted._analyse(images - 0.5)
    made = fitted.reconstruct(images, torch.full((4,), 4), latents=torch.zeros_like(own))
    assert made.latents is not None
    assert made.quantised is not None
    (made.images - images).square().mean((1, 2, 3)).sum().backward()
    better = fitted.better_latents(made.latents, made.quantised.detach(), made.quantised.grad)
    torch.testing.assert_close(better, 0.4 * own, atol=1e-5, rtol=1e-4)
    assert torch.equal(fitted.reconstruct(images, torch.full((4,), 4), latents=own).indices, fitted.encode(images, 4))


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_fit_that_goes_on_elsewhere_ends_as_one_that_never_stopped(fitted: NanoTokenizer, stop: int) -> None:
    first, batches = NanoTokenizer(TINY), (pictures(64, seed) for seed in range(100))
    steps = first.fit(batches)
    assert next(done for done in steps if done == stop) == stop
    second = NanoTokenizer(TINY)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert list(second.fit((pictures(64, seed) for seed in range(100)), stop))[-1] == TINY.num_tokens + 1
    assert all(torch.equal(a, b) for a, b in zip(second.buffers(), fitted.buffers(), strict=True))


def test_a_fit_draws_no_random_numbers_of_others() -> None:
    torch.manual_seed(5)
    alone = torch.rand(2)
    tokenizer = NanoTokenizer(TINY)
    torch.manual_seed(5)
    list(tokenizer.fit(pictures(64, seed) for seed in range(100)))
    assert torch.equal(torch.rand(2), alone)
