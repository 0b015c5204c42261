"""What a worker shows the services that a run calls: from its settings to the training process, and to nobody else."""

from pathlib import Path

import pytest

from clients import Tls
from clients.wire.credentials import NO_CREDENTIALS, Credentials, CredentialsError, embedding_credentials, head_credentials
from head_service.control.messages import Start, packed, to_child
from head_service.control.settings import WorkerSettings
from head_service.control.words import TrainingOrder
from tests.certificates import Authority


def settings_of(**given: object) -> WorkerSettings:
    return WorkerSettings(**given)  # type: ignore[arg-type]


def test_nothing_is_shown_where_nothing_is_set() -> None:
    assert NO_CREDENTIALS == embedding_credentials(settings_of()) == head_credentials(settings_of())


def test_keys_come_from_settings_or_files_each_for_its_own_service(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("tlk_heads\n")
    settings = settings_of(embedding_key="tlk_embedding", heads_key_file=tmp_path / "key")

    assert Credentials("tlk_embedding") == embedding_credentials(settings)
    assert Credentials("tlk_heads") == head_credentials(settings)
    assert "tlk_" not in f"{settings!r} {settings.model_dump_json()} {embedding_credentials(settings)!r}"


def test_tls_is_for_the_service_whose_authority_is_named_with_the_workers_own_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("worker")
    settings = settings_of(heads_ca_file=authority.path, tls_certificate_file=own.certificate, tls_key_file=own.key)
    tls = head_credentials(settings).tls

    assert tls is not None
    assert (authority.path.read_bytes(), own.certificate.read_bytes()) == (tls.root_certificates, tls.certificate)
    assert embedding_credentials(settings).tls is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embedding_key": "a", "embedding_key_file": "b"}, "by itself or by a file"),
        ({"tls_certificate_file": "a", "embedding_ca_file": "b"}, "both tls_certificate_file and tls_key_file"),
        ({"tls_certificate_file": "a", "tls_key_file": "b"}, "for services with TLS"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(**given)


def test_a_file_that_cannot_be_used_is_told_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="heads_key_file cannot be read"):
        head_credentials(settings_of(heads_key_file=tmp_path / "none"))
    (tmp_path / "text").write_text("two words")
    with pytest.raises(CredentialsError, match="embedding_key_file holds something else than one key"):
        embedding_credentials(settings_of(embedding_key_file=tmp_path / "text"))


def test_the_training_process_gets_them_as_they_are() -> None:
    start = Start(
        run_id="r",
        order=TrainingOrder(head="spam"),
        trainer="a:b",
        data="/data",
        corrections="/corrections",
        folder="/folder",
        repository="/heads",
        cache_dir="/cache",
        embedding_address="e:1",
        heads_address="h:1",
        max_bytes=0,
        to_embedding=Credentials("tlk_embedding"),
        to_heads=Credentials(None, Tls(b"\x00pem", server_name="heads")),
        bundles=True,
    )

    assert start == to_child(packed(start))
    assert "tlk_" not in repr(start)
