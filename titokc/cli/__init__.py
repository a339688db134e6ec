"""The `titokc` command: finds the verb, imports only that one, and turns what it raises into an exit code.

Each verb is a click command of its own name in the module of this package that VERBS names.
"""

import warnings
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from titokc._version import __version__
from titokc.errors import TitokcError
from titokc.files import reason

# Verb -> (module in titokc.cli, its line in `titokc --help`, which imports none of them).
VERBS = {
    "encode": ("encode", "Pictures -> .tok files of 60 to 204 bytes."),
    "decode": ("decode", ".tok files -> pictures."),
    "info": ("info", "What a .tok file says about itself."),
    "truncate": ("info", "A smaller .tok file from a larger one, without the picture."),
    "models": ("models", "List, fetch, verify, convert and export models."),
    "doctor": ("doctor", "Versions, devices, models, and a round trip of the embedded model."),
    "train": ("train", "Train a tokenizer on a folder of images or tar shards."),
    "bench": ("bench", "Measure models and classical codecs at equal bytes."),
}
INTERRUPTED = 130


class Verbs(click.Group):
    """A group whose commands are imported when they are run, and the one place where errors become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        return _with_debug(getattr(import_module(f"titokc.cli.{VERBS[cmd_name][0]}"), cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        verbs = [CompletionItem(name, help=line) for name, (_, line) in VERBS.items() if name.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        if not ctx.meta.get(_DEBUG_KEY):
            warnings.simplefilter("ignore")
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            message, code = "interrupted", INTERRUPTED
        except TitokcError as error:
            if ctx.meta.get(_DEBUG_KEY):
                raise
            message, code = str(error), error.exit_code
        except OSError as error:
            if ctx.meta.get(_DEBUG_KEY):
                raise
            message, code = f"{error.filename or 'standard output'}: {reason(error)}", 1
        except Exception as error:  # the top: a bug, or no memory, is one line too
            if ctx.meta.get(_DEBUG_KEY):
                raise
            message, code = f"internal error: {type(error).__name__}: {error} (--debug shows where)", 1
        click.echo(f"titokc: {' '.join(message.split())}", err=True)
        return ctx.exit(code)


_DEBUG_KEY = "titokc.debug"


def _set_debug(ctx: click.Context, _param: click.Parameter, on: bool) -> None:
    if on:
        ctx.meta[_DEBUG_KEY] = True


_DEBUG = click.Option(
    ["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
)


def _with_debug(command: click.Command) -> click.Command:
    """The command and those below it, with --debug too."""
    if _DEBUG not in command.params:
        command.params.append(_DEBUG)
    for below in getattr(command, "commands", {}).values():
        _with_debug(below)
    return command


@click.group(
    cls=Verbs,
    params=[_DEBUG],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_TITOKC_COMPLETE=bash_source titokc)" (or zsh_source, fish_source). '
    "Exit codes: 0 all done, 1 some input failed, 2 usage, 3 corrupt or foreign .tok, 4 model missing or different, "
    "5 metric weights missing, 6 limit exceeded, 130 interrupted.",
)
@click.version_option(__version__, message="titokc %(version)s")
def main() -> None:
    """Photographs in 48 to 192 bytes."""
