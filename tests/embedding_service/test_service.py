from embedding_service.backend.fake import FakeBackend
from embedding_service.service import warm_up


def test_no_caller_is_the_first_to_run_a_shape_in_any_form_that_an_engine_may_keep() -> None:
    backend = FakeBackend(concurrency=3)

    warm_up(backend)

    shapes = {batch.token_ids for batch in backend.batches}
    assert {(8, 1), (8, 8), (64, 1), (64, 8)} <= {(len(rows[0]), len(rows)) for rows in shapes}
    for shape in shapes:
        told = [batch.is_alone for batch in backend.batches if batch.token_ids == shape]
        assert (1, 3) == (told.count(True), told.count(False))
