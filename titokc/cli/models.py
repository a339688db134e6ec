"""`titokc models`: which there are, where they are, and getting, checking and converting them."""

import json
from pathlib import Path
from typing import Any

import click

from titokc.container import KNOWN_MODELS
from titokc.errors import ModelMismatchError, ModelNotFoundError
from titokc.weights import places
from titokc.weights.known import GOLDEN_TOKENS, MODEL_IDS, NANO, RELEASES


@click.group()
def models() -> None:
    """List, fetch, verify, convert and install models.

    NAME is a known model (`titokc models list`), an installed one, or a hub repository (owner/name); wherever a model
    is expected a path will do: a model directory, or a .safetensors, .bin or .pth file.
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_models(as_json: bool) -> None:
    """The known models and the installed ones, and which are on this machine."""
    rows = [_known_row(name) for name in MODEL_IDS]
    rows += [_row(files.name, files) for files in places.installed() if files.name not in MODEL_IDS]
    if as_json:
        click.echo(json.dumps(rows))
        return
    table = [("NAME", "TOKENS", "BITS", "PAYLOAD", "WEIGHTS", "WHERE")]
    for row in rows:
        tokens = row["tokens"] and ("{}..{}" if row["tokens"][0] < row["tokens"][1] else "{}").format(*row["tokens"])
        payload = f"{row['payload_bytes']} B" if row["payload_bytes"] else "?"
        weights = f"{row['weights_bytes'] / 1e6:,.0f} MB" if row["weights_bytes"] else "?"
        table.append((row["name"], tokens or "?", str(row["bits"] or "?"), payload, weights, row["where"]))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@models.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def fetch(names: tuple[str, ...]) -> None:
    """Download models into the Hugging Face hub's cache (needs `pip install 'titokc[hub]'`).

    HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE apply.
    """
    for name in names:
        click.echo(places.fetch(name).weights)


@models.command()
@click.argument("model", metavar="NAME|PATH")
def path(model: str) -> None:
    """Print where a model's weights are; exit code 4 if they are not on this machine."""
    click.echo(places.locate(model).weights)


@models.command()
@click.argument("model", metavar="NAME|PATH")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder with the authors' two sample pictures.")
@click.option("--device", default="cpu", show_default=True, help="Where to run: cpu, cuda or mps.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(model: str, pictures: Path | None, device: str, as_json: bool) -> None:
    """Load a model strictly, run it, and compare its tokens with those that the authors published.

    Tokens are published for titok-l-32 only, for ILSVRC2012_val_00010240.png and ILSVRC2012_val_00008636.png (in
    the assets folder of github.com/bytedance/1d-tokenizer); --pictures says where they are. A token may differ where
    two codebook entries are equally near; the margin says how near. Exit code 4 if more than that is wrong.
    """
    files = places.locate(model)

    from titokc import inference, weights
    from titokc.weights import verify as checks

    tokenizer = weights.load_files(files).to(inference.find_device(device))
    fingerprint = tokenizer.fingerprint.hex()
    checks.self_test(tokenizer)
    results = checks.golden(tokenizer, pictures) if pictures else []
    report = {
        "model": tokenizer.name,
        "weights": str(files.weights),
        "parameters": sum(tensor.numel() for tensor in tokenizer.state_dict().values()),
        "fingerprint": fingerprint,
        "golden": [
            {
                "picture": result.picture,
                "tokens": result.tokens,
                "mismatches": [mismatch._asdict() for mismatch in result.mismatches],
            }
            for result in results
        ],
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print_report(report, asked=pictures is not None)
    failed = [result.picture for result in results if not result.passed]
    if failed:
        raise ModelMismatchError(f"{tokenizer.name}: other tokens than the published ones for {', '.join(failed)}")


@models.command()
@click.argument("source", metavar="NAME|PATH")
@click.argument("directory", type=click.Path(path_type=Path))
def convert(source: str, directory: Path) -> None:
    """Write a model in any of its forms (.bin, .pth, .safetensors, ...) as a model directory."""
    from titokc import weights

    tokenizer = weights.load(source)
    weights.save(tokenizer, directory)
    click.echo(f"{directory}: {tokenizer.fingerprint.hex()}")


@models.command()
@click.argument("source", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--name", help="What to call it. [default: the folder's or file's name]")
def install(source: Path, name: str | None) -> None:
    """Copy a model to where it is found by name, and by files that were made with it.

    With --name titok-l-32 (or another known name) it becomes that model.
    """
    from titokc import weights

    found = places.locate(source)
    name = name or (source.resolve().name if source.is_dir() else source.stem)
    directory = places.install_dir(name)
    tokenizer = weights.load_files(found._replace(name=name))
    weights.save(tokenizer, directory)
    click.echo(f"{name}: {directory}")


@models.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Model directory. [default: RUN/model]")
@click.option("--best/--last", default=True, help="The checkpoint with the lowest validation loss, or the last one.")
@click.option("--bits", type=click.Choice(["32", "8"]), default="32", show_default=True, help="8: a quarter the size.")
def export(run: Path, output: Path | None, best: bool, bits: str) -> None:
    """Write the averaged weights of a run of `titokc train` as a model directory, which --model takes."""
    from titokc.train.export import export as export_run

    directory = output or run / "model"
    step = export_run(run, directory, last=not best, bits=int(bits))
    click.echo(f"{directory}: step {step}")


def _known_row(name: str) -> dict[str, Any]:
    try:
        return _row(name, places.locate(name))
    except ModelNotFoundError:
        return _row(name, None)


def _row(name: str, files: places.ModelFiles | None) -> dict[str, Any]:
    known, release = KNOWN_MODELS.get(MODEL_IDS.get(name, 0)), RELEASES.get(name)
    if files is None:
        where, size = f"titokc models fetch {name}", release.parameters * 4 if release else None
    else:
        installed = places.models_dir() in files.weights.parents
        where = "embedded (the default)" if name == NANO else "installed" if installed else "hub cache"
        size = files.weights.stat().st_size
    return {
        "name": name,
        "id": known.id if known else 0,
        "tokens": [known.min_tokens, known.max_tokens] if known else None,
        "bits": known.bits_per_index if known else None,
        "payload_bytes": (known.max_tokens * known.bits_per_index + 7) // 8 if known else None,
        "weights_bytes": size,
        "where": where,
        "path": str(files.weights) if files else None,
        "repository": release.repo_id if release else None,
    }


def _print_report(report: dict[str, Any], asked: bool) -> None:
    for name in ("model", "weights", "parameters", "fingerprint"):
        click.echo(f"{name:<12} {report[name]}")
    for result in report["golden"]:
        wrong = result["mismatches"]
        click.echo(
            f"{'tokens':<12} {result['tokens'] - len(wrong)} of {result['tokens']} as published: {result['picture']}"
        )
        for mismatch in wrong:
            click.echo(
                f"{'':<12} token {mismatch['position']}: {mismatch['found']}, published {mismatch['expected']}, "
                f"margin {mismatch['margin']:.2g}"
            )
    if not report["golden"]:
        where = "none are published for this model" if asked else "not compared, give --pictures"
        known = f" ({', '.join(GOLDEN_TOKENS)} has some)" if asked else ""
        click.echo(f"{'tokens':<12} {where}{known}")
