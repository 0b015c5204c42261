import os
import sys
import threading

import pytest

from embedding_service.priority import STEPS, SWITCH_SECONDS, give_way, new_threads_give_way, share_the_interpreter

only_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")


def niceness_of(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


@only_on_linux
def test_a_thread_that_gives_way_is_nicer_than_the_others() -> None:
    found = []

    def work() -> None:
        give_way()
        found.append(niceness_of(threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert [min(niceness_of(0) + STEPS, 19)] == found


@only_on_linux
def test_only_threads_made_inside_give_way() -> None:
    stop = threading.Event()
    before, inside = threading.Thread(target=stop.wait), threading.Thread(target=stop.wait)
    before.start()
    try:
        with new_threads_give_way():
            inside.start()
        assert before.native_id is not None
        assert inside.native_id is not None
        ours = niceness_of(0)
        assert (ours, min(ours + STEPS, 19)) == (niceness_of(before.native_id), niceness_of(inside.native_id))
    finally:
        stop.set()
        before.join()
        inside.join()


def test_the_interpreter_changes_hands_sooner() -> None:
    before = sys.getswitchinterval()
    try:
        share_the_interpreter()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    finally:
        sys.setswitchinterval(before)
