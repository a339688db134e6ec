"""Quantisers: literal indices, vectors and losses; gradients; codebooks that stay alive, in several processes too."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import titokc
from titokc.models.quantizers import FiniteScalarQuantizer, VectorQuantizer
from titokc.train.revival import CodebookRevival


def codebook(entries: list[list[float]], l2_norm: bool) -> VectorQuantizer:
    quantizer = VectorQuantizer(len(entries), len(entries[0]), l2_norm)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor(entries))
    return quantizer


def test_nearest_entry_and_its_vector() -> None:
    quantizer = codebook([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], l2_norm=False)
    latents = torch.tensor([[[2.0, 0.0], [0.4, 0.3], [1.0, 9.0]]])
    assert quantizer.assign(latents).tolist() == [[1, 0, 2]]
    assert quantizer.lookup(torch.tensor([[2, 1]])).tolist() == [[[0.0, 4.0], [3.0, 0.0]]]
    assert quantizer.distances(latents[0]).tolist()[0] == [4.0, 1.0, 20.0]


def test_with_l2_norm_only_directions_count_and_vectors_have_length_one() -> None:
    quantizer = codebook([[0.1, 0.0], [0.0, 50.0]], l2_norm=True)
    assert quantizer.assign(torch.tensor([[[9.0, 8.0], [0.01, 0.02]]])).tolist() == [[0, 1]]
    assert quantizer.lookup(torch.tensor([1, 0])).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_loss_is_the_codebook_term_plus_a_quarter_of_the_commitment_term() -> None:
    quantizer = codebook([[0.0, 0.0], [3.0, 0.0]], l2_norm=False)
    latents = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    made = quantizer(latents)
    assert made.vectors.tolist() == [[[3.0, 0.0], [0.0, 0.0]]]
    assert made.loss.item() == pytest.approx(1.25 * (1 + 0 + 0 + 1) / 4)
    made.loss.backward()
    # d/dz of commitment x mean((e - z)^2) and d/de of mean((e - z)^2), over 4 numbers.
    assert latents.grad.tolist() == [[[pytest.approx(-0.125), 0.0], [0.0, pytest.approx(0.125)]]]
    assert quantizer.embedding.weight.grad.tolist() == [[0.0, pytest.approx(-0.5)], [pytest.approx(0.5), 0.0]]


def test_gradients_go_straight_through_to_the_latents() -> None:
    quantizer = VectorQuantizer(16, 4, l2_norm=False)
    latents = torch.randn(2, 3, 4, requires_grad=True)
    made = quantizer(latents)
    made.vectors.backward(torch.arange(24.0).reshape(2, 3, 4))
    assert torch.equal(latents.grad, torch.arange(24.0).reshape(2, 3, 4))


def test_dropped_tokens_do_not_count_in_the_loss() -> None:
    quantizer = codebook([[0.0, 0.0]], l2_norm=False)
    latents = torch.tensor([[[1.0, 1.0], [9.0, 9.0]]])
    assert quantizer(latents, torch.tensor([[True, False]])).loss.item() == pytest.approx(1.25)


def test_the_loss_of_a_batch_is_the_mean_over_its_parts() -> None:
    quantizer = VectorQuantizer(16, 4, l2_norm=False)
    latents, keep = torch.randn(8, 4, 4), torch.arange(4) < torch.tensor([1, 1, 2, 4, 4, 4, 3, 1])[:, None]
    halves = [quantizer(latents[rows], keep[rows]).loss.item() for rows in (slice(4), slice(4, 8))]
    assert quantizer(latents, keep).loss.item() == pytest.approx(sum(halves) / 2)


def test_a_revival_forgets_what_it_saw_before_a_checkpoint_is_restored() -> None:
    quantizer = VectorQuantizer(16, 4, l2_norm=False)
    revival = CodebookRevival(quantizer, patience=0.1)
    state = revival.state_dict()
    quantizer(torch.full((2, 3, 4), torch.nan))
    revival.load_state_dict(state)
    quantizer(torch.randn(2, 3, 4))
    assert revival.step() > 0
    assert bool(torch.isfinite(quantizer.embedding.weight).all())


def test_quantising_is_float32_under_autocast() -> None:
    quantizer = codebook([[1.0, 0.0], [1.0, 0.001]], l2_norm=False)
    latents = torch.tensor([[[1.0, 0.0009]]])
    with torch.autocast("cpu", torch.bfloat16):
        made = quantizer(latents)
    assert (made.vectors.dtype, made.indices.tolist()) == (torch.float32, [[1]])


def test_scalar_levels_are_spread_over_minus_one_to_one() -> None:
    quantizer = FiniteScalarQuantizer((5, 4))
    vectors = quantizer.lookup(torch.arange(20))
    assert vectors[:6].tolist() == [[-1.0, -1.0], [-0.5, -1.0], [0.0, -1.0], [0.5, -1.0], [1.0, -1.0], [-1.0, -0.5]]
    assert vectors[-1].tolist() == [1.0, 0.5]
    assert len({tuple(vector) for vector in vectors.tolist()}) == 20


def test_scalar_rounding_of_literal_latents() -> None:
    quantizer = FiniteScalarQuantizer((5, 4))
    latents = torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0], [0.3, 0.0]])
    # Even numbers of levels have none in the middle: 0 is the third of four.
    assert quantizer.assign(latents).tolist() == [12, 19, 0, 13]


@pytest.mark.parametrize("levels", [(8, 8, 8, 8), (8, 5, 5, 5), (2, 3), (7, 5, 5, 5, 5)])
def test_every_scalar_index_can_be_reached_and_read_back(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    sides = [torch.linspace(-4, 4, 200)] * len(levels)
    for dimension, side in enumerate(sides):
        latents = torch.zeros(200, len(levels))
        latents[:, dimension] = side
        vectors = quantizer.lookup(quantizer.assign(latents))
        assert len(vectors[:, dimension].unique()) == levels[dimension]
    count = torch.tensor(levels).prod().item()
    digits = [torch.arange(level) for level in levels]
    first = list(itertools.islice(itertools.product(*(side.tolist() for side in digits[::-1])), 50))
    halves = torch.tensor(levels) // 2
    expected = (torch.tensor(first).flip(1) - halves) / halves
    assert torch.allclose(quantizer.lookup(torch.arange(min(50, count))), expected)


def test_scalar_gradients_reach_the_latents_and_there_is_no_loss() -> None:
    latents = torch.randn(2, 3, 2, requires_grad=True)
    made = FiniteScalarQuantizer((8, 5))(latents)
    assert made.loss.item() == 0
    assert torch.allclose(made.vectors, FiniteScalarQuantizer((8, 5)).lookup(made.indices), atol=1e-6)
    made.vectors.sum().backward()
    assert (latents.grad > 0).all()


def cluster_latents(generator: torch.Generator) -> torch.Tensor:
    """Latents around 16 directions in the plane."""
    angles = torch.randint(16, (8, 16), generator=generator) * (2 * torch.pi / 16)
    points = torch.stack([angles.cos(), angles.sin()], -1)
    return points + 0.01 * torch.randn(8, 16, 2, generator=generator)


def test_a_collapsed_codebook_comes_back_to_life() -> None:
    quantizer = codebook([[1.0, 0.001 * index] for index in range(16)], l2_norm=True).train()
    revival = CodebookRevival(quantizer, patience=10)
    generator = torch.Generator().manual_seed(0)
    assert len(quantizer.assign(cluster_latents(generator)).unique()) < 8
    revived = 0
    for _ in range(60):
        quantizer(cluster_latents(generator))
        revived += revival.step()
    assert revived >= 8
    assert len(quantizer.assign(cluster_latents(generator)).unique()) >= 12
    assert torch.allclose(quantizer.embedding.weight.norm(dim=-1), torch.ones(16), atol=0.01)


def test_entries_in_use_are_left_alone() -> None:
    quantizer = codebook([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], l2_norm=False).train()
    revival = CodebookRevival(quantizer, patience=2)
    before = quantizer.embedding.weight.detach().clone()
    latents = torch.tensor([[[0.9, 0.0], [0.0, 0.8]]])
    for _ in range(3):
        quantizer(latents)
        assert revival.step() == 0
    quantizer(latents)
    assert revival.step() == 1  # 8 tokens went by without the third, more than 2 x 3
    after = quantizer.embedding.weight.detach()
    assert torch.equal(after[:2], before[:2])
    assert after[2].tolist() in [pytest.approx([0.9, 0.0]), pytest.approx([0.0, 0.8])]


def test_validation_and_dropped_tokens_are_not_uses() -> None:
    quantizer = codebook([[1.0, 0.0], [0.0, 1.0]], l2_norm=False)
    revival = CodebookRevival(quantizer)
    quantizer.eval()(torch.ones(1, 4, 2))
    with torch.no_grad():
        quantizer.train()(torch.ones(1, 4, 2))
    assert revival.step() == 0
    assert revival.tokens == 0
    quantizer(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[True, False]]))
    revival.step()
    assert (revival.tokens, revival.idle.tolist()) == (1, [0, 1])


def test_resuming_draws_what_the_uninterrupted_run_draws() -> None:
    def fresh() -> tuple[VectorQuantizer, CodebookRevival]:
        quantizer = codebook([[1.0, 0.001 * index] for index in range(16)], l2_norm=True).train()
        return quantizer, CodebookRevival(quantizer, patience=3)

    def steps(quantizer: VectorQuantizer, revival: CodebookRevival, seeds: range) -> None:
        for seed in seeds:
            quantizer(cluster_latents(torch.Generator().manual_seed(seed)))
            revival.step()

    whole, revival = fresh()
    steps(whole, revival, range(9))
    first, interrupted = fresh()
    steps(first, interrupted, range(4))
    second, resumed = fresh()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(interrupted.state_dict())
    steps(second, resumed, range(4, 9))
    assert torch.equal(second.embedding.weight, whole.embedding.weight)


def test_revival_leaves_no_trace_in_the_state_dict() -> None:
    quantizer = VectorQuantizer(8, 2, l2_norm=True)
    CodebookRevival(quantizer)
    quantizer.train()(torch.randn(1, 4, 2))
    assert list(quantizer.state_dict()) == ["embedding.weight"]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    quantizer = codebook([[1.0, 0.001 * index] for index in range(16)], l2_norm=True).train()
    revival = CodebookRevival(quantizer, patience=3)
    generator = torch.Generator().manual_seed(rank)
    revived = 0
    for _ in range(10):
        quantizer(cluster_latents(generator))
        revived += revival.step()
    state = {"weight": quantizer.embedding.weight.detach(), "idle": revival.idle, "revived": torch.tensor(revived)}
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_on_the_codebook(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(titokc.__file__).parents[1])}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["revived"] == second["revived"] > 0
    assert torch.equal(first["weight"], second["weight"])
    assert torch.equal(first["idle"], second["idle"])
    assert len(F.normalize(first["weight"]).round(decimals=1).unique(dim=0)) > 8


if __name__ == "__main__":
    _process(int(sys.argv[1]), sys.argv[2])
