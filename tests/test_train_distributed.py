"""Two processes on this CPU train what one does: gradients, averages, metrics, and who sees which sample."""

import json
import os
import socket
import subprocess
import sys

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
    "phases.0.losses.lpips=0 phases.0.losses.convnext=0 phases.0.losses.gan_start=0.5 discriminator_channels=32 "
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
    """The folders of a run of one process and of the same with two, as torchrun starts them."""
    recipe, settings = request.param
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data").mkdir()
    write_photos(folder / "data", 12)
    sets = [part for setting in settings.split() for part in ("--set", setting)]
    command = ["train", str(folder / "data"), "--recipe", recipe, "--steps", "6", "-q", *sets]
    command += ["--val", str(folder / "data"), "--device", "cpu", "--dtype", "float32", "--threads", "1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "titokc", *command, "-o", str(folder / "two")],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    done = CliRunner().invoke(main, [*command, "-o", str(folder / "one")])
    assert done.exit_code == 0, done.output
    said = [child.communicate(timeout=600)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert "val 32 px" in said[0]
    assert "val 32 px" not in said[1]
    return folder / "one", folder / "two"


def rows(run, kind):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("part", ["tokenizer", "average", "discriminator"])
def test_weights_are_those_of_one_process(runs, part):
    if part == "discriminator" and not list(runs[0].glob("checkpoints/*/discriminator.safetensors")):
        pytest.skip("this recipe has no adversary")

    def weights(run, step):
        tensors = load_file(run / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors")
        return torch.cat([tensor.flatten().double() for _, tensor in sorted(tensors.items())])

    one, two = (weights(run, 6) for run in runs)
    moved = (one - weights(runs[0], 0)).norm()
    assert float(moved) > 0.01
    assert float((two - one).norm() / moved) < 0.01


def test_metrics_are_those_of_one_process(runs):
    for kind in ("train", "val"):
        (one,), (two,) = (rows(run, kind) for run in runs)
        assert one.keys() == two.keys()
        for name in one.keys() - {"time", "elapsed", "images_per_second", "phase", "kind"}:
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), (kind, name)


def test_state_is_that_of_one_process(runs):
    one, two = (json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text()) for run in runs)
    for name in ("step", "images", "positions", "best_step"):
        assert one[name] == two[name], name
