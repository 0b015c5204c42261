import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import clients
import trunkline


def test_the_clients_are_had_by_the_front_door_and_nothing_else_is() -> None:
    assert set(trunkline.__all__) <= set(dir(trunkline))
    for name in trunkline.__all__:
        assert getattr(trunkline, name) is getattr(clients, name)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        trunkline.Nothing  # noqa: B018


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.4, 0.6])
def test_ctrl_c_ends_the_command_without_a_word_also_while_it_begins(seconds: float) -> None:
    # As in a terminal, also where this runs behind `nohup ... &`.
    code = "import signal; set = signal.signal; set(2, signal.default_int_handler)"
    code += "; signal.signal = lambda *given: (set(*given), print(flush=True))"
    code += "; import trunkline.__main__; trunkline.__main__.main()"
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        subprocess.Popen(
            [sys.executable, "-c", code, "classify", "--gateway", f"http://127.0.0.1:{silent.getsockname()[1]}", "a text"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=60)

    assert "" == (said + complaint).strip()
    assert process.returncode in {-signal.SIGINT, 130}


def test_where_ctrl_c_is_ignored_it_stays_so(tmp_path: os.PathLike[str]) -> None:
    """As behind `nohup ... &`."""
    code = "import signal, sys, trunkline.__main__ as m; m.signal.signal(2, signal.SIG_IGN); sys.argv[1:] = ['--help']"
    code += "; import atexit; atexit.register(lambda: print('ignored', signal.getsignal(2) is signal.SIG_IGN)); m.main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert "ignored True" in found.stdout
