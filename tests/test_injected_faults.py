"""ENOSPC, EIO and SIGKILL at every write of encode, decode, bench and train: old or new, never half; one line; goes on.

faulty.py makes the faults. A few writes of encode and decode are tried each time, all of all verbs when slow tests run.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits the size of files")
ROOT = Path(__file__).parents[1]
ACTIONS = ("ENOSPC", "EIO", "SIGKILL", "FSIZE")


def faults(tmp_path, pristine, *arguments, every=1, actions=ACTIONS):
    """The run without a fault, and those with one."""
    command = [sys.executable, ROOT / "tests" / "faulty.py", pristine, tmp_path / "work", every, ",".join(actions)]
    done = subprocess.run(
        [*map(str, command), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *rows = map(json.loads, done.stdout.splitlines())
    assert first["code"] == 0, first["said"]
    assert first["writes"] > 3
    return first, rows


def litter(files):
    return {name for name in files if ".titokc." in name and name.rpartition("/")[2] != ""}


def check(row, pristine, whole, ignored=()):
    """A failed run says so in a line and leaves each file as it was or as it should be."""
    place = f"{row['action']} at {row['at']}: {row['said']}"
    if row["action"] == "SIGKILL":
        assert row["code"] == -9, place
    else:
        assert row["code"] in (0, 1), place
        assert row["code"] == 0 or "titokc: " in row["said"], place
        assert "Traceback" not in row["said"], place
        assert "internal error" not in row["said"], place
        assert litter(row["files"]) == set(), place
    for name, digest in row["files"].items():
        if name not in litter(row["files"]) and not any(part in name for part in ignored):
            assert digest in (pristine.get(name), whole.get(name)), f"{name}: {place}"
    assert row["again"][0] == 0, f"{place}; again: {row['again'][1]}"


@pytest.fixture
def pristine(tmp_path, write_photos):
    folder = tmp_path / "pristine"
    (folder / "photos").mkdir(parents=True)
    write_photos(folder / "photos", 2)
    return folder


def digests(folder):
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import faulty
    finally:
        sys.path.pop(0)
    return faulty.files(folder)


def encode_and_decode(tmp_path, pristine, every, actions):
    for verb, old in ((["encode", "photos", "--effort", "0"], "out/0.tok"), (["decode", "out"], "out/0.png")):
        (pristine / "out").mkdir(exist_ok=True)
        (pristine / old).write_bytes(b"old")
        before = digests(pristine)
        whole, rows = faults(tmp_path, pristine, *verb, "-o", "out", "--force", "-q", every=every, actions=actions)
        for row in rows:
            check(row, before, whole["files"])
            left = litter(row["files"])
            assert {name: digest for name, digest in row["files_again"].items() if name not in left} == whole["files"]
        pristine = tmp_path / "encoded"
        if verb[0] == "encode":
            (tmp_path / "work").rename(pristine)


def test_some_writes_of_encode_and_decode(tmp_path, pristine):
    encode_and_decode(tmp_path, pristine, every=6, actions=("ENOSPC", "SIGKILL", "FSIZE"))


@pytest.mark.slow
def test_every_write_of_encode_and_decode(tmp_path, pristine):
    encode_and_decode(tmp_path, pristine, every=1, actions=ACTIONS)


def bench(tmp_path, pristine, every, actions):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    arguments = ["bench", "photos", "--codecs", "jpeg", "--bytes", "600", "--metrics", "psnr", "--jobs", "1"]
    arguments += ["-o", "report", "--cache", "cache", "-q"]
    whole, rows = faults(tmp_path, pristine, *arguments, every=every, actions=actions)
    # Means of times, dates and places differ from run to run; rows are added one by one.
    changing = ("environment.json", "report.html", "summary")
    for row in rows:
        check(row, digests(pristine), whole["files"], ignored=(*changing, "rows.jsonl"))
        again = row["files_again"]
        # What a row needed is not searched again, so the cache may lack it.
        assert again.keys() >= {name for name in whole["files"] if not name.startswith("cache/")}
        for name in again.keys() & whole["files"].keys():
            if not any(part in name for part in changing):
                assert again[name] == whole["files"][name], f"{name}: {row['action']} at {row['at']}"
    return rows


@pytest.mark.slow
def test_some_writes_of_bench(tmp_path, pristine):
    bench(tmp_path, pristine, every=9, actions=("ENOSPC",))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_write_of_bench(tmp_path, pristine):
    bench(tmp_path, pristine, every=1, actions=ACTIONS)


TINY = (
    "model.image_size=32 model.thumb_size=16 model.coefficients=48 model.num_tokens=8 model.min_tokens=2 "
    "model.codebook_size=16 model.token_size=4 model.hidden=8 model.width=16 model.heads=2 model.layers=1 "
    "token_drop_step=2 phases.0.views.0.side=16 phases.1.views.0.side=32 phases.1.views.1.side=16 "
    "phases.0.views.0.batch_size=4 phases.1.views.0.batch_size=4 phases.1.views.1.batch_size=4 "
    "phases.2.views.0.side=32 phases.2.views.1.side=16 phases.2.views.0.batch_size=4 phases.2.views.1.batch_size=4 "
    "phases.2.views.2.side=32 phases.2.views.2.batch_size=4 "
    "val_images=4"
)


def train(tmp_path, pristine, every, actions):
    """After any fault the same command, with --resume, ends with the last step's checkpoint.

    Two steps save three times (begun, next phase, done), which is the first time that an old checkpoint goes.
    """
    options = [part for setting in TINY.split() for part in ("--set", setting)]
    options += ["--device", "cpu", "--threads", "1", "--dtype", "float32", "--cache", "cache", "-q"]
    arguments = ["train", "photos", "--recipe", "nano", "-o", "run", "--resume", "--steps", "2", *options]
    _, rows = faults(tmp_path, pristine, *arguments, every=every, actions=actions)
    for row in rows:
        place = f"{row['action']} at {row['at']}: {row['said']}"
        assert "Traceback" not in row["said"], place
        assert "internal error" not in row["said"], place
        assert row["again"][0] == 0, f"{place}; again: {row['again'][1]}"
        assert "run/checkpoints/step-00000002/average.safetensors" in row["files_again"], place


@pytest.fixture
def photographs(tmp_path, write_photos):
    folder = tmp_path / "pristine"
    (folder / "photos").mkdir(parents=True)
    write_photos(folder / "photos", 12)
    return folder


@pytest.mark.slow
def test_some_writes_of_train(tmp_path, photographs):
    train(tmp_path, photographs, every=15, actions=("ENOSPC",))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_write_of_train(tmp_path, photographs):
    train(tmp_path, photographs, every=1, actions=ACTIONS)
