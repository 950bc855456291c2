"""The commands of the command line, one module each: `add` declares the flags, `run` does the work.

At import these modules load nothing heavy, so that `--help` is quick; `run` imports what it needs.
"""
