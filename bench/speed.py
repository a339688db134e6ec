"""Speed as ratios within one run: whole processes of the two engines in turn, then calls within this process.

    python bench/speed.py [PHOTO] [--folder PICTURES]

Medians of five. Processor time counts all threads; trust ratios, and absolute times only on an idle machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

import titokc

REPEATS = 5
ENGINES = ("torch", "light")


class Run(NamedTuple):
    """Of a process: seconds by the clock, seconds of processors, megabytes of memory at its peak."""

    wall: float
    cpu: float
    memory: float


def process(*arguments: str) -> Run:
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "titokc", *arguments, "-q"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"titokc {' '.join(arguments)} failed")
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def compare(what: str, arguments: Callable[[str], list[str]], pictures: int = 1) -> None:
    """The same command with both engines, in turn."""
    runs: dict[str, list[Run]] = {name: [] for name in ENGINES}
    for _ in range(REPEATS if pictures == 1 else 2):
        for name in ENGINES:
            runs[name].append(process(*arguments(name), "--engine", name))
    middle = {name: Run(*(median([run[at] for run in runs[name]]) for at in range(3))) for name in ENGINES}
    ratio = middle["light"].wall / middle["torch"].wall
    cells = [f"{run.wall:7.2f} s  {run.cpu:7.2f} s  {run.memory:5.0f} MB" for run in middle.values()]
    rate = f"  {pictures / middle['light'].wall:6.1f} pictures/s" if pictures > 1 else ""
    print(f"{what:<24}{'   '.join(cells)}   {ratio:5.2f}{rate}", flush=True)


def calls(photo: Path) -> None:
    """Within this process."""
    picture, codec = Image.open(photo).convert("RGB"), titokc.Codec()
    start = time.perf_counter()
    data = codec.encode(picture)
    first = time.perf_counter() - start

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return median(times)

    encode, decode = seconds(lambda: codec.encode(picture)), seconds(lambda: codec.decode(data))
    batch = seconds(lambda: list(codec.decode_many([data] * 16))) / 16
    print(f"\nfirst encode / later encode          {first / encode:8.1f}")
    print(f"decode / encode                      {decode / encode:8.2f}")
    print(f"decode alone / decode in a row of 16 {decode / batch:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, nargs="?", default=Path(__file__).parent / "samples" / "coffee.jpg")
    parser.add_argument("--folder", type=Path, help="Of pictures, to be encoded and decoded together.")
    arguments = parser.parse_args()
    photo = str(arguments.photo)
    with tempfile.TemporaryDirectory() as folder:
        tok, png = f"{folder}/a.tok", f"{folder}/a.png"
        print(f"{'':<24}{'torch: clock, processors, memory':<36}{'light':<33}light / torch, by the clock")
        compare("encode --effort 0", lambda _: ["encode", photo, "-o", tok, "--force", "--effort", "0"])
        compare("encode", lambda _: ["encode", photo, "-o", tok, "--force"])
        compare("decode", lambda _: ["decode", tok, "-o", png, "--force"])
        if arguments.folder:
            count = sum(1 for path in arguments.folder.iterdir() if path.is_file())
            source, out = str(arguments.folder), f"{folder}/tok"
            compare(
                f"{count}: encode --effort 0",
                lambda _: ["encode", source, "-o", out, "--force", "--effort", "0"],
                count,
            )
            compare(f"{count}: encode", lambda _: ["encode", source, "-o", out, "--force"], count)
            compare(f"{count}: decode", lambda _: ["decode", out, "-o", f"{folder}/png", "--force"], count)
    calls(arguments.photo)


if __name__ == "__main__":
    main()
