"""What goes wrong around the command line, and what it says: streams, pipes, devices, names, limits, missing things.

With the embedded model on the light engine; processes of their own only where streams are closed or signals come.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import titokc
from titokc import cli, imaging, many
from titokc.cli import batch, decode, doctor, main, streams
from titokc.cli.report import printable
from titokc.container import Header, pack
from titokc.limits import Limits

ROOT = Path(__file__).parent.parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX streams and devices")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs `titokc ARGS` in an empty folder; gives the exit code, stdout (bytes) and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args, stdin=None, code=0):
        result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin, prog_name="titokc")
        assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture
def picture(photo, tmp_path):
    photo().save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def tok(tmp_path):
    """x.tok: 300x200 in 1x2 tiles of 32 tokens, which no model made."""
    (tmp_path / "x.tok").write_bytes(pack(Header(300, 200, 1, 2, 32, 12, 1, b"\1\2"), range(64)))
    return tmp_path / "x.tok"


def shell(command, *args, **settings):
    """The command in a process of its own; "titokc" in `command` is ours."""
    python = f"{sys.executable} -m titokc"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", command.replace("titokc", python, 1), "bash", *map(str, args)]
    return subprocess.run(command, capture_output=True, check=False, env=environment, **settings)


class TestOutputs:
    @POSIX
    def test_devices_and_pipes_need_no_force(self, run, picture, tmp_path):
        run("encode", picture, "--effort", 0, "-o", "/dev/null")
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        run("encode", picture, "--effort", 0, "-o", "pipe")
        data = os.read(reader, 1000)
        os.close(reader)
        assert data == run("encode", picture, "--effort", 0, "-o", "-").stdout_bytes
        assert data == run("encode", picture, "--effort", 0, "-o", "/dev/stdout").stdout_bytes
        assert run("decode", "-", "-o", "/dev/stdout", stdin=data).stdout_bytes.startswith(b"\x89PNG")

    @POSIX
    def test_a_process_as_output(self, picture, tmp_path):
        done = shell("titokc encode $1 --effort 0 -o >(cat > $2); sleep 0.2", picture, tmp_path / "x.tok")
        assert done.returncode == 0
        assert titokc.read_header((tmp_path / "x.tok").read_bytes()).width == 96

    def test_formats_that_are_not_written_are_refused_before_decoding(self, run, tok, monkeypatch):
        monkeypatch.setattr("titokc.codec.Codec.decode_many", None)
        assert "cannot write pictures as '.gif'" in run("decode", tok, "-o", "x.gif", code=2).stderr
        assert set(imaging._WRITERS) == decode.WRITTEN

    def test_two_results_for_one_new_name(self, run, picture, photo, monkeypatch):
        """Another process made it after this one had looked."""
        photo(seed=2).save("b.png")
        monkeypatch.setattr(batch, "is_taken", lambda target: False)
        run("encode", picture, "--effort", 0, "-o", "x.tok")
        before = Path("x.tok").read_bytes()
        assert run("encode", "b.png", "--effort", 0, "-o", "x.tok", code=1).stderr.endswith("x.tok exists\n")
        assert Path("x.tok").read_bytes() == before

    @POSIX
    @pytest.mark.parametrize(
        "args", ["info $1", "info --json $1", "truncate --tokens 9 -o - $1", "models list", "--help"]
    )
    def test_a_reader_that_went_away_ends_it_without_a_word(self, tok, args):
        read_end, write_end = os.pipe()
        os.close(read_end)
        python = [sys.executable, "-m", "titokc", *args.replace("$1", str(tok)).split()]
        done = subprocess.run(python, stdout=write_end, stderr=subprocess.PIPE, check=False, cwd=ROOT)
        os.close(write_end)
        assert (done.returncode, done.stderr) == (1, b"")

    @POSIX
    @pytest.mark.parametrize("args", ["info $1", "info --json $1", "truncate --tokens 9 -o - $1"])
    def test_closed_standard_output(self, tok, args):
        done = shell(f"titokc {args} >&-", tok)
        assert (done.returncode, done.stderr) == (1, b"titokc: standard output: closed\n")

    @POSIX
    def test_closed_standard_output_that_is_not_needed(self, tok, tmp_path):
        done = shell("titokc truncate --tokens 9 $1 -o $2 >&- 2>&-", tok, tmp_path / "y.tok")
        assert done.returncode == 0
        assert titokc.read_header((tmp_path / "y.tok").read_bytes()).tokens_per_tile == 9


class TestInputs:
    def test_a_file_that_may_not_be_read_stops_nothing_else(self, run, picture, photo, monkeypatch):
        photo().save("locked.png")
        opened = Path.open

        def refuse(path, *args, **kwargs):
            if path.name == "locked.png":
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *args, **kwargs)

        monkeypatch.setattr(Path, "open", refuse)
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked.png")
        result = run("encode", "locked.png", "a.png", "--effort", 0, "-o", "o/", code=1)
        assert "titokc: locked.png: cannot be read: permission denied\n" in result.stderr
        assert Path("o/a.tok").exists()

    @POSIX
    @pytest.mark.parametrize("verb", ["encode", "decode", "info"])
    def test_closed_standard_input(self, verb):
        done = shell(f"titokc {verb} - <&-")
        assert (done.returncode, done.stderr) == (1, b"titokc: stdin: closed\n")

    @pytest.mark.parametrize(("first", "second"), [("PNG", "JPEG"), ("JPEG", "PNG"), ("WEBP", "JPEG"), ("BMP", "PNG")])
    def test_a_second_picture_on_standard_input_is_noted(self, run, photo, first, second):
        def saved(name):
            out = io.BytesIO()
            photo().save(out, name)
            return out.getvalue()

        result = run("encode", "-", "--effort", 0, "-o", "x.tok", stdin=saved(first) + saved(second))
        assert "note: stdin: more than one picture, only the first is encoded\n" in result.stderr
        for data in (saved(first), saved(first) + b"\0" * 9):
            assert "note" not in run("encode", "-", "--effort", 0, "-o", "x.tok", "--force", stdin=data).stderr

    def test_gigabytes_that_are_no_picture_are_not_read(self, monkeypatch):
        class Endless:
            taken = 0

            def read(self, size):
                assert 0 <= size <= 1000
                self.taken += size
                return bytes(size)

        buffer = Endless()
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": buffer}))
        assert len(streams.read_picture(Limits())) == buffer.taken < 1000

    def test_gigabytes_that_begin_as_a_picture_are_not_all_read(self, monkeypatch):
        class Endless:
            def read(self, size):
                assert 0 <= size < 100_000_000
                return b"BM" + bytes(size - 2)

        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": Endless()}))
        with pytest.raises(titokc.InputError, match="longer than a picture of 100 pixels"):
            streams.read_picture(Limits(max_pixels=100))

    def test_the_first_frame_of_an_animation_is_noted(self, run, photo):
        photo(seed=1).save("x.gif", save_all=True, append_images=[photo(seed=2), photo(seed=3)])
        assert "note: x.gif: the first of 3 frames\n" in run("encode", "x.gif", "--effort", 0).stderr
        assert "note" not in run("encode", "x.gif", "--effort", 0, "--force", "-q").stderr
        rows = json.loads(run("encode", "x.gif", "--effort", 0, "--force", "--json").stdout)
        assert rows["notes"] == ["the first of 3 frames"]


class TestMessages:
    def test_nothing_of_a_name_reaches_the_terminal_raw(self, run, photo):
        name = "a\x1b[31m\nb\u202e.png"
        photo().save(name)
        for result in (run("encode", name, "--effort", 0), run("encode", name, code=1), run("info", name, code=3)):
            assert "\x1b" not in result.stderr
            assert "\u202e" not in result.stderr
            assert len(result.stderr.splitlines()) == 1
            assert r"a\x1b[31m\nb\u202e.png" in result.stderr
        assert printable("ä é \N{CAMERA} " + "\udcff") == "ä é \N{CAMERA} " + r"\udcff"
        folder = os.fsdecode(b"m\x1b\n\xe9")
        assert run("models", "convert", "nano", folder).stdout.startswith(r"m\x1b\n\udce9: code ")
        there = run("models", "path", folder).stdout_bytes  # for a program: the very bytes
        assert there.endswith(b"/m\x1b\n\xe9/model.safetensors\n")

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["encode", "in", "--tiles", "foo"], "invalid value for '--tiles': 'foo': expected ROWSxCOLUMNS"),
            (["encode", "in", "--background", "bluish"], "invalid value for '--background': 'bluish'"),
            (["encode", "in", "--tokens", "x"], "invalid value for '--tokens'"),
            (["encode", "--nope", "in"], "no such option"),
            (["encode"], "missing argument"),
            (["nope"], "no such command 'nope'"),
        ],
    )
    def test_usage_errors_are_one_line_said_once(self, run, photo, args, message):
        Path("in").mkdir()
        for seed in range(3):
            photo(seed=seed).save(f"in/{seed}.png")
        stderr = run(*args, code=2).stderr
        assert stderr.startswith(f"titokc: {message}")
        assert stderr.count("\n") == 1
        assert "--help has the options" in stderr

    def test_limits_name_the_option(self, run, photo):
        photo(300, 20).save("a.png")
        for option, value in (("--max-side", 299), ("--max-pixels", 5999), ("--max-indices", 127)):
            assert f"({option} allows more)" in run("encode", "a.png", option, value, code=6).stderr
        run("encode", "a.png", "--effort", 0)
        for option, value in (("--max-side", 299), ("--max-pixels", 5999), ("--max-indices", 127)):
            assert f"({option} allows more)" in run("decode", "a.tok", option, value, "-o", "b.png", code=6).stderr

    def test_what_was_chosen(self, run, photo):
        photo(300, 200).save("a.png")
        assert "128 tokens in 2x3 tiles, " in run("encode", "a.png", "--effort", 0, "--tiles", "2x3").stderr
        row = json.loads(
            run("encode", "a.png", "--effort", 0, "--base64", "--tokens", 40, "--tiles", "1x2", "--json").stdout
        )
        assert (row["tiles"], row["tokens_per_tile"]) == ({"rows": 1, "columns": 2}, 40)
        run("encode", "a.png", "--effort", 0, "--bare", "--target-size", 400)
        row = json.loads(run("encode", "a.png", "--effort", 0, "--bare", "--tokens", 64, "--json", "--force").stdout)
        assert row["tiles"] == {"rows": 1, "columns": 1}

    def test_psnr_is_that_of_the_decoded_picture(self, run, photo):
        import numpy as np

        from titokc.judge.pixels import psnr

        photo(300, 200).save("a.png")
        row = json.loads(run("encode", "a.png", "--effort", 0, "--psnr", "--json").stdout)
        run("decode", "a.tok", "-o", "b.png")
        assert row["psnr"] == round(psnr(np.asarray(photo(300, 200)), np.asarray(Image.open("b.png"))), 2)
        assert f", {row['psnr']:.2f} dB, " in run("encode", "a.png", "--effort", 0, "--psnr", "--force").stderr

    def test_a_custom_model_that_is_not_here(self, run):
        Path("e.tok").write_bytes(pack(Header(300, 200, 1, 1, 2, 12, 0, b"\1\2", True), [1, 2]))
        stderr = run("decode", "e.tok", code=4).stderr
        assert "--model" in stderr
        assert "titokc models install" in stderr

    def test_partial(self, run, picture):
        run("encode", picture, "--effort", 0)
        data = Path("a.tok").read_bytes()
        Path("cut.tok").write_bytes(data[:100])
        assert run("info", "cut.tok", code=3).stderr.startswith("titokc: cut.tok: ")
        fields = json.loads(run("info", "--partial", "--json", "cut.tok").stdout)
        found = fields["tokens_found"]
        assert (fields["tokens_per_tile"], fields["checksum_checked"]) == (128, False)
        assert 50 < found < 60
        assert (
            f"tokens found    {found} of each tile; the file was cut short"
            in run("info", "--partial", "cut.tok").stdout
        )
        assert f"note: cut.tok: {found} tokens a tile are there" in run("decode", "--partial", "cut.tok").stderr
        fields = json.loads(run("info", "--partial", "--json", "a.tok").stdout)
        assert (fields["tokens_found"], fields["checksum_checked"]) == (128, True)
        Path("head.tok").write_bytes(data[:12])
        fields = json.loads(run("info", "--partial", "--json", "head.tok").stdout)
        assert (fields["tokens_found"], fields["tokens_per_tile"]) == (0, 128)

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            ImportError("libtorch_cuda.so: failed to map segment from shared object"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            OSError(12, "Cannot allocate memory"),
        ],
    )
    def test_too_little_memory(self, capsys, error):
        assert cli._explain(error) == 1
        assert capsys.readouterr().err.startswith("titokc: not enough memory (")

    def test_a_package_that_is_missing(self, capsys):
        assert cli._explain(ModuleNotFoundError("No module named 'torch'", name="torch._C")) == 2
        assert (
            capsys.readouterr().err == "titokc: this needs torch, which is not installed: pip install 'titokc[torch]'\n"
        )


@POSIX
class TestProgress:
    def seen(self, *args):
        """What a terminal that does not know its size is shown."""
        import pty

        keyboard, terminal = pty.openpty()
        python = [sys.executable, "-m", "titokc", *map(str, args)]
        with subprocess.Popen(python, stderr=terminal, stdout=subprocess.DEVNULL, cwd=ROOT) as child:
            os.close(terminal)
            text = b""
            with contextlib.suppress(OSError):  # the other end is closed
                while block := os.read(keyboard, 10_000):
                    text += block
            assert child.wait() == 0
        os.close(keyboard)
        return text.decode()

    def test_tiles_of_one_picture(self, photo, tmp_path):
        photo(300, 200).save(tmp_path / "a.png")
        text = self.seen("encode", tmp_path / "a.png", "--tiles", "2x2", "--effort", 0)
        assert "0/4 [" in text
        assert "tiles/s" in text
        assert "tiles/s" not in self.seen(
            "encode", tmp_path / "a.png", "--tiles", "2x2", "--effort", 0, "-q", "--force"
        )

    def test_pictures_of_a_folder(self, photo, tmp_path):
        for seed in range(3):
            photo(seed=seed).save(tmp_path / f"{seed}.png")
        text = self.seen("encode", tmp_path, "--effort", 0)
        assert "0/3 [" in text
        assert "pictures/s" in text

    def test_a_budget_is_known_beforehand(self):
        import numpy as np

        seen = []
        work = many.Work(lambda done, total: seen.append((done, total)))
        work.foresee(6)
        for tiles in (2, 4):
            work.expect(tiles)
            list(work.through(lambda group: group, [np.zeros(1)] * tiles, 2))
        work.expect(2)
        list(work.through(lambda group: group, [np.zeros(1)] * 2, 2))
        assert seen == [(2, 6), (4, 6), (6, 6), (8, 8)]


class TestInfoAndTruncateOfMany:
    @pytest.fixture
    def many(self, tok, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        Path("in/sub").mkdir(parents=True)
        for name in ("in/a.tok", "in/sub/b.tok"):
            Path(name).write_bytes(tok.read_bytes())
        Path("bad.tok").write_bytes(b"none")

    def test_info(self, run, many):
        result = run("info", "in", "bad.tok", code=1)
        assert result.stdout.startswith("in/a.tok\nformat version  1\n")
        assert "\n\nin/sub/b.tok\nformat version" in result.stdout
        assert result.stderr.startswith("titokc: bad.tok: not a .tok file")
        rows = [json.loads(line) for line in run("info", "--json", "in", "bad.tok", code=1).stdout.splitlines()]
        assert [(row["input"], row["status"], row.get("width")) for row in rows] == [
            ("in/a.tok", "done", 300), ("in/sub/b.tok", "done", 300), ("bad.tok", "failed", None)
        ]  # fmt: skip
        run("info", "bad.tok", "bad.tok", code=3)

    def test_truncate(self, run, many):
        result = run("truncate", "in", "bad.tok", "--tokens", 9, "-o", "out", code=1)
        assert Path("out/a-9.tok").read_bytes() == Path("out/sub/b-9.tok").read_bytes()
        assert result.stderr.startswith("in/a.tok -> out/a-9.tok: ")
        assert "titokc: bad.tok: not a .tok file" in result.stderr
        assert "a folder" in run("truncate", "in", "x.tok", "--tokens", 9, "-o", "z.tok", code=2).stderr
        run("truncate", "x.tok", "bad.tok", "--tokens", 9, code=1)
        assert Path("x-9.tok").exists()

    def test_any_sound_header(self, run, tmp_path):
        Path("large.tok").write_bytes(pack(Header(65_536, 65_536, 1, 1, 32, 12, 1, b"\1\2"), range(32)))
        assert json.loads(run("info", "--json", "large.tok").stdout)["width"] == 65_536
        run("truncate", "large.tok", "--tokens", 9)


class TestWhereThingsAreMissing:
    def test_no_home(self, run, picture, monkeypatch):
        import pwd

        def nobody(uid):
            raise KeyError(f"getpwuid(): uid not found: {uid}")

        monkeypatch.setattr(pwd, "getpwuid", nobody)
        for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "TITOKC_HOME", "HF_HOME", "TORCH_HOME"):
            monkeypatch.delenv(name, raising=False)
        assert "nano-1" in run("models", "list").stdout
        run("encode", picture, "--effort", 0)
        assert "no model 'foo'" in run("encode", picture, "--model", "foo", "--force", code=4).stderr
        models = json.loads(run("doctor", "--json").stdout)["models"]
        assert models["installed_in"].startswith("/")

    def test_doctor_without_torch(self):
        guard = (
            "import sys\n"
            "class Guard:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError('torch', name='torch')\n"
            "sys.meta_path.insert(0, Guard())\n"
            "from titokc.cli import main\n"
            "main(prog_name='titokc')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", guard, "doctor", "--json"], capture_output=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["engines"]["torch"] == "not here: pip install 'titokc[torch]'"
        assert report["devices"]["default"] == "cpu"
        assert (report["round_trip"]["model"], report["round_trip"]["file_bytes"]) == ("nano-1", 59)

    def test_doctor_names_what_installs_an_extra(self, run, monkeypatch):
        monkeypatch.setattr(doctor, "requires", lambda name: ["numpy>=1", 'scipy>=1.10; extra == "bench"'])
        monkeypatch.setattr(doctor, "_version", lambda package: None if package == "scipy" else "1.0")
        assert "  bench               pip install 'titokc[bench]' (for scipy)" in run("doctor").stdout.splitlines()


class TestExitCodes:
    """The table of `titokc --help`: what raises which code, whatever the verb."""

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (titokc.InputError("x"), 1),
            (titokc.OutputError("x"), 1),
            (titokc.UsageError("x"), 2),
            (titokc.ContainerError("x"), 3),
            (titokc.ModelNotFoundError("x"), 4),
            (titokc.ModelMismatchError("x"), 4),
            (titokc.WeightsError("x"), 4),
            (titokc.MetricWeightsMissingError("x"), 5),
            (titokc.LimitExceededError("x"), 6),
            (KeyboardInterrupt(), 130),
        ],
    )
    def test_table(self, run, picture, monkeypatch, error, code):
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr("titokc.engines.open", fail)
        expected = "titokc: interrupted\n" if code == 130 else "titokc: x\n"
        assert run("encode", picture, code=code).stderr.endswith(expected.removeprefix("titokc: "))

    def test_the_help_has_the_table(self, run):
        text = " ".join(run("--help").stdout.split())
        for code, meaning in {0: "all done", 3: "corrupt", 5: "metric weights missing", 130: "interrupted"}.items():
            assert f"{code} {meaning}" in text

    @POSIX
    @pytest.mark.parametrize("swallowed", [False, True])
    def test_an_interrupt_while_modules_are_imported(self, swallowed):
        """A library may turn it into an error of its own."""
        code = (
            "import os, signal, sys\n"
            "class Guard:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name == {'titokc.cli.info' if swallowed else 'click'!r}:\n"
            "            try:\n"
            "                os.kill(os.getpid(), signal.SIGINT)\n"
            "                for _ in range(1000): pass\n"
            "            except KeyboardInterrupt:\n"
            f"                if {swallowed}: raise ImportError('cannot load module more than once') from None\n"
            "                raise\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "sys.meta_path.insert(0, Guard())\n"
            "from titokc.__main__ import main\n"
            "main()\n"
        )
        done = subprocess.run([sys.executable, "-c", code, "info", "x"], capture_output=True, check=False, cwd=ROOT)
        assert (done.returncode, done.stderr) == (130, b"titokc: interrupted\n")

    @POSIX
    def test_an_interrupt_while_a_model_is_loaded(self, picture):
        """It is loaded in a thread, for which nobody waits."""
        code = (
            "import os, signal, time\n"
            "import titokc.engines\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "titokc.engines.open = lambda *args, **settings: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60))\n"
            "from titokc.__main__ import main\n"
            "main()\n"
        )
        command = [sys.executable, "-c", code, "encode", str(picture)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=30, cwd=ROOT)
        assert (done.returncode, done.stderr) == (130, b"titokc: interrupted\n")
