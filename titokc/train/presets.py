"""The named recipes: nano, and TiTok's single-stage and two-stage training (arXiv 2406.07550) in three sizes."""

from dataclasses import replace

from titokc.errors import UsageError
from titokc.models.nano.config import NanoConfig
from titokc.models.titok.config import SIZES, TiTokConfig
from titokc.train.recipes import Losses, Phase, Recipe, View

_SIZES = {"s-128": ("small", 128), "b-64": ("base", 64), "l-32": ("large", 32)}
NAMES = ("nano", *(f"titok-{size}-{kind}" for size in _SIZES for kind in ("single", "stage1", "stage2")))
_CROPS = View(side=256, batch_size=256, min_scale=1.0, jitter=0.0)


def named(name: str) -> Recipe:
    """The preset called `name`; UsageError lists them all otherwise."""
    if name == "nano":
        return _nano()
    if name not in NAMES:
        raise UsageError(f"recipe {name!r} is not known; there are {', '.join(NAMES)}")
    size, kind = name.removeprefix("titok-").rsplit("-", 1)
    width, tokens = _SIZES[size]
    config = TiTokConfig(SIZES[width], SIZES[width], tokens, is_legacy=kind != "single")
    return {"single": _single, "stage1": _stage1, "stage2": _stage2}[kind](name, config)


def _nano() -> Recipe:
    small = View(side=64, batch_size=128, large_share=0.35, min_scale=0.4)
    large = View(side=256, batch_size=64, min_scale=0.7)
    psnr = Losses(l2=0.0, log_l2=1.0)
    looks = replace(psnr, efficientnet=1.0)
    mixed = (replace(large, share=0.6), replace(small, share=0.4))
    halved = tuple(replace(view, batch_size=view.batch_size // 2) for view in mixed)
    return Recipe(
        name="nano",
        model=NanoConfig(),
        minutes=390,
        token_drop_step=16,
        ema_decay=0.998,
        divergence=1.5,
        phases=(
            Phase("pretrain-64", 0.15, (small,), psnr, muon_lr=3e-3),
            Phase("train-256", 0.4, mixed, psnr, muon_lr=3e-3),
            Phase("searched-256", 0.45, halved, psnr, muon_lr=3e-3, search=2),
            # Trades squared error for looks (bench/LOG.md), off unless it is given a share (--set phases.3.share=0.2).
            Phase("perceptual", 0.0, (halved[0],), looks, lr=4e-4, muon_lr=1.2e-3),
        ),
    )


def _titok(name: str, config: TiTokConfig, phase: Phase, steps: int, **fields: object) -> Recipe:
    """What TiTok's stages have in common: AdamW, an average of .999, clipping at 1, cosine to a tenth of the rate."""
    return Recipe(
        name=name,
        model=config,
        phases=(phase,),
        steps=steps,
        muon=False,
        final_lr=0.1,
        val_steps=5000,
        val_minutes=60.0,
        checkpoint_minutes=15.0,
        **fields,  # type: ignore[arg-type]
    )


def _stage1(name: str, config: TiTokConfig) -> Recipe:
    """Warm-up on the proxy codes of MaskGIT's VQGAN; everything but the pixel decoder trains."""
    phase = Phase(
        "proxy-codes",
        1.0,
        (_CROPS,),
        Losses(l2=0.0, quantizer=1.0, codes=1.0),
        lr=1e-4,
        warmup=10_000,
        trainable=("latent_tokens", "encoder.", "quantize.", "decoder."),
    )
    return _titok(name, config, phase, 1_000_000)


def _stage2(name: str, config: TiTokConfig) -> Recipe:
    """Decoder fine-tuning on pixels: encoder, latent tokens and quantiser stay as stage 1 left them."""
    phase = Phase(
        "decoder",
        1.0,
        (_CROPS,),
        Losses(l2=1.0, convnext=0.1, gan=0.01, gan_start=20_000 / 500_000, quantizer=0.0),
        lr=1e-4,
        warmup=5_000,
        trainable=("decoder.", "pixel_quantize.", "pixel_decoder."),
    )
    return _titok(name, config, phase, 500_000, betas=(0.9, 0.999), needs_weights=True)


def _single(name: str, config: TiTokConfig) -> Recipe:
    """Pixels straight from the ViT decoder, in one stage."""
    phase = Phase(
        "single",
        1.0,
        (_CROPS,),
        Losses(l2=1.0, lpips=1.0, convnext=0.1, gan=0.1, gan_start=200_000 / 650_000),
        lr=1e-4,
        warmup=10_000,
    )
    return _titok(name, config, phase, 650_000, betas=(0.9, 0.999))
