"""The bundled model: its engine is killed in the middle of requests, and their replays have the same bits."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from live_server import LiveServer, ending, engine_process, free_port, launch, wait_for

PROMPTS = [[5, 6, 7], [9] * 70, [11, 3, 250, 17, 8, 1000], list(range(20, 90))]


def bodies(seed: int) -> list[dict[str, Any]]:
    """Requests that take seconds, greedy and sampled."""
    sampling = {"max_new_tokens": 400, "ignore_eos": True, "sampling_seed": seed}
    return [
        {
            "input_ids": ids,
            "sampling_params": sampling | {"temperature": 0.4 * number},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        for number, ids in enumerate(PROMPTS)
    ]


def bits(answer: dict[str, Any]) -> tuple[Any, ...]:
    """Token ids and logprobs; JSON carries each float32 exactly, so equal numbers are equal bits."""
    meta = answer["meta_info"]
    return answer["output_ids"], meta["input_token_logprobs"], meta["output_token_logprobs"]


def ask_all(live: LiveServer, seed: int) -> list[tuple[Any, ...]]:
    with ThreadPoolExecutor() as pool:
        return [bits(answer) for answer in pool.map(lambda body: live.generate(**body), bodies(seed))]


def test_replays_of_lost_requests_have_the_same_bits(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["-m", "samebits", "serve", "--port", str(port), "--kv-memory-mib", "64"]
    with ending(launch(arguments, port, tmp_path)) as live, ThreadPoolExecutor() as pool:
        live.wait_until_ready(400)
        assert live.process.poll() is None, live.log()
        fingerprint = live.get("/model_info").json()["fingerprint"]
        expected = ask_all(live, seed=7)
        lost = [pool.submit(lambda b=body: live.post("/generate", b)) for body in bodies(7)]
        wait_for(lambda: live.engine()["running"] == len(lost))
        seen = live.engine()["generated_tokens"]
        wait_for(lambda: live.engine()["generated_tokens"] > seen + 20)
        killed = engine_process(live)
        os.kill(killed, signal.SIGKILL)
        start = time.monotonic()
        for answer in lost:
            assert answer.result().status_code == 500
            assert "SIGKILL" in answer.result().json()["error"]["message"]
        assert time.monotonic() - start < 3
        wait_for(lambda: live.get("/ready").status_code == 200, 200)
        assert engine_process(live) != killed
        assert live.get("/model_info").json()["fingerprint"] == fingerprint
        assert ask_all(live, seed=7) == expected
        assert ask_all(live, seed=8)[1:] != expected[1:], "another seed is another request"
        text = live.get("/metrics").text
        assert "samebits_step_seconds_count 0.0" not in text
        assert f'fingerprint="{fingerprint}"' in text
        assert live.stop() == 0
