"""A client that is closed says so, whichever it is."""

import numpy as np
import pytest

from clients import (
    AsyncClient,
    AsyncEmbeddingClient,
    AsyncHeadClient,
    Cancelled,
    Client,
    EmbeddingClient,
    HeadClient,
)

NOBODY = "127.0.0.1:1"
INPUTS = {"embedding": np.zeros((1, 2), np.float32)}


def test_a_closed_client_cancels_its_calls():
    gateway, embedding, heads = Client(), EmbeddingClient(NOBODY), HeadClient(NOBODY)
    for client in (gateway, embedding, heads):
        client.close()
        client.close()

    for call in (
        lambda: gateway.classify("a"),
        lambda: list(gateway.classify_stream(["a"])),
        lambda: embedding.embed(["a"]),
        lambda: heads.predict("topic", INPUTS),
    ):
        with pytest.raises(Cancelled, match="the client is closed"):
            call()


async def test_so_do_their_twins():
    gateway, embedding, heads = AsyncClient(), AsyncEmbeddingClient(NOBODY), AsyncHeadClient(NOBODY)
    for client in (gateway, embedding, heads):
        await client.close()
        await client.close()

    for call in (
        lambda: gateway.classify("a"),
        lambda: anext(gateway.classify_stream(["a"])),
        lambda: embedding.embed(["a"]),
        lambda: heads.predict("topic", INPUTS),
    ):
        with pytest.raises(Cancelled, match="the client is closed"):
            await call()
