"""Could a release be made? Wheel and sdist build, hold what they must and nothing else, and work once installed.

`python .ci/release_check.py` downloads nothing: what titokc depends on is taken from the environment that runs it,
which needs setuptools too. Prints what it did; the first thing that is wrong ends it.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = {"py.typed", "weights/nano.safetensors", "weights/nano.json", "bench/report.html", "bench/report.css"}
SUFFIXES = {".py", ".typed", ".csv", ".safetensors", ".json", ".md", ".html", ".css", ".js"}
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def run(*command: object, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(map(str, command), cwd=cwd, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    return out / run(sys.executable, "-c", BUILD, kind, out, cwd=source).splitlines()[-1]


def contents(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}


def check_wheel(wheel: Path) -> None:
    names = contents(wheel)
    package = {name.removeprefix("titokc/") for name in names if name.startswith("titokc/")}
    others = {name for name in names if not name.startswith(("titokc/", f"{wheel.name.split('-py')[0]}.dist-info/"))}
    tracked = set(run("git", "ls-files", "titokc", cwd=ROOT).replace("titokc/", "").split())
    if others or package - tracked or NEEDED - package:
        sys.exit(f"{wheel.name}: not needed {sorted(others | (package - tracked))}, missing {sorted(NEEDED - package)}")
    if left_out := tracked - package:
        sys.exit(f"{wheel.name}: tracked, but left out: {sorted(left_out)}")
    if strange := {name for name in package if Path(name).suffix not in SUFFIXES}:
        sys.exit(f"{wheel.name}: of no known kind: {sorted(strange)}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        sys.exit(f"{wheel.name}: no licence")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")


def smoke_test(wheel: Path, folder: Path) -> None:
    """Installs into an empty environment that sees the packages of this one after its own, and uses every entry."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    where = run(python, "-c", "import titokc; print(titokc.__file__)", cwd=folder).strip()
    if not Path(where).is_relative_to(site):
        sys.exit(f"{where} is imported instead of the installed package")
    titokc = python.with_name("titokc")
    photo = ROOT / "bench" / "samples" / "coffee.jpg"
    version = run(titokc, "--version", cwd=folder).split()[-1]
    if f"-{version}-" not in wheel.name:
        sys.exit(f"{wheel.name} says that it is {version}")
    run(titokc, "encode", photo, "--tokens", 32, "-o", "x.tok", cwd=folder)
    header = json.loads(run(titokc, "info", "x.tok", "--json", cwd=folder))
    if (header["tokens_per_tile"], header["payload_bytes"]) != (32, 48):
        sys.exit(f"x.tok: {header}")
    run(titokc, "decode", "x.tok", "-o", "x.png", cwd=folder)
    run(titokc, "truncate", "x.tok", "--tokens", 8, "-o", "y.tok", cwd=folder)
    run(titokc, "doctor", cwd=folder)
    run(titokc, "train", "--help", cwd=folder)
    run(titokc, "bench", photo, "--codecs", "jpeg", "--bytes", 600, "--metrics", "psnr", "--jobs", 1, "-o", "report",
        cwd=folder, XDG_CACHE_HOME=str(folder / "cache"))  # fmt: skip
    opened = "import titokc.pillow_plugin; from PIL import Image; print(*Image.open('x.tok').size)"
    size = tuple(map(int, run(python, "-c", opened, cwd=folder).split()))
    if size != (header["width"], header["height"]):
        sys.exit(f"Image.open says {size}")
    print(f"{wheel.name}: installed, and encodes, decodes, truncates, measures and opens")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # From what git has, so that nothing which happens to lie here is in it.
        run("git", "clone", "--quiet", ROOT, folder / "clone", cwd=folder)
        sdist = build("sdist", folder / "clone", folder)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (source,) = (folder / "unpacked").iterdir()
        files = sum(path.is_file() for path in source.rglob("*"))
        print(f"{sdist.name}: {files} files, {sdist.stat().st_size / 1e6:.1f} MB")
        (folder / "wheels").mkdir()
        wheel = build("wheel", folder / "clone", folder)
        again = build("wheel", source, folder / "wheels")
        if contents(wheel) != contents(again):
            sys.exit(f"the sdist's wheel has other files: {sorted(contents(wheel) ^ contents(again))}")
        check_wheel(wheel)
        smoke_test(again, folder)


if __name__ == "__main__":
    main()
