"""Figures out of timed answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from samebits.bench.load.drive import Answer

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2el": "end-to-end latency",
}
"""the names that vLLM's and SGLang's benchmarks use, and what they are; each in milliseconds"""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` percent of sorted values lie, interpolated."""
    place = (len(ordered) - 1) * share / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def latencies(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Milliseconds by metric: of each answer, and for `itl` of each gap between two pieces with text.

    `tpot` is the time from the first piece to the last over the tokens after the first.
    """
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for answer in answers:
        found["e2el"].append(1000 * (answer.ended - answer.sent))
        if not answer.times:
            continue
        found["ttft"].append(1000 * (answer.times[0] - answer.sent))
        found["itl"] += [1000 * (b - a) for a, b in zip(answer.times, answer.times[1:], strict=False)]
        if answer.output_tokens > 1:
            found["tpot"].append(1000 * (answer.times[-1] - answer.times[0]) / (answer.output_tokens - 1))
    return found


def most_at_once(answers: Sequence[Answer]) -> int:
    """The largest number of requests that were being answered at one moment."""
    events = sorted([(answer.sent, 1) for answer in answers] + [(answer.ended, -1) for answer in answers])
    running = most = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most


def digest(answers: Sequence[Answer]) -> str:
    """SHA-256 of every answer's text in the order of the questions: equal where every character is."""
    whole = hashlib.sha256()
    for answer in answers:
        whole.update(hashlib.sha256(answer.text.encode()).digest())
    return whole.hexdigest()


def is_good(answer: Answer, limits: Mapping[str, float]) -> bool:
    """Whether an answer came, and each of its own latencies (not `itl`) keeps its limit in milliseconds."""
    found = latencies([answer])
    return not answer.error and all(value <= limit for name, limit in limits.items() for value in found[name])


def summarise(
    answers: Sequence[Answer], percentiles: Sequence[float], limits: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Throughput, latencies and what failed; with `limits`, how many requests a second kept them."""
    good = [answer for answer in answers if not answer.error]
    seconds = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
    prompt_tokens = sum(answer.prompt_tokens for answer in good)
    output_tokens = sum(answer.output_tokens for answer in good)
    result: dict[str, Any] = {
        "completed": len(good),
        "failed": len(answers) - len(good),
        "errors": sorted({answer.error for answer in answers if answer.error})[:5],
        "duration_seconds": seconds,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "tokens_told_by_server": all(answer.counted for answer in good),
        "request_throughput": len(good) / seconds,
        "output_throughput": output_tokens / seconds,
        "total_throughput": (prompt_tokens + output_tokens) / seconds,
        "most_concurrent": most_at_once(answers),
        "answers_digest": digest(answers),
    }
    if limits:
        result["goodput"] = sum(is_good(answer, limits) for answer in answers) / seconds
        result["goodput_limits_ms"] = dict(limits)
    for name, values in latencies(good).items():
        ordered = sorted(values)
        if ordered:
            result[name + "_ms"] = {
                "mean": sum(ordered) / len(ordered),
                **{f"p{share:g}": percentile(ordered, share) for share in percentiles},
                "most": ordered[-1],
            }
    return result


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """The latencies as a table."""
    known = [name for name in METRICS if name + "_ms" in result]
    if not known:
        return [["milliseconds"]]
    columns = list(result[known[0] + "_ms"])
    rows = [["milliseconds", *columns]]
    for name in known:
        figures = result[name + "_ms"]
        rows.append([f"{METRICS[name]} ({name})", *(f"{figures[column]:.2f}" for column in columns)])
    return rows


def lines(result: dict[str, Any]) -> list[str]:
    """The rest, for people."""
    told = [
        f"{result['completed']} requests in {result['duration_seconds']:.2f} s, {result['failed']} failed, "
        f"at most {result['most_concurrent']} at once",
        f"{result['request_throughput']:.2f} requests/s, {result['output_throughput']:.1f} output tokens/s, "
        f"{result['total_throughput']:.1f} tokens/s in all",
        f"answers {result['answers_digest'][:16]}: the same in every run, for a server that keeps its bits",
    ]
    if "goodput" in result:
        kept = ", ".join(f"{name} {limit:g} ms" for name, limit in result["goodput_limits_ms"].items())
        told.append(f"{result['goodput']:.2f} requests/s kept {kept}")
    if not result["tokens_told_by_server"]:
        told.append("the server does not tell its tokens: pieces of text are counted as tokens")
    return told + [f"FAILED: {error}" for error in result["errors"]]
