"""Requests that Schemathesis generates from the API schema: none may break the server."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok

from tests.serve.clients import wait_until_idle
from tests.serve.conftest import Serve

EXAMPLES = 30
"""Per operation."""


@pytest.mark.slow
def test_no_request_breaks_the_server(serve: Serve) -> None:
    running = serve()
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    results = list(schema.get_all_operations())
    operations = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(operations) == len(results)
    assert {operation.path for operation in operations} == {
        "/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions",
    }  # fmt: skip
    for operation in operations:

        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "tiny"  # past the first check
            case.call_and_validate(checks=[not_a_server_error])

        send()
    wait_until_idle(running)
    assert running.service.engine.stats.failed == 0
    assert running.service.engine.stats.answered > 0
