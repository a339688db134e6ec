"""The training loop: one `Trainer` runs a recipe on a tokenizer until its budget is spent; it may be killed any time.

Everything random in a step follows from the seed, the step and the sample's position, so a run's random state is a few
numbers in `titokc.train.state`, and its result does not depend on how often it was resumed, on how batches are split
over processes and micro-batches (but for rounding, and for what dead codebook entries are replaced by), or on the
threads that prepare them.
"""

import itertools
import math
import signal
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from titokc.errors import TitokcError, UsageError, WeightsError
from titokc.models.interface import Tokenizer
from titokc.models.quantizers import CodebookRevival
from titokc.models.titok.pixel_decoder import MaskGITVQGAN
from titokc.train import checkpoint, losses, optim
from titokc.train.augment import Batch, Sampler
from titokc.train.data import ImageSet
from titokc.train.discriminator import Adversary
from titokc.train.distributed import Group
from titokc.train.gradients import Gradients
from titokc.train.log import RunLog
from titokc.train.recipes import Phase, Recipe, check
from titokc.train.state import State, phase_at, phase_progress, rate_factor
from titokc.train.validate import pictures, token_counts, validate

_MOST_FAILURES = 5
# Seconds within which a second signal to stop is the first one again.
_SAME_SIGNAL = 5.0


class TrainingDivergedError(TitokcError):
    """The loss became infinite or kept growing, also after going back to earlier checkpoints."""


class Trainer:
    """Trains `tokenizer` in place by `recipe` on `images`; checkpoints and averages go to the folder `run`.

    validation: images that `images` does not hold, or None. initialised: the weights come from elsewhere, and the
    tokenizer's own data-dependent initialisation is left out. codes: whose proxy codes stage 1 learns. log: None is
    silent. autocast: the type of the forward pass, torch.float32 for none. workers: threads that make the next batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        images: ImageSet,
        run: Path,
        *,
        validation: ImageSet | None = None,
        initialised: bool = False,
        codes: MaskGITVQGAN | None = None,
        log: RunLog | None = None,
        group: Group | None = None,
        autocast: torch.dtype = torch.float32,
        workers: int = 1,
    ) -> None:
        phases = check(recipe, tokenizer)
        if any(phase.losses.codes for phase in phases) and codes is None:
            raise UsageError(f"the recipe {recipe.name} learns a VQGAN's codes: give its weights with --proxy")
        self.recipe, self.tokenizer, self.run_folder, self.state = recipe, tokenizer, run, State()
        self.device = tokenizer.device
        self.group = group or Group()
        self.optimizers = optim.build(tokenizer, recipe)
        self.average = optim.Average(tokenizer, recipe.ema_decay)
        self.adversary = None
        if any(phase.losses.gan for phase in phases):
            self.adversary = Adversary(self.device, self.group, recipe.discriminator_channels)
        self.criterion = losses.Criterion([phase.losses for phase in phases], self.device)
        self._initialised = initialised
        self._images, self._validation, self._log = images, validation, log
        self._trainable = {name: p for name, p in tokenizer.named_parameters() if p.requires_grad}
        self._names: optim.Names = {parameter: name for name, parameter in self._trainable.items()}
        self._quantizers = tokenizer.codebooks
        self._revivals: dict[str, CodebookRevival] = {}
        if recipe.revival_patience:
            self._revivals = {n: CodebookRevival(q, recipe.revival_patience) for n, q in self._quantizers.items()}
        self._gradients = Gradients(
            tokenizer,
            self.criterion,
            self.group,
            codes=codes,
            adversary=self.adversary,
            micro_batch=recipe.micro_batch,
            token_drop_step=recipe.token_drop_step,
            autocast=autocast,
        )
        self._scaler = self._gradients.scaler
        self._pool, self._workers = ThreadPoolExecutor(workers, thread_name_prefix="batches"), workers
        self._ahead: tuple[tuple[int, int], list[Future[Batch]]] | None = None
        self._samplers: list[Sampler] = []
        self._trained: list[nn.Parameter] = []
        self._squares: dict[int, Tensor] = {}
        self._failures = 0
        self._saved_at = (0, 0.0)
        self._stop, self._stop_asked = False, 0.0
        self._clock = time.monotonic()

    # ---- the run

    def run(self) -> State:
        """Trains until the budget is spent; on SIGINT or SIGTERM a checkpoint, then KeyboardInterrupt.

        A second signal, later, stops at once."""
        if checkpoint.saved(self.run_folder):
            self._enter(self.state.phase, fresh=False)
        else:
            self._start()
        self.state.phase_began = min(self.state.phase_began, self.state.progress(self.recipe))
        self._saved_at = (self.state.step, self.state.elapsed)
        previous = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        self._clock = time.monotonic()
        try:
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
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._pool.shutdown(cancel_futures=True)
        if self._stop:
            raise KeyboardInterrupt
        return self.state

    def _request_stop(self, *_: Any) -> None:
        # torchrun hands on what the terminal or the scheduler has sent to every process already: no second wish.
        if self._stop_asked and time.monotonic() - self._stop_asked > _SAME_SIGNAL:
            raise KeyboardInterrupt
        self._stop, self._stop_asked = True, self._stop_asked or time.monotonic()

    def _due(self, steps: int, minutes: float, last: tuple[int, float]) -> bool:
        return self.state.step - last[0] >= steps or self.state.elapsed - last[1] >= 60 * minutes

    @property
    def _phase(self) -> Phase:
        return self.recipe.phases[self.state.phase]

    def _enter(self, phase: int, fresh: bool) -> None:
        """Sets up the samplers and trainable parameters of a phase; a fresh one starts its counts anew."""
        views = self.recipe.phases[phase].views
        if fresh or len(self.state.positions) != len(views):
            self.state.enter(phase, len(views), self.state.progress(self.recipe))
            self._say(f"phase {phase + 1} of {len(self.recipe.phases)}: {self.recipe.phases[phase].name}")
        for view in views:
            if view.batch_size % self.group.size:
                raise UsageError(f"a batch of {view.batch_size} cannot be shared by {self.group.size} processes")
        seeds = [(self.recipe.seed, phase, at) for at in range(len(views))]
        self._samplers = [Sampler(self._images, view, seed) for view, seed in zip(views, seeds, strict=True)]
        self._ahead = None
        prefixes = self._phase.trainable
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(not prefixes or name.startswith(prefixes))
        self._trained = [parameter for parameter in self._trainable.values() if parameter.requires_grad]
        self._gradients.enter()

    def _start(self) -> None:
        """The first moments of a fresh run: data-dependent initialisation, and the checkpoint of step 0."""
        self._enter(phase_at(self.recipe, 0.0), fresh=True)
        if self.tokenizer.fit_steps and not self._initialised:
            self._say("fitting the tokenizer to training batches")
            if self.group.first:
                sampler = Sampler(self._images, self._phase.views[0], (self.recipe.seed, len(self.recipe.phases)))
                batches = (batch.images(self.device) for batch in self._batches(sampler))
                with tqdm(total=self.tokenizer.fit_steps, desc="fitting", leave=False, disable=None) as bar:
                    for done in self.tokenizer.fit(batches):
                        bar.update(done - bar.n)
            self.group.copy_first(self.tokenizer)
            self.average = optim.Average(self.tokenizer, self.recipe.ema_decay)
        self.save()

    def _batches(self, sampler: Sampler) -> Iterator[Batch]:
        """All batches of a sampler from the first on; the next ones are always under way."""
        size = sampler.view.batch_size
        starts = itertools.count(0, size)
        ahead = deque(self._pool.submit(sampler.batch, at, size) for at in itertools.islice(starts, self._workers))
        for start in starts:
            yield ahead.popleft().result()
            ahead.append(self._pool.submit(sampler.batch, start, size))

    # ---- one step

    def _prepare(self, view: int) -> list[Future[Batch]]:
        """This process's part of the next batch of a view, in slices; already under way if it was foreseen."""
        sampler, position = self._samplers[view], self.state.positions[view]
        if self._ahead is None or self._ahead[0] != (view, position):
            size = sampler.view.batch_size // self.group.size
            begin = position + self.group.rank * size
            slices = min(self._workers, size)
            edges = [begin + size * i // slices for i in range(slices + 1)]
            futures = [self._pool.submit(sampler.batch, a, b - a) for a, b in itertools.pairwise(edges)]
            self._ahead = ((view, position), futures)
        return self._ahead[1]

    def _step(self) -> bool:
        """One optimiser step; False after a roll-back."""
        recipe, state = self.recipe, self.state
        view = state.next_view(self._phase)
        batch = Batch.joined([future.result() for future in self._prepare(view)])
        taken = len(batch.draws) * self.group.size
        state.positions[view] += taken
        state.view_steps[view] += 1
        self._prepare(state.next_view(self._phase))

        seeds = np.random.SeedSequence([recipe.seed, state.step, self.group.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.tokenizer.train()
        with_gan = bool(self._phase.losses.gan) and phase_progress(recipe, state) >= self._phase.losses.gan_start
        found, images, outputs = self._gradients.of(batch, self._phase, with_gan)
        found |= {"elapsed": time.monotonic() - self._clock if self.group.first else 0.0, "stop": float(self._stop)}
        self._clock = time.monotonic()
        total = self.group.sum(found, self.device)
        state.elapsed += total.pop("elapsed")
        self._stop = total.pop("stop") > 0
        terms = {n.removeprefix("loss_"): v / self.group.size for n, v in total.items() if n.startswith("loss_")}

        for optimizer in self.optimizers.values():
            self._scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(self._trained, recipe.clip))
        loss = losses.reconstruction_loss(terms)
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
        revived = sum(revival.step() for revival in self._revivals.values())
        if self.adversary is not None and "gan" in terms:
            rate, micro = factor * recipe.discriminator_lr, recipe.micro_batch or len(images)
            # There is no gradient scaler for the discriminator: float16 would lose its small gradients.
            with nullcontext() if self._scaler.is_enabled() else self._gradients.casting():
                verdict = self.adversary.step(images, outputs, rate, self._phase.losses.lecam, micro, recipe.clip)
            total |= {f"discriminator_{name}": value for name, value in verdict.items()}
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
        if self._failures > _MOST_FAILURES:
            raise TrainingDivergedError(f"{found}: diverged after {_MOST_FAILURES} attempts; lower the learning rates")
        folders = checkpoint.saved(self.run_folder)
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
        self._failures = 0 if self.state.step else self._failures
        if not self.group.first:
            return
        parts = {
            "tokenizer": self.tokenizer.state_dict(),
            "average": self.average.tokenizer.state_dict(),
            **{name: optim.state_tensors(optimizer, self._names) for name, optimizer in self.optimizers.items()},
            **{f"revival_{name}": revival.state_dict() for name, revival in self._revivals.items()},
            **(self.adversary.tensors() if self.adversary is not None else {}),
        }
        state = {"recipe": self.recipe.name, "scaler": self._scaler.state_dict(), **asdict(self.state)}
        keep = {self.state.best_step} if self.state.best_step >= 0 else set()
        checkpoint.save(self.run_folder, self.state.step, parts, state, keep)

    def resume(self) -> None:
        """Continues from the run's newest whole checkpoint."""
        folders = checkpoint.saved(self.run_folder)
        while True:
            try:
                return self.restore(folders.pop())
            except checkpoint.DamagedCheckpointError as error:
                if not folders:
                    raise
                self._say(f"{error}; using the checkpoint before it")

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
        for key, revival in self._revivals.items():
            if f"revival_{key}" in parts:
                revival.load_state_dict(parts[f"revival_{key}"])
        if self.adversary is not None:
            self.adversary.load(parts)
        if scaler := numbers.pop("scaler", None):
            self._scaler.load_state_dict(scaler)
        self.state = State(**numbers)

    # ---- reports

    def _validate(self) -> None:
        state = self.state
        state.val_step, state.val_elapsed = state.step, state.elapsed
        if self._validation is None:
            return
        side = max(view.side for view in self._phase.views)
        if side not in self._squares:
            self._squares[side] = pictures(self._validation, side, self.recipe.val_images)
        found, grid = validate(
            self.average.tokenizer,
            self._squares[side],
            self.criterion,
            self._phase.losses,
            self._gradients.casting(),
            self.group,
        )
        if self._log is not None:
            self._log.record("val", state.step, {"side": side, "elapsed": round(state.elapsed, 1), **found})
            self._log.picture("val/reconstructions", state.step, grid)
        decibels = " ".join(f"{k}:{found[f'psnr/{k}']:.2f}" for k in token_counts(self.tokenizer))
        used = f"codebook {found['usage']:.0%} used, perplexity {found['perplexity']:.0f}"
        self._say(f"step {state.step}: val {side} px, dB by tokens {decibels}, {used}")
        if state.phase != state.best_phase or found["loss"] < state.best_loss:
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
