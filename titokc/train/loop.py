"""The training loop: one `Trainer` runs a recipe on a tokenizer until its budget is spent; it may be killed any time.

Everything random in a step follows from the seed, the step and the sample's position, so a run's random state is a few
numbers in `titokc.train.state`, and its result does not depend on how often it was resumed, on how batches are split
over processes and micro-batches (but for rounding, and for what dead codebook entries are replaced by), or on the
threads that prepare them.
"""

import math
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from titokc.errors import UsageError, WeightsError
from titokc.models.interface import Tokenizer
from titokc.train import checkpoint, optim
from titokc.train.data import ImageSet
from titokc.train.distributed import Group
from titokc.train.feed import Feed
from titokc.train.gradients import Gradients
from titokc.train.log import RunLog
from titokc.train.objectives import Objective
from titokc.train.recipes.schema import Phase, Recipe, check
from titokc.train.revival import CodebookRevival
from titokc.train.state import State, TrainingDivergedError, phase_at, phase_progress, rate_factor
from titokc.train.validate import described, pictures, token_counts

_MOST_FAILURES = 5
# Seconds within which a second signal to stop is the first one again.
_SAME_SIGNAL = 5.0


class Trainer:
    """Trains `tokenizer` in place by `recipe` on `images`; checkpoints and averages go to the folder `run`.

    objectives: one for each phase of the recipe, None where its share is 0. validation: images that `images` does not
    hold, or None. initialised: the weights come from elsewhere, so that nothing is fitted. log: None is
    silent. autocast: the type of the forward pass, torch.float32 for none. workers: threads that make the next batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        objectives: Sequence[Objective[Any] | None],
        images: ImageSet,
        run: Path,
        *,
        validation: ImageSet | None = None,
        initialised: bool = False,
        log: RunLog | None = None,
        group: Group | None = None,
        autocast: torch.dtype = torch.float32,
        workers: int = 1,
    ) -> None:
        check(recipe, tokenizer)
        self.recipe, self.tokenizer, self.run_folder = recipe, tokenizer, run
        self.state = State(data=[part.contents for part in (images, validation) if part is not None])
        self.state.fitted = 0 if tokenizer.fit_steps and not initialised else None
        self.device = tokenizer.device
        self.group = group or Group()
        self.optimizers = optim.build(tokenizer, recipe.muon, recipe.betas, recipe.weight_decay)
        self.average = optim.Average(tokenizer, recipe.ema_decay)
        self.objectives, self.images = objectives, images
        self._validation, self._log = validation, log
        self._trainable = {name: p for name, p in tokenizer.named_parameters() if p.requires_grad}
        self._names: optim.Names = {parameter: name for name, parameter in self._trainable.items()}
        codebooks = tokenizer.codebooks if recipe.revival_patience else {}
        self.revivals = {name: CodebookRevival(q, recipe.revival_patience) for name, q in codebooks.items()}
        self.gradients = Gradients(tokenizer, self.group, recipe, autocast)
        self._scaler = self.gradients.scaler
        self.feed = Feed(workers, self.group, self.device)
        self.trained: list[nn.Parameter] = []
        self._squares: dict[int, Tensor] = {}
        self._failures, self._failed_at = 0, -1
        self._saved_at = (0, 0.0)
        # What this process was asked for; what all processes have agreed on.
        self._stop_asked, self._stop = 0.0, False
        self._clock = time.monotonic()

    # ---- the run

    def run(self) -> State:
        """Trains until the budget is spent; on SIGINT or SIGTERM a checkpoint, then KeyboardInterrupt.

        A second signal, later, stops at once."""
        previous = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        self._clock = time.monotonic()
        try:
            self._begin()
            while self.state.progress(self.recipe) < 1 and not self._stop:
                phase = phase_at(self.recipe, self.state.progress(self.recipe))
                if phase > self.state.phase:
                    self._enter(phase, fresh=True)
                    self.save()
                if not self._step():
                    continue
                last_val = (self.state.val_step, self.state.val_elapsed)
                if self._due(self.recipe.val_steps, self.recipe.val_minutes, last_val):
                    self._validate()
                if self._due(self.recipe.checkpoint_steps, self.recipe.checkpoint_minutes, self._saved_at):
                    self.save()
            if not self._stop and self.state.val_step < self.state.step:
                self._validate()
            if self._saved_at[0] < self.state.step:
                self.save()
        finally:
            # torchrun ends the others when one process is lost: they still have to say so.
            for number, handler in previous.items() if self.group.size == 1 else ():
                signal.signal(number, handler)
            self.feed.close()
        if self._stop:
            raise KeyboardInterrupt
        return self.state

    def _request_stop(self, *_: Any) -> None:
        # torchrun hands on what the terminal or the scheduler has sent to every process already: no second wish.
        if self._stop_asked and time.monotonic() - self._stop_asked > _SAME_SIGNAL:
            raise KeyboardInterrupt
        self._stop_asked = self._stop_asked or time.monotonic()
        self._stop = self._stop or self.group.size == 1

    def _agree(self, found: dict[str, float]) -> dict[str, float]:
        """Sums over the processes; the clock of the first goes on, and all stop if one was asked to."""
        found |= {"elapsed": time.monotonic() - self._clock if self.group.first else 0.0}
        found |= {"stop": float(self._stop_asked > 0)}
        self._clock = time.monotonic()
        total = self.group.sum(found, self.device)
        self.state.elapsed += total.pop("elapsed")
        self._stop = total.pop("stop") > 0
        return total

    def _due(self, steps: int, minutes: float, last: tuple[int, float]) -> bool:
        return self.state.step - last[0] >= steps or self.state.elapsed - last[1] >= 60 * minutes

    @property
    def _phase(self) -> Phase:
        return self.recipe.phases[self.state.phase]

    @property
    def _objective(self) -> Objective[Any]:
        objective = self.objectives[self.state.phase]
        assert objective is not None
        return objective

    def _enter(self, phase: int, fresh: bool) -> None:
        """Sets up the samplers and trainable parameters of a phase; a fresh one starts its counts anew."""
        views = self.recipe.phases[phase].views
        if fresh or len(self.state.positions) != len(views):
            learnt = self._objective.tensors() if self.state.step else {}
            self.state.enter(phase, len(views), self.state.progress(self.recipe))
            self._say(f"phase {phase + 1} of {len(self.recipe.phases)}: {self.recipe.phases[phase].name}")
            self._objective.load(learnt)
        for view in views:
            if view.batch_size % self.group.size:
                raise UsageError(f"a batch of {view.batch_size} cannot be shared by {self.group.size} processes")
        seed = self.recipe.seed, phase
        self.feed.enter([self.feed.sampler(self.images, view, (*seed, at)) for at, view in enumerate(views)])
        self.train_for(self._phase)

    def train_for(self, phase: Phase) -> None:
        """Gradients for what trains in a phase, and for nothing else."""
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(name.startswith(phase.trainable or ""))
        self.trained = [parameter for parameter in self._trainable.values() if parameter.requires_grad]
        self.gradients.enter()

    def _begin(self) -> None:
        """The first moments of a run, or of its continuation: what is to be fitted, and the checkpoint of step 0."""
        if self.state.step or (self.state.positions and self.state.fitted is None):
            self._enter(self.state.phase, fresh=False)
        else:
            self._enter(phase_at(self.recipe, 0.0), fresh=True)
            self._objective.prepare(self.tokenizer)
            if self.state.fitted is not None and not self._fit():
                return
            self.average = optim.Average(self.tokenizer, self.recipe.ema_decay)
            self.save()
        self.state.phase_began = min(self.state.phase_began, self.state.progress(self.recipe))
        self._saved_at = (self.state.step, self.state.elapsed)

    def _fit(self) -> bool:
        """Fits the tokenizer in the first process, with checkpoints; False if it was stopped or took the whole budget.

        A fit goes on from the number of steps done and the same batches (`Tokenizer.fit`)."""
        state, steps = self.state, self.tokenizer.fit_steps
        over = False
        if self.group.first:
            self._say(f"fitting the tokenizer to training images: {steps} steps, {state.fitted or 0} done")
            seed = (self.recipe.seed, len(self.recipe.phases))
            sampler = self.feed.sampler(self.images, self.recipe.largest_view, seed)
            batches = (batch.images(self.device) for batch in self.feed.all_of(sampler))
            before, saved = state.fitting, state.fitting
            for done in self.tokenizer.fit(batches, state.fitted or 0):
                state.fitted, state.fitting = done, before + time.monotonic() - self._clock
                state.elapsed = state.fitting
                if self._log is not None:
                    self._log.fitting(done, steps, state.fitting)
                over = bool(self._stop_asked) or state.progress(self.recipe) >= 1
                if over or state.fitting - saved >= 60 * self.recipe.checkpoint_minutes:
                    self.save()
                    saved = state.fitting
                if over:
                    break
            self._clock = time.monotonic()
        total = self._agree({"over": float(over), "fitting": state.fitting if self.group.first else 0.0})
        state.fitting = state.elapsed = total["fitting"]
        if total["over"]:
            how = "--resume" if self._stop else "--resume and a larger budget"
            self._say(f"stopped while the tokenizer was fitted ({state.fitted} of {steps}): continue with {how}")
            return False
        state.fitted = None
        self.group.copy_first(self.tokenizer)
        return True

    # ---- one step

    def _step(self) -> bool:
        """One optimiser step; False after a roll-back."""
        recipe, state = self.recipe, self.state
        view = state.next_view(self._phase)
        batch = self.feed.take(view, state.positions[view])
        taken = len(batch.draws) * self.group.size
        state.positions[view] += taken
        state.view_steps[view] += 1
        ahead = state.next_view(self._phase)
        self.feed.prepare(ahead, state.positions[ahead])

        seeds = np.random.SeedSequence([recipe.seed, state.step, self.group.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.tokenizer.train()
        progress = phase_progress(recipe, state)
        tally = self.gradients.of(batch, self._phase, self._objective, progress)
        for optimizer in self.optimizers.values():
            self._scaler.unscale_(optimizer)
        tally.add("norm", nn.utils.clip_grad_norm_(self.trained, recipe.clip))
        found = tally.fetch()
        norm = found.pop("norm")
        total = self._agree(found)
        terms = {n.removeprefix("loss_"): v / self.group.size for n, v in total.items() if n.startswith("loss_")}
        loss = sum(value for name, value in terms.items() if name not in self._objective.may_grow)
        overflow = self._scaler.is_enabled() and not math.isfinite(norm)
        if state.diverges(view, loss, recipe.divergence) or not (math.isfinite(norm) or overflow):
            self._roll_back(f"step {state.step}: loss {loss:.4g}, gradient norm {norm:.4g}")
            return False
        factor = rate_factor(recipe, state)
        for name, optimizer in self.optimizers.items():
            for settings in optimizer.param_groups:
                settings["lr"] = factor * (self._phase.muon_lr if name == "muon" else self._phase.lr)
            self._scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self._scaler.update()
        revived = sum(revival.step() for revival in self.revivals.values())
        # There is no gradient scaler for what else learns: float16 would lose its small gradients.
        with nullcontext() if self._scaler.is_enabled() else self.gradients.casting():
            total |= self._objective.learn(factor)
        self.average.update(state.step)
        state.step += 1
        state.phase_step += 1
        state.images += taken
        self._note(total, terms, taken, norm, revived)
        return True

    def _roll_back(self, found: str) -> None:
        """Back to the last checkpoint and past the data that failed; each time after the first in a row with half the
        rate and from one checkpoint earlier, until five attempts have failed."""
        self._failures += 1
        self._failed_at = max(self._failed_at, self.state.step)
        if self._failures > _MOST_FAILURES:
            raise TrainingDivergedError(f"{found}: diverged after {_MOST_FAILURES} attempts; lower the learning rates")
        folders = [folder for folder in checkpoint.saved(self.run_folder) if checkpoint.step_of(folder) >= 0]
        if self._scaler.is_enabled():
            self._scaler.update()  # forgets the gradients that it has unscaled
        self.group.wait()
        if self._failures > 1 and len(folders) > 1:
            if self.group.first:
                checkpoint.discard(folders[-1])
            folders.pop()
        self.group.wait()
        failed = self.state
        self.restore(folders[-1])
        if self.state.phase == failed.phase:
            self.state.positions = failed.positions
        self.state.elapsed = failed.elapsed
        self.state.lr_scale = failed.lr_scale * (0.5 if self._failures > 1 else 1.0)
        self._saved_at = (self.state.step, self.state.elapsed)
        self._enter(self.state.phase, fresh=False)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        again = f"back to the checkpoint of step {self.state.step}, rates x {self.state.lr_scale:g}"
        self._say(f"{found}: {again}", rollback=True)

    # ---- checkpoints

    def save(self) -> None:
        """Writes a checkpoint of this moment."""
        self._saved_at = (self.state.step, self.state.elapsed)
        if self.state.step > self._failed_at:
            self._failures = 0
        if not self.group.first:
            return
        parts = {
            "tokenizer": self.tokenizer.state_dict(),
            "average": self.average.tokenizer.state_dict(),
            **{name: optim.state_tensors(optimizer, self._names) for name, optimizer in self.optimizers.items()},
            **{f"revival_{name}": revival.state_dict() for name, revival in self.revivals.items()},
            **self._objective.tensors(),
        }
        state = {"recipe": self.recipe.name, "scaler": self._scaler.state_dict(), **asdict(self.state)}
        keep = {self.state.best_step} if self.state.best_step >= 0 else set()
        checkpoint.save(self.run_folder, checkpoint.name_of(self.state.step, self.state.fitted), parts, state, keep)

    def resume(self, other_data: bool = False) -> None:
        """Continues from the run's newest whole checkpoint; UsageError if the images are others, unless that is meant.

        Other images make other batches, and where some are held out, validation sees what was trained on."""
        folders, data = checkpoint.saved(self.run_folder), self.state.data
        while True:
            try:
                self.restore(folders.pop())
                break
            except checkpoint.DamagedCheckpointError as error:
                if not folders:
                    raise
                self._say(f"{error}; using the checkpoint before it")
        if self.state.data and self.state.data != data and not other_data:
            raise UsageError(
                f"{self.run_folder} was begun with other training or validation images: give those, or --other-data"
            )
        self.state.data = data
        spent = self.state.progress(self.recipe)
        left = f"{spent:.0%} of the budget spent" if spent < 1 else "the budget is spent: give a larger one"
        self._say(f"resumed at step {self.state.step}, {left}")

    def restore(self, folder: Path) -> None:
        """Puts a checkpoint's tensors and state in place; WeightsError if they do not fit the tokenizer."""
        parts, numbers = checkpoint.load(folder)
        name = numbers.pop("recipe")
        if name != self.recipe.name:
            raise WeightsError(f"{folder}: a checkpoint of the recipe {name}, expected {self.recipe.name}")
        checkpoint.fill(self.tokenizer, parts["tokenizer"], folder)
        checkpoint.fill(self.average.tokenizer, parts["average"], folder)
        for key, optimizer in self.optimizers.items():
            optim.load_state_tensors(optimizer, self._names, parts.get(key, {}))
        for key, revival in self.revivals.items():
            if f"revival_{key}" in parts:
                revival.load_state_dict(parts[f"revival_{key}"])
        if scaler := numbers.pop("scaler", None):
            self._scaler.load_state_dict(scaler)
        self.state = State(**numbers)
        self._objective.load(parts)

    # ---- reports

    def _validate(self) -> None:
        state = self.state
        state.val_step, state.val_elapsed = state.step, state.elapsed
        if self._validation is None:
            return
        side = max(view.side for view in self._phase.views)
        if side not in self._squares:
            self._squares[side] = pictures(self._validation, side, self.recipe.val_images)
        with self.gradients.casting():
            found, grid = self._objective.validate(self.average.tokenizer, self._squares[side])
        if self._log is not None:
            self._log.record("val", state.step, {"side": side, "elapsed": round(state.elapsed, 1), **found})
            self._log.picture("val/reconstructions", state.step, grid)
        self._say(f"step {state.step}: val {side} px, {described(self.tokenizer, found)}")
        if state.phase != state.best_phase or state.best_loss is None or found["loss"] < state.best_loss:
            state.best_phase, state.best_loss, state.best_step = state.phase, found["loss"], state.step
            self.save()

    def _note(self, total: dict[str, float], terms: dict[str, float], taken: int, norm: float, revived: int) -> None:
        if self._log is None:
            return
        measured = {f"loss_{name}": value for name, value in terms.items()} | {"gradient_norm": norm}
        measured |= {name: value for name, value in total.items() if name.startswith("discriminator_")}
        for count in token_counts(self.tokenizer):
            if images := total[f"images/{count}"]:
                measured[f"psnr_{count}"] = total[f"decibels/{count}"] / images
        if search := self._phase.search:
            measured["search_gain"] = (total[f"turn/{search}"] - total["turn/0"]) / taken
        state = self.state
        row = {"phase": self._phase.name, "progress": state.progress(self.recipe), "elapsed": round(state.elapsed, 1)}
        row |= {f"lr_{name}": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        self._log.trained(state.step, taken, measured, row | {"images": state.images})
        if revived:
            self._log.record("revived", state.step, {"entries": revived})

    def _say(self, text: str, **values: Any) -> None:
        if self._log is not None:
            self._log.message(text, self.state.step, **values)
