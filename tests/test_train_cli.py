"""`titokc train` as a command: kill -9 and --resume, exporting, starting from other weights, stages, wrong usage."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from titokc import weights
from titokc.cli import main
from titokc.models.titok.pixel_decoder import MaskGITVQGAN

NANO = (
    "model.image_size=32 model.thumb_size=16 model.coefficients=48 model.num_tokens=8 model.min_tokens=2 "
    "model.codebook_size=16 model.token_size=4 model.hidden=8 model.width=16 model.heads=2 model.layers=1 "
    "token_drop_step=2 "
    "phases.0.views.0.side=16 phases.1.views.0.side=32 phases.1.views.1.side=16 "
    "phases.0.views.0.batch_size=4 phases.1.views.0.batch_size=4 phases.1.views.1.batch_size=4 "
    "phases.2.views.0.side=32 phases.2.views.1.side=16 phases.2.views.0.batch_size=4 phases.2.views.1.batch_size=4 "
    "phases.2.views.2.side=32 phases.2.views.2.batch_size=4 "
    "val_images=4"
)
TITOK = (
    "model.encoder.width=16 model.encoder.layers=1 model.encoder.heads=2 model.decoder.width=16 model.decoder.layers=1 "
    "model.decoder.heads=2 model.num_latent_tokens=4 model.codebook_size=16 model.token_size=4 model.image_size=32 "
    "phases.0.views.0.side=32 phases.0.views.0.batch_size=4 phases.0.warmup=2 val_images=4"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_photos):
    folder = tmp_path_factory.mktemp("data")
    write_photos(folder, 12)
    return folder


def arguments(data, run, recipe, settings, *more):
    sets = [part for setting in settings.split() for part in ("--set", setting)]
    common = ["--device", "cpu", "--threads", "1", "--dtype", "float32", "-q", "--cache", str(run.parent / "cache")]
    return ["train", str(data), "-o", str(run), "--recipe", recipe, *common, *sets, *map(str, more)]


def invoke(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def train(data, run, recipe, settings, *more):
    result = invoke(*arguments(data, run, recipe, settings, *more), "--debug")
    assert result.exit_code == 0, result.output
    return result.output


def last_checkpoint(run):
    folder = sorted((run / "checkpoints").glob("step-*"))[-1]
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def killed_at_random(command, run, rng):
    """Starts the command and kills it with SIGKILL a moment after its next checkpoint; True if it was done before."""
    before = set((run / "checkpoints").glob("step-*"))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and not set((run / "checkpoints").glob("step-*")) - before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        return child.wait() == 0


def kill_and_compare(data, tmp_path, kills, steps):
    settings = f"{NANO} checkpoint_steps=3"
    train(data, tmp_path / "whole", "nano", settings, "--steps", steps)
    rng = random.Random(0)
    command = arguments(data, tmp_path / "killed", "nano", settings, "--steps", steps, "--resume")
    done = [
        killed_at_random([sys.executable, "-m", "titokc", *command], tmp_path / "killed", rng) for _ in range(kills)
    ]
    assert not done[0]
    train(data, tmp_path / "killed", "nano", "", "--steps", steps, "--resume")
    assert last_checkpoint(tmp_path / "killed") == last_checkpoint(tmp_path / "whole")


def test_what_validates_is_not_trained_on(data, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    for path in sorted(data.iterdir())[:3]:
        (held / path.name).symlink_to(path)
    lines = invoke(*arguments(data, tmp_path / "run", "nano", NANO, "--val", held, "--steps", 1, "--dry-run"))
    assert "3 images are in --val too: they are not trained on" in lines.output
    assert "9 training images, 3 for validation" in lines.output
    every = invoke(*arguments(data, tmp_path / "run", "nano", NANO, "--val", data, "--steps", 1, "--dry-run"))
    assert "--val has all images too: it says nothing of others" in every.output


def test_what_one_may_not_expect_of_a_run_is_said(data, tmp_path):
    settings = f"{TITOK} phases.0.warmup=9 model.num_latent_tokens=257"
    lines = invoke(*arguments(data, tmp_path / "run", "titok-s-128-single", settings, "--steps", 10, "--dry-run"))
    assert "9 of its 10 steps warm up (--set phases.0.warmup=N)" in lines.output
    assert "no .tok file holds 257 tokens of 4 bits, at most 256 of 16" in lines.output


def test_a_run_without_a_checkpoint_needs_its_first_weights_again(data, tmp_path, monkeypatch):
    train(data, tmp_path / "one", "nano", NANO, "--steps", 1)
    assert invoke("models", "export", tmp_path / "one", "-o", tmp_path / "model").exit_code == 0
    run = tmp_path / "two"
    with monkeypatch.context() as stopped:
        stopped.setattr("titokc.train.start.image_sets", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        invoke(*arguments(data, run, "nano", NANO, "--steps", 1, "--init-from", tmp_path / "model"))
    assert json.loads((run / "recipe.json").read_text())["initial"]
    resumed = invoke("train", data, "-o", run, "--resume", "-q", "--device", "cpu", "--steps", 1)
    assert resumed.exit_code == 2
    assert "has no checkpoint yet: begin it again with its own --init-from" in resumed.output
    train(data, run, "nano", "", "--steps", 1, "--resume", "--init-from", tmp_path / "model")


def test_a_refused_resume_leaves_the_run_as_it_was(data, tmp_path):
    train(data, tmp_path / "run", "nano", NANO, "--steps", 2)
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(next(data.glob("*.*")).read_bytes())
    refused = invoke(*arguments(tmp_path / "other", tmp_path / "run", "nano", "", "--steps", 5, "--resume"))
    assert (refused.exit_code, "was begun with other" in refused.output) == (2, True)
    assert (tmp_path / "run" / "recipe.json").read_bytes() == before


@pytest.mark.timeout(900)
def test_a_killed_run_ends_bit_equal(data, tmp_path):
    kill_and_compare(data, tmp_path, kills=1, steps=60)


@pytest.mark.slow
def test_a_run_killed_five_times_ends_bit_equal(data, tmp_path):
    kill_and_compare(data, tmp_path, kills=5, steps=300)


def test_the_run_folder_and_the_exported_model(data, tmp_path):
    run = tmp_path / "run"
    said = train(data, run, "nano", NANO, "--val", data, "--steps", 4, "--set", "val_steps=2")
    assert "12 training images (decoded once), 12 for validation" in said
    assert "step 4: val 32 px, dB by tokens 2:" in said
    assert {p.name for p in run.iterdir()} >= {"recipe.json", "log.jsonl", "checkpoints"}
    assert json.loads((run / "recipe.json").read_text())["model"]["width"] == 16
    result = invoke("models", "export", run, "--last")
    assert result.output == f"{run / 'model'}: step 4\n"
    exported = weights.load(run / "model")
    average = load_file(run / "checkpoints" / "step-00000004" / "average.safetensors")
    assert all(torch.equal(tensor, average[name]) for name, tensor in exported.state_dict().items())
    invoke("models", "export", run, "-o", tmp_path / "best")
    assert (tmp_path / "best" / "config.json").is_file()
    picture = invoke("encode", data / "0.png", "-o", tmp_path / "0.tok", "--model", run / "model", "--tokens", 8)
    assert picture.exit_code == 0, picture.output


def test_starting_from_weights_takes_over_their_model(data, tmp_path):
    train(data, tmp_path / "one", "nano", NANO, "--steps", 2)
    invoke("models", "export", tmp_path / "one", "-o", tmp_path / "model")
    views = " ".join(setting for setting in NANO.split() if not setting.startswith("model."))
    train(data, tmp_path / "two", "nano", views, "--steps", 1, "--init-from", tmp_path / "model")
    first = load_file(tmp_path / "two" / "checkpoints" / "step-00000000" / "tokenizer.safetensors")
    given = weights.load(tmp_path / "model").state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in first.items())
    wrong = invoke(*arguments(data, tmp_path / "x", "titok-b-64-single", "", "--init-from", tmp_path / "model"))
    assert wrong.exit_code == 2
    assert "trains another kind of model" in wrong.output


def test_both_stages_of_titok(data, tmp_path):
    """Stage 1 learns the codes of a VQGAN; stage 2 only changes what follows the quantiser."""
    torch.manual_seed(0)
    save_file(MaskGITVQGAN(32).state_dict(), tmp_path / "vqgan.safetensors")
    stage1 = f"{TITOK} model.pixel_channels=32"
    proxy = ("--proxy", tmp_path / "vqgan.safetensors")
    train(data, tmp_path / "one", "titok-s-128-stage1", stage1, *proxy, "--steps", 4)
    train(data, tmp_path / "one", "titok-s-128-stage1", "", *proxy, "--steps", 6, "--resume")
    invoke("models", "export", tmp_path / "one", "-o", tmp_path / "model", "--last")
    given = weights.load(tmp_path / "model").state_dict()
    assert torch.equal(given["pixel_decoder.conv_in.weight"], load_file(proxy[1])["decoder.conv_in.weight"])

    stage2 = " ".join(setting for setting in TITOK.split() if not setting.startswith("model."))
    stage2 += (
        " phases.0.objective.convnext=0 phases.0.objective.gan_start=0.5 phases.0.objective.discriminator_channels=32"
    )
    alone = invoke(*arguments(data, tmp_path / "two", "titok-s-128-stage2", stage2, "--steps", 2))
    assert (alone.exit_code, "--init-from" in alone.output) == (2, True)
    train(data, tmp_path / "two", "titok-s-128-stage2", stage2, "--steps", 2, "--init-from", tmp_path / "model")
    made = load_file(tmp_path / "two" / "checkpoints" / "step-00000002" / "tokenizer.safetensors")
    changed = {name.split(".")[0] for name, tensor in made.items() if not torch.equal(tensor, given[name])}
    assert changed == {"decoder", "pixel_quantize", "pixel_decoder"}


def test_dry_run_writes_nothing(data, tmp_path):
    settings = f"{TITOK} phases.0.objective.lpips=0 phases.0.objective.convnext=0"
    settings += " phases.0.objective.discriminator_channels=32"
    said = train(data, tmp_path / "run", "titok-s-128-single", settings, "--dry-run")
    assert "12 training images, 0 for validation" in said
    assert "parameters: 32,744; trained 32,744 by adamw" in said
    assert "adversary: 107,683 parameters" in said
    assert "(measured: 4 images in " in said
    assert "hours for 650,000 steps" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_missing_weights_are_told_before_anything_is_decoded(data, tmp_path, monkeypatch, more):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = invoke(*arguments(data, tmp_path / "run", "titok-s-128-single", TITOK, "--steps", 1, *more))
    assert (result.exit_code, "vgg16-397923af.pth" in result.output) == (5, True)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_few_photographs_simply_works(tmp_path, write_photos):
    """The recipe's own batches, more than there are images; the quantiser's fit says how far it is."""
    (tmp_path / "data").mkdir()
    write_photos(tmp_path / "data", 3)
    settings = " ".join(setting for setting in NANO.split() if "batch_size" not in setting)
    said = train(tmp_path / "data", tmp_path / "run", "nano", settings, "--steps", 2)
    assert "3 training images (decoded once), 0 for validation" in said
    assert "a batch of 128 shows each image several times, cropped differently" in said
    assert "fitting the tokenizer to training images: 9 steps, 0 done" in said


def test_what_cannot_begin_leaves_nothing_behind(data, tmp_path):
    for recipe, more, code in (
        ("nano", ("--val", tmp_path / "nowhere"), 1),
        ("titok-s-128-stage1", (), 2),  # no --proxy
        ("nano", ("--set", "phases.0.views.0.min_source=9"), 1),
    ):
        settings = NANO if recipe == "nano" else TITOK
        result = invoke(*arguments(data, tmp_path / "run", recipe, settings, "--steps", 1, *more))
        assert result.exit_code == code, result.output
        assert not (tmp_path / "run").exists()


def test_a_folder_with_a_recipe_of_ones_own_is_left_alone(data, tmp_path):
    (tmp_path / "recipe.json").write_text("mine")
    for more in ((), ("--resume",)):
        result = invoke(*arguments(data, tmp_path, "nano", NANO, "--steps", 1, *more))
        assert (result.exit_code, "none of titokc" in result.output) == (4, True)
    assert (tmp_path / "recipe.json").read_text() == "mine"


def test_other_images_at_resume_are_refused(data, tmp_path, write_photos):
    folder, run = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    write_photos(folder, 12)
    train(folder, run, "nano", NANO, "--steps", 1)
    train(data, run, "nano", "", "--steps", 2, "--resume")  # the same ones elsewhere
    (folder / "1.png").unlink()
    result = invoke(*arguments(folder, run, "nano", "", "--steps", 3, "--resume"))
    assert (result.exit_code, "begun with other training or validation images" in result.output) == (2, True)
    train(folder, run, "nano", "", "--steps", 3, "--resume", "--other-data")


def test_killed_before_its_first_checkpoint(data, tmp_path):
    """--resume then knows the recipe and its settings."""
    run = tmp_path / "run"
    train(data, run, "nano", NANO, "--steps", 1)
    shutil.rmtree(run / "checkpoints")
    result = invoke(
        "train", data, "-o", run, "--resume", "--steps", 1, "--cache", tmp_path / "cache", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((run / "recipe.json").read_text())["model"]["width"] == 16


def test_starting_from_a_model_by_name(data, tmp_path):
    settings = "phases.0.views.0.batch_size=1 phases.1.share=0 phases.2.share=0"
    train(
        data,
        tmp_path / "run",
        "nano",
        f"{settings} phases.0.views.0.min_source=0.1",
        "--steps",
        1,
        "--init-from",
        "nano",
    )
    first = load_file(tmp_path / "run" / "checkpoints" / "step-00000000" / "tokenizer.safetensors")
    assert all(torch.equal(tensor, first[name]) for name, tensor in weights.load("nano").state_dict().items())


@pytest.mark.parametrize(
    ("change", "code", "complaint"),
    [
        ({"recipe": "titok-b-65-single"}, 2, "recipe 'titok-b-65-single' is not known"),
        ({"settings": "stepz=1"}, 2, "--set stepz: there is no such field"),
        ({"data": "nowhere"}, 1, "nowhere: no such folder or tar shard"),
        ({"data": "."}, 1, "no images in it"),
        ({"more": ("--val", "nowhere")}, 1, "nowhere: no such folder"),
        ({"more": ("--init-from", "nowhere")}, 4, "nowhere"),
        ({"more": ("--device", "cuda:99")}, 2, "cuda:99"),
    ],
)
def test_wrong_usage_is_one_line(data, tmp_path, monkeypatch, change, code, complaint):
    monkeypatch.chdir(tmp_path)
    settings = f"{NANO} {change.get('settings', '')}"
    where = change.get("data", data)
    result = invoke(
        *arguments(where, tmp_path / "run", change.get("recipe", "nano"), settings, *change.get("more", ()))
    )
    assert result.exit_code == code, result.output
    assert complaint in result.output.splitlines()[-1]


def test_a_run_that_has_begun_is_guarded(data, tmp_path):
    run = tmp_path / "run"
    train(data, run, "nano", NANO, "--steps", 1)
    for more, complaint in (
        ((), "holds a run already: continue it with --resume"),
        (("--resume", "--set", "model.width=32"), "--set cannot change the model of a run that has begun"),
        (("--resume", "--recipe", "titok-b-64-single"), "is a run of the recipe nano, not titok-b-64-single"),
    ):
        result = invoke(*arguments(data, run, "nano", "", "--steps", 2, *more))
        assert result.exit_code == 2, result.output
        assert complaint in result.output
    fresh = invoke("train", data, "-o", tmp_path / "new")
    assert (fresh.exit_code, "a new run needs --recipe" in fresh.output) == (2, True)


def test_one_process_at_a_time(data, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    run = tmp_path / "run"
    run.mkdir()
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = invoke(*arguments(data, run, "nano", NANO, "--steps", 1))
    assert (result.exit_code, "another process is training in this folder" in result.output) == (2, True)


def test_unreadable_images_are_named(data, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in data.iterdir():
        os.link(path, folder / path.name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    said = train(folder, tmp_path / "run", "nano", NANO, "--steps", 1)
    assert "skipped 1 unreadable images: broken.jpg" in said
    assert "12 training images" in said


def test_ctrl_c_leaves_a_checkpoint(data, tmp_path):
    def interrupt():
        while not (tmp_path / "run" / "checkpoints" / "step-00000002").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun hands on what the terminal has sent already

    threading.Thread(target=interrupt).start()
    result = invoke(*arguments(data, tmp_path / "run", "nano", f"{NANO} checkpoint_steps=2", "--steps", 1_000_000))
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "titokc: interrupted"
    state = json.loads(sorted((tmp_path / "run" / "checkpoints").glob("step-*/state.json"))[-1].read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert state["step"] >= max(row["step"] for row in rows)
