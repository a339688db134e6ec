"""`titokc` and `python -m titokc`: the command of `titokc.cli`, with a quick and quiet end of Ctrl-C."""

import os
import sys


def main() -> None:
    code: str | int | None = 130
    try:
        from titokc.cli import main as command

        command()
    except KeyboardInterrupt:  # while that is imported
        sys.stderr.write("titokc: interrupted\n")
    except SystemExit as end:
        code = end.code
    if code == 130:  # without waiting for threads that still load a model or code a tile: files are whole, or not there
        os._exit(130)
    sys.exit(code)


if __name__ == "__main__":
    main()
