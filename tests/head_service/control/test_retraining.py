import msgspec
import pytest

from clients import InvalidRequest
from clients.wire.catalogue import Manifest, TrunkRef, View
from head_service.control.feedback import FeedbackRow, FeedbackStore
from head_service.control.retraining import HeadFeedback, Retraining, Schedule, due
from head_service.control.runs import Runs
from head_service.control.words import DataSource, Outcome, TrainingOrder

HOUR = 3_600.0
LIVE = Manifest(name="spam", version=1, labels=("ham", "spam"), width=4, trunk=TrunkRef("t", "sha256:0"))
TAGS = msgspec.structs.replace(
    LIVE,
    name="tags",
    task="multi_label",
    head_type="mlp",
    view=View(layer=-2),
    preprocess=("nfkc/1",),
    long_text="max",
    label_separator="/",
)


@pytest.mark.parametrize(
    ("num_new", "age", "is_due"),
    [(0, None, False), (99, None, False), (100, None, True), (100, HOUR - 1, False), (100, HOUR, True), (99, 9 * HOUR, False)],
)
def test_what_is_due(num_new, age, is_due):
    heads = [HeadFeedback("spam", 500, num_new, age)]

    assert is_due == bool(due(heads, Schedule(HOUR, 100)))
    assert [] == due(heads, Schedule(0, 1))


@pytest.fixture
def feedback(store):
    return FeedbackStore(store, max_rows_per_day=1_000)


@pytest.fixture
def runs(store):
    return Runs(store)


@pytest.fixture
def retraining(runs, feedback, clock):
    return Retraining(runs, feedback, {"spam": LIVE, "tags": TAGS}.get, clock=clock)


def give(feedback, number: int) -> None:
    feedback.keep([FeedbackRow("spam", f"text {n}", "ham", "ann") for n in range(number)])


def test_retraining_starts_from_what_the_last_good_run_had(runs, feedback, retraining):
    with pytest.raises(InvalidRequest, match="no feedback"):
        retraining.order("spam", "version")
    give(feedback, 3)
    assert TrainingOrder(head="spam", feedback_until=3, publish="version") == retraining.order("spam", "version")
    before = TrainingOrder(head="spam", data=DataSource(path="a.csv"), text_column="body", seed=4)
    runs.submit(before, "ann")
    runs.finish(runs.claim("w", 30), Outcome(kind="succeeded"))

    order = retraining.order("spam", "live")

    assert (before.data, "body", 4, 3, "live") == (order.data, order.text_column, order.seed, order.feedback_until, order.publish)
    other = retraining.order("spam", "version", DataSource(path="b.csv"))
    assert (DataSource(path="b.csv"), None) == (other.data, other.text_column)


def test_the_schedule_submits_once_and_not_again_before_there_is_more_and_time_has_passed(runs, feedback, retraining, clock):
    schedule = Schedule(HOUR, 3)
    give(feedback, 3)

    assert 1 == len(retraining.submit_due(schedule))
    assert [] == retraining.submit_due(schedule)
    clock.now += 2 * HOUR
    assert [] == retraining.submit_due(schedule)
    give(feedback, 3)
    [run] = retraining.submit_due(schedule)

    assert "version" == run.order.publish
    assert 6 == run.order.feedback_until
    assert 2 == len(runs.page())


def test_a_head_that_no_run_has_made_is_trained_as_its_live_version_says(feedback, retraining):
    feedback.keep([FeedbackRow("tags", "text", ("a", "b"), "ann")])

    expected = TrainingOrder(
        head="tags",
        task="multi_label",
        head_type="mlp",
        view=View(layer=-2),
        preprocess=("nfkc/1",),
        long_text="max",
        level_separator="/",
        feedback_until=1,
        publish="version",
    )
    assert expected == retraining.order("tags", "version")


def test_feedback_does_not_bring_back_a_head_that_was_removed(feedback, retraining):
    feedback.keep([FeedbackRow("gone", f"text {n}", "ham", "ann") for n in range(5)])

    assert [] == retraining.submit_due(Schedule(HOUR, 3))
