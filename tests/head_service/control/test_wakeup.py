import pickle
import shutil
import socket
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from huey.registry import Message

from head_service.control.errors import ControlError
from head_service.control.wakeup import RunIdSerializer, Wakeup

RUN = "0123456789abcdef" * 2


@pytest.fixture
def wakeup(tmp_path: Path):
    found = Wakeup(str(tmp_path / "queue.sqlite"))
    yield found
    found.close()


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def put(tmp_path: Path, data: bytes) -> None:
    with sqlite3.connect(tmp_path / "queue.sqlite") as queue:
        queue.execute("insert into task (queue, data) values ('trunkline-runs', ?)", (data,))
    queue.close()


def test_what_is_woken_for_is_a_runs_id_in_json(tmp_path: Path, wakeup):
    wakeup.wake(RUN)
    with sqlite3.connect(tmp_path / "queue.sqlite") as queue:
        [(data,)] = queue.execute("select data from task").fetchall()
    queue.close()

    assert data.startswith(b"{")
    assert RUN.encode() in data
    assert 1 == len(wakeup)
    assert RUN == wakeup.next()
    assert wakeup.next() is None


def test_a_pickled_message_is_dropped_and_never_loaded(tmp_path: Path, wakeup):
    bomb = pickle.dumps(Bomb(tmp_path / "went-off"))
    message = pickle.dumps(Message("1", "head_service.control.wakeup.train", args=(RUN,), kwargs={}))
    for data in (bomb, message):
        put(tmp_path, data)
        assert wakeup.next() is None
    wakeup.wake(RUN)

    assert RUN == wakeup.next()
    assert not (tmp_path / "went-off").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"id":"1","name":"os.system","run":"' + RUN.encode() + b'"}',
        b'{"id":"1","name":"head_service.control.wakeup.train","run":"../../etc"}',
        b'{"id":"1","name":"head_service.control.wakeup.train","run":"' + RUN.encode() + b'","args":[1]}',
    ],
)
def test_nonsense_in_the_queue_is_dropped(tmp_path: Path, wakeup, data):
    put(tmp_path, data)

    assert wakeup.next() is None
    assert 0 == len(wakeup)


def test_the_serializer_writes_nothing_but_runs():
    with pytest.raises(AssertionError):
        RunIdSerializer().serialize({"a": 1})


def test_a_queue_that_is_away_wakes_nobody_and_breaks_nothing():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    wakeup = Wakeup(f"redis://127.0.0.1:{port}/0")

    wakeup.wake(RUN)

    assert wakeup.next() is None
    wakeup.close()


def test_a_queue_in_redis_needs_its_package(monkeypatch):
    monkeypatch.setattr("huey.storage.Redis", None)
    with pytest.raises(ControlError, match=r"trunkline\[redis\]"):
        Wakeup("redis://127.0.0.1:1/0")


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_the_same_in_redis(tmp_path: Path):
    path = tmp_path / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not path.exists():
            assert server.poll() is None
            time.sleep(0.01)
        wakeup = Wakeup(f"unix://{path}")
        wakeup.wake(RUN)
        assert 1 == len(wakeup)
        assert RUN == wakeup.next()
        assert wakeup.next() is None
        wakeup._huey.storage.enqueue(pickle.dumps(Bomb(tmp_path / "went-off")))
        assert wakeup.next() is None
        assert not (tmp_path / "went-off").exists()
        wakeup.close()
    finally:
        server.terminate()
        server.wait(10)
