"""What starts fast: help, version, info, completion, and the refusal of what is no `.tok` file; without torch.

Limits are on processor time, which other work on the machine changes less than the time on the clock.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from titokc.cli import VERBS

ROOT = Path(__file__).parent.parent
LIMIT_S = 0.3
# Put in front of a command, it fails if one of these is imported.
GUARD = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {banned}:
            raise SystemExit(f"imported {{name}}")
sys.meta_path.insert(0, Guard())
from titokc.cli import main
main(prog_name="titokc")
"""


def titokc(*args, banned=("torch", "numpy", "torchvision"), stdin=b"", **environment):
    """Runs the command in a process of its own; gives its result and the processor seconds it took (a second try
    counts if the first was slow)."""
    seconds = []
    while not seconds or (seconds[-1] >= LIMIT_S and len(seconds) < 3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(
            [sys.executable, "-c", GUARD.format(banned=set(banned)), *map(str, args)],
            capture_output=True,
            input=stdin,
            cwd=ROOT,
            env={**os.environ, **environment},
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert b"imported" not in result.stderr, result.stderr
        assert b"Traceback" not in result.stderr, result.stderr
    return result, min(seconds)


@pytest.fixture
def foreign(tmp_path):
    from PIL import Image

    picture = Image.effect_noise((640, 480), 50)
    picture.save(tmp_path / "photo.png")
    picture.save(tmp_path / "photo.jpg")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "random.tok").write_bytes(os.urandom(1000))
    (tmp_path / "huge.tok").write_bytes(os.urandom(30_000_000))
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "code"),
    [("photo.png", 3), ("photo.jpg", 3), ("empty", 3), ("random.tok", 3), ("huge.tok", 3), ("folder", 1), ("none", 1)],
)
def test_what_is_no_tok_file_is_refused_at_once(foreign, name, code):
    result, seconds = titokc("decode", foreign / name)
    assert result.returncode == code
    assert len(result.stderr.splitlines()) == 1
    assert seconds < LIMIT_S


def test_from_standard_input_too(foreign):
    result, seconds = titokc("decode", "-", stdin=(foreign / "photo.png").read_bytes())
    assert result.returncode == 3
    assert seconds < LIMIT_S


@pytest.mark.parametrize("args", [["--version"], ["unknown"], ["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_starts_fast(args):
    result, seconds = titokc(*args)
    assert result.returncode == (2 if args == ["unknown"] else 0)
    assert seconds < LIMIT_S


def test_info_and_truncate_start_fast(tmp_path):
    from titokc.container import Header, pack

    path = tmp_path / "x.tok"
    path.write_bytes(pack(Header(300, 200, 1, 2, 32, 12, 1, b"\1\2"), range(64)))
    for args in (
        ["info", path, "--json", "--tokens"],
        ["info", ROOT / "pyproject.toml"],
        ["truncate", path, "--tokens", "10", "--force"],
    ):
        result, seconds = titokc(*args)
        assert result.returncode == (3 if args[1] != path else 0)
        assert seconds < LIMIT_S


def test_completion_starts_fast():
    result, seconds = titokc(_TITOKC_COMPLETE="bash_complete", COMP_WORDS="titokc tr", COMP_CWORD="1")
    assert result.stdout.decode().split() == ["plain,truncate", "plain,train"]
    assert seconds < LIMIT_S
    result, _ = titokc(_TITOKC_COMPLETE="bash_complete", COMP_WORDS="titokc encode --ti", COMP_CWORD="2")
    assert result.stdout.decode().split() == ["plain,--tiles"]
    result, _ = titokc(_TITOKC_COMPLETE="bash_source")
    assert b"_TITOKC_COMPLETE=bash_complete" in result.stdout


def test_pictures_that_are_none_are_refused_without_torch(foreign):
    result, _ = titokc("encode", foreign / "random.tok", banned=["torch"])
    assert result.returncode == 1


def test_importing_titokc_imports_nothing_heavy():
    code = "import sys, titokc; print(titokc.__version__, titokc.read_header.__name__); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    first, modules = result.stdout.splitlines()
    assert first.endswith(" read_header")
    assert not {"torch", "numpy", "PIL", "click", "tqdm"} & set(modules.split())


def test_every_public_name_is_there():
    import titokc as package

    assert all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_the_module_runs():
    result = subprocess.run([sys.executable, "-m", "titokc", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.startswith("titokc ")
