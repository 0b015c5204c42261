import msgspec

from clients import HeadError, HeadResult, Result
from perf.topologies.plan_four import labels_of, target_at
from perf.workloads import Workload


def test_a_head_without_an_answer_has_no_label() -> None:
    heads: dict[str, HeadResult | HeadError] = {
        "tone": HeadResult("good", 0.9, 1),
        "topic": HeadError("unavailable", "it did not answer"),
        "vague": HeadResult(None, 0.2, 1),
    }

    assert {"tone": "good"} == labels_of(Result(heads, 3, truncated=False, cached=False))


def test_a_request_names_its_text_and_the_heads() -> None:
    target = target_at("http://127.0.0.1:80", Workload("mix", ["a", "b"], ["short", "long"]), ["tone", "topic"])

    expected = [{"text": text, "heads": ["tone", "topic"], "strict": True} for text in "ab"]
    assert expected == [msgspec.json.decode(body) for body in target.bodies]
    assert (b"/v1/classify", ["short", "long"]) == (target.path, target.classes)
