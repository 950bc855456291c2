"""The OpenAPI document, driven by schemathesis: what it makes of the schemas is answered as the document says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from fuzzing import SECONDS, Watched, check_answer, rounds, write_fuzzed_checkpoint
from live_server import LiveServer, running

schemathesis = pytest.importorskip("schemathesis", reason="the package is not installed (make clients)")

LEFT_ALONE = {"/metrics", "/flush_cache", "/health_generate"}
"""not answered in JSON, or slow"""
EXAMPLES = 4
"""of each operation, in each round"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with running(write_fuzzed_checkpoint(tmp_path_factory.mktemp("driven"))) as live:
        yield live


def operations(document: Any) -> list[Any]:
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok() for result in schema.get_all_operations()]
    return [operation for operation in found if operation.path not in LEFT_ALONE]


def checks() -> list[Any]:
    from schemathesis.specs.openapi import checks as found

    return [
        found.status_code_conformance,
        found.content_type_conformance,
        found.response_schema_conformance,
    ]


def drive(operation: Any, server: LiveServer, mode: Any, seed: int) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        response = case.call(base_url=server.url, timeout=60)
        found_by = f"{operation.label} {case.body!r:.800} SAMEBITS_FUZZ_SEED={seed}"
        [kind] = response.headers.get("content-type", [""])
        check_answer(response.status_code, kind, response.content, found_by)
        if kind.startswith("text/event-stream"):
            return
        case.validate_response(response, checks=checks())

    run()


def test_every_operation_is_answered_as_the_document_says(fake: LiveServer) -> None:
    from schemathesis import GenerationMode

    found = operations(fake.get("/openapi.json").json())
    assert len(found) > 15
    watched = Watched(fake)
    for number in rounds(SECONDS):
        for operation in found:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if mode is GenerationMode.POSITIVE or operation.body:
                    drive(operation, fake, mode, number)
        watched.check(f"SAMEBITS_FUZZ_SEED={number}")


def test_a_document_that_lies_is_found(fake: LiveServer) -> None:
    """The inverse: a wrong answer's shape, and a status that is not in the document."""
    from schemathesis import GenerationMode
    from schemathesis.core.failures import FailureGroup

    wrong = fake.get("/openapi.json").json()
    wrong["components"]["schemas"]["ModelsAnswer"]["properties"]["object"] = {"enum": ["lists"]}
    del wrong["paths"]["/v1/detokenize"]["post"]["responses"]["400"]
    lies = {op.label: op for op in operations(wrong)}
    for label, mode in (
        ("GET /v1/models", GenerationMode.POSITIVE),
        ("POST /v1/detokenize", GenerationMode.NEGATIVE),
    ):
        with pytest.raises((FailureGroup, BaseExceptionGroup)):
            drive(lies[label], fake, mode, seed=1)
