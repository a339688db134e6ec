"""One process that encodes and decodes for ever neither grows nor leaves anything open."""

import gc
import resource
from pathlib import Path

import pytest

from titokc import Codec

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")


def in_use():
    """Resident bytes, open files, threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * resource.getpagesize(),
        len(list(Path("/proc/self/fd").iterdir())),
        len(list(Path("/proc/self/task").iterdir())),
    )


def grown(codec, picture, times):
    """What a number of encodes and decodes, after as many as warm everything up, adds to what is in use."""
    for _ in range(min(times, 500)):
        codec.decode(codec.encode(picture, tokens=32, effort=0))
    before = in_use()
    for _ in range(times):
        codec.encode(picture, tokens=32, effort=0)
    for _ in range(times // 10):
        codec.decode(codec.encode(picture, tokens=32, effort=0))
    return [after - start for start, after in zip(before, in_use(), strict=True)]


@pytest.mark.parametrize("times", [200, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_nothing_grows(tiny, photo, times):
    memory, files, threads = grown(Codec(tokenizer=tiny), photo(48, 36), times)
    assert memory < 4 << 20  # 200 bytes a picture would be that much
    assert max(files, threads) <= 0  # fewer where those of earlier tests end meanwhile
