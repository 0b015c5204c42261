"""A Redis of our own for tests: it speaks RESP2 over a real socket, knows what the shared cache sends, and misbehaves on request.

Useful for: counting commands, keys that expire (never here, but *expiries* says after what), values that are changed behind the
cache's back, and servers that are silent, slow, wrong, cut off in the middle, full, or gone and back at the same address.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

Mood = Literal["well", "silent", "late", "garbage", "half", "closing", "full", "shifted"]


class FakeRedis:
    """See the module's docstring. *mood* may change at any time; *commands* are the names received."""

    def __init__(self, password: str = "") -> None:
        self.mood: Mood = "well"
        self.values: dict[bytes, bytes] = {}
        self.expiries: dict[bytes, int] = {}
        self.commands: list[str] = []
        self._password = password
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        user = f":{self._password}@" if self._password else ""
        return f"redis://{user}127.0.0.1:{self._port}/0"

    async def start(self) -> None:
        """Listen where it did before, the first time anywhere."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Be gone, connections included."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def silence(self) -> None:
        """Accept, never answer."""
        self.mood = "silent"

    async def speak(self) -> None:
        """Answer again."""
        self.mood = "well"

    async def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    async def set(self, key: bytes, value: bytes) -> None:
        self.values[key] = value

    async def keys(self) -> list[bytes]:
        return list(self.values)

    async def expiry(self, key: bytes) -> int:
        return self.expiries[key]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await self._converse(reader, writer):
                pass
        self._connections.discard(task)
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        words = await _command(reader)
        self.commands.append(words[0].decode().upper())
        answer = self._answer(words)
        match self.mood:
            case "silent":
                return True
            case "closing":
                return False
            case "half":
                writer.write(answer[: len(answer) // 2])
                await writer.drain()
                return False
            case "late":
                await asyncio.sleep(0.2)
                writer.write(answer)
            case "garbage":
                writer.write(b"*one\r\n\x00\xff?\r\n$-7\r\n")
            case "shifted":
                writer.write(answer + answer)
            case _:
                writer.write(answer)
        await writer.drain()
        return True

    def _answer(self, words: list[bytes]) -> bytes:
        match words[0].upper(), words[1:]:
            case b"AUTH", given:
                return b"+OK\r\n" if given[-1].decode() == self._password else b"-WRONGPASS invalid password\r\n"
            case b"MGET", keys:
                return b"*%d\r\n" % len(keys) + b"".join(_bulk(self.values.get(key)) for key in keys)
            case b"SET", _ if self.mood == "full":
                return b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
            case b"SET", [key, value, b"EX", seconds]:
                self.values[key] = value
                self.expiries[key] = int(seconds)
                return b"+OK\r\n"
            case ((b"CLIENT" | b"SELECT"), _):
                return b"+OK\r\n"
            case _:
                return b"-ERR unknown command\r\n"


class RealRedis:
    """The redis-server of this machine, with the same surface as `FakeRedis` where both can have it. On a Unix socket."""

    def __init__(self) -> None:
        # Not pytest's folder: a socket's path may have a hundred characters.
        self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._folder}/socket?db=0"

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("redis-server") is not None

    async def start(self) -> None:
        options = ["--port", "0", "--unixsocket", f"{self._folder}/socket", "--save", "", "--appendonly", "no"]
        self._process = await asyncio.create_subprocess_exec(
            "redis-server", *options, cwd=self._folder, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(10):
            while await self._ask(b"PING") != b"+PONG":
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def remove(self) -> None:
        await self.stop()
        shutil.rmtree(self._folder)

    async def silence(self) -> None:
        """The kernel accepts for it, nobody answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    async def speak(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    async def get(self, key: bytes) -> bytes | None:
        answer = await self._ask(b"GET", key)
        return None if answer == b"$-1" else answer

    async def set(self, key: bytes, value: bytes) -> None:
        assert await self._ask(b"SET", key, value) == b"+OK"

    async def keys(self) -> list[bytes]:
        with self._socket() as connection:
            connection.sendall(_packed([b"KEYS", b"*"]))
            with connection.makefile("rb") as answer:
                count = int(answer.readline()[1:])
                return [_read_bulk(answer.readline(), answer.read) for _ in range(count)]

    async def expiry(self, key: bytes) -> int:
        return int((await self._ask(b"TTL", key) or b"")[1:])

    def _socket(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        try:
            connection.connect(f"{self._folder}/socket")
        except OSError:
            connection.close()
            raise
        return connection

    async def _ask(self, *words: bytes) -> bytes | None:
        try:
            with self._socket() as connection:
                connection.sendall(_packed(words))
                with connection.makefile("rb") as answer:
                    line = answer.readline()
                    is_bulk = line.startswith(b"$") and not line.startswith(b"$-1")
                    return _read_bulk(line, answer.read) if is_bulk else line.rstrip(b"\r\n")
        except OSError:
            return None


def _packed(words: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(_bulk, words))


def _read_bulk(line: bytes, read: Callable[[int], bytes]) -> bytes:
    size = int(line[1:])
    return read(size + 2)[:size]


def _bulk(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    """One command as clients send it: an array of bulk strings."""
    line = await reader.readuntil(b"\r\n")
    words = []
    for _ in range(int(line[1:])):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(size + 2))[:size])
    return words
