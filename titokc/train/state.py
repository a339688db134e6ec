"""The part of a run's state that is no tensor: how far it is, and how well it goes."""

import math
from dataclasses import dataclass, field

from titokc.errors import TitokcError
from titokc.train.recipes.schema import Phase, Recipe


class TrainingDivergedError(TitokcError):
    """The loss became infinite or kept growing, also after going back to earlier checkpoints."""


@dataclass
class State:
    """state.json of a checkpoint.

    data: the digests of the training and validation images. fitted: of `Tokenizer.fit_steps`, None when nothing is left
    to fit; fitting: seconds spent on it.
    positions, view_steps: for each view of the current phase, samples and steps taken. elapsed: seconds of fitting and
    training. smooth, lowest: the smoothed reconstruction loss of each view, and its lowest value in this phase, None
    before there is one. best_*: the validation with the lowest loss in the current phase; val_*: the latest one.
    """

    data: list[str] = field(default_factory=list)
    fitted: int | None = None
    fitting: float = 0.0

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    phase_began: float = 0.0
    positions: list[int] = field(default_factory=list)
    view_steps: list[int] = field(default_factory=list)
    images: int = 0
    elapsed: float = 0.0
    lr_scale: float = 1.0
    smooth: list[float] = field(default_factory=list)
    lowest: list[float | None] = field(default_factory=list)
    best_step: int = -1
    best_loss: float | None = None
    best_phase: int = -1
    val_step: int = 0
    val_elapsed: float = 0.0

    def enter(self, phase: int, views: int, progress: float) -> None:
        """The first moment of a phase."""
        self.phase, self.phase_step, self.phase_began = phase, 0, progress
        self.positions, self.view_steps = [0] * views, [0] * views
        self.smooth, self.lowest = [0.0] * views, [None] * views

    def progress(self, recipe: Recipe) -> float:
        """The part of the budget that is spent, 0 to 1; phases share what a fit has left of it."""
        by_steps = self.step / recipe.steps if recipe.steps else 0.0
        if not recipe.minutes:
            return by_steps
        left = 60 * recipe.minutes - self.fitting
        return max(by_steps, (self.elapsed - self.fitting) / left if left > 0 else 1.0)

    def next_view(self, phase: Phase) -> int:
        """The view that is furthest behind its share of the phase's steps."""
        total, taken = sum(view.share for view in phase.views), sum(self.view_steps)
        behind = [
            view.share / total * (taken + 1) - steps for view, steps in zip(phase.views, self.view_steps, strict=True)
        ]
        return behind.index(max(behind))

    def diverges(self, view: int, loss: float, limit: float) -> bool:
        """Notes a view's loss; True if it is not finite, or has grown smoothly to `limit` times its lowest."""
        if not math.isfinite(loss):
            return True
        smooth = loss if self.view_steps[view] == 1 else 0.95 * self.smooth[view] + 0.05 * loss
        self.smooth[view] = smooth
        lowest = self.lowest[view]
        if self.view_steps[view] >= 20:
            lowest = self.lowest[view] = smooth if lowest is None else min(lowest, smooth)
        return lowest is not None and smooth > limit * lowest


def phase_at(recipe: Recipe, progress: float) -> int:
    """The phase that the share of the budget falls into; phases without a share are left out."""
    total, passed, last = sum(phase.share for phase in recipe.phases), 0.0, 0
    for at, phase in enumerate(recipe.phases):
        if phase.share:
            passed, last = passed + phase.share / total, at
            if progress < passed:
                break
    return last


def phase_progress(recipe: Recipe, state: State) -> float:
    """How far the current phase is, 0 to 1."""
    total = sum(phase.share for phase in recipe.phases)
    end = sum(phase.share for phase in recipe.phases[: state.phase + 1]) / total
    return (state.progress(recipe) - state.phase_began) / max(end - state.phase_began, 1e-9)


def rate_factor(recipe: Recipe, state: State) -> float:
    """The schedule: warm-up over the phase's first steps, a cosine over the whole budget, what roll-backs left."""
    warm = min(1.0, (state.phase_step + 1) / max(1, recipe.phases[state.phase].warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, state.progress(recipe))))
    return state.lr_scale * warm * (recipe.final_lr + (1 - recipe.final_lr) * cosine)
