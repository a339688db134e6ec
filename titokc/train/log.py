"""What a person watches: the tqdm line, log.jsonl, and TensorBoard where it is installed."""

import json
import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

_SAY_EVERY_S = 30.0


class RunLog:
    """Writes to RUN/log.jsonl and RUN/tensorboard; `say` takes one-line messages for the person.

    quiet: no progress line. A process other than the first logs nothing: it is given no RunLog.
    """

    def __init__(self, run: Path, say: Callable[[str], None], quiet: bool = False) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._say, self._quiet = say, quiet
        self._file = (run / "log.jsonl").open("a")
        self._smooth: dict[str, float] = {}
        self._clock = time.monotonic()
        self._bar = tqdm(total=100, disable=None if not quiet else True, bar_format="{percentage:5.1f}% {desc}")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board = None
            say("tensorboard is not installed: scalars go to log.jsonl only")
        else:
            self._board = SummaryWriter(str(run / "tensorboard"))

    def message(self, text: str, step: int, **values: Any) -> None:
        """An event: said aloud and kept in log.jsonl."""
        with tqdm.external_write_mode():
            self._say(text)
        self.record("message", step, {"text": text, **values})

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line of log.jsonl, with null for what is not finite; numbers also become TensorBoard scalars."""
        row = {"kind": kind, "step": step, "time": round(time.time(), 1), **values}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, name: str, step: int, image: Tensor) -> None:
        """uint8 [3, H, W]."""
        if self._board is not None:
            self._board.add_image(name, image, step)

    def trained(self, step: int, images: int, measured: dict[str, float], row: dict[str, Any]) -> None:
        """After a step over `images` images: the progress line, smoothed; every tenth step and the last, a row.

        measured: "loss_*", "psnr_TOKENS" in dB and others. row: "progress" 0 to 1, "elapsed" in seconds and others.
        """
        now = time.monotonic()
        rate = images / max(now - self._clock, 1e-9)
        self._clock = now
        for name, value in (measured | {"images_per_second": rate}).items():
            self._smooth[name] = 0.9 * self._smooth.get(name, value) + 0.1 * value
        if step % 10 == 0 or row["progress"] >= 1:
            self.record("train", step, {**row, **self._smooth})
        left = timedelta(seconds=round(row["elapsed"] * (1 - row["progress"]) / max(row["progress"], 1e-9)))
        qualities = sorted((int(k[5:]), v) for k, v in self._smooth.items() if k.startswith("psnr_"))
        decibels = " ".join(f"{tokens}:{value:.2f}" for tokens, value in qualities)
        loss = sum(value for name, value in self._smooth.items() if name.startswith("loss_"))
        self._bar.n = 100 * min(row["progress"], 1.0)
        self._bar.set_description_str(
            f"step {step} loss {loss:.5f} dB {decibels} | {self._smooth['images_per_second']:.1f} images/s, {left} left"
        )

    def fitting(self, done: int, steps: int, seconds: float) -> None:
        """How far a fit is: on the progress line, or where there is no terminal a line now and then."""
        self._bar.set_description_str(f"fitting: {done} of {steps}")
        if self._bar.disable and not self._quiet and time.monotonic() - self._clock > _SAY_EVERY_S:
            self._clock = time.monotonic()
            self._say(f"fitting: {done} of {steps} after {timedelta(seconds=round(seconds))}")

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()
