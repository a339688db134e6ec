"""The training loop: one `Trainer` runs a recipe on a tokenizer until its budget is spent; it may be killed any time.

Everything random in a step follows from the seed, the step and the sample's position, so the state of a run is its
tensors and a few numbers. Schedule: `progress` in [0, 1] is the part of the steps or of the minutes that is spent.
"""

import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titokc.errors import TitokcError, UsageError, WeightsError
from titokc.models.interface import Tokenizer
from titokc.train import checkpoint, losses, optim
from titokc.train.augment import Sampler
from titokc.train.data import ImageSet
from titokc.train.log import RunLog
from titokc.train.recipes import Phase, Recipe
from titokc.train.validate import pictures, token_counts, validate


class TrainingDivergedError(TitokcError):
    """The loss became infinite or kept growing, also after going back to earlier checkpoints."""


@dataclass
class State:
    """Everything of a run that is not a tensor; state.json of a checkpoint.

    positions, view_steps: for each view of the current phase, samples and steps taken. elapsed: seconds of training.
    smooth, lowest: the smoothed reconstruction loss of each view, and its lowest value in this phase.
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
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

    def enter(self, phase: int, views: int) -> None:
        self.phase, self.phase_step = phase, 0
        self.positions, self.view_steps = [0] * views, [0] * views
        self.smooth, self.lowest = [0.0] * views, [math.inf] * views


class Trainer:
    """Trains `tokenizer` in place by `recipe` on `images`; checkpoints, averages and logs go to the folder `run`.

    validation: images that `images` does not hold, or None. autocast: the type of the forward pass, torch.float32 for
    none. log: None keeps silent. workers: threads that prepare the next batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        images: ImageSet,
        run: Path,
        validation: ImageSet | None = None,
        log: RunLog | None = None,
        autocast: torch.dtype = torch.float32,
        workers: int = 1,
    ) -> None:
        if not recipe.steps and not recipe.minutes:
            raise UsageError("a run needs a budget: steps or minutes")
        self.recipe, self.tokenizer, self.images, self.run_folder = recipe, tokenizer, images, run
        self.device = tokenizer.device
        self.log = log
        self.state = State()
        self.average = optim.Average(tokenizer, recipe.ema_decay)
        self.optimizers = optim.build(tokenizer, recipe)
        self._validation = validation
        self._squares: dict[int, Tensor] = {}
        self._autocast = autocast
        self._names = {parameter: name for name, parameter in tokenizer.named_parameters()}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self._workers = workers
        self._ahead: tuple[Any, list[Future[tuple[Tensor, Tensor]]]] | None = None
        self._samplers: list[Sampler] = []
        self._trained: list[torch.nn.Parameter] = []
        self._failures = 0
        self._stop = False
        self._psnr: dict[int, float] = {}
        self._terms: dict[str, float] = {}
        self._rate = 0.0

    # ---- the run

    def run(self) -> State:
        """Trains until the budget is spent; KeyboardInterrupt (after a checkpoint) on SIGINT or SIGTERM."""
        if not checkpoint.saved(self.run_folder):
            self._start()
        self._enter(self.state.phase, fresh=False)
        previous = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        saved_step, saved_elapsed = self.state.step, self.state.elapsed
        try:
            while self.progress < 1 and not self._stop:
                clock = time.monotonic()
                if (phase := self._phase_at(self.progress)) > self.state.phase:
                    self._enter(phase, fresh=True)
                if not self._step():
                    continue
                self.state.elapsed += time.monotonic() - clock
                clock = time.monotonic()
                if self._due(
                    self.recipe.val_steps, self.recipe.val_minutes, self.state.val_step, self.state.val_elapsed
                ):
                    self._validate()
                if self._due(self.recipe.checkpoint_steps, self.recipe.checkpoint_minutes, saved_step, saved_elapsed):
                    self.save()
                    saved_step, saved_elapsed = self.state.step, self.state.elapsed
                self.state.elapsed += time.monotonic() - clock
            if not self._stop and self.state.val_step < self.state.step:
                self._validate()
            if self.state.step > saved_step:
                self.save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._pool.shutdown(cancel_futures=True)
        if self._stop:
            raise KeyboardInterrupt
        return self.state

    def _request_stop(self, *_: Any) -> None:
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True

    @property
    def progress(self) -> float:
        """The part of the budget that is spent, 0 to 1."""
        by_steps = self.state.step / self.recipe.steps if self.recipe.steps else 0.0
        by_time = self.state.elapsed / (60 * self.recipe.minutes) if self.recipe.minutes else 0.0
        return max(by_steps, by_time)

    def _due(self, steps: int, minutes: float, last_step: int, last_elapsed: float) -> bool:
        return self.state.step - last_step >= steps or self.state.elapsed - last_elapsed >= 60 * minutes

    # ---- phases

    def _phase_at(self, progress: float) -> int:
        total, passed = sum(phase.share for phase in self.recipe.phases), 0.0
        for at, phase in enumerate(self.recipe.phases):
            passed += phase.share / total
            if progress < passed:
                return at
        return len(self.recipe.phases) - 1

    @property
    def _phase(self) -> Phase:
        return self.recipe.phases[self.state.phase]

    def _enter(self, phase: int, fresh: bool) -> None:
        """Sets up the samplers and trainable parameters of a phase; a fresh one starts its counts anew."""
        views = self.recipe.phases[phase].views
        if fresh or len(self.state.positions) != len(views):
            self.state.enter(phase, len(views))
            self._say(f"phase {phase + 1} of {len(self.recipe.phases)}: {self.recipe.phases[phase].name}")
        seeds = [(self.recipe.seed, phase, at) for at in range(len(views))]
        self._samplers = [Sampler(self.images, view, seed) for view, seed in zip(views, seeds, strict=True)]
        self._ahead = None
        prefixes = self._phase.trainable
        for parameter, name in self._names.items():
            parameter.requires_grad_(not prefixes or name.startswith(prefixes))
        self._trained = [parameter for parameter in self._names if parameter.requires_grad]
        if not self._trained:
            raise UsageError(f"phase {self._phase.name}: no parameter is called {' or '.join(prefixes)}...")

    def _start(self) -> None:
        """The first moments of a fresh run: data-dependent initialisation, and the checkpoint of step 0."""
        self._enter(0, fresh=True)
        initialise: Callable[[Iterator[Tensor]], None] | None = getattr(self.tokenizer, "initialise", None)
        if initialise is not None:
            self._say("initialising the tokenizer from training batches")
            sampler = Sampler(self.images, self._phase.views[0], (self.recipe.seed, len(self.recipe.phases)))
            torch.manual_seed(self.recipe.seed)
            initialise(self._forever(sampler))
            self.average = optim.Average(self.tokenizer, self.recipe.ema_decay)
        self.save()

    def _forever(self, sampler: Sampler) -> Iterator[Tensor]:
        size, position = min(128, sampler.view.batch_size), 0
        while True:
            yield sampler.batch(position, size)[0].to(self.device)
            position += size

    # ---- one step

    def _next_view(self) -> int:
        """The view that is furthest behind its share of the phase's steps."""
        shares = np.array([view.share for view in self._phase.views])
        behind = shares / shares.sum() * (sum(self.state.view_steps) + 1) - np.array(self.state.view_steps)
        return int(behind.argmax())

    def _prepare(self, view: int) -> list[Future[tuple[Tensor, Tensor]]]:
        """Futures of the next batch of a view, in slices; already under way if it was foreseen."""
        sampler, position = self._samplers[view], self.state.positions[view]
        key = (view, position)
        if self._ahead is not None and self._ahead[0] == key:
            return self._ahead[1]
        size = sampler.view.batch_size
        slices = min(self._workers, size)
        edges = [size * i // slices for i in range(slices + 1)]
        futures = [
            self._pool.submit(sampler.batch, position + start, stop - start)
            for start, stop in itertools.pairwise(edges)
        ]
        self._ahead = (key, futures)
        return futures

    def _step(self) -> bool:
        """One optimiser step; False after a rollback."""
        recipe, state, phase = self.recipe, self.state, self._phase
        began = time.monotonic()
        view = self._next_view()
        parts = [future.result() for future in self._prepare(view)]
        images, draws = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        state.positions[view] += len(images)
        state.view_steps[view] += 1
        self._prepare(self._next_view())

        torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 3, state.step]).generate_state(1)[0]))
        self.tokenizer.train()
        counts = self._token_counts(draws)
        micro = recipe.micro_batch or len(images)
        terms: dict[str, float] = {}
        quality: list[Tensor] = []
        for start in range(0, len(images), micro):
            part = images[start : start + micro].to(self.device)
            kept = None if counts is None else counts[start : start + micro].to(self.device)
            with self._casting():
                made = self.tokenizer(part, kept)
            found = losses.reconstruction_terms(phase.losses, made, part)
            share = len(part) / len(images)
            (sum(found.values(), torch.zeros((), device=self.device)) * share).backward()
            for name, value in found.items():
                terms[name] = terms.get(name, 0.0) + share * float(value.detach())
            quality.append(losses.psnr(made.images, part).cpu())
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained, recipe.clip))
        loss = sum(terms.values())
        if not math.isfinite(loss) or not math.isfinite(norm) or self._diverges(view, loss):
            self._roll_back(loss, norm)
            return False
        for group, lr in self._rates():
            group["lr"] = lr
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(state.step)
        state.step += 1
        state.phase_step += 1
        state.images += len(images)
        self._note(terms, torch.cat(quality), counts, norm, len(images) / (time.monotonic() - began))
        return True

    def _casting(self) -> AbstractContextManager[Any]:
        if self._autocast == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._autocast)

    def _token_counts(self, draws: Tensor) -> Tensor | None:
        """Uniform draws [B] in [0, 1) -> tokens kept of each image, int64 [B]; None for all of them."""
        least, step = self.recipe.token_drop_min, self.recipe.token_drop_step
        if not least:
            return None
        choices = torch.arange(least, self.tokenizer.max_tokens + 1, step)
        return choices[(draws * len(choices)).long()]

    def _rates(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Every optimiser's parameter groups with the learning rate of this step."""
        recipe, phase = self.recipe, self._phase
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        warm = min(1.0, (self.state.phase_step + 1) / max(1, phase.warmup))
        factor = self.state.lr_scale * warm * (recipe.final_lr + (1 - recipe.final_lr) * cosine)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                yield group, factor * (phase.muon_lr if name == "muon" else phase.lr)

    # ---- when it goes wrong

    def _diverges(self, view: int, loss: float) -> bool:
        """Smooths the view's loss; True if it has grown to `recipe.divergence` times its lowest."""
        state = self.state
        first = state.view_steps[view] == 1
        state.smooth[view] = loss if first else 0.95 * state.smooth[view] + 0.05 * loss
        if state.view_steps[view] >= 20:
            state.lowest[view] = min(state.lowest[view], state.smooth[view])
        return state.smooth[view] > self.recipe.divergence * state.lowest[view]

    def _roll_back(self, loss: float, norm: float) -> None:
        """Back to the last checkpoint, past the data that failed; from the second time on with half the rate, and from
        an earlier checkpoint, until five attempts have failed."""
        self._failures += 1
        folders = checkpoint.saved(self.run_folder)
        found = f"step {self.state.step}: loss {loss:.4g}, gradient norm {norm:.4g}"
        if self._failures > 5:
            raise TrainingDivergedError(f"{found}: diverged again after going back five times; lower the learning rate")
        if self._failures > 1 and len(folders) > 1:
            checkpoint.discard(folders.pop())
        phase, positions, elapsed = self.state.phase, self.state.positions, self.state.elapsed
        scale = self.state.lr_scale * (0.5 if self._failures > 1 else 1.0)
        self.restore(folders[-1])
        if self.state.phase == phase:
            self.state.positions = positions
        self.state.elapsed, self.state.lr_scale = elapsed, scale
        self._enter(self.state.phase, fresh=False)
        self._zero_grad()
        self._say(
            f"{found}: back to the checkpoint of step {self.state.step}, learning rate x {scale:g}", rollback=True
        )

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    # ---- checkpoints

    def save(self) -> Path:
        """Writes a checkpoint of this moment."""
        parts = {
            "tokenizer": self.tokenizer.state_dict(),
            "average": self.average.tokenizer.state_dict(),
            **{name: optim.state_tensors(o, self._names) for name, o in self.optimizers.items()},
        }
        state = {"recipe": self.recipe.name, **asdict(self.state)}
        keep = {self.state.best_step} if self.state.best_step >= 0 else set()
        self._failures = 0 if self.state.step > 0 else self._failures
        return checkpoint.save(self.run_folder, self.state.step, parts, state, keep)

    def resume(self) -> None:
        """Continues from the run's newest whole checkpoint."""
        folders = checkpoint.saved(self.run_folder)
        while True:
            try:
                return self.restore(folders[-1])
            except WeightsError as error:
                if len(folders) < 2:
                    raise
                self._say(f"{error}; using the checkpoint before it")
                checkpoint.discard(folders.pop())

    def restore(self, folder: Path) -> None:
        """Puts a checkpoint's tensors and state in place; WeightsError if they do not fit the tokenizer."""
        parts, numbers = checkpoint.load(folder)
        name = numbers.pop("recipe")
        if name != self.recipe.name:
            raise UsageError(f"{folder}: a run of the recipe {name}, not {self.recipe.name}")
        checkpoint.fill(self.tokenizer, parts["tokenizer"], folder)
        checkpoint.fill(self.average.tokenizer, parts["average"], folder)
        for key, optimizer in self.optimizers.items():
            optim.load_state_tensors(optimizer, self._names, parts.get(key, {}))
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
        found, grid = validate(self.average.tokenizer, self._squares[side], self._phase.losses, self._casting())
        if state.phase != state.best_phase or found["loss"] < state.best_loss:
            state.best_phase, state.best_loss, state.best_step = state.phase, found["loss"], state.step
            self.save()
        if self.log is not None:
            self.log.record("val", state.step, {"side": side, "elapsed": round(state.elapsed, 1), **found})
            self.log.picture("val/reconstructions", state.step, grid)
            decibels = " ".join(f"{k}:{found[f'psnr/{k}']:.2f}" for k in token_counts(self.tokenizer))
            used = f"codebook {found['usage']:.0%}, perplexity {found['perplexity']:.0f}"
            self._say(f"step {state.step}: val {side} px, dB by tokens {decibels}, {used}")

    def _note(self, terms: dict[str, float], quality: Tensor, counts: Tensor | None, norm: float, rate: float) -> None:
        """Smooths what the progress line shows, and logs every tenth step."""
        if self.log is None:
            return
        for name, value in terms.items():
            self._terms[name] = 0.9 * self._terms.get(name, value) + 0.1 * value
        kept = torch.full((len(quality),), self.tokenizer.max_tokens) if counts is None else counts
        shown = torch.tensor(token_counts(self.tokenizer))
        nearest = shown[(kept[:, None] - shown).abs().argmin(1)]
        for count in shown.tolist():
            if (here := nearest == count).any():
                value = float(quality[here].mean())
                self._psnr[count] = 0.9 * self._psnr.get(count, value) + 0.1 * value
        self._rate = 0.9 * (self._rate or rate) + 0.1 * rate
        state, progress = self.state, self.progress
        left = state.elapsed * (1 - progress) / max(progress, 1e-9)
        decibels = " ".join(f"{k}:{v:.2f}" for k, v in sorted(self._psnr.items()))
        clock = f"{int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d}"
        loss = sum(self._terms.values())
        self.log.progress(
            progress, f"step {state.step} loss {loss:.5f} dB {decibels} | {self._rate:.1f} images/s, {clock} left"
        )
        if state.step % 10 == 0:
            rates = {f"lr_{name}": o.param_groups[0]["lr"] for name, o in self.optimizers.items()}
            values = {f"loss_{k}": v for k, v in self._terms.items()} | {f"psnr_{k}": v for k, v in self._psnr.items()}
            self.log.record(
                "train",
                state.step,
                {
                    "phase": self._phase.name,
                    "progress": round(progress, 5),
                    "elapsed": round(state.elapsed, 1),
                    "images": state.images,
                    "images_per_second": round(self._rate, 2),
                    "gradient_norm": norm,
                    **rates,
                    **values,
                },
            )

    def _say(self, text: str, **values: Any) -> None:
        if self.log is not None:
            self.log.message(text, self.state.step, **values)
