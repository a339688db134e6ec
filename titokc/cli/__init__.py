"""The `titokc` command: finds the verb, imports only that one, and turns what it raises into an exit code.

Each verb is a click command of its own name in the module of this package that VERBS names.
"""

import os
import signal
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from titokc._version import __version__
from titokc.errors import TitokcError, UsageError
from titokc.files import reason

# Verb -> (module in titokc.cli, its line in `titokc --help`, which imports none of them).
VERBS = {
    "encode": ("encode", "Pictures -> .tok files, of 62 to 206 bytes."),
    "decode": ("decode", ".tok files -> pictures."),
    "info": ("info", "What .tok files say about themselves."),
    "truncate": ("info", "Smaller .tok files from larger ones, without the pictures."),
    "tokenize": ("tokenize", "Data sets of pictures -> Parquet or WebDataset of tokens."),
    "models": ("models", "List, fetch, verify, convert and export models."),
    "doctor": ("doctor", "Versions, devices, models, and a round trip of the embedded model."),
    "train": ("train", "Train a tokenizer on a folder of images or tar shards."),
    "bench": ("bench", "Measure models and classical codecs at equal bytes."),
}
INTERRUPTED = 130
# Package that may be missing -> what installs it.
EXTRAS = {
    "torch": "torch",
    "huggingface_hub": "hub",
    "matplotlib": "bench",
    "scipy": "bench",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "pyarrow": "dataset",
    "ray": "ray",
}


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
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BaseException as error:
            if ctx.meta.get(_DEBUG_KEY) or isinstance(error, (SystemExit, GeneratorExit)):
                raise
            raise _VerbError(error) from error

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            _note_interrupts()
            code = super().main(*args, **{**extra, "standalone_mode": False})
            code = code if isinstance(code, int) else 0
            if sys.stdout is not None:
                sys.stdout.flush()
        except _VerbError as failure:
            code = _explain(KeyboardInterrupt() if _interrupts else failure.error)
        except BrokenPipeError as error:
            code = _explain(error)
        except OSError as error:  # no verb's: --help and --version write by themselves
            code = _explain(OSError(error.errno, reason(error), "standard output"))
        except click.Abort:
            code = _explain(KeyboardInterrupt())
        except click.ClickException as error:
            code = _explain_usage(error)
        sys.exit(code)


# Of this process. A library that is interrupted while it is imported raises anything.
_interrupts: list[int] = []


def _note_interrupts() -> None:
    """Ctrl-C raises KeyboardInterrupt as ever, and is known to have come whatever is made of that."""

    _interrupts.clear()

    def note(number: int, frame: Any) -> None:
        _interrupts.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # in another thread than the main one
            signal.signal(signal.SIGINT, note)


class _VerbError(Exception):
    """Takes what a verb raised past click, which has ways of its own with some exceptions."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _explain(error: BaseException) -> int:
    """Says in a line what went wrong, and gives the exit code; without a word where nobody reads any more."""
    from titokc.cli.report import complain, message_of

    code = 1
    if isinstance(error, BrokenPipeError):
        _forget_output()
        return code
    if isinstance(error, KeyboardInterrupt):
        message, code = "interrupted", INTERRUPTED
    elif isinstance(error, TitokcError):
        message, code = message_of(error), error.exit_code
    elif isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        extra = EXTRAS.get(package)
        command = f"pip install 'titokc[{extra}]'" if extra else f"pip install {package}"
        message, code = f"this needs {package}, which is not installed: {command}", UsageError.exit_code
    elif _is_memory(error):
        message = f"not enough memory ({error or 'MemoryError'}): a limit of `ulimit -v` must leave room for torch"
    elif isinstance(error, OSError) and (error.filename or _is_output(error)):
        message = f"{error.filename or 'standard output'}: {reason(error)}"
    else:
        message = f"internal error: {type(error).__name__}: {error} (--debug shows where)"
    with suppress(OSError):
        complain(message)
    _forget_output()
    return code


def _explain_usage(error: click.ClickException) -> int:
    """click's errors in the form of all others."""
    from titokc.cli.report import complain

    message = error.format_message()
    ctx = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        click.echo(message, err=True)
        return error.exit_code
    help_text = f"; {ctx.command_path} --help has the options" if ctx else ""
    complain(f"{message[:1].lower()}{message[1:].rstrip('.')}{help_text}")
    return error.exit_code


def _is_memory(error: BaseException) -> bool:
    """Python's, the loader's and torch's ways to say that there is none left."""
    signs = ("cannot allocate memory", "can't allocate memory", "not enough memory", "out of memory", "failed to map")
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)


def _is_output(error: OSError) -> bool:
    """Whether it is standard output that cannot be written: then what is left in its buffer cannot either."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as again:
        return str(again) == str(error)
    return False


def _forget_output() -> None:
    """Python writes what is left in the buffers when it ends; that would fail again, with a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
