from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.anyio


def samples(text: str) -> dict:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_is_counted(serve):
    async with serve() as served:
        await served.chat()
        await served.chat(stream=True)
        await served.chat(model="nobody")
        await served.client.get("/nowhere")
        response = await served.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = samples(response.text)
    assert found["shardload_requests_total", "200", "ada", "chat_completions"] == 2
    assert found["shardload_requests_total", "", "404", "chat_completions"] == 1
    assert found["shardload_requests_total", "", "404", "other"] == 1
    assert found["shardload_prompt_tokens_total", "ada"] == 6
    assert found["shardload_completion_tokens_total", "ada"] == 4
    assert found["shardload_first_token_seconds_count", "ada"] == 2
    assert found["shardload_model_resident_bytes", "grace"] == 2048
    assert found["shardload_model_opens_total", "grace"] == 2
    assert found["shardload_model_evictions_total", "grace"] == 1
    assert found["shardload_model_queued", "grace"] == 0
    assert found["shardload_model_warm_ratio", "grace"] == 0.5
    assert found["shardload_model_shared_bytes", "grace"] == 1024
    assert found["shardload_model_packed_bytes", "grace"] == 1536
    assert found["shardload_model_second_layout_bytes", "grace"] == 128
    assert found["shardload_model_page_in_bytes_total", "grace"] == 4096
    assert found["shardload_model_page_out_bytes_total", "grace"] == 2048
    assert found["shardload_model_page_wait_seconds_total", "grace"] == 0.25
    assert found["shardload_model_running_sequences", "grace"] == 3
    assert found["shardload_model_queued_sequences", "grace"] == 5
    assert found["shardload_model_steps_total", "grace"] == 7
    assert found["shardload_model_compute_seconds_total", "grace"] == 1.5
    assert found["shardload_model_paused_sequences_total", "grace"] == 2
    assert found["shardload_model_parked_conversations_total", "grace"] == 4
    assert found["shardload_model_restored_conversations_total", "grace"] == 3
    assert found["shardload_model_restored_tokens_total", "grace"] == 900
    assert found["shardload_model_state", "grace", "open"] == 1
    assert found["shardload_model_state", "grace", "parked"] == 0
    assert ("shardload_model_resident_limit_bytes", "grace") not in found


async def test_types_are_what_they_count(serve):
    async with serve() as served:
        response = await served.client.get("/metrics")
    types = {family.name: family.type for family in text_string_to_metric_families(response.text)}
    assert types["shardload_model_page_in_bytes"] == "counter"
    assert types["shardload_model_page_wait_seconds"] == "counter"
    assert types["shardload_model_compute_seconds"] == "counter"
    assert types["shardload_model_warm_ratio"] == types["shardload_model_state"] == "gauge"
    assert types["shardload_model_running_sequences"] == "gauge"


async def test_each_application_counts_for_itself(serve):
    async with serve() as first, serve() as second:
        await first.chat()
        text = (await second.client.get("/metrics")).text
    assert 'status="200"' not in text


async def test_openmetrics_on_request(serve):
    async with serve() as served:
        response = await served.client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert "openmetrics" in response.headers["content-type"]
    assert response.text.endswith("# EOF\n")
