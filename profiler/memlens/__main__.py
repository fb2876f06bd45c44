"""`python -m memlens` is `memlens`."""

from memlens.cli import main

if __name__ == "__main__":
    main()
