"""The engine without torch beside the one with it: whole processes in turn, or what they make of the same pictures.

python bench/light.py PHOTO [--folder DIR]   decode and encode: wall and processor seconds, peak memory, ratios
python bench/light.py --agree DIR            tokens at effort 0 and at the default one, and pixels, that differ
python bench/light.py --many N               peak memory after a tenth of N small pictures, and after all (Linux)
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from titokc import engines, imaging, tiling
from titokc.options import DEFAULT_EFFORT

SAMPLE = Path(__file__).parent / "samples" / "coffee.jpg"
ENGINES = ("torch", "light")
SUFFIXES = (".jpg", ".jpeg", ".png")


def process(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MiB of one `titokc` command."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "titokc", *arguments, "--quiet"])
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"titokc {' '.join(arguments)}: exit code {child.returncode}")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def compare(label: str, arguments: list[str], repeats: int, pictures: int = 1) -> None:
    """A row of the table: medians of both engines, in turn, and their ratios."""
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ENGINES}
    for _ in range(repeats):
        for name in ENGINES:
            runs[name].append(process([*arguments, "--engine", name]))
    middle = {name: [median(values) for values in zip(*runs[name], strict=True)] for name in ENGINES}
    cells = []
    for name in ENGINES:
        wall, cpu, peak = middle[name]
        rate = f", {pictures / wall:.1f}/s" if pictures > 1 else ""
        cells.append(f"{wall:.2f} s{rate}, {cpu:.2f} s, {peak:.0f} MiB")
    wall, cpu, peak = (middle["light"][n] / middle["torch"][n] for n in range(3))
    print(f"| {label} | {cells[0]} | {cells[1]} | {wall:.2f}, {cpu:.2f}, {peak:.2f} |", flush=True)


def pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def measure(photo: Path, folder: Path | None, repeats: int) -> None:
    print("| wall, processor, peak | torch | light | light / torch |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        code, made = f"{scratch}/a.tok", f"{scratch}/a.png"
        process(["encode", str(photo), "-o", code, "--effort", "0"])
        compare("decode a photo", ["decode", code, "-o", made, "--force"], repeats)
        for effort in (0, DEFAULT_EFFORT):
            label = f"encode a photo, effort {effort}"
            compare(label, ["encode", str(photo), "-o", code, "--force", "--effort", str(effort)], repeats)
        if folder is None:
            return
        count, codes, back = len(pictures_in(folder)), f"{scratch}/codes", f"{scratch}/back"
        for effort in (0, DEFAULT_EFFORT):
            label = f"encode {count}, effort {effort}"
            few = 1 if effort else repeats
            compare(label, ["encode", str(folder), "-o", codes, "--force", "--effort", str(effort)], few, count)
        compare(f"decode {count}", ["decode", codes, "-o", back, "--force"], repeats, count)


def agree(folder: Path) -> None:
    torch, light = (engines.open("nano", "cpu", name, dtype="float32") for name in ENGINES)
    side, most = light.info.side, light.info.max_tokens
    tiles = np.stack(
        [np.asarray(tile) for path in pictures_in(folder) for tile in tiling.cut(imaging.read(path), (1, 1), side)]
    )
    for effort in (0, DEFAULT_EFFORT):
        expected, found = (np.stack(engine.encode(tiles, [most] * len(tiles), effort)) for engine in (torch, light))
        wrong = (expected != found).any(1)
        print(f"effort {effort}: {wrong.sum()} of {len(tiles)} pictures differ", flush=True)
        for at in np.flatnonzero(wrong):
            print(f"  picture {at}: from token {np.flatnonzero(expected[at] != found[at])[0]} on")
    for count in (light.info.min_tokens, most):
        a, b = (np.array(engine.decode(expected[:, :count], "faithful"), int) for engine in (torch, light))
        print(f"{count} tokens decoded: {np.mean(a != b):.1e} of the samples differ, by {np.abs(a - b).max()} at most")


def many(count: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pictures, codes, back = (Path(scratch, name) for name in ("pictures", "codes", "back"))
        pictures.mkdir()
        whole = imaging.read(SAMPLE)
        for n in range(count):
            left, top = n * 7 % (whole.width - 64), n * 11 % (whole.height - 48)
            whole.crop((left, top, left + 64, top + 48)).save(pictures / f"{n:06}.jpg")
        for verb, source, target in (("encode --effort 0", pictures, codes), ("decode", codes, back)):
            start, early = time.perf_counter(), 0
            child = subprocess.Popen([sys.executable, "-m", "titokc", *verb.split(), source, "-o", target, "--quiet"])
            while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
                time.sleep(0.5)
                if not early and target.exists() and sum(1 for _ in target.iterdir()) >= count // 10:
                    status = Path(f"/proc/{child.pid}/status").read_text()
                    early = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) // 1024
            child.returncode = os.waitstatus_to_exitcode(ended[1])
            seconds, made = time.perf_counter() - start, sum(1 for _ in target.iterdir())
            print(f"{verb}: {made} in {seconds:.0f} s; peak {early} MiB after {count // 10}, ", end="")
            print(f"{ended[2].ru_maxrss // 1024} MiB after all; exit code {child.returncode}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--folder", type=Path, help="of pictures, coded in one process")
    parser.add_argument("--agree", type=Path, metavar="DIR", help="compare what both make of these pictures")
    parser.add_argument("--many", type=int, metavar="N", help="peak memory over so many pictures")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.agree:
        agree(options.agree)
    elif options.many:
        many(options.many)
    else:
        measure(options.photo, options.folder, options.repeats)


if __name__ == "__main__":
    main()
