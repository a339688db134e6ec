"""`titokc train`: a tokenizer from a folder of images; parses, calls `titokc.train`, prints."""

from pathlib import Path
from typing import Any

import click

from titokc.cli.report import say


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--recipe", "name", help="A preset; on --resume, the run's own is the default.")
@click.option("-o", "--output", "run", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a field: phases.0.lr=1e-3.")
@click.option("--resume", is_flag=True, help="Continue the run in the folder, if it has begun.")
@click.option("--other-data", is_flag=True, help="With --resume: the images are meant to be others than before.")
@click.option("--init-from", help="Start from a model (name, folder or file).")
@click.option("--proxy", type=click.Path(path_type=Path), help="MaskGIT-VQGAN's weights, for stage 1.")
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Budget in minutes, fitting included.")
@click.option("--steps", type=click.IntRange(min=1), help="Budget in steps; given both, what ends first.")
@click.option("--val", type=click.Path(path_type=Path), help="Validation images; default: a part of DATA is held out.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of decoded images; default: in the run folder.")
@click.option(
    "--cache-gib",
    type=click.FloatRange(0),
    default=8.0,
    show_default=True,
    help="Decode each time instead where more is needed.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the model.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads that make batches. [default: 1, all for a GPU]")
@click.option(
    "--scale",
    type=click.IntRange(min=1),
    help="Times the recipe's batches, rates times its root. [default: on a GPU 8 for nano, nano-natural; else 1]",
)
@click.option("--dry-run", is_flag=True, help="Print parameters, memory, time and what limits; train nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No progress line.")
def train(data: Path, run: Path, **options: Any) -> None:
    """Train a tokenizer on DATA, a folder of images or of WebDataset .tar shards.

    val/ in DATA is for validation, and so are shards named val*; without either some images are held out. The run
    folder holds checkpoints, log.jsonl and TensorBoard files. A killed run continues with --resume.
    """
    from titokc.train.start import start

    def say_lines(text: str) -> None:
        for line in text.splitlines():
            say(line)

    start(data, run, say=say_lines, **options)
