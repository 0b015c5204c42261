"""The queue, by huey: it wakes workers and carries a run's id, nothing else. What it loses, workers find in the database.

huey packs its messages with pickle unless it is told otherwise. It is: `RunIdSerializer` writes JSON and reads nothing else, so
whoever can write to the queue can wake a worker and do no more.
"""

import logging
import re
from pathlib import Path
from typing import Any, Final

import msgspec
from huey import RedisHuey, SqliteHuey  # type: ignore[import-untyped]
from huey.exceptions import HueyException  # type: ignore[import-untyped]
from huey.registry import Message  # type: ignore[import-untyped]
from huey.serializer import Serializer  # type: ignore[import-untyped]

from clients.wire.decoding import NOT_DECODED
from head_service.control.errors import ControlError

_log = logging.getLogger(__name__)
_RUN_ID: Final = re.compile("[0-9a-f]{32}")
_QUEUE: Final = "trunkline-runs"


class _Wake(msgspec.Struct, forbid_unknown_fields=True):
    """What travels: huey's own id of the message, its task's name, and the run."""

    id: str
    name: str
    run: str


class RunIdSerializer(Serializer):  # type: ignore[misc]  # huey is published without types
    """A message as JSON, and only one that carries a run's id."""

    def _serialize(self, data: Any) -> bytes:
        assert isinstance(data, Message)
        [run_id] = data.args
        return msgspec.json.encode(_Wake(data.id, data.name, run_id))

    def _deserialize(self, data: Any) -> Any:
        try:
            wake = msgspec.json.decode(bytes(data), type=_Wake)
        except NOT_DECODED:
            raise ValueError("a message in the queue is not one of ours") from None
        if not _RUN_ID.fullmatch(wake.run):
            raise ValueError("a message in the queue does not name a run")
        return Message(wake.id, wake.name, retries=0, retry_delay=0, args=(wake.run,), kwargs={})


class Wakeup:
    """The queue at *url*: `redis://…`, or the path of an SQLite file."""

    def __init__(self, url: str | Path) -> None:
        options: dict[str, Any] = {"serializer": RunIdSerializer(), "results": False, "utc": True}
        try:
            if str(url).startswith(("redis://", "rediss://", "unix://")):
                self._huey = RedisHuey(_QUEUE, url=str(url), blocking=False, **options)
            else:
                self._huey = SqliteHuey(_QUEUE, filename=str(url), timeout=5, **options)
        except (HueyException, ImportError):
            raise ControlError("a queue in Redis needs its package; install trunkline[redis], or leave --queue out") from None
        self._task = self._huey.task(name="train")(_only_named)

    def wake(self, run_id: str) -> None:
        """Tell the workers of a run. A queue that cannot be reached is no failure: they look into the database by themselves."""
        try:
            self._task(run_id)
        except Exception as error:
            _log.warning("the queue cannot be written (%s); run %s will be found a little later", type(error).__name__, run_id)

    def next(self) -> str | None:
        """The id of a run somebody was woken for; None when there is none now. A message that is not ours is dropped."""
        try:
            task = self._huey.dequeue()
        except (ValueError, HueyException):
            _log.warning("a message in the queue is not one of ours and was dropped")
            return None
        except Exception as error:
            _log.warning("the queue cannot be read (%s); runs are taken from the database alone", type(error).__name__)
            return None
        return None if task is None else str(task.args[0])

    def __len__(self) -> int:
        return int(self._huey.pending_count())

    def close(self) -> None:
        """Let the connection go."""
        self._huey.storage.close()


def _only_named(run_id: str) -> None:
    """The task of huey's registry; workers take its argument and never call it."""
