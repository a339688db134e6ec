"""`titokc tokenize` and what reads its files back: real processes and real kills, with the embedded model."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from titokc.cli import main
from titokc.codec import Codec
from titokc.container import unpack
from titokc.dataset import sources

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parent.parent
FAST = ("--effort", "0", "--threads", "1")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """titokc's command line in a folder of its own; fails unless the exit code is `code`."""
    monkeypatch.chdir(tmp_path)

    def run(*args, code=0):
        result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="titokc")
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture(scope="module")
def codec():
    return Codec("nano", device="cpu", threads=1)


@pytest.fixture(scope="module")
def png(photo):
    """The bytes of a small picture: another one for each seed."""

    def png(seed):
        out = io.BytesIO()
        photo(48 + seed % 8, 40, seed).save(out, "PNG")
        return out.getvalue()

    return png


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def rows(folder):
    return [row for path in sorted(Path(folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def failures(folder):
    found = [json.loads(path.read_bytes())["failed"] for path in sorted(Path(folder, "_manifest").iterdir())]
    return {failure["key"]: failure["reason"] for failed in found for failure in failed}


def test_a_row_is_what_the_codec_makes_of_a_picture(run, png, codec):
    Path("in/cats").mkdir(parents=True)
    Path("in/cats/a.png").write_bytes(png(1))
    Path("in/b.png").write_bytes(png(2))
    run("tokenize", "in", "-o", "out", "--tokens", "32", *FAST)
    table = pq.read_table("out/pictures-00000.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("key", "string"),
        ("width", "int32"),
        ("height", "int32"),
        ("tokens", "list<element: uint16>"),
        ("model", "string"),
        ("fingerprint", "string"),
    ]
    assert table.to_pylist() == [
        {
            "key": key,
            "width": width,
            "height": 40,
            "tokens": unpack(codec.encode(png(seed), tokens=32, effort=0))[1],
            "model": "nano-1",
            "fingerprint": codec.info.code.hex(),
        }
        for key, seed, width in (("b", 2, 50), ("cats/a", 1, 49))
    ]


def test_a_webdataset_holds_the_codecs_files(run, png, codec):
    write_tar("in.tar", [("x/1.2.png", png(1)), ("x/1.2.json", b"{}"), ("3.png", png(3))])
    run("tokenize", "in.tar", "-o", "out", "--format", "webdataset", *FAST)
    with tarfile.open("out/in.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    assert found == {"x/1.tok": codec.encode(png(1), effort=0), "3.tok": codec.encode(png(3), effort=0)}


def test_bad_pictures_are_listed_and_stop_nothing(run, png):
    images = [{"bytes": png(1), "path": "1.png"}, {"bytes": None, "path": "2.png"}, {"bytes": b"no", "path": "3.png"}]
    pq.write_table(pa.table({"image": images, "key": ["1", "2", "3"]}), "table.parquet")
    write_tar("tar.tar", [("4.png", b""), ("5.png", png(5)), ("5.jpg", png(6)), ("../7.png", png(7))])
    Path("files").mkdir()
    Path("files/8.png").write_bytes(png(8)[:200])
    Path("files/9.png").write_bytes(png(9))
    Path("files/9.jpg").write_bytes(png(9))
    result = run("tokenize", "table.parquet", "tar.tar", "files", "-o", "out", *FAST, code=1)
    assert [row["key"] for row in rows("out")] == ["9", "1", "5"]
    why = failures("out")
    assert set(why) == {"2", "3", "4", "5", "../7", "8", "9"}
    assert why["2"] == "no bytes in this row"
    assert why["5"] == "5.jpg is a further picture of this sample"
    assert why["../7"] == "not a usable key: expected a relative path such as cats/0001, of at most 500 characters"
    assert why["9"].startswith("a further picture of this key: ")
    assert "3 pictures in 3 of 3 shards" in result.stderr
    assert "7 failed, see out/_manifest" in result.stderr


def test_what_cannot_be_read_is_tried_again(run, png):
    Path("a.tar").write_bytes(b"this is no tar")
    pq.write_table(pa.table({"text": ["no picture"]}), "b.parquet")
    write_tar("c.tar", [("1.png", png(1))])
    result = run("tokenize", "a.tar", "b.parquet", "c.tar", "-o", "out", *FAST, code=1)
    assert "a.tar: is no uncompressed tar shard" in result.stderr
    assert "no image column: found text, expected one of bytes, called image" in result.stderr
    write_tar("a.tar", [("2.png", png(2))])
    pq.write_table(pa.table({"jpg": [png(3)]}), "b.parquet")
    run("tokenize", "a.tar", "b.parquet", "c.tar", "-o", "out", *FAST)
    assert [row["key"] for row in rows("out")] == ["2", "b/00000000", "1"]


def test_parts_are_disjoint_and_make_the_whole(run, png, monkeypatch):
    monkeypatch.setattr(sources, "PICTURES_PER_SHARD", 2)
    Path("in").mkdir()
    for number in range(7):
        Path(f"in/{number}.png").write_bytes(png(number))
    run("tokenize", "in", "-o", "whole", *FAST)
    assert sorted(contents("whole")) == ["_titokc.json", *(f"pictures-0000{number}.parquet" for number in range(4))]
    run("tokenize", "in", "-o", "parts", "--shard", "2/3", *FAST)
    assert [row["key"] for row in rows("parts")] == ["2", "3"]
    run("tokenize", "in", "-o", "parts", "--shard", "1/3", *FAST)
    run("tokenize", "in", "-o", "parts", "--shard", "3/3", *FAST)
    assert contents("parts") == contents("whole")


def test_other_tokens_or_pictures_are_not_mixed_in(run, png):
    write_tar("in.tar", [("1.png", png(1))])
    run("tokenize", "in.tar", "-o", "out", *FAST)
    before = contents("out")
    result = run("tokenize", "in.tar", "-o", "out", "--tokens", "64", *FAST, code=1)
    assert "out has tokens 128, not 64: choose another folder" in result.stderr
    write_tar("in.tar", [("1.png", png(1)), ("2.png", png(2)), ("3.png", bytes(20000))])
    result = run("tokenize", "in.tar", "-o", "out", *FAST, code=1)
    assert "was made of other pictures: choose another folder" in result.stderr
    Path("full").mkdir()
    Path("full/mine").write_bytes(b"")
    assert "has other files" in run("tokenize", "in.tar", "-o", "full", *FAST, code=1).stderr
    assert contents("out") == before


def test_keys_of_several_shards_are_noted(run, png):
    for name in "ab":
        write_tar(f"{name}.tar", [("1.png", png(1))])
    result = run("tokenize", "a.tar", "b.tar", "-o", "out", *FAST)
    assert "1 keys stand in more than one shard: 1" in result.stderr


def test_a_killed_run_goes_on_and_has_each_picture_once(run, png):
    for name in range(5):
        write_tar(f"{name}.tar", [(f"{name}-{at}.png", png(at)) for at in range(6)])
    shards = [f"{name}.tar" for name in range(5)]
    run("tokenize", *shards, "-o", "whole", "--effort", "1", "--threads", "1")
    command = ["tokenize", *shards, "-o", "out", "--effort", "1", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "titokc", *command], env=environment)
    done = Path("out/_manifest")
    while process.poll() is None and not (done.is_dir() and list(done.glob("*.json"))):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = next(done.glob("*.json")).stem
    written = Path(f"out/{first}.parquet").stat().st_mtime_ns
    time.sleep(0.5)  # its workers end with it
    assert len(rows("out")) < 30
    result = run(*command)
    assert "were ready" in result.stderr
    assert Path(f"out/{first}.parquet").stat().st_mtime_ns == written
    names = [f"{name}.parquet" for name in range(5)]
    assert [contents("out")[name] for name in names] == [contents("whole")[name] for name in names]
    assert sorted(row["key"] for row in rows("out")) == sorted(f"{a}-{b}" for a in range(5) for b in range(6))


@pytest.mark.slow
def test_ray_makes_the_same_files_though_a_worker_is_killed(run, png, tmp_path):
    pytest.importorskip("ray")
    shards = [f"{name}.tar" for name in range(6)]
    for name in shards:
        write_tar(name, [(f"{name[0]}-{at}.png", png(at)) for at in range(12)] + [(f"{name[0]}-bad.png", b"")])
    options = ("--effort", "1", "--threads", "1")
    run("tokenize", *shards, "-o", "whole", *options, code=1)
    command = [sys.executable, "-m", "titokc", "tokenize", *shards, "-o", "out", *options]
    # Ray's own default, 15, leaves its workers hardly any time on a busy machine.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    process = subprocess.Popen(
        [*command, "--runner", "ray", "--workers", "2"], env=environment, stderr=subprocess.PIPE, text=True
    )
    manifests = Path("out/_manifest")
    while process.poll() is None and not (manifests.is_dir() and list(manifests.glob("*.json"))):
        time.sleep(0.01)
    workers = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, at = (folder / "cmdline").read_bytes(), (folder / "cwd").readlink()
        except OSError:  # another's, or gone
            continue
        if at == tmp_path and name.startswith(b"ray::MapWorker"):
            workers.append(int(folder.name))
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert len(list(manifests.glob("*.json"))) < 5
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1, said  # for the bad pictures
    assert "72 pictures in 6 of 6 shards" in said
    assert contents("out") == contents("whole")
    assert failures("out") == failures("whole")
    assert set(failures("out")) == {f"{name}-bad" for name in range(6)}


def test_keys_that_no_file_could_have(run, png):
    keys = ["../x", "a\nb", "/a", "C:\\a", "", "a/" * 2000 + "a", "b" * 300, None, None]
    pq.write_table(pa.table({"image": [png(1)] * len(keys), "key": keys}), "t.parquet")
    run("tokenize", "t.parquet", "-o", "out", *FAST, code=1)
    assert set(failures("out")) == set(keys[:6])
    assert [row["key"] for row in rows("out")] == [keys[6], "t/00000007", "t/00000008"]
    assert "file name too long" in run("decode", "out/t.parquet", "-o", "back", "--threads", "1", code=1).stderr


def test_text_that_is_no_utf8_is_a_damaged_file(run, png):
    key = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    pq.write_table(pa.table({"image": [png(1)], "key": key}), "t.parquet")
    result = run("tokenize", "t.parquet", "-o", "out", *FAST, code=1)
    assert "t.parquet: cannot be read as Parquet: 'utf-8' codec can't decode" in result.stderr


def test_results_are_no_sources_and_what_is_not_there_leaves_nothing(run, png):
    Path("in").mkdir()
    Path("in/1.png").write_bytes(png(1))
    for _ in range(2):
        assert "1 pictures in 1 of 1 shards" in run("tokenize", "in", "-o", "in/out", *FAST).stderr
    assert "nowhere: cannot be read: no such file" in run("tokenize", "nowhere", "-o", "none", *FAST, code=1).stderr
    assert not Path("none").exists()
    assert "cannot be written: not a directory" in run("tokenize", "in/1.png", "-o", "in/1.png/x", *FAST, code=1).stderr


def test_damage_to_an_earlier_run_is_named(run, png):
    Path("1.png").write_bytes(png(1))
    run("tokenize", "1.png", "-o", "out", *FAST)
    table, manifest, settings = (
        Path("out", n) for n in ("pictures-00000.parquet", "_manifest/pictures-00000.json", "_titokc.json")
    )
    whole = table.read_bytes()
    for text in ("[]", '{"state": 1}', json.dumps(json.loads(manifest.read_bytes()) | {"failed": 3})):
        manifest.write_text(text)
        run("tokenize", "1.png", "-o", "out", *FAST)
        assert table.read_bytes() == whole
        assert json.loads(manifest.read_bytes())["failed"] == []
    table.write_bytes(b"x" * len(whole))
    why = run("tokenize", "1.png", "-o", "out", *FAST, code=1).output
    assert "out/pictures-00000.parquet: cannot be read as Parquet" in why
    assert "remove it, and the same command makes it anew" in why
    for text in ("[]", "1"):
        settings.write_text(text)
        assert "out" in run("tokenize", "1.png", "-o", "out", *FAST, code=1).output


@pytest.mark.parametrize(("form", "suffix"), [("parquet", "parquet"), ("webdataset", "tar")])
def test_decode_and_info_read_it_back(run, png, codec, form, suffix):
    write_tar("in.tar", [("x/1.png", png(1)), ("2.png", png(2))])
    run("tokenize", "in.tar", "-o", "out", "--format", form, *FAST)
    run("decode", f"out/in.{suffix}", "-o", "back", "--threads", "1")
    for key, seed in (("x/1", 1), ("2", 2)):
        expected = codec.decode(codec.encode(png(seed), effort=0))
        assert np.array_equal(np.asarray(Image.open(f"back/{key}.png")), np.asarray(expected))
    fields = json.loads(run("info", f"out/in.{suffix}", "--json").stdout)
    assert (fields["pictures"], fields["tokens_per_picture"]) == (2, "128")
    assert fields["file_bytes"] == Path(f"out/in.{suffix}").stat().st_size
    assert "exists: --force" in run("decode", f"out/in.{suffix}", "-o", "back", code=1).stderr
    Path("back/2.png").unlink()
    skipped = run("decode", f"out/in.{suffix}", "-o", "back", "--skip-existing", "--threads", "1").stderr
    assert "1 done, 1 skipped, 0 failed" in skipped


def test_strange_sets_are_refused_by_name(run, png):
    row = {"key": "1", "width": 48, "height": 40, "tokens": [1] * 128, "model": "nano-1", "fingerprint": "00" * 32}
    for name, change in (("other", {}), ("path", {"key": "../1"}), ("empty", {"tokens": None})):
        pq.write_table(pa.Table.from_pylist([row | change]), f"{name}.parquet")
    pq.write_table(pa.table({"text": ["a"]}), "text.parquet")
    Path("no.tar").write_bytes(b"no tar")
    for name, why in (
        ("other.parquet", "the row was made with nano-1 (code 0000000000000000...), the model at hand is nano-1"),
        ("path.parquet", "not a usable key"),
        ("empty.parquet", "a value of this row is missing"),
        ("text.parquet", "expected a file of `titokc tokenize`"),
        ("no.tar", "cannot be read as tar"),
    ):
        code = 4 if name == "other.parquet" else 1  # as of a .tok file of another model
        assert why in run("decode", name, "-o", "back", "--threads", "1", code=code).stderr
    assert not Path("1.png").exists()
