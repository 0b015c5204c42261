"""Keys and certificates between the clients and the embedding service, over real connections."""

import asyncio
import ssl
from pathlib import Path

import httpx
import numpy as np
import pytest

from clients import (
    AsyncEmbeddingClient,
    Deadline,
    EmbeddingClient,
    InvalidRequest,
    PermissionDenied,
    Tls,
    Unauthenticated,
    Unavailable,
)
from clients.wire.keys import add_key
from clients.wire.listening import ListenError
from embedding_service.backend.fake import FakeBackend
from embedding_service.settings import Settings
from tests.certificates import Authority, Pair
from tests.embedding_service.conftest import Start


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def served_by(pair: Pair, clients: Authority | None = None) -> dict[str, Path]:
    files = {"tls_certificate_file": pair.certificate, "tls_key_file": pair.key}
    return {**files, "tls_client_ca_file": clients.path} if clients else files


async def test_clients_bring_their_key_to_every_call_and_stream(start: Start, tokenizer_json: bytes, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, other = add_key(path, "ann", ("embed",)), add_key(path, "bob", ("classify",))
    addresses = await start(FakeBackend(tokenizer_json), keys_file=path)
    async with AsyncEmbeddingClient(addresses.grpc, api_key=key) as client:
        assert 1 == len((await client.embed(["w1"], request_id="r1")).vectors)
        assert "fake" == (await client.trunk()).name
        stream = client.stream()
        assert 2 == len(await stream.embed(["w1", "w2"], Deadline.after(5)))
        await stream.close()

    def from_a_thread() -> int:
        with EmbeddingClient(addresses.grpc, api_key=key) as client:
            return len(client.embed_all(["w1", "w2"]).vectors)

    assert 2 == await asyncio.to_thread(from_a_thread)
    for wrong, error in ((None, Unauthenticated), (other, PermissionDenied)):
        async with AsyncEmbeddingClient(addresses.grpc, api_key=wrong) as client:
            with pytest.raises(error):
                await client.embed(["w1"])
            stream = client.stream()
            with pytest.raises(error):
                await stream.embed(["w1"], Deadline.after(5))
            await stream.close()


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "é"])
def test_a_key_that_cannot_travel_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidRequest, match="an api_key is printable ASCII without spaces"):
        EmbeddingClient("127.0.0.1:1", api_key=key)


async def test_tls_is_for_those_who_trust_the_certificate(start: Start, tokenizer_json: bytes, authority: Authority) -> None:
    addresses = await start(FakeBackend(tokenizer_json), **served_by(authority.issue("service")))
    async with AsyncEmbeddingClient(addresses.grpc, tls=Tls.from_files(authority.path)) as client:
        np.testing.assert_array_equal(*[(await client.embed(["w1"])).vectors for _ in range(2)])
    context = ssl.create_default_context(cafile=authority.path)
    async with httpx.AsyncClient(verify=context) as http:
        assert addresses.http.startswith("https://")
        assert 200 == (await http.get(f"{addresses.http}/readyz")).status_code

    for tls in (None, Tls()):
        async with AsyncEmbeddingClient(addresses.grpc, tls=tls, timeout=5) as client:
            with pytest.raises(Unavailable):
                await client.embed(["w1"])


async def test_mutual_tls_hears_only_those_with_a_certificate_of_its_authority(
    start: Start, tokenizer_json: bytes, authority: Authority, tmp_path: Path
) -> None:
    ours, theirs = Authority(tmp_path, "clients"), Authority(tmp_path, "others")
    addresses = await start(FakeBackend(tokenizer_json), **served_by(authority.issue("service"), ours))
    gateway, stranger = ours.issue("gateway"), theirs.issue("stranger")

    async with AsyncEmbeddingClient(
        addresses.grpc, tls=Tls.from_files(authority.path, gateway.certificate, gateway.key)
    ) as client:
        assert 1 == len((await client.embed(["w1"])).vectors)
    for tls in (
        Tls.from_files(authority.path),
        Tls.from_files(authority.path, stranger.certificate, stranger.key),
    ):
        async with AsyncEmbeddingClient(addresses.grpc, tls=tls, timeout=5) as client:
            with pytest.raises(Unavailable):
                await client.embed(["w1"])

    context = ssl.create_default_context(cafile=authority.path)
    async with httpx.AsyncClient(verify=context) as http:
        with pytest.raises(httpx.HTTPError):
            await http.get(f"{addresses.http}/readyz")
    context.load_cert_chain(gateway.certificate, gateway.key)
    async with httpx.AsyncClient(verify=context) as http:
        assert 200 == (await http.get(f"{addresses.http}/readyz")).status_code


def test_half_a_pair_is_refused(authority: Authority) -> None:
    pair = authority.issue("one")
    with pytest.raises(InvalidRequest, match="go together"):
        EmbeddingClient("127.0.0.1:1", tls=Tls(certificate=pair.certificate.read_bytes()))
    with pytest.raises(ValueError, match="both tls_certificate_file and tls_key_file"):
        Settings(tls_certificate_file=pair.certificate)
    with pytest.raises(ValueError, match="tls_client_ca_file needs"):
        Settings(tls_client_ca_file=authority.path)
    assert "BEGIN" not in repr(Tls.from_files(private_key=pair.key))


async def test_files_that_do_not_fit_are_told_at_the_start(
    start: Start, tokenizer_json: bytes, authority: Authority, tmp_path: Path
) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    (tmp_path / "text").write_text("no certificate")
    for files, message in (
        (Pair(one.certificate, other.key), "do not fit"),
        (Pair(tmp_path / "text", one.key), "tls_certificate_file is not PEM"),
        (Pair(one.certificate, tmp_path / "none"), "tls_key_file cannot be read"),
    ):
        with pytest.raises(ListenError, match=message):
            await start(FakeBackend(tokenizer_json), **served_by(files))
