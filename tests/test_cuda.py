"""What must work on a GPU as on the CPU: each test runs on both, where there are both (`make cuda`).

And on any machine: that nothing in encoding and decoding waits for a GPU, on tensors that only pretend to be on one.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from titokc import engines, weights
from titokc.judge.lite0 import EfficientNetLite0
from titokc.models.nano.config import NanoConfig
from titokc.models.nano.natural import noise as noise_of_rows
from titokc.models.nano.noise import noise
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.pixel_decoder import MaskGITVQGAN
from titokc.models.titok.tokenizer import TiTok
from titokc.train.augment import Sampler, resized
from titokc.train.data import ImageSet, find
from titokc.train.loop import Trainer
from titokc.train.recipes import NAMES
from titokc.train.recipes.schema import View
from titokc.train.start import start

NANO = NanoConfig(
    image_size=32, thumb_size=16, coefficients=48, hidden=8, num_tokens=8, min_tokens=2, codebook_size=16, token_size=4
)
NANO = replace(NANO, width=16, heads=2, layers=1)
NATURAL = replace(NANO, image_size=64, natural=16)
TITOK = TiTokConfig(ViTSize(16, 1, 2), ViTSize(16, 1, 2), 4, 16, 4, image_size=32, pixel_channels=32)

COMMON = {
    "nano": "token_drop_step=2 phases.0.views.0.side=16 phases.1.views.0.side=32 phases.1.views.1.side=16 "
    "phases.2.views.0.side=32 phases.2.views.1.side=16 phases.0.views.0.batch_size=4 phases.1.views.0.batch_size=4 "
    "phases.1.views.1.batch_size=4 phases.2.views.0.batch_size=4 phases.2.views.1.batch_size=4 "
    "phases.2.views.2.side=32 phases.2.views.2.batch_size=4",
    "nano-natural": "phases.0.views.0.side=64 phases.0.views.0.min_source=0.5 phases.0.objective.pool=5 "
    "phases.0.views.1.side=64 phases.0.views.1.min_source=0.5 "
    "phases.0.objective.crops=2 phases.0.objective.crop=48 phases.0.objective.whole=1 phases.0.objective.fewest=2",
    "titok": "phases.0.views.0.side=32 phases.0.views.0.batch_size=4 phases.0.warmup=2",
    "pixels": "phases.0.objective.lpips=0 phases.0.objective.convnext=0 phases.0.objective.gan_start=0 "
    "phases.0.objective.discriminator_channels=32",
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def data(tmp_path, write_photos):
    (tmp_path / "data").mkdir()
    write_photos(tmp_path / "data", 12)
    return tmp_path / "data"


def fields(config):
    """A model's configuration as --set takes it."""
    vit = {"encoder.width": 16, "encoder.layers": 1, "encoder.heads": 2}
    vit |= {name.replace("encoder", "decoder"): value for name, value in vit.items()}
    plain = {name: value for name, value in config.to_dict().items() if isinstance(value, int)}
    return [f"model.{name}={value}" for name, value in (plain | (vit if config is TITOK else {})).items()]


def settings_of(recipe):
    model = NANO if recipe == "nano" else TITOK
    kind = recipe if recipe in COMMON else "titok"
    chosen = COMMON[kind].split() + (COMMON["pixels"].split() if recipe.endswith(("single", "stage2")) else [])
    if recipe.endswith("single"):
        model = replace(TITOK, is_legacy=False)
    if recipe.endswith(("natural", "stage2")):  # of the weights that they start from
        return chosen
    return [*chosen, *fields(model)]


def apart(one, other):
    """How many levels at most."""
    return int((one.int() - other.int()).abs().max())


def smooth(count, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)


def fitted(config, device=None):
    """Fitted where the pictures are; with an untrained decoder, but one that does something."""
    torch.manual_seed(0)
    nano = NanoTokenizer(config).to(device)
    batches = (smooth(64, config.image_size, seed).to(device) for seed in range(100))
    assert list(nano.fit(batches))[-1] == nano.fit_steps
    torch.nn.init.normal_(nano.decoder.to_thumb.weight, std=1.0)
    return nano.eval()


def train(data, run, recipe, device, **options):
    said = []
    common = {"settings": tuple(settings_of(recipe)), "threads": 1, "cache": data.parent / "cache", "quiet": True}
    start(data, run, name=recipe, device=str(device), say=said.append, **common | options)
    return said


def needed_by(recipe, folder):
    """The weights that a recipe starts from."""
    torch.manual_seed(0)
    if recipe.endswith("stage1"):
        save_file(MaskGITVQGAN(32).state_dict(), folder / "vqgan.safetensors")
        return {"proxy": folder / "vqgan.safetensors"}
    if recipe.endswith(("natural", "stage2")):
        weights.save(fitted(NATURAL) if recipe.endswith("natural") else TiTok(TITOK), folder / "model")
        return {"init_from": str(folder / "model")}
    return {}


def checkpoint_of(run, step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    state = json.loads((folder / "state.json").read_text())
    return folder, {name: state[name] for name in ("step", "images", "positions", "view_steps")}


# The sizes of TiTok differ in their numbers only: bench/cuda.py has them.
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("recipe", [name for name in NAMES if not name.startswith(("titok-b", "titok-l"))])
def test_steps_of_every_recipe_and_exact_resume(data, tmp_path, monkeypatch, device, recipe, dtype):
    """With autocast and, in float16, scaled gradients: a run in parts ends where the whole one does."""
    if device.type == "cpu" and (dtype, recipe) not in {("bfloat16", "nano"), ("float16", "nano-natural")}:
        pytest.skip("as tests/test_train_loop.py and tests/test_train_cli.py have it")
    monkeypatch.setattr(EfficientNetLite0, "pretrained", EfficientNetLite0)  # random: its package may be missing
    needed = needed_by(recipe, tmp_path)
    train(data, tmp_path / "whole", recipe, device, dtype=dtype, steps=4, val=data, **needed)
    with monkeypatch.context() as patch:
        note = Trainer._note
        patch.setattr(
            Trainer, "_note", lambda self, *n: note(self, *n) or (self.state.step == 2 and self._request_stop())
        )
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "parts", recipe, device, dtype=dtype, steps=4, **needed)
    said = train(data, tmp_path / "parts", recipe, device, dtype=dtype, steps=4, resume=True, proxy=needed.get("proxy"))
    assert "resumed at step 2, 50% of the budget spent" in said
    (whole, expected), (parts, found) = (checkpoint_of(tmp_path / run, 4) for run in ("whole", "parts"))
    assert found == expected
    # Sums of a GPU's threads have no order: there the last bits differ, and what a step makes of them.
    atol = 0 if device.type == "cpu" else 0.02
    one, other = (load_file(folder / "average.safetensors") for folder in (whole, parts))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name].double(), tensor.double(), rtol=0, atol=atol, msg=name)


def test_a_dry_run_tells_what_limits(data, tmp_path, device):
    said = train(data, tmp_path / "run", "nano", device, dtype="bfloat16", steps=8, scale=4, dry_run=True)
    assert said[0] == "--scale 4: batches 4, rates 2 times the recipe's own"
    assert said[-3].startswith("  searched-256, 32 px, batch 4: ")
    assert "the limit is the " in said[-3]


@pytest.mark.parametrize("config", [NANO, NATURAL])
def test_tokens_and_pixels_are_the_cpus(device, config):
    cpu, images = fitted(config), smooth(8, config.image_size, 7)
    expected = cpu.encode(images)
    there = NanoTokenizer(config).to(device).eval()
    there.load_state_dict(cpu.state_dict())
    with torch.inference_mode():
        assert torch.equal(there.encode(images.to(device)).cpu(), expected)
        for look in config.info.looks:
            pixels = there.decode(expected.to(device), look).cpu()
            torch.testing.assert_close(pixels, cpu.decode(expected, look), atol=2e-3, rtol=0)
            with torch.autocast(device.type, torch.bfloat16):
                rounded = there.decode(expected.to(device), look).cpu()
            assert float((rounded - pixels).square().mean()) < 1e-3
        found = there.encode(images.to(device), 8, 4)
        errors = [
            (there.decode(tokens.to(device)).cpu() - images).square().mean((1, 2, 3)) for tokens in (expected, found)
        ]
        assert bool((errors[1] <= errors[0] + 1e-6).all())
        assert float(errors[1].mean()) < 0.999 * float(errors[0].mean())


def test_a_quantiser_fitted_there_is_as_good(device):
    images = smooth(64, 32, 200)
    errors = []
    for place in ("cpu", device):
        nano = fitted(NANO, place)
        torch.nn.init.zeros_(nano.decoder.to_thumb.weight)
        errors.append(float((nano.decode(nano.encode(images.to(place))).cpu() - images).detach().square().mean()))
    assert errors[1] < 1.2 * errors[0]


def test_noise_is_the_same_everywhere(device):
    tokens = np.random.default_rng(0).integers(0, 4096, (3, 40))
    expected = np.stack([noise(row, 1000) for row in tokens])
    assert np.array_equal(noise_of_rows(torch.from_numpy(tokens).to(device), 1000).cpu().numpy(), expected)


def test_batches_are_made_on_the_device(data, tmp_path, device):
    """As Pillow makes them, within two levels: shrunk, enlarged, as they are; mirrored or not."""
    images = ImageSet(find(data).training, 36, tmp_path / "cache")
    for side in (16, 32, 40):
        view = View(side, 12, min_scale=0.4)
        expected, found = (Sampler(images, view, (0,), place).batch(5, 12) for place in (None, device))
        assert found.crops.device.type == device.type
        assert apart(found.crops.cpu(), expected.crops) <= 2
        torch.testing.assert_close(found.curves.cpu(), expected.curves)
        assert torch.equal(found.draws, expected.draws)
    halves = torch.cat([Sampler(images, view, (0,), device).batch(at, 6).crops.cpu() for at in (5, 11)])
    assert apart(halves, found.crops.cpu()) <= 1


def test_resizing_is_pillows(device):
    rng = np.random.default_rng(0)
    squares, sizes = rng.integers(0, 256, (5, 70, 70, 3), np.uint8), [70, 64, 33, 20, 32]
    sent = torch.from_numpy(squares).to(device), torch.tensor(sizes, device=device)
    found = resized(*sent, torch.tensor([False, True, False, True, False], device=device), 32).cpu().numpy()
    for at, size in enumerate(sizes):
        expected = Image.fromarray(squares[at, :size, :size]).resize((32, 32), Image.Resampling.BICUBIC)
        pixels = np.asarray(expected).astype(int)[:, ::-1] if at in {1, 3} else np.asarray(expected).astype(int)
        errors = np.abs(found[at].transpose(1, 2, 0) - pixels)
        assert errors.max() <= 2
        assert errors.mean() < 0.01


def test_an_engine_fills_its_batches(device):
    """Arrays in, arrays out: tiles that come alone, and more than a batch of them."""
    nano = fitted(NATURAL).to(device)
    engine = engines.open(nano, batch_size=4)
    tiles = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    tokens = np.stack(engine.encode(tiles, [8] * 6, 0))
    assert np.array_equal(engine.encode(tiles[4:5], [8], 0)[0], tokens[4])
    for look in ("faithful", "natural"):
        pixels = np.stack(engine.decode(tokens, look))
        assert (pixels.shape, pixels.dtype) == ((6, 64, 64, 3), np.uint8)
        assert np.abs(engine.decode(tokens[:1], look)[0].astype(int) - pixels[0]).max() <= 2


def test_nothing_waits_for_a_gpu(monkeypatch):
    """What only pretends to be on a GPU has no values: whoever asks for one, or mixes devices, gets an error."""
    fake = pytest.importorskip("torch._subclasses.fake_tensor")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with fake.FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        models = [NanoTokenizer(replace(NATURAL, num_tokens=3, refresh=2)), TiTok(TITOK)]
        for part in (part for model in models for part in model.modules()):
            for name, tensor in part._buffers.items():
                part._buffers[name] = tensor.to("cuda")
        # Backward passes need a real device.
        monkeypatch.setattr(torch.autograd, "grad", lambda outputs, leaf: (torch.zeros_like(leaf),))
        for model in models:
            images = torch.rand(3, 3, model.info.side, model.info.side)
            with torch.inference_mode():
                tokens = model.encode(images, None, 1)
                made = [model.decode(tokens, look) for look in model.info.looks]
            made.append(model.reconstruct(images).images)
            assert {(picture.shape, picture.device.type) for picture in made} == {(images.shape, "cuda")}
        squares = torch.zeros(3, 40, 40, 3, dtype=torch.uint8)
        assert resized(squares, torch.full((3,), 30), torch.zeros(3, dtype=torch.bool), 32).device.type == "cuda"
