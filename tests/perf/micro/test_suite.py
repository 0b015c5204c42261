import msgspec
import numpy as np
import pytest
from starlette.types import Message

from perf.micro.baseline import YARDSTICKS
from perf.micro.gateway_paths import NUM_HEADS, NUM_TEXTS, Gateway, UnexpectedAnswerError, gateway
from perf.micro.parts import SENTENCES, batch_cut, encoder, queue_lengths, texts
from perf.micro.suite import in_process, is_wanted, run_suite
from perf.micro.timing import Benchmark, spend


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Benchmark]:
    found = in_process(tmp_path_factory.mktemp("keys"))
    by_name = {one.name: one for one in found}
    assert len(found) == len(by_name)
    return by_name


@pytest.fixture(scope="module")
def gateways() -> list[Gateway]:
    tokens = encoder()
    return [gateway(tokens, 1), gateway(tokens, NUM_HEADS)]


async def test_every_benchmark_can_be_called(benchmarks: dict[str, Benchmark]) -> None:
    for benchmark in benchmarks.values():
        spent = await spend(benchmark, 1)

        assert spent.wall > 0, benchmark.name


def test_the_yardsticks_are_those_that_runs_are_compared_by(benchmarks: dict[str, Benchmark]) -> None:
    assert set(YARDSTICKS) <= benchmarks.keys()


def test_the_suite_runs_whole_and_leaves_out_what_nobody_wants() -> None:
    told: list[str] = []
    found = run_suite(told.append, rounds=2, seconds=0.0, only=("normalise", "tensor to"), with_head_server=False)

    assert {*YARDSTICKS, "normalise, plain text", "tensor to bytes, [1, 384]"} <= {one.name for one in found}
    assert all(one.name.startswith(("yardstick", "normalise", "tensor to")) for one in found)
    assert {2} == {len(one.microseconds) for one in found}
    assert ["6 benchmarks, 2 rounds of 0 ms each"] == told


@pytest.mark.parametrize(
    ("name", "only", "expected"),
    [("guard", (), True), ("guard", ("gu",), True), ("guard", ("pipeline",), False), ("yardstick, numpy", ("guard",), True)],
)
def test_a_benchmark_is_wanted_by_the_beginning_of_its_name(name: str, only: tuple[str, ...], expected: bool) -> None:
    assert expected is is_wanted(name, only)


def test_texts_differ_and_are_spelled_without_unknown_words() -> None:
    encode = encoder()
    encoded = encode.encode(texts(NUM_TEXTS))
    unknown = encode.ids_of_tokens(["[UNK]"])[0]

    assert NUM_TEXTS == len({tuple(one.ids) for one in encoded})
    assert not any(unknown in one.ids for one in encoded)
    assert 15 <= np.median([len(one.ids) for one in encoded]) <= 35


def test_lengths_are_mostly_short_and_some_of_them_long() -> None:
    lengths = np.array(queue_lengths(2_048))

    assert 20 <= np.median(lengths) <= 28
    assert 0.02 < np.mean(lengths >= 256) < 0.08
    assert lengths.min() >= 5
    assert lengths.max() <= 512
    assert queue_lengths(64) == queue_lengths(64)


async def test_a_queue_that_is_cut_stays_as_long_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from perf.micro import parts

    made: list[parts.Queue] = []

    class Seen(parts.Queue):
        def __init__(self, limits: parts.QueueLimits, cost: parts.PassCost) -> None:
            super().__init__(limits, cost)
            made.append(self)

    monkeypatch.setattr(parts, "Queue", Seen)
    await spend(batch_cut(64), 50)

    assert (64, sum(queue_lengths(64))) == (made[0].num_entries, made[0].num_tokens)


async def test_the_pipeline_answers_for_every_text_and_head(gateways: list[Gateway]) -> None:
    for one, num_heads in zip(gateways, (1, NUM_HEADS), strict=True):
        answer = await one.pipeline_call(lambda: texts(NUM_TEXTS))()

        assert num_heads == len(answer.outcomes)
        assert all(isinstance(said, list) and len(said) == NUM_TEXTS for said in answer.outcomes.values())


async def test_a_text_that_comes_again_is_answered_from_before_and_a_new_one_is_not(gateways: list[Gateway]) -> None:
    call = gateways[0].pipeline_call(lambda: [SENTENCES[2]])
    first, second = await call(), await call()
    other = await gateways[0].pipeline_call(lambda: [f"{SENTENCES[2]} again"])()

    assert [False, True, False] == [said.texts[0].cached for said in (first, second, other)]


async def test_a_request_is_answered_by_the_whole_application(gateways: list[Gateway]) -> None:
    bodies: list[bytes] = []
    one = gateways[1]
    app = one.app

    async def heard(scope: object, receive: object, send: object) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.body":
                bodies.append(message["body"])
            await send(message)  # type: ignore[operator]

        await app(scope, receive, sent)  # type: ignore[arg-type]

    await Gateway(one.state, heard, one.trunk).request_call(lambda: "Is it answered?")()

    (result,) = msgspec.json.decode(b"".join(bodies))["results"]
    assert NUM_HEADS == len(result["heads"])
    assert all("label" in said for said in result["heads"].values())


async def test_a_request_that_is_refused_is_not_timed(gateways: list[Gateway]) -> None:
    with pytest.raises(UnexpectedAnswerError, match="400"):
        await gateways[0].request_call(lambda: " ")()


async def test_all_heads_of_the_bundle_are_asked_in_one_call(gateways: list[Gateway]) -> None:
    calls: list[str] = []
    predictor = gateways[1].state.pipeline._fan_out._predictor
    asked = predictor.predict

    async def predict(manifest, rows, deadline):  # type: ignore[no-untyped-def]
        calls.append(manifest.name)
        return await asked(manifest, rows, deadline)

    gateways[1].state.pipeline._fan_out._predictor = type("Seen", (), {"predict": staticmethod(predict)})()
    try:
        await gateways[1].pipeline_call(lambda: ["One text for the bundle."])()
    finally:
        gateways[1].state.pipeline._fan_out._predictor = predictor

    assert ["bundle"] == calls
