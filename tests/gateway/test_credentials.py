from pathlib import Path

import pytest

from clients.wire.credentials import CredentialsError, embedding_credentials, head_credentials
from gateway.settings import Settings
from tests.certificates import Authority


def settings_of(**given: object) -> Settings:
    return Settings(**given)  # type: ignore[arg-type]


def test_nothing_is_shown_where_nothing_is_set() -> None:
    settings = settings_of()

    assert (None, None) == embedding_credentials(settings) == head_credentials(settings)


def test_keys_come_from_settings_or_files_each_for_its_own_backend(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("tlk_heads\n")
    settings = settings_of(embedding_key="tlk_embedding", heads_key_file=tmp_path / "key")

    assert "tlk_embedding" == embedding_credentials(settings).api_key
    assert "tlk_heads" == head_credentials(settings).api_key
    shown = f"{settings!r} {settings.model_dump_json()} {embedding_credentials(settings)!r}"
    assert "tlk_" not in shown


def test_tls_is_for_the_backend_whose_authority_is_named_with_the_gateways_own_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("gateway")
    settings = settings_of(embedding_ca_file=authority.path, tls_certificate_file=own.certificate, tls_key_file=own.key)
    tls = embedding_credentials(settings).tls

    assert tls is not None
    assert (authority.path.read_bytes(), own.certificate.read_bytes()) == (tls.root_certificates, tls.certificate)
    assert head_credentials(settings).tls is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embedding_key": "a", "embedding_key_file": "b"}, "by itself or by a file"),
        ({"tls_certificate_file": "a", "embedding_ca_file": "b"}, "both tls_certificate_file and tls_key_file"),
        ({"tls_certificate_file": "a", "tls_key_file": "b"}, "for backends with TLS"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(**given)


@pytest.mark.parametrize(("content", "message"), [(b"", "something else"), (b"two words", "something else")])
def test_a_file_without_one_key_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(CredentialsError, match=message):
        embedding_credentials(settings_of(embedding_key_file=tmp_path / "key"))


def test_a_file_that_is_not_there_or_no_certificate_is_told(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="embedding_key_file cannot be read"):
        embedding_credentials(settings_of(embedding_key_file=tmp_path / "none"))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CredentialsError, match="heads_ca_file is not PEM"):
        head_credentials(settings_of(heads_ca_file=tmp_path / "text"))
