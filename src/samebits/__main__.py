"""`python -m samebits`. A process that this one spawns imports it, too, and needs no command line."""

import sys

if __name__ == "__main__":
    from samebits.cli import main

    sys.exit(main())
