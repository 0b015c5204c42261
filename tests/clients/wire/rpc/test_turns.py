import asyncio

import pytest

from clients.wire.rpc.turns import MAX_KEPT_BYTES, TurnTransport


class Recorder(asyncio.Transport):
    """Takes note of what is done to it, and of how much it was told to keep back."""

    def __init__(self) -> None:
        super().__init__(extra={"peername": "me"})
        self.done: list[bytes | str] = []
        self.num_back = 0
        self.is_gone = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_gone
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append("close")
        self.is_gone = True

    def abort(self) -> None:
        self.done.append("abort")
        self.is_gone = True

    def write_eof(self) -> None:
        self.done.append("eof")

    def is_closing(self) -> bool:
        return self.is_gone

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.num_back


@pytest.fixture
async def wire() -> Recorder:
    return Recorder()


@pytest.fixture
async def streams() -> set[int]:
    return {1, 3}


@pytest.fixture
async def turns(wire: Recorder, streams: set[int]) -> TurnTransport:
    return TurnTransport(wire, streams)


async def test_what_is_written_by_tasks_that_run_in_one_turn_leaves_together(wire: Recorder, turns: TurnTransport) -> None:
    async def answer(number: int) -> None:
        await asyncio.sleep(0)
        turns.write(b"%d" % number)

    await asyncio.gather(*(answer(number) for number in range(5)))
    await asyncio.sleep(0)
    assert [b"01234"] == wire.done

    await answer(5)
    await asyncio.sleep(0)
    assert [b"01234", b"5"] == wire.done


@pytest.mark.parametrize("num_open", [0, 1])
async def test_a_call_that_is_alone_does_not_wait_for_the_end_of_the_turn(
    wire: Recorder, turns: TurnTransport, streams: set[int], num_open: int
) -> None:
    while len(streams) > num_open:
        streams.pop()
    turns.write(b"1")
    turns.write(b"2")
    assert [b"1", b"2"] == wire.done


async def test_nothing_overtakes_what_is_kept(wire: Recorder, turns: TurnTransport, streams: set[int]) -> None:
    turns.write(b"1")
    streams.clear()
    turns.write(b"2")
    assert [] == wire.done

    await asyncio.sleep(0)
    assert [b"12"] == wire.done


async def test_much_is_not_kept_until_the_end_of_the_turn(wire: Recorder, turns: TurnTransport) -> None:
    many = bytes(MAX_KEPT_BYTES)
    for data in (b"1", many, b"2"):
        turns.write(data)
    assert [b"1" + many] == wire.done

    await asyncio.sleep(0)
    assert [b"1" + many, b"2"] == wire.done


@pytest.mark.parametrize(("end", "how"), [(TurnTransport.close, "close"), (TurnTransport.write_eof, "eof")])
async def test_what_was_written_before_the_end_is_sent_before_it(
    wire: Recorder, turns: TurnTransport, end: object, how: str
) -> None:
    turns.write(b"1")
    turns.write(b"2")
    assert callable(end)
    end(turns)
    await asyncio.sleep(0)

    assert [b"12", how] == wire.done


async def test_what_is_kept_when_the_connection_is_given_up_is_not_sent(wire: Recorder, turns: TurnTransport) -> None:
    turns.write(b"1")
    turns.write(b"2")
    turns.abort()
    await asyncio.sleep(0)

    assert ["abort"] == wire.done
    assert turns.is_closing()
    assert not turns.get_write_buffer_size()


async def test_nothing_is_sent_once_the_other_end_has_hung_up(wire: Recorder, turns: TurnTransport) -> None:
    turns.write(b"1")
    turns.write(b"2")
    wire.is_gone = True
    await asyncio.sleep(0)

    assert [] == wire.done


async def test_what_is_kept_is_not_gone(wire: Recorder, turns: TurnTransport) -> None:
    turns.write(b"123")
    turns.write(b"4567")
    assert (7, 0) == (turns.get_write_buffer_size(), turns.num_gone)

    wire.num_back = 2
    await asyncio.sleep(0)
    assert (2, 5) == (turns.get_write_buffer_size(), turns.num_gone)


async def test_what_it_knows_is_known(turns: TurnTransport) -> None:
    assert "me" == turns.get_extra_info("peername")
    assert "none" == turns.get_extra_info("cipher", "none")
    assert turns.can_write_eof()
