"""Two processes on this CPU train what one does: gradients, weights, averages, metrics, and who sees which sample.

They add up the same numbers in another order, so gradients differ by rounding, and by nothing else. What optimisers
make of rounding is another matter, and decides which weights can be compared:

AdamW divides each gradient by its own size. Where a gradient is zero but for rounding, its steps are noise of full
size. A discriminator of 32 channels would have such a parameter (a bias before a GroupNorm of one-channel groups,
whose noise alone was 1.1 % of the movement); one of 64 has none, and the biases of attention keys are too few to count.
Muon rounds to bfloat16, where 1e-7 can become 4e-3, and multiplies small singular values by up to 3.4445^5 = 485: what
differs by 1e-4 after one step differs by 1e-2 after six. Its weights are compared after one.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from titokc.cli import main

pytestmark = pytest.mark.timeout(900)  # three processes that import torch, on a machine that may be busy
SETTINGS = (
    "model.encoder.width=16 model.encoder.layers=1 model.encoder.heads=2 model.decoder.width=16 model.decoder.layers=1 "
    "model.decoder.heads=2 model.num_latent_tokens=4 model.codebook_size=16 model.token_size=4 model.image_size=32 "
    "phases.0.views.0.side=32 phases.0.views.0.batch_size=8 phases.0.warmup=2 phases.0.lr=0.001 micro_batch=3 "
    "phases.0.objective.lpips=0 phases.0.objective.convnext=0 phases.0.objective.gan_start=0.5"
    " phases.0.objective.discriminator_channels=64 "
    "revival_patience=0 val_images=5 val_steps=10"
)


NANO = (
    "model.image_size=32 model.thumb_size=16 model.coefficients=48 model.num_tokens=8 model.min_tokens=2 "
    "model.codebook_size=16 model.token_size=4 model.hidden=8 model.width=16 model.heads=2 model.layers=1 "
    "token_drop_step=2 phases.0.share=0 phases.2.share=0 phases.1.views.0.side=32 phases.1.views.1.side=16 "
    "phases.1.warmup=2 phases.1.search=1 "
    "phases.1.views.0.batch_size=8 phases.1.views.1.batch_size=8 val_images=5 val_steps=10"
)


@pytest.fixture(scope="module", params=[("titok-s-128-single", SETTINGS), ("nano", NANO)], ids=["titok", "nano"])
def runs(request, tmp_path_factory, write_photos):
    """The folders of a run of one process and of the same with two, as torchrun starts them; both stop after a step."""
    recipe, settings = request.param
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data").mkdir()
    write_photos(folder / "data", 12)
    sets = [part for setting in settings.split() for part in ("--set", setting)]
    command = ["train", str(folder / "data"), "--recipe", recipe, "-q", *sets, "--resume"]
    command += ["--val", str(folder / "data"), "--device", "cpu", "--dtype", "float32", "--threads", "1"]
    for steps in ("1", "6"):
        if steps == "6":  # the checkpoint of step 0 is not kept that long
            shutil.copytree(folder / "one" / "checkpoints" / "step-00000000", folder / "start")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "titokc", *command, "--steps", steps, "-o", str(folder / "two")],
                env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        done = CliRunner().invoke(main, [*command, "--steps", steps, "-o", str(folder / "one")])
        assert done.exit_code == 0, done.output
        said = [child.communicate(timeout=600)[1] for child in children]
        assert [child.returncode for child in children] == [0, 0], said
        assert "val 32 px" in said[0]
        assert "val 32 px" not in said[1]
    return folder / "one", folder / "two"


def at_step(run, step):
    return run / "checkpoints" / f"step-{step:08d}"


def latest(run):
    return max((int(folder.name[5:]) for folder in (run / "checkpoints").glob("step-*")), default=-1)


def tensors(folder, part, prefix=""):
    """A checkpoint's tensors in a part whose names start with the prefix, as one vector; None where there are none."""
    path = folder / f"{part}.safetensors"
    found = sorted(load_file(path).items()) if path.exists() else []
    values = [tensor.flatten().double() for name, tensor in found if name.startswith(prefix)]
    return torch.cat(values) if values else None


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_run_which_then_resumes(tmp_path, write_photos, killed):
    (tmp_path / "data").mkdir()
    write_photos(tmp_path / "data", 12)
    run = tmp_path / "run"
    sets = [part for setting in f"{SETTINGS} checkpoint_steps=2".split() for part in ("--set", setting)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "titokc"]
    command += ["train", str(tmp_path / "data"), "-o", str(run), "--recipe", "titok-s-128-single", "-q", "--resume"]
    command += ["--device", "cpu", "--threads", "1", *sets]
    with subprocess.Popen([*command, "--steps", "100000"], stderr=subprocess.PIPE, text=True) as agent:
        while latest(run) < 4:
            assert agent.poll() is None
            time.sleep(0.02)
        workers = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        ranks = {p: Path(f"/proc/{p}/environ").read_bytes().split(b"\0RANK=")[-1][:1] for p in workers}
        (victim,) = (int(p) for p, rank in ranks.items() if rank == b"%d" % killed)
        os.kill(victim, signal.SIGKILL)
        said = agent.communicate(timeout=300)[1]
    assert agent.returncode != 0
    assert "titokc: another process of this training is gone: continue from the last checkpoint with --resume" in said
    step = latest(run) + 2
    done = subprocess.run([*command, "--steps", str(step)], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert at_step(run, step).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_process_that_is_asked_to_stop_stops_all(tmp_path, write_photos, asked):
    """While the first one writes a checkpoint after every step."""
    (tmp_path / "data").mkdir()
    write_photos(tmp_path / "data", 12)
    sets = [part for setting in f"{SETTINGS} checkpoint_steps=1".split() for part in ("--set", setting)]
    command = [sys.executable, "-m", "titokc", "train", str(tmp_path / "data"), "--recipe", "titok-s-128-single", "-q"]
    command += ["-o", str(tmp_path / "run"), "--device", "cpu", "--threads", "1", "--steps", "100000", *sets]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [subprocess.Popen(command, env={**group, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    while latest(tmp_path / "run") < 4:
        assert [child.poll() for child in children] == [None, None]
        time.sleep(0.02)
    children[asked].send_signal(signal.SIGTERM)
    assert [child.wait(120) for child in children] == [130, 130]


def rows(run, kind):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(("optimizer", "moment"), [("adamw", "exp_avg/"), ("muon", "momentum/")])
def test_gradients_are_those_of_one_process(runs, optimizer, moment):
    """After one step an optimiser's first moment is a part of the gradient. Found: 3e-7."""
    one, two = (tensors(at_step(run, 1), optimizer, moment) for run in runs)
    if one is None:
        pytest.skip("this recipe does not use it")
    assert float((two - one).norm() / one.norm()) < 1e-5


@pytest.mark.parametrize("part", ["tokenizer", "average", "discriminator"])
def test_weights_are_those_of_one_process(runs, part):
    """Found, in parts of the movement: 1e-5 after six steps of AdamW, 1e-4 to 1e-2 after one of Muon.

    Muon rounds what it orthogonalises to bfloat16 and enlarges its smallest singular values up to 3.4445^5 = 485 times:
    gradients that differ by 3e-7 may round to neighbours, 2^-8 apart."""
    muon = tensors(at_step(runs[0], 1), "muon") is not None
    steps, most = (1, 5e-2) if muon else (6, 2e-3)
    start = runs[0].parent / "start"
    one, two, start = (tensors(folder, part) for folder in (*(at_step(run, steps) for run in runs), start))
    if one is None:
        pytest.skip("this recipe has no adversary")
    moved = float((one - start).norm())
    assert moved > 0.01
    assert float((two - one).norm()) / moved < most


def test_metrics_are_those_of_one_process(runs):
    """Found after six steps: 5e-6."""
    for kind in ("train", "val"):
        (*_, one), (*_, two) = (rows(run, kind) for run in runs)
        assert one.keys() == two.keys()
        for name in one.keys() - {"time", "elapsed", "images_per_second", "phase", "kind"}:
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), (kind, name)


def test_state_is_that_of_one_process(runs):
    one, two = (json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text()) for run in runs)
    for name in ("step", "images", "positions", "best_step"):
        assert one[name] == two[name], name
