"""`python -m titokc`."""

from titokc.cli import main

if __name__ == "__main__":
    main()
