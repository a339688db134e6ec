"""Speed as ratios within one run: the second picture to the first, a batch to single pictures, a process to a call.

python bench/speed.py [PHOTO]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

import titokc


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def process(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-m", "titokc", *arguments], capture_output=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, nargs="?", default=Path(__file__).parent / "samples" / "coffee.jpg")
    photo = parser.parse_args().photo
    picture = Image.open(photo).convert("RGB")
    codec = titokc.Codec()
    start = time.perf_counter()
    data = codec.encode(picture)
    first = time.perf_counter() - start
    codec.decode(data)
    encode = seconds(lambda: codec.encode(picture))
    decode = seconds(lambda: codec.decode(data))
    batch = seconds(lambda: list(codec.decode_many([data] * 16))) / 16
    startup = seconds(process("--version"))
    whole = seconds(process("encode", str(photo), "-o", "-"))
    print(f"first encode / later encode                  {first / encode:8.1f}")
    print(f"decode / encode                              {decode / encode:8.1f}")
    print(f"decode alone / decode in a batch of 16       {decode / batch:8.2f}")
    print(f"process `titokc encode` / call               {whole / encode:8.1f}")
    print(f"process `titokc encode` / `titokc --version` {whole / startup:8.1f}")


if __name__ == "__main__":
    main()
