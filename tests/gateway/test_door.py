from gateway.settings import Settings
from tests.gateway.fakes import FakeGateway, FakeTrunks, head, state_of


async def test_a_full_gateway_refuses_before_it_reads_and_lets_in_again(trunks: FakeTrunks) -> None:
    state = state_of(trunks, head("one"), settings=Settings(max_concurrent_texts=4, max_texts=4, _cli_parse_args=[]))
    gateway = FakeGateway(state)
    async with gateway.http() as http:
        with state.admission.admit(4):
            by_openai = await http.post("/v1/embeddings", json={"input": "a"})
            by_tei = await http.post("/predict", json={"inputs": "a"})
            refused = await http.post("/v1/classify", content=b"this is not read", headers={"x-request-id": "mine"})
            looked_at = await http.get("/v1/heads")
        answered = await http.post("/v1/classify", json={"text": "a"})

    assert 429 == refused.status_code
    assert {"code": "overloaded", "message": "the gateway is full", "request_id": "mine"} == refused.json()["error"]
    assert ["mine"] == refused.headers.get_list("x-request-id")
    assert "500" == refused.headers["retry-after-ms"]
    assert "nosniff" == refused.headers["x-content-type-options"]
    assert (429, 429) == (by_openai.status_code, by_tei.status_code)
    assert "message" in by_openai.json()["error"]
    assert "error_type" in by_tei.json()
    assert (200, 200) == (looked_at.status_code, answered.status_code)
    assert 'trunkline_gateway_refusals_total{reason="overloaded"} 3' in state.telemetry.render(inside=0, catalogue_age=0).decode()
