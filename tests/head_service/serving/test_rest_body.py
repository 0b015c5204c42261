import gzip
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from head_service.serving.rest_body import BodyError, read_body


async def parts(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@given(content=st.binary(max_size=2_000), size=st.integers(1, 500))
@settings(max_examples=50)
async def test_a_body_arrives_whole_plain_or_compressed(content, size):
    assert await read_body(parts(content, size), "", 2_000) == content
    assert await read_body(parts(gzip.compress(content), size), "x-gzip", 2_100) == content


@given(content=st.binary(max_size=200), size=st.integers(1, 50))
@settings(max_examples=100)
async def test_bytes_that_are_no_gzip_are_refused(content, size):
    try:
        found = await read_body(parts(content, size), "gzip", 1_000)
    except BodyError as error:
        found = b""
        refused = error.status
    else:
        refused = 0

    assert (found, refused) in {(b"", 400), (b"", 0)}


@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_more_than_the_bound_is_refused_before_it_is_held(encoding):
    content = bytes(10_000_000)
    sent = gzip.compress(content) if encoding else content

    with pytest.raises(BodyError) as caught:
        await read_body(parts(sent, 1_000), encoding, 50_000)
    assert caught.value.status == 413
