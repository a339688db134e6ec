"""nano's recipes: nano-1 was made by them, its tokens and faithful decoder by the first, its natural look by the second
(bench/LOG.md has the course of their training)."""

from dataclasses import replace

from titokc.models.nano.config import NanoConfig
from titokc.train.objectives.natural import Natural
from titokc.train.objectives.pixels import Pixels
from titokc.train.recipes.schema import Phase, Recipe, View


def _nano() -> Recipe:
    small = View(side=64, batch_size=128, large_share=0.35, min_scale=0.4)
    large = View(side=256, batch_size=64, min_scale=0.7)
    psnr = Pixels(l2=0.0, log_l2=1.0)
    looks = replace(psnr, efficientnet=1.0)
    mixed = (replace(large, share=0.6), replace(small, share=0.4))
    # Parts of a photograph, as a picture in several tiles is coded.
    tiles = replace(large, share=0.35, min_scale=0.3, max_zoom=3.0)
    searched = (replace(large, share=0.4), replace(small, share=0.25), tiles)
    halved = tuple(replace(view, batch_size=view.batch_size // 2) for view in searched)
    return Recipe(
        name="nano",
        model=NanoConfig(token_size=10, hidden=128),
        minutes=660,  # nano-1 took 651 after its fit
        token_drop_step=4,
        ema_decay=0.998,
        divergence=1.5,
        on_gpu=8,
        phases=(
            Phase("pretrain-64", 0.15, (small,), psnr, muon_lr=3e-3),
            Phase("train-256", 0.4, mixed, psnr, muon_lr=3e-3),
            Phase("searched-256", 0.45, halved, psnr, muon_lr=3e-3, search=2),
            # Trades squared error for looks (bench/LOG.md), off unless it is given a share (--set phases.3.share=0.2).
            Phase("perceptual", 0.0, (halved[0],), looks, lr=4e-4, muon_lr=1.2e-3),
        ),
    )


def _natural() -> Recipe:
    whole = View(side=256, batch_size=2, share=0.55, min_scale=0.75, jitter=0.0)
    tiles = replace(whole, share=0.45, min_scale=0.33, max_zoom=3.0)
    return Recipe(
        name="nano-natural",
        model=NanoConfig(natural=64),
        minutes=360,
        needs_weights=True,
        adds=("natural",),
        muon=False,
        betas=(0.0, 0.99),
        ema_decay=0.998,
        final_lr=1.0,
        val_images=40,
        val_minutes=30.0,
        on_gpu=8,
        phases=(Phase("natural", 1.0, (whole, tiles), Natural(), lr=4e-4, warmup=200, trainable=("natural.",)),),
    )


RECIPES = {"nano": _nano, "nano-natural": _natural}
