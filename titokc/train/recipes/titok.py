"""TiTok's recipes (arXiv 2406.07550) in three sizes: one stage, or two."""

from collections.abc import Callable
from functools import partial

from titokc.models.titok.config import SIZES, TiTokConfig
from titokc.train.objectives.pixels import Pixels
from titokc.train.objectives.proxy import Proxy
from titokc.train.recipes.schema import Phase, Recipe, View

_SIZES = {"s-128": ("small", 128), "b-64": ("base", 64), "l-32": ("large", 32)}
_CROPS = View(side=256, batch_size=256, min_scale=1.0, jitter=0.0)


def _recipe(kind: str, size: str) -> Recipe:
    width, tokens = _SIZES[size]
    config = TiTokConfig(SIZES[width], SIZES[width], tokens, is_legacy=kind != "single")
    return _KINDS[kind](f"titok-{size}-{kind}", config)


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


def _single(name: str, config: TiTokConfig) -> Recipe:
    """Pixels straight from the ViT decoder, in one stage."""
    pixels = Pixels(l2=1.0, lpips=1.0, convnext=0.1, gan=0.1, gan_start=200_000 / 650_000)
    phase = Phase("single", 1.0, (_CROPS,), pixels, lr=1e-4, warmup=10_000)
    return _titok(name, config, phase, 650_000, betas=(0.9, 0.999))


def _stage1(name: str, config: TiTokConfig) -> Recipe:
    """Warm-up on the proxy codes of MaskGIT's VQGAN; everything but the pixel decoder trains."""
    trainable = ("latent_tokens", "encoder.", "quantize.", "decoder.")
    phase = Phase("proxy-codes", 1.0, (_CROPS,), Proxy(), lr=1e-4, warmup=10_000, trainable=trainable)
    return _titok(name, config, phase, 1_000_000)


def _stage2(name: str, config: TiTokConfig) -> Recipe:
    """Decoder fine-tuning on pixels: encoder, latent tokens and quantiser stay as stage 1 left them."""
    pixels = Pixels(l2=1.0, convnext=0.1, gan=0.01, gan_start=20_000 / 500_000, quantizer=0.0)
    trainable = ("decoder.", "pixel_quantize.", "pixel_decoder.")
    phase = Phase("decoder", 1.0, (_CROPS,), pixels, lr=1e-4, warmup=5_000, trainable=trainable)
    return _titok(name, config, phase, 500_000, betas=(0.9, 0.999), needs_weights=True)


_KINDS: dict[str, Callable[[str, TiTokConfig], Recipe]] = {"single": _single, "stage1": _stage1, "stage2": _stage2}
RECIPES = {f"titok-{size}-{kind}": partial(_recipe, kind, size) for size in _SIZES for kind in _KINDS}
