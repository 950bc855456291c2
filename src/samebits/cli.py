"""`samebits`: the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from samebits import __version__
from samebits.commands import bench, chat, demo, generate, info, serve, verify
from samebits.commands.foreign import about_unknown
from samebits.engine.leaving import leave
from samebits.errors import SamebitsError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

EPILOG = """\
examples:
  samebits demo                             see it work, in a few minutes
  samebits serve                            serve the bundled model on http://127.0.0.1:30000
  samebits serve path/to/checkpoint         serve a Hugging Face checkpoint
  samebits generate "def add(a, b):"        complete a text, offline
  samebits generate --batch in.jsonl --output out.jsonl     a batch, which goes on where it was cut short
  samebits verify all                       check the promise on this machine
  samebits verify single --url HOST:PORT    check another server, SGLang and vLLM too
  samebits bench serve --url HOST:PORT      latency and throughput of any OpenAI server under load

A setting comes from its flag, else from the environment (SAMEBITS_PORT=8000), else from the TOML file that
--config names (port = 8000), else from its default.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="samebits",
        description="An LLM inference engine: the same request gives the same bits.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"samebits {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (serve, generate, chat, verify, bench, info, demo):
        module.add(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version, parser=version)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 well, 1 checks failed, 2 an error, 130 interrupted."""
    parser = build_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return EXIT_ERROR
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(about_unknown(unknown, options.parser._option_string_actions))
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except SamebitsError as error:
        print(f"samebits: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


def command() -> NoReturn:
    """Run one command and end the process."""
    leave(main())


def _version(options: argparse.Namespace) -> int:
    print(f"samebits {__version__}")
    return 0


if __name__ == "__main__":
    command()
