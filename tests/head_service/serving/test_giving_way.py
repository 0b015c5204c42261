import os
import sys
import threading

import pytest

from head_service.serving.giving_way import giving_way


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
def test_a_long_step_has_less_priority_and_its_caller_keeps_its_own() -> None:
    before = priority()

    assert giving_way(priority) > before
    assert before == priority()


def test_what_a_step_returns_and_raises_comes_through() -> None:
    def refuse(reason: str) -> None:
        raise ValueError(reason)

    assert "ab" == giving_way("{}{}".format, "a", "b")
    with pytest.raises(ValueError, match="broken"):
        giving_way(refuse, reason="broken")
