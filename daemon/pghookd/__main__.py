"""`python -m pghookd` is the command `pghookd`."""

from pghookd.cli import main

if __name__ == "__main__":
    main()
