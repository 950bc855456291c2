"""`python -m samebits`."""

from samebits.cli import console

if __name__ == "__main__":
    console()
