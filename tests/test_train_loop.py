"""The training loop on tiny tokenizers: it learns, resumes exactly, rolls back, accumulates without a difference."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from titokc.errors import InputError, UsageError, WeightsError
from titokc.models.nano.config import NanoConfig
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.tokenizer import TiTok
from titokc.train import checkpoint, objectives
from titokc.train.data import ImageSet, find
from titokc.train.distributed import Group
from titokc.train.log import RunLog
from titokc.train.loop import Trainer, TrainingDivergedError
from titokc.train.objectives import Objective, Setup
from titokc.train.objectives.pixels import Pixels
from titokc.train.objectives.proxy import Proxy
from titokc.train.recipes.schema import Phase, Recipe, View
from titokc.train.state import State, phase_at, phase_progress, rate_factor

TITOK = TiTokConfig(ViTSize(16, 1, 2), ViTSize(16, 1, 2), 4, 32, 4, is_legacy=False, image_size=32, min_tokens=2)
NANO = NanoConfig(
    image_size=32, thumb_size=16, coefficients=48, hidden=8, num_tokens=8, min_tokens=2, codebook_size=16, token_size=4
)
NANO = replace(NANO, width=16, heads=2, layers=1)
VIEW = View(32, 4)
RECIPE = Recipe(
    name="tiny",
    model=TITOK,
    phases=(
        Phase("one", 0.5, (VIEW,), warmup=2),
        Phase("two", 0.5, (replace(VIEW, share=0.5), replace(VIEW, batch_size=8, share=0.5)), warmup=2),
    ),
    steps=6,
    checkpoint_steps=2,
    val_steps=3,
    val_images=6,
    ema_decay=0.5,
    revival_patience=1.0,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory, write_photos):
    folder = tmp_path_factory.mktemp("images")
    write_photos(folder, 24)
    return ImageSet(find(folder).training, 36, folder / "cache")


def trainer_of(recipe, images, run, **options):
    torch.manual_seed(recipe.seed)
    tokenizer = (TiTok if isinstance(recipe.model, TiTokConfig) else NanoTokenizer)(recipe.model)
    setup = Setup(torch.device("cpu"), Group())
    begun = objectives.begin(recipe.phases, setup)
    trainer = Trainer(recipe, tokenizer, begun, images, run, **options)
    if checkpoint.saved(run):
        trainer.resume()
    return trainer


def train(recipe, images, run, **options):
    trainer = trainer_of(recipe, images, run, **options)
    trainer.run()
    return trainer


def contents(run):
    """The tensors, byte by byte, and the numbers of a run's last checkpoint, but for the clock's."""
    folder = checkpoint.saved(run)[-1]
    state = json.loads((folder / "state.json").read_text())
    tensors = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    return tensors, {key: value for key, value in state.items() if not ("elapsed" in key or key == "fitting")}


def spoil(tokenizer, calls):
    """Makes the reconstructions of these training passes (counted from 0) infinite."""
    reconstruct, count = tokenizer.reconstruct, 0

    def spoilt(images, keep=None, latents=None):
        nonlocal count
        made = reconstruct(images, keep, latents)
        if tokenizer.training:
            factor = math.inf if count in calls else 1.0
            made = made._replace(images=made.images * factor)
            count += 1
        return made

    tokenizer.reconstruct = spoilt


@pytest.mark.parametrize("model", [TITOK, replace(TITOK, codebook_size=64, token_size=3, fsq_levels=(4, 4, 4)), NANO])
def test_it_learns(images, tmp_path, model):
    recipe = replace(RECIPE, model=model, steps=40, val_steps=20, checkpoint_steps=100, checkpoint_minutes=100.0)
    trainer = train(recipe, images, tmp_path, validation=images, log=RunLog(tmp_path, [].append, quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, last = (row for row in rows if row["kind"] == "val")
    assert last["loss"] < first["loss"]
    counts = {"titok": (2, 3, 4), "nano": (2, 4, 6, 8)}["nano" if model is NANO else "titok"]
    assert {f"{name}/{k}" for name in ("psnr", "ssim") for k in counts} <= set(last)
    assert 0 < last["usage"] <= 1 <= last["perplexity"] <= trainer.tokenizer.info.codebook_size
    (row,) = (row for row in rows if row["kind"] == "train" and row["step"] == 40)
    assert (row["phase"], row["images"], row["progress"]) == ("two", trainer.state.images, 1.0)
    assert trainer.state.images == 20 * 4 + 10 * 4 + 10 * 8


@pytest.mark.parametrize("model", [TITOK, NANO])
def test_resumed_runs_end_bit_equal(images, tmp_path, model):
    recipe = replace(RECIPE, model=model)
    train(recipe, images, tmp_path / "whole", validation=images)
    for steps in (1, 3, 4, 6):
        trainer = trainer_of(recipe, images, tmp_path / "parts", validation=images)
        original = trainer._note

        def stop(*args, trainer=trainer, steps=steps, original=original):
            original(*args)
            trainer._request_stop() if trainer.state.step == steps < 6 else None

        trainer._note = stop
        if steps < 6:
            with pytest.raises(KeyboardInterrupt):
                trainer.run()
        else:
            trainer.run()
    tensors, numbers = contents(tmp_path / "parts")
    expected_tensors, expected_numbers = contents(tmp_path / "whole")
    assert numbers == expected_numbers
    assert tensors == expected_tensors


@pytest.mark.parametrize("losses", [Pixels(), Pixels(l2=0.0, log_l2=0.3)])
def test_passes_from_searched_latents(images, tmp_path, losses):
    """Their tokens decode nearer, whatever the weight of the error in the loss; PSNR is that of the nearest tokens."""
    phase = Phase("one", 1.0, (replace(VIEW, batch_size=16),), losses, lr=1e-2, warmup=2, search=2)
    recipe = replace(RECIPE, model=NANO, phases=(phase,), steps=30, micro_batch=7, checkpoint_minutes=100.0)
    train(recipe, images, tmp_path, log=RunLog(tmp_path, [].append, quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    gains = [row["search_gain"] for row in rows if row["kind"] == "train"]
    assert len(gains) == 3
    assert 0 < gains[-1] < 1


def test_a_tokenizer_that_cannot_search(images, tmp_path):
    recipe = replace(RECIPE, phases=(Phase("one", 1.0, (VIEW,), search=1),))
    with pytest.raises(UsageError, match="phase one: this tokenizer cannot search"):
        trainer_of(recipe, images, tmp_path)


def test_micro_batches_add_up_to_the_batch(images, tmp_path):
    """Found: 2e-7 apart."""
    recipe = replace(RECIPE, model=replace(TITOK, min_tokens=0), muon=False, steps=2)
    whole = train(recipe, images, tmp_path / "whole")
    parts = train(replace(recipe, micro_batch=3), images, tmp_path / "parts", workers=3)
    for one, other in zip(whole.tokenizer.parameters(), parts.tokenizer.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_the_last_two_checkpoints_and_the_best_are_kept(images, tmp_path):
    trainer = trainer_of(replace(RECIPE, steps=8, val_steps=100), images, tmp_path, validation=images)
    trainer.state.best_step, trainer.state.best_phase = 4, 1
    trainer.run()
    kept = [checkpoint.step_of(folder) for folder in checkpoint.saved(tmp_path)]
    assert kept[-2:] == [6, 8]
    assert set(kept) <= {4, 6, 8}


@pytest.mark.parametrize("autocast", [torch.float32, torch.float16])
def test_one_infinite_batch_is_gone_past(images, tmp_path, autocast):
    said = []
    log = RunLog(tmp_path, said.append, quiet=True)
    trainer = trainer_of(RECIPE, images, tmp_path, log=log, autocast=autocast)
    spoil(trainer.tokenizer, {3})
    state = trainer.run()
    (line,) = (line for line in said if "back to" in line)
    assert line == "step 3: loss inf, gradient norm nan: back to the checkpoint of step 3, rates x 1"
    assert (state.step, state.lr_scale) == (6, 1.0)
    assert all(bool(torch.isfinite(p).all()) for p in trainer.average.tokenizer.parameters())


def test_repeated_divergence_slows_down_and_goes_further_back(images, tmp_path):
    said = []
    trainer = trainer_of(RECIPE, images, tmp_path, log=RunLog(tmp_path, said.append, quiet=True))
    spoil(trainer.tokenizer, {5, 6})
    state = trainer.run()
    steps = [line.split("step ")[-1] for line in said if "back to" in line]
    assert steps == ["5, rates x 1", "3, rates x 0.5"]
    assert (state.step, state.lr_scale) == (6, 0.5)


def test_divergence_that_does_not_end_is_an_error(images, tmp_path):
    trainer = trainer_of(RECIPE, images, tmp_path)
    spoil(trainer.tokenizer, range(100))
    with pytest.raises(TrainingDivergedError, match=r"step 0: loss inf.* diverged after 5 attempts"):
        trainer.run()


def test_a_later_phase_that_always_diverges_ends(images, tmp_path):
    """Entering it saves a checkpoint, which must not make its failures forgotten."""
    trainer = trainer_of(replace(RECIPE, steps=40), images, tmp_path)
    reconstruct = trainer.tokenizer.reconstruct

    def spoilt(*args):
        made = reconstruct(*args)
        return made._replace(images=made.images * (math.inf if trainer.state.phase == 1 else 1.0))

    trainer.tokenizer.reconstruct = spoilt
    with pytest.raises(TrainingDivergedError, match="diverged after 5 attempts"):
        trainer.run()


def test_state_and_log_are_json_without_infinities(images, tmp_path):
    log = RunLog(tmp_path, [].append, quiet=True)
    trainer = train(replace(RECIPE, steps=1), images, tmp_path, log=log)
    log.record("train", 1, {"loss": math.inf, "gradient_norm": math.nan})

    def refuse(constant):
        raise AssertionError(constant)

    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=refuse)
    assert (row["loss"], row["gradient_norm"]) == (None, None)
    json.loads((checkpoint.saved(tmp_path)[-1] / "state.json").read_text(), parse_constant=refuse)
    assert trainer.state.lowest == [None]


@pytest.mark.parametrize("stopped_at", [0, 1, 5])
def test_a_fit_that_was_stopped_goes_on(images, tmp_path, stopped_at):
    recipe = replace(RECIPE, model=NANO, steps=1)
    whole = train(recipe, images, tmp_path / "whole")
    said = []
    log = RunLog(tmp_path, said.append, quiet=True)
    trainer = trainer_of(recipe, images, tmp_path / "parts", log=log)
    log.fitting = lambda done, *_: trainer._request_stop() if done == stopped_at else None
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert [folder.name for folder in checkpoint.saved(tmp_path / "parts")] == [f"fit-{stopped_at:08d}"]
    assert said[-1] == f"stopped while the tokenizer was fitted ({stopped_at} of 9): continue with --resume"
    parts = train(recipe, images, tmp_path / "parts", log=RunLog(tmp_path, said.append, quiet=True))
    assert f"fitting the tokenizer to training images: 9 steps, {stopped_at} done" in said
    for name, tensor in whole.tokenizer.state_dict().items():
        assert torch.equal(tensor, parts.tokenizer.state_dict()[name]), name


def test_a_fit_counts_in_the_minutes(images, tmp_path):
    said = []
    recipe = replace(RECIPE, model=NANO, steps=0, minutes=1e-6)
    trainer = train(recipe, images, tmp_path, log=RunLog(tmp_path, said.append, quiet=True))
    assert trainer.state.step == 0
    assert said[-1].startswith("stopped while the tokenizer was fitted")
    state = State(elapsed=60.0, fitting=30.0)
    assert state.progress(replace(recipe, minutes=1.5)) == 0.5


def test_a_wish_to_stop_counts_once_all_processes_know_it(images, tmp_path):
    """A signal that comes while the first process saves: it must not leave the loop alone."""
    trainer = trainer_of(RECIPE, images, tmp_path)
    trainer.group = Group(0, 2)
    trainer._request_stop()
    assert not trainer._stop
    trainer.group = Group()
    trainer._agree({})
    assert trainer._stop


def test_a_growing_loss_is_a_divergence():
    state = State(view_steps=[0], smooth=[0.0], lowest=[None])
    found = []
    for step in range(200):
        state.view_steps[0] += 1
        found.append(state.diverges(0, 1.0 if step < 100 else 10.0, limit=3.0))
    assert found.index(True) == 104
    assert State(view_steps=[1], smooth=[0.0], lowest=[None]).diverges(0, math.nan, 3.0)


def test_a_larger_budget_continues_a_finished_run(images, tmp_path):
    train(RECIPE, images, tmp_path)
    trainer = train(replace(RECIPE, steps=12), images, tmp_path)
    assert (trainer.state.step, trainer.state.phase) == (12, 1)


def test_minutes_are_a_budget_too(images, tmp_path):
    trainer = train(replace(RECIPE, steps=0, minutes=0.01), images, tmp_path)
    assert trainer.state.elapsed >= 0.6
    assert trainer.state.progress(trainer.recipe) >= 1


def test_schedule():
    recipe = replace(RECIPE, steps=100, final_lr=0.1)
    factors = {step: rate_factor(recipe, State(step=step, phase_step=step)) for step in (0, 1, 50, 100)}
    assert factors == pytest.approx({0: 0.5, 1: 0.1 + 0.9 * (1 + math.cos(math.pi / 100)) / 2, 50: 0.55, 100: 0.1})
    assert [phase_at(recipe, p) for p in (0.0, 0.49, 0.5, 1.0)] == [0, 0, 1, 1]
    off = replace(recipe.phases[0], share=0.0)
    without = replace(recipe, phases=(off, *recipe.phases, off))
    assert [phase_at(without, p) for p in (0.0, 0.49, 0.5, 1.0)] == [1, 1, 2, 2]
    assert phase_progress(recipe, State(step=75, phase=1, phase_began=0.5)) == pytest.approx(0.5)


def test_views_take_turns_by_their_shares():
    phase = Phase("mixed", 1.0, (replace(VIEW, share=0.75), replace(VIEW, share=0.25)))
    state = State(positions=[0, 0], view_steps=[0, 0])
    order = []
    for _ in range(8):
        order.append(state.next_view(phase))
        state.view_steps[order[-1]] += 1
    assert order == [0, 0, 1, 0, 0, 0, 1, 0]


def test_frozen_parts_do_not_change(images, tmp_path):
    recipe = replace(RECIPE, phases=(replace(RECIPE.phases[0], trainable=("decoder.",)),), revival_patience=0.1)
    trainer = trainer_of(recipe, images, tmp_path)
    before = {name: p.clone() for name, p in trainer.tokenizer.named_parameters()}
    trainer.run()
    changed = {name for name, p in trainer.tokenizer.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_dead_entries_come_back_to_life(images, tmp_path):
    """A codebook whose entries all but two are out of reach."""
    recipe = replace(RECIPE, model=replace(TITOK, use_l2_norm=False), steps=40, val_steps=1000)
    used = {}
    for patience in (0.0, 1.0):
        trainer = trainer_of(replace(recipe, revival_patience=patience), images, tmp_path / f"{patience}")
        with torch.no_grad():
            trainer.tokenizer.quantize.embedding.weight[2:] += 1000
        trainer.run()
        used[patience] = int((trainer.tokenizer.quantize.embedding.weight.abs().amax(1) < 500).sum())
    assert used == {0.0: 2, 1.0: 32}


def test_adversarial_training(images, tmp_path):
    losses = Pixels(gan=0.1, gan_start=0.5, discriminator_channels=32)
    recipe = replace(RECIPE, phases=(replace(RECIPE.phases[0], objective=losses),))
    log = RunLog(tmp_path, [].append, quiet=True)
    trainer = train(recipe, images, tmp_path, log=log)
    assert trainer._objective.adversary.network.lecam_means[0] != 0
    parts, _ = checkpoint.load(checkpoint.saved(tmp_path)[-1])
    assert float(parts["discriminator_adamw"]["step/0.weight"]) == 3
    again = trainer_of(recipe, images, tmp_path)
    assert again._objective.adversary.network.lecam_means.equal(trainer._objective.adversary.network.lecam_means)
    for one, other in zip(
        again._objective.adversary.network.parameters(), trainer._objective.adversary.network.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_float16_scales_its_gradients(images, tmp_path):
    trainer = train(RECIPE, images, tmp_path, autocast=torch.float16)
    assert json.loads((checkpoint.saved(tmp_path)[-1] / "state.json").read_text())["scaler"]["scale"] > 1
    assert trainer.state.step == 6


def test_a_checkpoint_of_another_model_is_refused(images, tmp_path):
    train(RECIPE, images, tmp_path)
    with pytest.raises(WeightsError, match=r"do not fit the configuration.*misshapen"):
        trainer_of(replace(RECIPE, model=replace(TITOK, codebook_size=64)), images, tmp_path)
    with pytest.raises(WeightsError, match="a checkpoint of the recipe tiny, expected other"):
        trainer_of(replace(RECIPE, name="other"), images, tmp_path)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("average.safetensors", lambda path: path.write_bytes(b"damaged")),
        ("tokenizer.safetensors", Path.unlink),
        ("adamw.safetensors", Path.unlink),
        ("adamw.safetensors", _flip),
        ("state.json", Path.unlink),
        ("state.json", lambda path: path.write_text("{}")),
        ("state.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(images, tmp_path, part, damage):
    train(RECIPE, images, tmp_path)
    damage(checkpoint.saved(tmp_path)[-1] / part)
    assert trainer_of(RECIPE, images, tmp_path).state.step == 5


def test_half_a_checkpoint_is_none(images, tmp_path):
    train(RECIPE, images, tmp_path)
    (tmp_path / "checkpoints" / ".part-step-00000008").mkdir()
    assert checkpoint.step_of(checkpoint.saved(tmp_path)[-1]) == 6
    train(replace(RECIPE, steps=8), images, tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".part*"))


def test_what_makes_no_sense_is_refused(images, tmp_path):
    with pytest.raises(UsageError, match="needs a budget"):
        trainer_of(replace(RECIPE, steps=0), images, tmp_path)
    with pytest.raises(UsageError, match="--proxy"):
        trainer_of(replace(RECIPE, phases=(replace(RECIPE.phases[0], objective=Proxy()),)), images, tmp_path)
    with pytest.raises(UsageError, match="no parameter's name starts with dekoder"):
        train(replace(RECIPE, phases=(replace(RECIPE.phases[0], trainable=("dekoder",)),)), images, tmp_path)
    with pytest.raises(UsageError, match="phase one: a view of 24 pixels, this model takes 32"):
        trainer_of(replace(RECIPE, phases=(Phase("one", 1.0, (View(24, 4),)),)), images, tmp_path)
    with pytest.raises(InputError, match="none of the 24 training images has a short side of at least 64 pixels"):
        train(
            replace(RECIPE, phases=(replace(RECIPE.phases[0], views=(View(32, 25, min_source=2),)),)), images, tmp_path
        )


def test_a_missing_tensorboard_is_said_once(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = []
    train(RECIPE, images, tmp_path, validation=images, log=RunLog(tmp_path, said.append, quiet=True))
    assert said[0] == "tensorboard is not installed: scalars go to log.jsonl only"
    assert not (tmp_path / "tensorboard").exists()


class Darker(Objective):
    """An objective as a stranger would add one: on top of a frozen tokenizer's pictures, with a learner of its own."""

    steps = 0

    def terms(self, tokenizer, batch):
        with torch.no_grad():
            wanted = 0.9 * tokenizer.reconstruct(batch.images, batch.keep).images
        made = tokenizer.reconstruct(batch.images, batch.keep)
        return {"darker": (made.images - wanted).square().mean()}, made

    def validate(self, tokenizer, squares):
        return {"loss": float(tokenizer.decode(tokenizer.encode(squares / 255)).mean())}, squares[0]

    def learn(self, factor):
        self.steps += 1
        return {"learner_factor": factor}

    def tensors(self):
        return {"learner": {"steps": torch.tensor(self.steps)}}

    def load(self, parts):
        self.steps = int(parts["learner"]["steps"]) if "learner" in parts else 0


def test_an_objective_of_ones_own(images, tmp_path):
    recipe = replace(RECIPE, phases=(replace(RECIPE.phases[0], trainable=("decoder.",), lr=1e-3),), steps=4)
    said = []
    for steps in (4, 6):
        objective = Darker(None, Setup(torch.device("cpu"), Group()))
        torch.manual_seed(0)
        log = RunLog(tmp_path, said.append, quiet=True)
        longer = replace(recipe, steps=steps)
        trainer = Trainer(longer, TiTok(TITOK), [objective], images, tmp_path, validation=images, log=log)
        if steps == 6:
            trainer.resume()
        trainer.run()
        assert objective.steps == steps
    assert any(line.startswith("step 6: val 32 px, loss ") for line in said)


def test_tensorboard_gets_scalars_and_pictures(images, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path, [].append, quiet=True)
    train(replace(RECIPE, steps=10), images, tmp_path, validation=images, log=log)
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"train/loss_l2", "train/psnr_4", "val/usage", "val/psnr/2"} <= set(events.Tags()["scalars"])
    (*_, grid) = events.Images("val/reconstructions")
    assert (grid.width, grid.height) == (4 * 32, 4 * 32)


def test_the_progress_line(tmp_path):
    log = RunLog(tmp_path, [].append, quiet=True)
    lines = []
    log._bar.set_description_str = lines.append
    row = {"progress": 0.25, "elapsed": 1200.0}
    log.trained(7, 8, {"loss_l2": 0.5, "loss_gan": 0.25, "psnr_64": 20.0, "psnr_8": 18.123}, row)
    assert lines[0].startswith("step 7 loss 0.75000 dB 8:18.12 64:20.00 | ")
    assert lines[0].endswith(" images/s, 1:00:00 left")
