"""A program: start an engine, compute whole generations, and print what they boil down to, as JSON.

A process holds the ranks of one model in its life, so every start of a test has one of its own. The argument is a JSON
object: `settings` of the `LLM`; `modes`, whether to run all modes of `samebits verify`, too; and `patience`, seconds
after which it says where it is.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from typing import Any

from samebits import LLM
from samebits.verify import golden
from samebits.verify.local import LocalTarget
from samebits.verify.modes import Settings
from samebits.verify.run import mode_names, run


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    faulthandler.dump_traceback_later(asked["patience"])
    with LLM(**asked["settings"]) as llm:
        found: dict[str, Any] = {"fingerprint": llm.facts.fingerprint, "digests": golden.digests(llm)}
        if asked["modes"]:
            report = run(LocalTarget(llm), mode_names(["all"]), [0.0, 0.8], Settings(5, 42, 8, 8), _nobody)
            found["passed"] = report.passed
    print(json.dumps(found))


def _nobody(line: str) -> None:
    """Reads what `run` says."""


if __name__ == "__main__":
    main()
