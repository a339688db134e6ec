"""What holds for the whole tree: which room imports which, where torch may be, no pickles, short files, what is public.

A room is a module or a folder right below titokc/. ALLOWED has the arrows that there are; a new one needs a reason.
"""

import ast
import inspect
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import titokc
from titokc import options

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "titokc"
LONGEST_FILE = 400
# Room -> the rooms that it imports, anywhere in its files. Everything may import errors.
ALLOWED = {
    "_version": "",
    "errors": "",
    "limits": "",
    "ids": "",
    "files": "",
    "many": "",
    "processes": "",
    "payload": "ids limits",
    "header": "ids payload",
    "container": "header ids limits payload",
    "imaging": "container files limits",
    "tiling": "container",
    "sharing": "header",
    "judge": "files",
    "models": "",
    "weights": "files ids models",
    "engines": "ids judge models weights",
    "options": "container imaging tiling",
    "budget": "container models options sharing tiling",
    "coding": "container engines many options tiling",
    "codec": "budget coding container engines files ids imaging judge limits many models options payload tiling "
    "weights",
    "pillow_plugin": "codec container options",
    "train": "container engines files imaging judge models weights",  # container: what no file can hold
    "bench": "__init__ _version codec files imaging judge options processes",
    "dataset": "budget codec container files ids imaging limits models options processes weights",
    "cli": "_version bench codec container dataset engines files ids imaging judge limits models options train weights",
    "__init__": "_version codec container limits",
    "__main__": "cli",
}
# Where torch may be imported at module level: starting `titokc` and reading headers never gets there.
TORCH = (
    "models/",
    "engines/torch.py",
    "weights/tensors.py",
    "train/",
    "judge/networks.py",
    "judge/inception.py",
    "judge/lite0.py",
)
# Where it is not imported at all, inside functions neither.
NO_TORCH = set(ALLOWED) - {"models", "weights", "engines", "judge", "train", "bench", "cli"}
# What callers may rely on: these parameters stay, in this order where they have no *; new ones have defaults.
PUBLIC = {
    "encode": "picture * model device",
    "decode": "data * model device",
    "read_header": "data * partial limits",
    "truncate": "data tokens_per_tile * limits",
    "Codec": "model * tokenizer device dtype batch_size threads limits",
    "Codec.encode": "self picture",
    "Codec.decode": "self data",
    "Codec.encode_many": "self pictures * details return_errors",
    "Codec.decode_many": "self files * details return_errors",
    "EncodeOptions": "* tokens tiles target_size effort background form",
    "DecodeOptions": "* size partial form tiles",
    "Limits": "max_pixels max_side max_indices",
    "Header": "width height rows columns tokens_per_tile bits_per_index model_id fingerprint nested shares",
}


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text("utf-8"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported in the tree, inside functions too; `from a import b` may mean a or a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_arrows_between_the_rooms():
    arrows = set()
    for path, tree in sources("titokc"):
        for module in imported(tree):
            if module == "titokc" or module.startswith("titokc."):
                second = module.split(".")[1] if "." in module else "__init__"
                target = second if (PACKAGE / second).is_dir() or (PACKAGE / f"{second}.py").exists() else "__init__"
                arrows.add((room_of(path), target))
    allowed = {(room, other) for room, others in ALLOWED.items() for other in [room, "errors", *others.split()]}
    assert sorted(arrows - allowed) == []
    unused = {(room, other) for room, other in allowed - arrows if other not in (room, "errors")}
    assert sorted(unused) == [], "arrows that have gone go from ALLOWED too"


def test_every_room_has_its_row():
    rooms = {room_of(path) for path, _ in sources("titokc")}
    assert rooms - set(ALLOWED) == set()


def test_torch_is_imported_at_module_level_only_where_models_run():
    found = set()
    for path, tree in sources("titokc"):
        name = path.relative_to(PACKAGE).as_posix()
        level = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        modules = {module.partition(".")[0] for node in level for module in imported(node)}
        if modules & {"torch", "torchvision", "lpips", "torch_fidelity"} and not name.startswith(TORCH):
            found.add(name)
        if room_of(path) in NO_TORCH and "torch" in {module.partition(".")[0] for module in imported(tree)}:
            found.add(name)
    assert found == set()


def test_nothing_unpickles():
    """pickle may be named for its errors; torch.load takes tensors alone."""
    found = []
    for path, tree in sources("titokc", "bench", "formats"):
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if node.func.attr == "load" and owner == "torch":
                options = {keyword.arg: keyword.value for keyword in node.keywords}
                only = options.get("weights_only")
                if not (isinstance(only, ast.Constant) and only.value is True):
                    found.append(f"{path}:{node.lineno}")
            if owner in {"pickle", "marshal", "shelve", "dill", "joblib"}:
                found.append(f"{path}:{node.lineno}")
            if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                found.append(f"{path}:{node.lineno}")
        modules = {module.partition(".")[0] for module in imported(tree)}
        if modules & {"marshal", "shelve", "dill", "joblib", "cloudpickle"}:
            found.append(str(path))
    assert found == []


def test_no_file_of_the_package_is_long():
    lines = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path, _ in sources("titokc")}
    assert {name for name, count in lines.items() if count > LONGEST_FILE} == set()


def test_no_test_reaches_the_network():
    for family, address in ((socket.AF_INET, ("192.0.2.1", 80)), (socket.AF_INET6, ("2001:db8::1", 80))):
        with socket.socket(family) as one, pytest.raises(AssertionError, match="a test tried to connect"):
            one.connect(address)
        with socket.socket(family) as one, pytest.raises(AssertionError, match="a test tried to connect"):
            one.connect_ex(address)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_callers_rely_on(name):
    owner, _, method = name.partition(".")
    function = getattr(options if owner.endswith("Options") else titokc, owner)
    parameters = inspect.signature(getattr(function, method) if method else function).parameters
    positional, _, keywords = PUBLIC[name].partition("* ")
    assert list(parameters)[: len(positional.split())] == positional.split()
    # **options of encode and decode are those of the methods for many.
    assert set(keywords.split()) <= set(parameters)
    new = set(parameters) - set(positional.split()) - set(keywords.split())
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    without_default = [
        other for other in new
        if parameters[other].default is inspect.Parameter.empty and parameters[other].kind not in variadic
    ]  # fmt: skip
    assert without_default == []


def test_every_promise_names_tests_that_are_there():
    lines = (ROOT / "SECURITY.md").read_text("utf-8").partition("## Promises")[2].splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if re.match(r"\| \d", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 17))
    for row in rows:
        for name in row[3].split(", "):
            file, _, inside = name.partition("::")
            assert (ROOT / file).is_file(), name
            assert not inside or f"class {inside}" in (ROOT / file).read_text("utf-8"), name
