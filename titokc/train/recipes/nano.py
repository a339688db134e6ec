"""nano's recipe: nano-1 was made by it (bench/LOG.md has the course of its training)."""

from dataclasses import replace

from titokc.models.nano.config import NanoConfig
from titokc.train.objectives.pixels import Pixels
from titokc.train.recipes.schema import Phase, Recipe, View


def _nano() -> Recipe:
    small = View(side=64, batch_size=128, large_share=0.35, min_scale=0.4)
    large = View(side=256, batch_size=64, min_scale=0.7)
    psnr = Pixels(l2=0.0, log_l2=1.0)
    looks = replace(psnr, efficientnet=1.0)
    mixed = (replace(large, share=0.6), replace(small, share=0.4))
    halved = tuple(replace(view, batch_size=view.batch_size // 2) for view in mixed)
    return Recipe(
        name="nano",
        model=NanoConfig(),
        minutes=405,  # nano-1 took 390 after its fit
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


RECIPES = {"nano": _nano}
