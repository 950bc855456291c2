"""Many streaming clients at once, some of whom leave, dawdle or send garbage: nothing may be lost or mixed up.

    PYTHONPATH=tests/helpers python tests/load/storm.py --clients 1000 --output results/load.json

starts a server over the bundled model on 127.0.0.1, lets the same clients loose on it in several waves, then asks
every question once more, alone and one after another, and compares every token and every bit of every logprob.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live_server import LiveServer, ending, engine_process, free_port, launch, wait_for
from storm_clients import Outcome, Question, Reply, ask, make_questions, run_client

from samebits.bench.facts import machine, write_result

SEED = 7
DESCRIPTORS = 8192
START_SECONDS = 600.0
GROWTH_MIB = 32.0
"""how much more memory may be in use after the last wave than after the first: the allocators' noise"""


@dataclass
class Wave:
    """What one wave of clients met."""

    seconds: float
    outcomes: list[Outcome]
    memory_mib: dict[str, float]
    """of the idle server afterwards"""
    descriptors: int
    left_behind: dict[str, float]
    """what an idle server must have none of"""


@dataclass
class Storm:
    """All waves, and every question answered alone."""

    questions: list[Question]
    waves: list[Wave]
    solo: list[Reply | None]
    solo_seconds: float
    descriptors_before: int
    complaints: list[str] = field(default_factory=list)
    """lines of the server's log that speak of an error"""


def run(clients: int, waves: int) -> Storm:
    """Start a server, let the clients loose, stop it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(DESCRIPTORS, hard)), hard))
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        arguments = ["-m", "samebits", "serve", "bundled", "--port", str(port), "--kv-memory-mib", "128"]
        with ending(launch([*arguments, "--log-level", "warning"], port, Path(folder))) as live:
            live.wait_until_ready(START_SECONDS)
            assert live.process.poll() is None, live.log()
            return _run(live, port, clients, waves)


def _run(live: LiveServer, port: int, clients: int, waves: int) -> Storm:
    vocabulary = live.get("/model_info").json()["vocab_size"]
    questions = make_questions(clients, vocabulary, SEED)
    before = _descriptors(live.process.pid)
    done = [_wave(live, port, questions, number) for number in range(waves)]
    assert live.post("/flush_cache").status_code == 200
    started = time.monotonic()
    solo = [asyncio.run(ask(port, question)) for question in questions]
    storm = Storm(questions, done, solo, time.monotonic() - started, before)
    assert live.stop() == 0
    storm.complaints = [line for line in live.log().splitlines() if " ERROR " in line or "Traceback" in line]
    return storm


def _wave(live: LiveServer, port: int, questions: Sequence[Question], number: int) -> Wave:
    order = list(range(len(questions)))
    random.Random(SEED + number).shuffle(order)
    started = time.monotonic()
    outcomes = asyncio.run(_clients(port, questions, order, number))
    seconds = time.monotonic() - started
    live.wait_until_idle()
    processes = {"server": live.process.pid, "engine": engine_process(live)}
    wait_for(lambda: not any(_left_behind(live).values()), 60)
    memory = {name: _memory_mib(process) for name, process in processes.items()}
    return Wave(seconds, outcomes, memory, _descriptors(live.process.pid), _left_behind(live))


async def _clients(port: int, questions: Sequence[Question], order: list[int], wave: int) -> list[Outcome]:
    """All at once; each draws what it does from the wave and its own number."""
    clients = [
        run_client(port, number, questions[number], random.Random(f"{SEED} {wave} {number}"))
        for number in order
    ]
    return await asyncio.gather(*clients)


def _left_behind(live: LiveServer) -> dict[str, float]:
    values = {}
    for line in live.get("/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("samebits_") and "{" not in name:
            values[name.removeprefix("samebits_")] = float(value)
    left = {
        name: values[name] for name in ("requests_running", "requests_waiting", "http_requests_in_flight")
    }
    return left | {"pages of nobody": values["kv_pages_used"] - values["kv_pages_cached"]}


def _memory_mib(process: int) -> float:
    """Resident memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / (1 << 20), 1)


def _descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def faults(storm: Storm) -> list[str]:
    """Everything that should not be so."""
    found = [f"the server logged: {line}" for line in storm.complaints]
    if len(set(storm.solo)) < len(storm.solo):
        found.append("two questions have one answer: answers could be exchanged unnoticed")
    for number, wave in enumerate(storm.waves):
        for outcome in wave.outcomes:
            name = f"wave {number}, {outcome.kind} client {outcome.question}"
            if outcome.fault:
                found.append(f"{name}: {outcome.fault}")
            elif outcome.kind in ("steady", "slow") and outcome.reply != storm.solo[outcome.question]:
                found.append(f"{name}: another answer than alone")
        found += [
            f"wave {number} left {name}: {count:g}" for name, count in wave.left_behind.items() if count
        ]
        if wave.descriptors > storm.descriptors_before + 2:
            found.append(f"wave {number} left {wave.descriptors - storm.descriptors_before} descriptors open")
    first, last = storm.waves[0].memory_mib, storm.waves[-1].memory_mib
    grown = {name: last[name] - first[name] for name in first}
    found += [f"the {name} has grown by {mib:.1f} MiB" for name, mib in grown.items() if mib > GROWTH_MIB]
    return found


def report(storm: Storm) -> dict[str, Any]:
    """What is written to a file."""
    return {
        "machine": machine() | {"command": "python " + " ".join(["tests/load/storm.py", *sys.argv[1:]])},
        "clients": len(storm.questions),
        "waves": [
            {
                "seconds": round(wave.seconds, 1),
                "clients by kind": dict(Counter(outcome.kind for outcome in wave.outcomes)),
                "answers equal to those alone": sum(
                    outcome.reply is not None and outcome.reply == storm.solo[outcome.question]
                    for outcome in wave.outcomes
                ),
                "memory in MiB afterwards": wave.memory_mib,
                "open descriptors afterwards": wave.descriptors,
            }
            for wave in storm.waves
        ],
        "tokens compared in a wave": sum(len(reply.token_ids) for reply in storm.solo if reply is not None),
        "seconds of all questions one by one": round(storm.solo_seconds, 1),
        "faults": faults(storm),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1000, metavar="N")
    parser.add_argument("--waves", type=int, default=3, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("results/load.json"), metavar="FILE")
    options = parser.parse_args()
    result = report(run(options.clients, options.waves))
    write_result(options.output, result)
    print(f"{len(result['faults'])} faults; figures in {options.output}")
    for fault in result["faults"][:20]:
        print(fault)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
