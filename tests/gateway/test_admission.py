import pytest

from clients import Overloaded
from gateway.admission import Admission


def test_a_request_that_does_not_fit_is_refused_whole_and_told_when_to_come_back() -> None:
    admission = Admission(4)
    with admission.admit(3):
        with pytest.raises(Overloaded) as refusal, admission.admit(2):
            pass
        assert refusal.value.retry_after == 0.5
        assert admission.num_texts == 3


def test_permits_come_back_when_a_request_fails() -> None:
    admission = Admission(4)
    with pytest.raises(RuntimeError), admission.admit(4):
        raise RuntimeError
    with admission.admit(4):
        assert admission.num_texts == 4
    assert admission.num_texts == 0
