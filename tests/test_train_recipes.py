"""Recipes: the presets' published settings, changes by dotted path, and the JSON that a run keeps."""

from pathlib import Path

import pytest
import torch

from titokc.errors import UsageError, WeightsError
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.train.distributed import Group
from titokc.train.gradients import Gradients
from titokc.train.objectives.proxy import Proxy
from titokc.train.recipes import NAMES, named
from titokc.train.recipes.schema import from_json, override, to_json


def test_there_are_these_presets():
    assert NAMES == (
        "nano",
        "nano-natural",
        "titok-s-128-single",
        "titok-s-128-stage1",
        "titok-s-128-stage2",
        "titok-b-64-single",
        "titok-b-64-stage1",
        "titok-b-64-stage2",
        "titok-l-32-single",
        "titok-l-32-stage1",
        "titok-l-32-stage2",
    )
    with pytest.raises(
        UsageError, match="'titok-b-65-single' is not known; there are nano, nano-natural, titok-s-128-single"
    ):
        named("titok-b-65-single")


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name):
    assert from_json(to_json(named(name)), Path("recipe.json")) == named(name)


def test_stage_1_is_the_papers():
    recipe = named("titok-b-64-stage1")
    (phase,) = recipe.phases
    (view,) = phase.views
    assert (recipe.model.encoder.width, recipe.model.num_latent_tokens, recipe.model.is_legacy) == (768, 64, True)
    assert (recipe.steps, view.batch_size, view.side) == (1_000_000, 256, 256)
    assert (phase.lr, recipe.betas, recipe.weight_decay) == (1e-4, (0.9, 0.99), 1e-4)
    assert (phase.warmup, phase.lr * recipe.final_lr, recipe.ema_decay, recipe.clip) == (10_000, 1e-5, 0.999, 1.0)
    assert phase.objective == Proxy(codes=1.0, quantizer=1.0)
    assert (view.min_scale, view.jitter, recipe.muon) == (1.0, 0.0, False)


def test_stage_2_is_the_papers():
    recipe = named("titok-l-32-stage2")
    (phase,) = recipe.phases
    losses = phase.objective
    assert (recipe.steps, phase.warmup, recipe.betas, recipe.needs_weights) == (500_000, 5_000, (0.9, 0.999), True)
    assert (losses.l2, losses.convnext, losses.gan, losses.lecam) == (1.0, 0.1, 0.01, 0.001)
    assert losses.gan_start * recipe.steps == 20_000
    assert phase.trainable == ("decoder.", "pixel_quantize.", "pixel_decoder.")
    assert losses.discriminator_lr == 1e-4


def test_single_stage_is_the_improved_recipe():
    recipe = named("titok-s-128-single")
    (phase,) = recipe.phases
    losses = phase.objective
    assert (losses.l2, losses.lpips, losses.convnext, losses.gan, losses.lecam) == (1.0, 1.0, 0.1, 0.1, 0.001)
    assert round(losses.gan_start * recipe.steps) == 200_000
    assert (recipe.steps, recipe.model.is_legacy, recipe.revival_patience > 0) == (650_000, False, True)


def test_nano_trains_for_its_longest_and_its_shortest_code():
    recipe = named("nano")
    with torch.device("meta"):
        gradients = Gradients(NanoTokenizer(recipe.model), Group(), recipe, torch.float32)
    assert gradients._token_counts(torch.tensor([0, 0.5, 0.999])).tolist() == [4, 68, 128]


def test_override_keeps_types():
    settings = ("phases.0.lr=1e-4", "phases.1.views.0.batch_size=8", "muon=off", "betas=0.8,0.9", "steps=1e3")
    recipe = override(named("nano"), (*settings, "model.width=64"))
    assert recipe.phases[0].lr == 1e-4
    assert recipe.phases[1].views[0].batch_size == 8
    assert recipe.phases[1].views[1] == named("nano").phases[1].views[1]
    assert recipe.muon is False
    assert recipe.betas == (0.8, 0.9)
    assert type(recipe.steps) is int
    assert (recipe.steps, recipe.model.width) == (1000, 64)


def test_fields_that_must_agree_are_changed_together():
    settings = ("model.fsq_levels=8,8,8,8", "model.token_size=4", "model.codebook_size=4096", "model.min_tokens=16")
    model = override(named("titok-b-64-single"), settings).model
    assert (model.fsq_levels, model.token_size, model.min_tokens) == ((8, 8, 8, 8), 4, 16)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("steps", "--set steps: expected key=value"),
        ("stepz=3", "--set stepz: there is no such field; there are name, model, phases, steps"),
        ("steps=many", "--set steps: expected int, found 'many'"),
        ("steps=1.5", "--set steps: expected int, found '1.5'"),
        ("clip=nan", "--set clip: expected float, found 'nan'"),
        ("muon=perhaps", "--set muon: expected bool"),
        ("phases.7.lr=1", r"--set phases\.7: expected 0\.\.3"),
        ("phases=1", "--set phases: name one of its fields"),
        ("phases.0=1", r"--set phases\.0: name one of its fields"),
        ("phases.0.lr.x=1", r"--set phases\.0\.lr: it has no fields"),
        ("micro_batch=-1", "micro_batch is -1, expected 0 or more"),
        ("phases.1.search=-1", "search is -1, expected 0 or more"),
        ("phases.0.views.0.share=0", "no view of the phase pretrain-64 has a share"),
        ("phases.0.views.0.min_scale=2", "min_scale is 2.0, expected more than 0, at most 1"),
        ("phases.0.views.0.max_zoom=0.5", "max_zoom is 0.5, expected 1 or more"),
    ],
)
def test_wrong_settings_are_named(setting, complaint):
    with pytest.raises(UsageError, match=complaint):
        override(named("nano"), (setting,))


def test_an_impossible_model_is_refused():
    with pytest.raises(UsageError, match=r"--set model\.encoder\.width=700: .*width 700 is not a multiple"):
        override(named("titok-b-64-single"), ("model.encoder.width=700",))


def test_what_is_no_recipe_is_refused():
    text = to_json(named("nano"))
    for broken in ("{}", "[]", text[:-30], text.replace('"clip"', '"clap"'), text.replace('"width"', '"weight"')):
        with pytest.raises(WeightsError, match=r"run/recipe\.json: not a recipe of this version"):
            from_json(broken, Path("run/recipe.json"))
