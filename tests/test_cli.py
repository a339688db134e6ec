"""`titokc encode`, `decode`, `info`, `truncate` in this process, on a tiny tokenizer: options, output, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import titokc
from titokc import container, payload
from titokc.cli import main
from titokc.engines.torch import TorchEngine

ROOT = Path(__file__).parent.parent


def opened(load):
    """`titokc.engines.open` with the tokenizers that `load` gives for a name and a device."""

    def open_engine(model, device="auto", engine="auto", **settings):
        return TorchEngine(load(model, device), **settings)

    return open_engine


@pytest.fixture
def run(tiny, monkeypatch, tmp_path):
    """Runs `titokc ARGS` in an empty folder; gives the exit code, stdout (bytes) and stderr."""
    monkeypatch.setattr("titokc.engines.open", opened(lambda name, device: tiny))
    monkeypatch.chdir(tmp_path)

    def run(*args, stdin=None, code=0):
        result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin, prog_name="titokc")
        assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture
def files(photo, run, tmp_path):
    """A folder `in` with a.png, b.jpg and sub/c.webp, and what is no picture."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    photo(seed=1).save(folder / "a.png")
    photo(seed=2).save(folder / "b.jpg")
    photo(seed=3).save(folder / "sub" / "c.webp")
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    return folder


def read(name):
    return Path(name).read_bytes()


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestEncode:
    def test_beside_the_input(self, run, files):
        result = run("encode", "in/a.png")
        assert (files / "a.tok").read_bytes() == titokc.encode(files / "a.png")
        assert result.stdout == ""
        assert result.stderr == "in/a.png -> in/a.tok: 128 tokens, 205 bytes\n"

    def test_no_result_is_named_as_a_picture(self, run, files):
        result = run("encode", "in/a.png", "-o", "in/x.JPG", code=2)
        assert result.stderr == "titokc: in/x.JPG: a .tok file is no picture\n"
        assert not (files / "x.JPG").exists()

    def test_quietly(self, run, files):
        result = run("encode", "-q", "in/a.png", "-o", "x.tok")
        assert (result.stdout, result.stderr) == ("", "")

    def test_options(self, run, files):
        run("encode", "in/a.png", "-o", "x.tok", "--tokens", 40, "--tiles", "2x3")
        header = titokc.read_header(read("x.tok"))
        assert (header.rows, header.columns, header.tokens_per_tile) == (2, 3, 40)
        run("encode", "in/a.png", "-o", "y.tok", "--target-size", 150)
        assert 100 < len(read("y.tok")) <= 150

    def test_unequal_tiles_say_how_many_tokens_they_have(self, run, photo):
        picture = photo(192, 192)
        picture.paste((90, 120, 200), (0, 0, 192, 96))
        picture.save("x.png")
        said = run("encode", "x.png", "--target-size", 300, "--tiles", "2x2").stderr
        counts = titokc.read_header(read("x.tok")).counts
        assert said.startswith(f"x.png -> x.tok: {min(counts)} to {max(counts)} tokens in 2x2 tiles, ")
        assert f"tokens per tile {min(counts)} to {max(counts)}, {sum(counts)} in all\n" in run("info", "x.tok").stdout
        fields = json.loads(run("info", "x.tok", "--json").stdout)
        assert (fields["format_version"], fields["tokens_per_tile"]) == (2, max(counts))
        assert fields["tokens_of_tiles"] == list(counts)
        fewer = max(counts) - 5
        run("truncate", "x.tok", "--tokens", fewer)
        assert titokc.read_header(read(f"x-{fewer}.tok")).tokens_per_tile == fewer

    @pytest.mark.parametrize(
        "options",
        [
            ["--device", "cpu"],
            ["--dtype", "bfloat16"],
            ["--batch-size", "3"],
            ["--max-pixels", "6144"],
            ["--max-side", "96"],
            ["--model", "nano"],
        ],
    )
    def test_settings_that_change_nothing(self, run, files, options):
        run("encode", "in/a.png", *options)
        run("decode", "in/a.tok", "-o", "a.png", *options)
        assert (files / "a.tok").read_bytes() == titokc.encode(files / "a.png")

    def test_background(self, run):
        Image.new("RGBA", (8, 8)).save("clear.png")
        run("encode", "clear.png", "-o", "white.tok")
        run("encode", "clear.png", "-o", "red.tok", "--background", "#f00")
        assert set(container.unpack(read("white.tok"))[1]) == {0xFFF}
        assert set(container.unpack(read("red.tok"))[1]) == {0xF00}

    def test_bare_and_base64(self, run, files):
        run("encode", "in/a.png", "--bare", "--tokens", 32)
        run("encode", "in/a.png", "--base64", "--tokens", 32)
        bare, text = (files / "a.bin").read_bytes(), (files / "a.txt").read_text()
        assert (len(bare), len(text)) == (48, 64)
        assert text == payload.to_text(bare)
        run("decode", "in/a.bin", "--bare", "--size", "96x64", "-o", "1.png")
        run("decode", "in/a.txt", "--base64", "--size", "96x64", "-o", "2.png")
        run("encode", "in/a.png", "--tokens", 32)
        run("decode", "in/a.tok", "-o", "3.png")
        assert read("1.png") == read("2.png") == read("3.png")
        run("encode", "in/a.png", "--bare", "--target-size", 48, "--force")
        assert len((files / "a.bin").read_bytes()) == 48
        run("encode", "in/a.png", "--bare", "--base64", code=2)
        assert "30 is not in the range 0<=x<=9" in run("encode", "in/a.png", "--effort", 30, code=2).stderr

    def test_bare_tiles(self, run, files):
        run("encode", "in/a.png", "--bare", "--tiles", "2x3", "-o", "x.bin")
        assert len(read("x.bin")) == 6 * 192
        run("decode", "x.bin", "--bare", "--tiles", "2x3", "--size", "96x64", "-o", "x.png")
        run("encode", "in/a.png", "--tiles", "2x3", "-o", "y.tok")
        run("decode", "y.tok")
        assert read("x.png") == read("y.png")


class TestStreams:
    def test_stdin_to_stdout(self, run, files):
        data = run("encode", "-", stdin=(files / "a.png").read_bytes()).stdout_bytes
        assert data == titokc.encode(files / "a.png")
        png = run("decode", "-", stdin=data).stdout_bytes
        assert png.startswith(b"\x89PNG")
        run("encode", "in/a.png")
        run("decode", "in/a.tok", "-o", "a.png")
        assert png == read("a.png")

    def test_stdin_to_a_file_and_a_file_to_stdout(self, run, files):
        run("encode", "-", "-o", "x.tok", stdin=(files / "a.png").read_bytes())
        assert run("encode", "in/a.png", "-o", "-").stdout_bytes == read("x.tok")

    def test_text_on_stdout(self, run, files):
        assert len(run("encode", "in/a.png", "--base64", "--tokens", 32, "-o", "-").stdout) == 64

    def test_json_and_the_result_do_not_share_stdout(self, run, files):
        run("encode", "in/a.png", "-o", "-", "--json", code=2)


class TestFoldersAndGlobs:
    def test_trees_are_mirrored(self, run, files, tmp_path):
        run("encode", "in", "-o", "out")
        assert tree(tmp_path / "out") == ["a.tok", "b.tok", "sub/c.tok"]
        run("decode", "out", "-o", "back")
        assert tree(tmp_path / "back") == ["a.png", "b.png", "sub/c.png"]
        assert Image.open("back/sub/c.png").size == (96, 64)

    def test_beside_without_an_output(self, run, files):
        run("encode", "in")
        assert tree(files) == [
            ".hidden.png", "a.png", "a.tok", "b.jpg", "b.tok", "notes.txt", "sub/c.tok", "sub/c.webp",
        ]  # fmt: skip

    def test_several_files_into_a_folder(self, run, files, tmp_path):
        run("encode", "in/a.png", "in/sub/c.webp", "-o", "out")
        assert tree(tmp_path / "out") == ["a.tok", "c.tok"]

    def test_one_file_into_a_folder(self, run, files, tmp_path):
        run("encode", "in/a.png", "-o", "new/")
        assert tree(tmp_path / "new") == ["a.tok"]
        run("encode", "in/b.jpg", "-o", "new")
        assert tree(tmp_path / "new") == ["a.tok", "b.tok"]

    def test_globs(self, run, files, tmp_path):
        run("encode", "in/*.png", "in/**/*.webp", "-o", "out")
        assert tree(tmp_path / "out") == ["a.tok", "c.tok"]
        assert "no file matches" in run("encode", "in/*.bmp", code=1).stderr

    def test_nothing_in_the_folder(self, run, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "no file in this folder ends in" in run("encode", "empty", code=1).stderr
        assert "ends in .tok" in run("decode", "empty", code=1).stderr

    def test_folders_that_cannot_be_read_are_named(self, run, files, monkeypatch):
        scandir = os.scandir

        def refuse(path):
            if Path(path).name == "sub":
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr("os.scandir", refuse)
        result = run("encode", "in", code=1)
        assert "titokc: in/sub: cannot be read: permission denied" in result.stderr
        assert "2 done, 0 skipped, 1 failed" in result.stderr

    def test_an_empty_name_is_not_the_current_folder(self, run, files):
        run("encode", "", code=1)
        assert not (files / "a.tok").exists()


class TestExisting:
    def test_is_an_error_without_force(self, run, files):
        (files / "a.tok").write_bytes(b"mine")
        assert "--force" in run("encode", "in/a.png", code=1).stderr
        assert (files / "a.tok").read_bytes() == b"mine"
        run("encode", "in/a.png", "--force")
        assert (files / "a.tok").read_bytes() == titokc.encode(files / "a.png")

    def test_can_be_skipped(self, run, files, tiny):
        run("encode", "in/a.png")
        tiny.batches.clear()
        result = run("encode", "in", "--skip-existing")
        assert "2 done, 1 skipped, 0 failed" in result.stderr
        assert len(tiny.batches) == 2
        assert "skipped" in run("encode", "in/a.png", "--skip-existing").stderr

    def test_originals_are_not_overwritten_by_decoding_beside_them(self, run, files):
        before = (files / "a.png").read_bytes()
        run("encode", "in/a.png")
        run("decode", "in/a.tok", code=1)
        assert (files / "a.png").read_bytes() == before

    def test_an_input_is_never_its_own_result(self, run, files):
        (files / "a.png").rename("a.tok")
        before = read("a.tok")
        assert "its own input" in run("encode", "a.tok", "--force", code=1).stderr
        assert read("a.tok") == before

    def test_force_and_foreign_input_leave_the_old_file(self, run, files):
        (files / "a.tok").write_bytes(b"mine")
        (files / "a.png").write_bytes(b"junk")
        run("encode", "in/a.png", "--force", code=1)
        assert (files / "a.tok").read_bytes() == b"mine"


class TestBatches:
    def test_a_bad_file_stops_nothing_else_and_a_second_run_does_the_rest(self, run, files, tiny, tmp_path):
        good = (files / "b.jpg").read_bytes()
        (files / "b.jpg").write_bytes(good[:50])
        result = run("encode", "in", "in/missing.png", "-o", "out", code=1)
        assert tree(tmp_path / "out") == ["a.tok", "sub/c.tok"]
        assert "titokc: in/b.jpg: " in result.stderr
        assert "titokc: in/missing.png: cannot be read: no such file or directory" in result.stderr
        assert "2 done, 0 skipped, 2 failed" in result.stderr
        (files / "b.jpg").write_bytes(good)
        tiny.batches.clear()
        result = run("encode", "in", "-o", "out", "--skip-existing")
        assert "1 done, 2 skipped, 0 failed" in result.stderr
        assert tiny.batches == [1]

    def test_json_lines(self, run, files):
        (files / "b.jpg").write_bytes(b"")
        result = run("encode", "in", "-o", "out", "--json", "--tokens", 32, code=1)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["status"] for row in rows] == ["done", "failed", "done"]
        size = len(read("out/a.tok"))
        assert rows[0] == {
            "input": "in/a.png",
            "output": "out/a.tok",
            "status": "done",
            "format_version": 1,
            "width": 96,
            "height": 64,
            "tiles": {"rows": 1, "columns": 1},
            "tokens_per_tile": 32,
            "bits_per_index": 12,
            "model": "nano-1",
            "code": rows[2]["code"],
            "payload_bytes": 48,
            "file_bytes": size,
            "bpp": size * 8 / (96 * 64),
        }
        assert rows[1] == {
            "input": "in/b.jpg",
            "output": "out/b.tok",
            "status": "failed",
            "error": "the file is empty",
            "exit_code": 1,
        }
        rows = [json.loads(line) for line in run("decode", "out", "-o", "png", "--json").stdout.splitlines()]
        assert [(row["status"], row["width"], row["height"]) for row in rows] == [("done", 96, 64)] * 2


class TestDecode:
    @pytest.fixture
    def tok(self, run, files):
        run("encode", "in/a.png", "-o", "a.tok")
        return "a.tok"

    def test_beside_the_input(self, run, tok):
        run("decode", tok)
        assert Image.open("a.png").tobytes() == titokc.decode(tok).tobytes()

    @pytest.mark.parametrize(("name", "format"), [("x.jpg", "JPEG"), ("x.WEBP", "WEBP"), ("x.tif", "TIFF")])
    def test_the_suffix_chooses_the_format(self, run, tok, name, format):
        run("decode", tok, "-o", name)
        assert Image.open(name).format == format

    def test_size(self, run, tok):
        run("decode", tok, "--size", "30x20")
        assert Image.open("a.png").size == (30, 20)

    @pytest.mark.parametrize("size", ["30", "30x", "x20", "0x20", "30x0", "-3x2", "3x2x1"])
    def test_sizes_that_are_none(self, run, tok, size):
        assert "expected WIDTHxHEIGHT" in run("decode", tok, "--size", size, code=2).stderr


class TestInfo:
    @pytest.fixture
    def tok(self, run, files):
        run("encode", "in/a.png", "-o", "a.tok", "--tiles", "1x2", "--tokens", 32)
        return "a.tok"

    def test_json_of_one_file_that_is_none(self, run, files):
        (files / "b.tok").write_bytes(b"nothing")
        found = json.loads(run("info", "in/b.tok", "--json", code=3).stdout)
        assert (found["input"], found["status"]) == ("in/b.tok", "failed")

    def test_json(self, run, tok, tiny):
        found = json.loads(run("info", tok, "--json").stdout)
        assert found == {
            "format_version": 1,
            "width": 96,
            "height": 64,
            "tiles": {"rows": 1, "columns": 2},
            "tokens_per_tile": 32,
            "bits_per_index": 12,
            "model": "nano-1",
            "code": tiny.info.code[:2].hex(),
            "payload_bytes": 96,
            "file_bytes": 111,
            "bpp": 111 * 8 / (96 * 64),
        }

    def test_tokens(self, run, tok):
        found = json.loads(run("info", tok, "--json", "--tokens").stdout)
        assert found["tokens"] == container.unpack(read(tok))[1]
        assert len(found["tokens"]) == 64

    def test_as_text(self, run, tok):
        lines = run("info", tok, "--tokens").stdout.splitlines()
        assert lines[3] == "tiles           1x2 (rows x columns)"
        assert lines[-1].startswith("tokens          ")
        assert run("info", "-", stdin=read(tok)).stdout.splitlines() == lines[:-1]

    def test_foreign_files(self, run, files):
        assert run("info", "in/a.png", code=3).stderr.startswith("titokc: in/a.png: not a .tok file")
        assert "in: no file in this folder ends in .tok" in run("info", "in", code=1).stderr


class TestTruncate:
    @pytest.fixture
    def tok(self, run, files):
        run("encode", "in/a.png", "-o", "a.tok", "--tiles", "1x2")
        return "a.tok"

    def test_to_tokens(self, run, tok):
        result = run("truncate", tok, "--tokens", 40)
        assert result.stderr == "a.tok -> a-40.tok: 399 -> 135 bytes\n"
        assert read("a-40.tok") == titokc.truncate(read(tok), 40)

    @pytest.mark.parametrize("budget", [18, 100, 135, 136, 137, 398, 399, 4000])
    def test_to_a_size(self, run, tok, budget):
        run("truncate", tok, "--target-size", budget, "-o", "b.tok")
        assert budget - 3 <= len(read("b.tok")) <= budget or len(read("b.tok")) == 399

    def test_streams(self, run, tok):
        data = read(tok)
        assert run("truncate", "-", "--tokens", 40, stdin=data).stdout_bytes == titokc.truncate(data, 40)
        assert run("truncate", tok, "--tokens", 40, "-o", "-").stdout_bytes == titokc.truncate(data, 40)

    def test_existing_results(self, run, tok):
        run("truncate", tok, "--tokens", 40, "-o", "b.tok")
        run("truncate", tok, "--tokens", 40, "-o", "short/")
        assert read("short/a-40.tok") == read("b.tok")
        assert "--force" in run("truncate", tok, "--tokens", 41, "-o", "b.tok", code=1).stderr
        run("truncate", tok, "--tokens", 41, "-o", "b.tok", "--force")
        run("truncate", tok, "--tokens", 41, "-o", tok, "--force", "-q")
        assert titokc.read_header(read(tok)).tokens_per_tile == 41

    def test_what_makes_no_sense(self, run, tok):
        run("truncate", tok, code=2)
        run("truncate", tok, "--tokens", 40, "--target-size", 100, code=2)
        assert "can be cut to 18" in run("truncate", tok, "--target-size", 17, code=2).stderr
        run("truncate", tok, "--tokens", 200, code=2)
        run("truncate", "in/a.png", "--tokens", 40, code=3)


class TestDoctor:
    def test_json(self, run, tiny):
        report = json.loads(run("doctor", "--json").stdout)
        assert report["versions"]["titokc"] == titokc.__version__
        assert {"python", "torch", "pillow", "lpips"} <= set(report["versions"])
        assert set(report["models"]) >= {"nano-1", "titok-l-32", "installed_in", "hub_cache"}
        assert report["devices"]["default"] in ("cpu", "cuda", "mps")
        assert set(report["metric_weights"]) == {
            *("LPIPS (squeeze)", "LPIPS (alex)", "LPIPS (vgg)", "FID and KID", "FID-768 (stand-in)")
        }
        trip = report["round_trip"]
        assert (trip["model"], trip["file_bytes"], trip["code"]) == ("nano-1", 59, tiny.info.code.hex())
        assert 0 < trip["mean_error"] < 30

    def test_as_text(self, run):
        lines = run("doctor").stdout.splitlines()
        assert f"  titokc              {titokc.__version__}" in lines
        assert "  file bytes          59" in lines

    def test_without_the_embedded_model(self, run, monkeypatch):
        def load(name, device):
            raise titokc.ModelNotFoundError("the embedded model is missing")

        monkeypatch.setattr("titokc.engines.open", opened(load))
        result = run("doctor", "--json", code=4)
        assert json.loads(result.stdout)["round_trip"] == {"error": "the embedded model is missing"}


class TestExitCodes:
    """0 done, 1 input, 2 usage, 3 foreign or corrupt, 4 model, 6 limit; `test_cli_faults` has them by error."""

    def test_very_long_pictures(self, run):
        Image.new("RGB", (1, 20_000)).save("long.png")
        expected = "titokc: long.png: 1x20000: the limit is 16384 pixels a side (--max-side allows more)\n"
        assert run("encode", "long.png", code=6).stderr == expected
        run("encode", "long.png", "--max-side", 20_000)
        run("decode", "long.tok", "-o", "x.png", code=6)
        assert json.loads(run("info", "long.tok", "--json").stdout)["height"] == 20_000
        run("decode", "long.tok", "-o", "small.png", "--size", "1x20")
        assert Image.open("small.png").size == (1, 20)
        run("info", "long.tok", "--max-side", 19_999, code=6)
        run("truncate", "long.tok", "--tokens", 9)
        run("decode", "long.tok", "-o", "x.png", "--max-side", 20_000)
        assert Image.open("x.png").size == (1, 20_000)

    @pytest.mark.parametrize(
        ("args", "code"),
        [
            (["encode", "in/a.png"], 0),
            (["encode", "in/notes.txt"], 1),
            (["encode", "none.png"], 1),
            (["encode", "in/a.png", "--tokens", "500"], 2),
            (["encode", "in/a.png", "--target-size", "10"], 2),
            (["encode", "in/a.png", "--device", "abacus"], 2),
            (["decode", "in/a.png"], 3),
            (["decode", "in/b.jpg"], 3),
            (["decode", "in/notes.txt"], 3),
            (["info", "in/notes.txt"], 3),
            (["truncate", "in/notes.txt", "--tokens", "40"], 3),
            (["encode", "in/a.png", "in/notes.txt"], 1),
            (["encode", "none.png", "in/notes.txt"], 1),
            (["decode", "in/a.png", "in/b.jpg"], 3),
            (["decode", "in/a.png", "none.tok"], 1),
            (["--help"], 0),
            (["--version"], 0),
            (["encode", "--help"], 0),
        ],
    )
    def test_table(self, run, files, args, code, monkeypatch, tiny):
        from titokc.engines.torch import find_device

        monkeypatch.setattr("titokc.engines.open", opened(lambda name, device: find_device(device) and tiny))
        result = run(*args, code=code)
        if code:
            assert result.stderr
            assert result.stdout == ""

    def test_a_missing_model_is_said_once_for_all_files(self, run, files, monkeypatch):
        def load(name, device):
            raise titokc.ModelNotFoundError("no such model")

        monkeypatch.setattr("titokc.engines.open", opened(load))
        assert run("encode", "in", code=4).stderr == "titokc: no such model\n"

    def test_a_bug_is_one_line_unless_debugging(self, run, files, monkeypatch):
        def load(name, device):
            raise ZeroDivisionError("a bug\nin two lines")

        monkeypatch.setattr("titokc.engines.open", opened(load))
        expected = "titokc: internal error: ZeroDivisionError: a bug in two lines (--debug shows where)\n"
        assert run("encode", "in/a.png", code=1).stderr == expected
        for args in (["--debug", "encode", "in/a.png"], ["encode", "in/a.png", "--debug"]):
            result = CliRunner().invoke(main, args)
            assert isinstance(result.exception, ZeroDivisionError)

    def test_debug_is_an_option_of_every_command(self, run):
        for args in (["models", "list", "--debug"], ["models", "--debug", "list"], ["bench", "compare", "--help"]):
            run(*args)
        assert "--debug" in run("bench", "--help").output

    def test_a_name_too_long_stops_nothing_else(self, run, files):
        result = run("encode", "in/a.png", "x" * 300 + ".png", "-o", "out/", code=1)
        assert "file name too long" in result.stderr
        assert read("out/a.tok")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
    @pytest.mark.parametrize("verb", [["info"], ["truncate", "--tokens", "40", "-o", "-"]])
    def test_a_full_standard_output_is_one_line(self, run, files, verb):
        run("encode", "in/a.png")
        command = [sys.executable, "-m", "titokc", *verb, str(files / "a.tok")]
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, cwd=ROOT)
        assert done.returncode == 1
        assert done.stderr == b"titokc: standard output: no space left on device\n"
