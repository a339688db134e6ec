"""The published figures are those of the committed rows, and these were made with the embedded weights."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from titokc import weights
from titokc.models.nano.tokenizer import NanoTokenizer

ROOT = Path(__file__).parent.parent
RUNS = sorted(path.parent for path in (ROOT / "bench" / "results").glob("*/rows.jsonl"))


def test_tables_match_the_committed_rows() -> None:
    script = ROOT / "bench" / "publish.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def accepted() -> set[str]:
    """Fingerprints of the embedded weights, and of those that the faithful look comes from: without the generator."""
    nano = weights.load("nano")
    plain = NanoTokenizer(replace(nano.config, natural=0))
    plain.load_state_dict({n: tensor for n, tensor in nano.state_dict().items() if not n.startswith("natural.")})
    return {model.weights.hex()[:12] for model in map(weights.fingerprints, (nano, plain))}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_rows_of_the_faithful_look_were_made_with_the_embedded_weights(run: Path, accepted: set[str]) -> None:
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text("utf-8").splitlines()]
    versions = {row["version"] for row in rows if row["codec"] == "nano"}
    assert len(versions) == 1
    assert versions.pop().split()[-1] in accepted


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_run_names_its_command_and_no_place_on_a_machine(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text("utf-8"))
    assert environment["command"][:2] == ["titokc", "bench"]
    assert not any("/" in part and not part.startswith("report") for part in environment["command"])


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_picture_has_a_row_of_every_codec_and_budget(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text("utf-8").splitlines()]
    at_equal_bytes = {(row["image"], row["codec"], row["budget"]) for row in rows if row["view"] == "equal-bytes"}
    images, codecs, budgets = (len({key[part] for key in at_equal_bytes}) for part in range(3))
    assert len(at_equal_bytes) == images * codecs * budgets
