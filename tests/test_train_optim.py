"""Muon, the grouping of the parameters, and the averaged weights."""

import pytest
import torch
from torch import nn

from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.tokenizer import TiTok
from titokc.train.optim import Average, Muon, build, load_state_tensors, orthogonalized, state_tensors

TINY = TiTokConfig(ViTSize(16, 1, 2), ViTSize(16, 1, 2), 4, 32, 4, is_legacy=False, image_size=32)


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 8, 32), (3, 32, 8)])
def test_orthogonalized_has_singular_values_near_one(shape):
    made = orthogonalized(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    singular = torch.linalg.svdvals(made.float())
    assert made.shape == shape
    assert float(singular.min()) > 0.6
    assert float(singular.max()) < 1.3


def test_muon_step_has_a_root_mean_square_of_a_fifth():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 16))
    weight.grad = torch.randn(64, 16) * 1e-3
    Muon([weight], lr=0.1).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=0.2)
    assert float((weight.detach() * weight.grad).sum()) < 0


def test_muon_treats_a_fused_matrix_as_three():
    torch.manual_seed(0)
    fused, parts = nn.Parameter(torch.randn(48, 16)), []
    fused.grad = torch.randn(48, 16)
    for part, grad in zip(fused.detach().chunk(3), fused.grad.chunk(3), strict=True):
        parts.append(nn.Parameter(part.clone()))
        parts[-1].grad = grad.clone()
    Muon([fused], lr=0.1, weight_decay=0.1).step()
    Muon(parts, lr=0.1, weight_decay=0.1).step()
    assert torch.equal(fused, torch.cat(parts))


def test_muon_leaves_weights_without_gradient():
    weight = nn.Parameter(torch.ones(4, 4))
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(weight, torch.ones(4, 4))


def grouped(muon):
    tokenizer = TiTok(TINY)
    names = {parameter: name for name, parameter in tokenizer.named_parameters()}
    made = build(tokenizer, muon, (0.9, 0.99), 1e-4)
    return {
        (key, group["weight_decay"]): {names[p] for p in group["params"]}
        for key, optimizer in made.items()
        for group in optimizer.param_groups
    }


def test_weight_decay_spares_norms_biases_embeddings_and_tokens():
    groups = grouped(muon=False)
    plain, decayed = groups["adamw", 0.0], groups["adamw", 1e-4]
    assert {"latent_tokens", "encoder.class_embedding", "decoder.mask_token", "quantize.embedding.weight"} <= plain
    assert {"encoder.ln_pre.weight", "encoder.patch_embed.bias"} <= plain
    assert {
        "encoder.patch_embed.weight",
        "encoder.transformer.0.attn.in_proj_weight",
        "decoder.ffn.0.weight",
    } <= decayed
    assert len(plain) + len(decayed) == sum(1 for _ in TiTok(TINY).parameters())


def test_muon_takes_the_matrices():
    groups = grouped(muon=True)
    assert "encoder.transformer.0.mlp.c_fc.weight" in groups["muon", 1e-4]
    assert "encoder.patch_embed.weight" in groups["adamw", 1e-4]
    assert all("embedding" not in name and "token" not in name for name in groups["muon", 1e-4])


def test_frozen_parameters_stay_out():
    tokenizer = TiTok(TINY)
    tokenizer.encoder.requires_grad_(False)
    made = build(tokenizer, False, (0.9, 0.99), 1e-4)
    there = {p for optimizer in made.values() for group in optimizer.param_groups for p in group["params"]}
    assert not there & set(tokenizer.encoder.parameters())


def test_average_warms_up_to_its_decay():
    tokenizer = TiTok(TINY)
    average = Average(tokenizer, 0.5)
    start = tokenizer.latent_tokens.detach().clone()
    with torch.no_grad():
        tokenizer.latent_tokens.add_(1)
    average.update(0)
    assert torch.allclose(average.tokenizer.latent_tokens, start + 0.9)
    average.update(1000)
    assert torch.allclose(average.tokenizer.latent_tokens, start + 0.95)
    assert not average.tokenizer.latent_tokens.requires_grad


@pytest.mark.parametrize("muon", [True, False])
def test_state_round_trip(muon):
    def steps(tokenizer, optimizers, count):
        for _ in range(count):
            tokenizer.reconstruct(torch.full((1, 3, 32, 32), 0.3)).images.square().mean().backward()
            for optimizer in optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = 1e-2
                optimizer.step()
                optimizer.zero_grad()

    torch.manual_seed(0)
    one, two = TiTok(TINY), TiTok(TINY)
    first, second = (build(tokenizer, muon, (0.9, 0.99), 1e-4) for tokenizer in (one, two))
    steps(one, first, 2)
    two.load_state_dict(one.state_dict())
    for key, optimizer in second.items():
        names = [{p: n for n, p in tokenizer.named_parameters()} for tokenizer in (one, two)]
        load_state_tensors(optimizer, names[1], state_tensors(first[key], names[0]))
    steps(one, first, 2)
    steps(two, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
