"""`titokc bench`: measures models and classical formats at equal bytes; the work is in `titokc.bench`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from titokc.cli.options import Grid, effort_option
from titokc.cli.report import complain, printable, put
from titokc.errors import InputError, MetricWeightsMissingError, UsageError

DEFAULT_VERB = "run"
USUAL_MODEL = "nano"
CROPS = ("center-square-256", "none")
_gallery = click.option(
    "--gallery", type=click.IntRange(min=0), default=100, show_default=True, help="Most pictures on the page."
)


class _Bench(click.Group):
    """A group whose first argument may be a folder of pictures: `titokc bench DIR` is `titokc bench run DIR`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names and not ctx.resilient_parsing:
            args = [DEFAULT_VERB, *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands[DEFAULT_VERB].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=_Bench, subcommand_metavar="PICTURES [OPTIONS] | compare A B | plot REPORT", no_args_is_help=True)
def bench() -> None:
    """Measure models and classical codecs at equal bytes.

    PICTURES is a folder, a .tar archive or a file. The report's folder gets report.html, rows.jsonl (a line for
    each picture, codec and budget), summary.csv and .json, environment.json, plots, and the decoded pictures. The same
    command again measures only what is missing.
    """


@bench.command(DEFAULT_VERB, hidden=True)
@click.argument("source", metavar="PICTURES", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder. [default: bench-NAME]")
@click.option(
    "--codecs",
    metavar="A,B,...",
    help="Models (a name, a path, LABEL=PATH; MODEL:LOOK, MODEL:base64), and jpeg, jpeg-progressive, webp, avif, av1, "
    "jpeg2000, jpegxl, thumbhash, blurhash. [default: nano and all of these that are installed]",
)
@click.option("--bytes", "budgets", metavar="N,N,...", default="60,108,156,204", show_default=True, help="Budgets.")
@click.option("--crop", type=click.Choice(CROPS), default=CROPS[0], show_default=True)
@click.option("--tiles", metavar="RxC", type=Grid(), help="Grid of a model's tiles. [default: the budget's best]")
@effort_option(None, "as in encode, models only")
@click.option("--metrics", metavar="A,B,...|all", help="[default: all usual ones that can run here]")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many pictures.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes that search and measure. [default: one a core]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option(
    "--metric-weights", "weights", type=click.Path(path_type=Path), help="Folder of LPIPS and Inception weights."
)
@click.option("--download-weights", "download", is_flag=True, help="Download those that are missing.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Where searches are kept.")
@_gallery
@click.option("--restart", is_flag=True, help="Measure everything again.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no table.")
@click.pass_context
def run(
    ctx: click.Context,
    source: Path,
    output: Path | None,
    codecs: str | None,
    budgets: str,
    metrics: str | None,
    jobs: int | None,
    cache: Path | None,
    gallery: int,
    quiet: bool,
    **settings: Any,
) -> None:
    """Measure the pictures of a folder."""
    from titokc.bench.runner import Settings
    from titokc.bench.runner import run as measure
    from titokc.judge.table import METRICS, parse_metrics

    _need("matplotlib", "scipy")
    output = output or Path(f"bench-{source.resolve().stem}")
    specs, absent = _codecs(codecs)
    settings |= {"budgets": _budgets(budgets), "jobs": jobs or os.cpu_count() or 1}
    settings |= ({"metrics": parse_metrics(metrics)} if metrics else {}) | ({"cache": cache} if cache else {})
    with tqdm(disable=True if quiet else None, leave=False) as bar:  # None: where stderr is no terminal

        def progress(phase: str, done: int, total: int) -> None:
            if not done:
                bar.reset(total)
                bar.set_description(phase)
            bar.update(done - bar.n)

        outcome = measure(Settings(source, output, specs, **settings), progress)
    text = _write_all(output, gallery) if outcome.measured else ""
    if text and not quiet:
        put(text)
        for note in outcome.notes:
            put(note)
        for name, why in absent.items():
            put(f"{name} left out: {why}")
        put(f"\n{printable(output / 'report.html')}")
    for name, why in outcome.failed.items():
        complain(why, name)
    asked_for = [name for name in outcome.unavailable if metrics and metrics != "all"]
    for name in asked_for:
        complain(outcome.unavailable[name], f"{METRICS[name].label} n/a")
    if outcome.failed:
        ctx.exit(InputError.exit_code)
    if asked_for:
        ctx.exit(MetricWeightsMissingError.exit_code)


@bench.command()
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Two reports side by side: B - A, picture by picture."""
    import json

    from titokc.bench.compare import compare as compared
    from titokc.bench.compare import comparison_text
    from titokc.bench.rows import read_report

    _need("scipy")
    found = compared(read_report(first).rows, read_report(second).rows)
    put(json.dumps(found, indent=1) if as_json else comparison_text(found))


@bench.command()
@click.argument("report", metavar="REPORT", type=click.Path(path_type=Path))
@_gallery
def plot(report: Path, gallery: int) -> None:
    """Draw plots, tables and page of a report again from its rows."""
    _need("matplotlib", "scipy")
    _write_all(report, gallery)
    put(printable(report / "report.html"))


def _need(*packages: str) -> None:
    if absent := [package for package in packages if find_spec(package) is None]:
        raise UsageError(f"titokc bench needs {', '.join(absent)}: pip install 'titokc[bench]'")


def _write_all(folder: Path, gallery: int) -> str:
    """Everything that follows from the rows; the terminal's table."""
    from titokc.bench.plots import write_plots
    from titokc.bench.report import write_report
    from titokc.bench.rows import read_report
    from titokc.bench.summary import summarise, write_summary
    from titokc.bench.tables import summary_text

    report = read_report(folder)
    summary = summarise(*report)
    write_summary(folder, summary)
    write_plots(folder, summary)
    write_report(folder, report.rows, summary, report.environment, gallery)
    return summary_text(summary)


def _codecs(text: str | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """What --codecs names, else the usual model and every baseline; and why some of these are left out."""
    from titokc.bench.contenders import BASELINES

    if text is not None:
        specs = tuple(part.strip() for part in text.split(",") if part.strip())
        if not specs:
            raise UsageError("--codecs names none")
        return tuple(dict.fromkeys(specs)), {}
    absent = {name: why for name, baseline in BASELINES.items() if (why := baseline.missing())}
    return (USUAL_MODEL, *(name for name in BASELINES if name not in absent)), absent


def _budgets(text: str) -> tuple[int, ...]:
    try:
        budgets = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        budgets = ()
    if not budgets or budgets[0] < 1:
        raise UsageError(f"--bytes {text!r}: expected sizes in bytes, like 60,108,156,204")
    return budgets
