"""The part of a run's state that is no tensor: how far it is, and how well it goes."""

import math
from dataclasses import dataclass, field

from titokc.train.recipes import Phase, Recipe


@dataclass
class State:
    """state.json of a checkpoint.

    positions, view_steps: for each view of the current phase, samples and steps taken. elapsed: seconds of training.
    smooth, lowest: the smoothed reconstruction loss of each view, and its lowest value in this phase. best_*: the
    validation with the lowest loss in the current phase; val_*: the latest one.
    """

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
    lowest: list[float] = field(default_factory=list)
    best_step: int = -1
    best_loss: float = math.inf
    best_phase: int = -1
    val_step: int = 0
    val_elapsed: float = 0.0

    def enter(self, phase: int, views: int, progress: float) -> None:
        """The first moment of a phase."""
        self.phase, self.phase_step, self.phase_began = phase, 0, progress
        self.positions, self.view_steps = [0] * views, [0] * views
        self.smooth, self.lowest = [0.0] * views, [math.inf] * views

    def progress(self, recipe: Recipe) -> float:
        """The part of the budget that is spent, 0 to 1."""
        by_steps = self.step / recipe.steps if recipe.steps else 0.0
        by_time = self.elapsed / (60 * recipe.minutes) if recipe.minutes else 0.0
        return max(by_steps, by_time)

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
        if self.view_steps[view] >= 20:
            self.lowest[view] = min(self.lowest[view], smooth)
        return smooth > limit * self.lowest[view]


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
