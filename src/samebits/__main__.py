"""`python -m samebits`. A process that this one spawns imports it, too, and needs no command line."""

if __name__ == "__main__":
    from samebits.cli import command

    command()
