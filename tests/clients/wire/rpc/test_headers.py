import base64
import math
from collections.abc import Callable

import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clients.wire.rpc import frames as h2
from clients.wire.rpc.frames import ProtocolError
from clients.wire.rpc.headers import (
    MAX_HEADER_BYTES,
    Field,
    HeaderReader,
    HeadersTooLargeError,
    Metadatum,
    are_well_formed,
    block,
    literal,
    metadata_fields,
    plain_fields,
    quoted,
    read_metadata,
    read_timeout,
    timeout_field,
    unquoted,
)

LOTS = 10_000_000
NAME_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != ":" and not chr(code).isupper())

names = st.builds("{}{}".format, st.sampled_from(("", ":")), st.text(NAME_CHARACTERS, min_size=1, max_size=12))
values = st.text(st.characters(max_codepoint=255, exclude_characters="\0\r\n"), max_size=20)
SIZES = (0, 1, 126, 127, 128, 254, 255, 256, 16_383, 16_384, 16_511, 16_512)
long_values = st.builds("".join, st.tuples(st.sampled_from(SIZES).map("v".__mul__), st.sampled_from(("", "\xe9"))))
fields_lists = st.lists(st.tuples(names | st.just("content-type"), values | long_values), max_size=6)


def by_hpack(content: bytes, decoder: Decoder | None = None) -> list[Field]:
    found = (decoder or Decoder(LOTS)).decode(content, raw=True)
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in found]


@settings(max_examples=100, deadline=None)
@given(fields_lists)
def test_what_is_written_is_read_by_hpack_and_here(fields: list[Field]) -> None:
    content = block(fields)

    assert fields == by_hpack(content)
    assert fields == HeaderReader(LOTS).read(content)


@pytest.mark.parametrize("size", [*SIZES, 2_097_278, 2_097_279])
def test_every_length_is_written_as_hpack_reads_it(size: int) -> None:
    name, value = "n" * max(1, size), "v" * size

    assert [(name, value)] == by_hpack(literal(name, value))


octets = st.lists(st.integers(0, 255) | st.sampled_from((0, 1, 0x10, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0xC0))).map(bytes)
short_fields = st.lists(st.tuples(names, values.filter(str.isascii)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(octets | short_fields.map(block) | st.builds(bytes.__add__, short_fields.map(block), octets))
@example(b"\0\x01a")
@example(b"\0\x01a\x01")
@example(b"\0\0\0")
def test_a_plain_block_is_never_read_otherwise_than_by_hpack(content: bytes) -> None:
    fields = plain_fields(content)
    if fields is not None:
        assert fields == by_hpack(content)


def test_blocks_like_ours_are_plain() -> None:
    fields = [(":path", "/a.b/C"), ("content-type", "application/grpc"), ("x-key", "v" * 126), ("x-empty", "")]

    assert fields == plain_fields(block(fields))
    assert plain_fields(block([("x", "v" * 127)])) is None
    assert plain_fields(block([("n" * 127, "v")])) is None
    assert plain_fields(block([("x", "\xe9")])) is None
    assert plain_fields(Encoder().encode(fields)) is None


few_names = st.sampled_from((":path", ":authority", "content-type", "x-a", "x-b", "x-session"))
few_values = st.sampled_from(("", "/", "a", "b" * 60, "c" * 900, "d" * 5_000, "\xe9"))
repeated = st.lists(st.tuples(few_names, few_values, st.booleans()), max_size=6)
table_sizes = st.none() | st.lists(st.sampled_from((0, 40, 100, 1_000, 4_095, 4_096)), min_size=1, max_size=3)
blocks = st.lists(st.tuples(repeated, table_sizes, st.booleans()), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(blocks, st.lists(st.integers(0, 5), max_size=40))
def test_blocks_of_one_connection_are_read_as_hpack_reads_them(
    blocks: list[tuple[list[tuple[str, str, bool]], list[int] | None, bool]], order: list[int]
) -> None:
    encoder, decoder, reader = Encoder(), Decoder(LOTS), HeaderReader(LOTS)
    for number in order:
        fields, sizes, huffman = blocks[number % len(blocks)]
        for size in sizes or ():
            # Told the same twice, it forgets to say it once.
            if size != encoder.header_table_size:
                encoder.header_table_size = size
        content = encoder.encode([(name, value.encode("latin-1"), secret) for name, value, secret in fields], huffman=huffman)

        assert by_hpack(content, decoder) == reader.read(content) == [field[:2] for field in fields]
        assert list(decoder.header_table.dynamic_entries) == list(reader._decoder.header_table.dynamic_entries)


INDEXED = [bytes([0x80 | index]) for index in (2, 62, 63, 64)]
ADDED = [b"\x40" + literal(name, value)[1:] for name, value in (("a", "1"), ("b", "2"), ("c", "3" * 100), ("d", "4" * 5_000))]
RESIZED = [b"\x20", b"\x3f\x0f", b"\x3f\x0f\x3f\xe1\x1f", b"\x3f\xe1\x1f"]
parts = st.lists(st.sampled_from((*INDEXED, *ADDED, block([("x", "y")]))), max_size=4)
odd_blocks = st.builds(lambda resized, parts: resized + b"".join(parts), st.sampled_from((b"", *RESIZED)), parts)


@settings(max_examples=300, deadline=None)
@given(st.lists(odd_blocks, max_size=12))
def test_blocks_that_no_encoder_sends_are_read_as_hpack_reads_them(blocks: list[bytes]) -> None:
    decoder, reader = Decoder(LOTS), HeaderReader(LOTS)
    for content in blocks:
        try:
            fields = by_hpack(content, decoder)
        except HPACKError:
            with pytest.raises(ProtocolError) as raised:
                reader.read(content)
            assert h2.COMPRESSION_ERROR == raised.value.code
            return
        assert fields == reader.read(content)


def test_an_entry_that_was_thrown_out_is_not_remembered() -> None:
    reader = HeaderReader()
    reader.read(ADDED[0] + ADDED[1])
    assert [("a", "1")] == reader.read(INDEXED[2])
    assert [("b", "2")] == reader.read(RESIZED[2] + INDEXED[1])

    with pytest.raises(ProtocolError):
        reader.read(INDEXED[2])


def test_a_block_seen_before_is_not_decoded_again() -> None:
    reader = HeaderReader()
    content = INDEXED[0] + literal("x", "\xe9")

    assert reader.read(content) is reader.read(content)


few_heads = st.sampled_from((b"", block([(":path", "/a.b/C")]), block([(":path", "/a.b/C"), ("te", "trailers")]), b"\0\x01x\x20"))
timeouts = st.sampled_from(
    (b"", block([("grpc-timeout", "10S")]), block([("grpc-timeout", "9999n")]), literal("grpc-timeout", ""))
)
rests = short_fields.map(block) | octets | timeouts
calls = st.lists(st.builds(lambda *parts: b"".join(parts), few_heads, timeouts, rests), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(calls)
@example([literal("x", "\0\x0cgrpc-timeout")] * 2)
@example([block([("te", "trailers"), ("grpc-timeout", "1S")]), b"\0\x02te\x08trailers\0\x0cgrpc-timeout\x03"])
def test_what_calls_have_in_common_before_their_timeouts_changes_nothing_of_how_they_are_read(calls: list[bytes]) -> None:
    reader = HeaderReader(LOTS)
    for content in calls:
        fields = plain_fields(content)
        assert fields == reader._plain_fields(content)
        if fields:
            assert fields == reader.read(content) == by_hpack(content)


def test_what_is_remembered_of_calls_is_bounded() -> None:
    reader = HeaderReader()
    for number in range(1_000):
        reader.read(literal("x", f"{number}") + literal("y", "v" * 100) * (number % 30) + literal("grpc-timeout", "1S"))
        assert 64 >= len(reader._plain)
        assert 65_536 >= sum(map(len, reader._plain))


def test_what_is_remembered_is_bounded() -> None:
    reader = HeaderReader()
    for number in range(1_000):
        reader.read(literal("x", f"\xe9{number}") + literal("y", "v" * (number * 20)))
        assert 64 >= len(reader._known)
        assert 65_536 >= sum(map(len, reader._known))


@settings(max_examples=400, deadline=None)
@given(st.lists(octets, min_size=1, max_size=4))
def test_garbage_is_read_or_one_kind_of_error(blocks: list[bytes]) -> None:
    reader, codes = HeaderReader(200), set()
    try:
        for content in blocks:
            reader.read(content)
    except ProtocolError as error:
        codes.add(error.code)
    assert codes <= {h2.COMPRESSION_ERROR, h2.ENHANCE_YOUR_CALM, h2.PROTOCOL_ERROR}


@pytest.mark.parametrize(
    "content",
    [
        b"\x80",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        INDEXED[1],
        b"\x40\x05ab",
        b"\x00\x01",
        b"\x3f\xe2\x1f",
        literal("x", "y") + b"\x20",
        b"\x00\x81\x00\x01v",
        b"\x00\x81\xff\x01v",
    ],
)
def test_what_is_no_header_block_is_a_compression_error(content: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        HeaderReader().read(content)

    assert h2.COMPRESSION_ERROR == raised.value.code


def test_header_bombs_are_refused() -> None:
    large = b"\x40" + literal("x", "v" * 4_000)[1:]
    for bomb in (large + INDEXED[1] * 1_000, literal("x", "\xe9") + literal("x", "") * 8_000):
        assert MAX_HEADER_BYTES >= len(bomb)
        with pytest.raises(ProtocolError) as raised:
            HeaderReader().read(bomb)
        assert h2.ENHANCE_YOUR_CALM == raised.value.code


def test_fields_that_are_too_large_are_refused_and_the_next_are_read() -> None:
    encoder, reader = Encoder(), HeaderReader()
    fields = [("x", "v" * 2_000), *[("y", "")] * 1_000]
    assert [("x", "v" * 2_000)] == reader.read(encoder.encode(fields[:1]))
    for content in (encoder.encode(fields), encoder.encode(fields), block([("x", "")] * 1_000)):
        assert MAX_HEADER_BYTES >= len(content)
        with pytest.raises(HeadersTooLargeError):
            reader.read(content)

    assert fields[:2] == reader.read(encoder.encode(fields[:2]))


def test_a_list_counts_the_same_however_it_is_written() -> None:
    fields = [("name", "value")] * 20
    bound = 20 * (4 + 5 + 32)
    for write in (block, Encoder().encode):
        content = write(fields)
        assert fields == HeaderReader(bound).read(content)
        with pytest.raises(HeadersTooLargeError):
            HeaderReader(bound - 1).read(content)


@pytest.mark.parametrize("write", [block, lambda fields: Encoder().encode(fields)])
@pytest.mark.parametrize(
    "field", [("X-Key", "v"), ("a b", "v"), ("a:b", "v"), ("", "v"), ("x\n", "v"), ("x", "a\nb"), ("x", "a\r"), ("x", "\0")]
)
def test_a_field_that_http_has_not_is_refused(write: Callable[[list[Field]], bytes], field: Field) -> None:
    assert not are_well_formed([field])
    with pytest.raises(ProtocolError) as raised:
        HeaderReader().read(write([(":path", "/"), field]))

    assert h2.PROTOCOL_ERROR == raised.value.code


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-9, 1e11) | st.floats(1e-9, 100) | st.integers(1, 10**6).map(float))
def test_a_timeout_is_never_shorter_and_at_most_a_unit_longer(seconds: float) -> None:
    field = timeout_field(seconds)
    got, unit = read_timeout(field), read_timeout(f"1{field[-1]}")

    assert got is not None
    assert unit is not None
    assert 9 >= len(field)
    assert seconds * (1 - 1e-12) <= got <= seconds * (1 + 1e-12) + unit


@pytest.mark.parametrize(
    ("seconds", "field"),
    [
        (0.0, "1n"),
        (-3.0, "1n"),
        (1e-10, "1n"),
        (0.05, "50000000n"),
        (10.0, "10000000u"),
        (1e8, "1666667M"),
        (1e10, "2777778H"),
        (1e300, "99999999H"),
        (math.inf, "99999999H"),
    ],
)
def test_a_timeout_is_in_the_finest_unit_that_holds_it(seconds: float, field: str) -> None:
    assert field == timeout_field(seconds)


def test_a_timeout_that_is_none_is_not_read() -> None:
    for value in ("", "S", "1", "1s", "123456789S", "-1S", "+1S", " 1S", "1 S", "1.5S", "1_0S", "\xb2S", "\u0661S", "1Sx"):
        assert read_timeout(value) is None
    assert 60.0 == read_timeout("1M")
    assert 99_999_999 * 3_600.0 == read_timeout("99999999H")
    assert 0.0 == read_timeout("00000000n")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
@example(" of spaces ")
@example("   ")
@example("100 %")
@example("\u00e9%41\r\n")
def test_a_message_comes_back_as_it_was(message: str) -> None:
    field = quoted(message)

    assert message == unquoted(field)
    assert field.isascii()
    assert field.isprintable()
    assert field == field.strip()
    assert [("grpc-message", field)] == HeaderReader().read(literal("grpc-message", field))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_text_can_be_a_message_and_any_value_be_read_as_one(text: str) -> None:
    assert quoted(text).isascii()
    assert isinstance(unquoted(text), str)


def test_a_message_that_nobody_quoted_is_read_all_the_same() -> None:
    assert "caf\u00e9 50%" == unquoted("caf\u00e9 50%".encode().decode("latin-1"))
    assert "%zz%4" == unquoted("%zz%4")
    assert "\ufffd" == unquoted("%FF")


keys = st.text("abcz019_-.", min_size=1, max_size=10).filter(lambda key: not key.startswith("grpc-") and not key.endswith("-bin"))
plain = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(lambda value: value.strip(" "))
metadata = st.lists(st.tuples(keys, plain) | st.tuples(keys.map("{}-bin".format), st.binary(max_size=20)), max_size=5)


@settings(max_examples=150, deadline=None)
@given(metadata)
def test_metadata_come_back_as_they_were(metadata: list[tuple[str, str | bytes]]) -> None:
    content = block(metadata_fields(metadata))

    assert tuple(metadata) == read_metadata(HeaderReader().read(content))


def test_metadata_are_written_as_fields() -> None:
    assert [] == metadata_fields(None)
    assert [("key", "v"), ("k", "bytes"), ("e", "")] == metadata_fields([("Key", " v  "), ("k", b"bytes"), ("e", "")])
    assert [("x-bin", "AQ"), ("y-bin", "w6k")] == metadata_fields([("x-bin", b"\1"), ("y-bin", "\u00e9")])


@pytest.mark.parametrize(
    "key", ["", ":path", "grpc-timeout", "Grpc-x", "a b", "a:b", "a\n", "caf\u00e9", "te", "Connection", "content-type", "host"]
)
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="a metadata key"):
        metadata_fields([(key, "v")])


@pytest.mark.parametrize("value", ["caf\u00e9", "a\nb", "\0", "\x7f", b"\xff", "\t"])
def test_a_value_that_is_none_is_refused(value: str | bytes) -> None:
    with pytest.raises(ValueError, match="a metadata value"):
        metadata_fields([("key", value)])


def test_metadata_are_what_neither_http_nor_grpc_said() -> None:
    fields = [(":path", "/x"), ("te", "trailers"), ("content-type", "a"), ("grpc-timeout", "1S"), ("host", "x"), ("mine", "v")]

    assert (Metadatum("mine", "v"),) == read_metadata(fields)


@pytest.mark.parametrize("content", [b"", b"\0", b"ab", b"abc", b"\xff\xfe\xfd\xfc"])
def test_binary_metadata_are_read_with_and_without_padding(content: bytes) -> None:
    padded = base64.b64encode(content).decode()

    assert (("x-bin", content),) == read_metadata([("x-bin", padded)]) == read_metadata([("x-bin", padded.rstrip("="))])
    assert (("x-bin", content), ("x-bin", b"2")) == read_metadata([("x-bin", f"{padded}, Mg")])


def test_binary_metadata_that_are_none_are_empty() -> None:
    assert (("x-bin", b""), ("y-bin", b"")) == read_metadata([("x-bin", "A"), ("y-bin", "\xe9")])
