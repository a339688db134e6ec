"""The published figures are those of the committed rows, and these were made with the embedded weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parent.parent


def test_tables_match_the_committed_rows() -> None:
    script = ROOT / "bench" / "publish.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["kodak-256", "kodak-larger", "val-256"])
def test_rows_were_made_with_the_embedded_weights(name: str) -> None:
    with safe_open(ROOT / "titokc" / "weights" / "nano.safetensors", "pt") as file:
        fingerprint = file.metadata()["fingerprint"]
    rows = [json.loads(line) for line in (ROOT / "bench/results" / name / "rows.jsonl").read_text().splitlines()]
    versions = {row["version"] for row in rows if row["codec"] == "nano"}
    assert len(versions) == 1
    assert fingerprint[:12] in versions.pop()
