"""`titokc models`: which there are, where they are, and getting, checking and converting them."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from titokc.cli.report import printable, put, put_bytes
from titokc.errors import InputError, ModelError, ModelMismatchError, ModelNotFoundError, TitokcError, UsageError
from titokc.files import sha256
from titokc.ids import KNOWN_MODELS
from titokc.models import EMBEDDED, configured, releases
from titokc.models.titok.releases import GOLDEN_TOKENS, NEAR_TIE, mismatches, published
from titokc.weights import places

IDS = {row.name: row.id for row in KNOWN_MODELS.values()}
_force = click.option("--force", is_flag=True, help="Replace a model that is there, or write among other files.")


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
    rows = [_row(name) for name in dict.fromkeys([*IDS, *(files.name for files in places.installed())])]
    if as_json:
        put(json.dumps(rows))
        return
    table = [("NAME", "TOKENS", "BITS", "PAYLOAD", "WEIGHTS", "LOOKS", "WHERE")]
    for row in rows:
        tokens = row["tokens"] and ("{}..{}" if row["tokens"][0] < row["tokens"][1] else "{}").format(*row["tokens"])
        payload = f"{row['payload_bytes']} B" if row["payload_bytes"] else "?"
        weights = f"{row['weights_bytes'] / 1e6:,.0f} MB" if row["weights_bytes"] else "?"
        looks = ", ".join(row["looks"] or "?")
        table.append((row["name"], tokens or "?", str(row["bits"] or "?"), payload, weights, looks, row["where"]))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        put("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@models.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def fetch(names: tuple[str, ...]) -> None:
    """Download models into the Hugging Face hub's cache (needs `pip install 'titokc[hub]'`).

    HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE apply. No revision or hash of these repositories is built in yet: it is
    their main revision that is fetched, over TLS, and the SHA-256 of the weights is printed to stderr.
    """
    for name in names:
        weights = places.fetch(name).weights
        put_bytes(os.fsencode(weights) + b"\n")
        click.echo(f"{name}: SHA-256 {sha256(weights)}", err=True)


@models.command()
@click.argument("model", metavar="NAME|PATH")
def path(model: str) -> None:
    """Print where a model's weights are; exit code 4 if they are not on this machine."""
    put_bytes(os.fsencode(places.locate(model).weights) + b"\n")


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

    from titokc import weights
    from titokc.engines.torch import find_device
    from titokc.weights.load import self_test

    tokenizer = weights.load_files(files).to(find_device(device))
    self_test(tokenizer)
    golden = _golden(tokenizer, pictures) if pictures else []
    report = {
        "model": tokenizer.info.name,
        "id": tokenizer.info.id,
        "weights": str(files.weights),
        "parameters": sum(tensor.numel() for tensor in tokenizer.state_dict().values()),
        "code_fingerprint": tokenizer.info.code.hex(),
        "weights_fingerprint": tokenizer.info.weights.hex(),
    }
    if as_json:
        put(json.dumps(report | {"golden": golden}))
    else:
        _print_report(report, golden, asked=pictures is not None)
    failed = [row["picture"] for row in golden if any(one["margin"] > NEAR_TIE for one in row["mismatches"])]
    if failed:
        raise ModelMismatchError(f"{tokenizer.info.name}: other tokens than the published ones for {', '.join(failed)}")


@models.command()
@click.argument("source", metavar="NAME|PATH")
@click.argument("directory", type=click.Path(path_type=Path))
@_force
def convert(source: str, directory: Path, force: bool) -> None:
    """Write a model in any of its forms (.bin, .pth, .safetensors, ...) as a model directory.

    Of a directory that is there already, only config.json and model.safetensors are replaced, with --force.
    """
    from titokc import weights
    from titokc.weights.save import check_free

    check_free(directory, force)
    tokenizer = weights.load(source)
    weights.save(tokenizer, directory, overwrite=force)
    put(printable(f"{directory}: code {tokenizer.info.code.hex()}, weights {tokenizer.info.weights.hex()}"))


@models.command()
@click.argument("source", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--name", help="What to call it. [default: the folder's or file's name]")
@_force
def install(source: Path, name: str | None, force: bool) -> None:
    """Copy a model to where it is found by name, and by files that were made with its code.

    The name of a known model is for a model of its configuration. Which id goes into its files depends on the
    fingerprint of its code, not on the name.
    """
    from titokc import weights
    from titokc.weights.save import check_free

    found = places.locate(source)
    name = name or (source.resolve().name if source.is_dir() else source.stem)
    directory = places.install_dir(name)
    check_free(directory, force)
    tokenizer = weights.load_files(found._replace(name=name))
    weights.save(tokenizer, directory, overwrite=force)
    put(printable(f"{name}: {directory}"))


@models.command()
@click.argument("source", metavar="RUN|MODEL", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Model directory. [default: RUN/model]")
@click.option("--best/--last", default=True, help="The checkpoint with the lowest validation loss, or the last one.")
@click.option("--bits", type=click.Choice(["32", "8"]), default="32", show_default=True, help="8: a quarter the size.")
@click.option("--onnx", type=click.Path(path_type=Path), metavar="DIR", help="Of MODEL: ONNX graphs and all they need.")
@click.option("--search", is_flag=True, help="With --onnx: also the gradient that the encoder's search follows.")
@_force
def export(
    source: Path, output: Path | None, best: bool, bits: str, onnx: Path | None, search: bool, force: bool
) -> None:
    """Write the averaged weights of a run of `titokc train` as a model directory, which --model takes.

    Or, with --onnx, the decoder of a model (its name or path) for other languages, as formats/onnx.md describes (needs
    `pip install 'titokc[onnx]'`).
    """
    if onnx:
        if output or not best or bits != "32":
            raise UsageError("--onnx takes a model: export a run without it first; -o, --last and --bits are for runs")
        from titokc.weights.onnx import export as export_graphs

        put(printable(f"{onnx}: {export_graphs(str(source), onnx, search=search, overwrite=force).info.name}"))
        return
    if search:
        raise UsageError("--search is for --onnx")
    from titokc.train.export import export as export_run
    from titokc.weights.save import check_free

    directory = output or source / "model"
    check_free(directory, force)
    step = export_run(source, directory, last=not best, bits=int(bits), overwrite=force)
    put(printable(f"{directory}: step {step}"))


def _row(name: str) -> dict[str, Any]:
    release = releases().get(name)
    config, size = (release.config, release.parameters * 4) if release else (None, None)
    files, where = None, f"titokc models fetch {name}"
    with suppress(ModelNotFoundError):
        files = places.locate(name)
    if files is not None:
        installed = places.models_dir() in files.weights.parents
        where = "embedded (the default)" if name == EMBEDDED else "installed" if installed else "hub cache"
        size = files.weights.stat().st_size
        try:
            config = configured(files.read_config(), {})
        except ModelError as error:
            where += f", unusable: {error}"
    facts: dict[str, Any] = dict.fromkeys(("tokens", "bits", "payload_bytes", "looks"))
    if config:
        info, most = config.info, config.info.max_tokens
        facts = {"tokens": [info.min_tokens, most], "bits": info.bits, "payload_bytes": (most * info.bits + 7) // 8}
        facts["looks"] = list(info.looks)
    return {
        "name": name,
        "id": IDS.get(name, 0),
        **facts,
        "weights_bytes": size,
        "where": where,
        "path": str(files.weights) if files else None,
        "repository": release.repo_id if release else None,
    }


def _golden(tokenizer: Any, pictures: Path) -> list[dict[str, Any]]:
    """What is not as published of those of the published pictures that are in the folder: a row each, for JSON."""
    import numpy as np
    import torch

    from titokc import imaging

    expected, side = published(tokenizer), tokenizer.info.side
    paths = {name: pictures / name for name in expected if (pictures / name).is_file()}
    if expected and not paths:
        raise InputError(f"none of {', '.join(expected)} in {pictures}")
    rows = []
    for name, path in paths.items():
        try:
            image = imaging.read(path)
        except TitokcError as error:
            raise InputError(f"{path}: {error}") from error
        if image.size != (side, side):
            raise InputError(f"{path} is {image.width}x{image.height}, expected {side}x{side}")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        wrong = [one._asdict() for one in mismatches(tokenizer, pixels, expected[name])]
        rows.append({"picture": name, "tokens": tokenizer.info.max_tokens, "mismatches": wrong})
    return rows


def _print_report(report: dict[str, Any], golden: list[dict[str, Any]], asked: bool) -> None:
    for name, value in report.items():
        put(f"{name.replace('_', ' '):<20} {value}")
    for row in golden:
        right = row["tokens"] - len(row["mismatches"])
        put(f"{'tokens':<20} {right} of {row['tokens']} as published: {row['picture']}")
        for one in row["mismatches"]:
            put(f"{'':<20} " + "token {position}: {found}, published {expected}, margin {margin:.2g}".format(**one))
    if not golden:
        where = "none are published for this model" if asked else "not compared, give --pictures"
        known = f" ({', '.join(GOLDEN_TOKENS)} has some)" if asked else ""
        put(f"{'tokens':<20} {where}{known}")
