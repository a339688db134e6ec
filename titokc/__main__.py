"""`titokc` and `python -m titokc`: the command of `titokc.cli`, with a quiet end of Ctrl-C while that is imported."""

import sys


def main() -> None:
    try:
        from titokc.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("titokc: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
