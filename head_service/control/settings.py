"""The control plane's settings: flags, or environment variables that begin with TRUNKLINE_CONTROL_; each says what it costs."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from clients.wire.guard import why_not_listen
from head_service.control.words import Publish

Location = Annotated[str, BeforeValidator(str)]
"""A directory, or s3://bucket/prefix; a Path of a directory is taken too."""


class Settings(BaseSettings):
    """What the API and the workers must agree on. Unknown flags are refused."""

    model_config = SettingsConfigDict(
        env_prefix="TRUNKLINE_CONTROL_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="python -m head_service.control",
        cli_hide_none_type=True,
        extra="forbid",
    )

    home: Path = Field(Path("control"), description="Database, queue, uploads and reports, where nothing else is said.")
    database: str = Field("", description="sqlite:///FILE or postgresql://…; HOME/control.sqlite when empty.")
    queue: str = Field("", description="redis://… or a file of SQLite; HOME/queue.sqlite when empty.")
    repository: Location = Field("repository", description="Where head versions are published; may be s3://BUCKET/PREFIX.")
    data_dir: Path | None = Field(None, description="Below it, orders may name files by path. None: only uploads.")

    max_attempts: int = Field(3, ge=1, le=100, description="Of a run whose worker dies; then it has failed.")
    retry_seconds: float = Field(5.0, ge=0, description="Before the second attempt; the third waits twice as long, and so on.")
    max_feedback_per_day: int = Field(100_000, ge=1, description="Rows a key may give in a day (UTC); then 429.")
    max_upload_bytes: int = Field(256 * 1024 * 1024, ge=1, description="Of one upload.")
    max_uploads_bytes: int = Field(4 * 1024**3, ge=1, description="Of all uploads that are kept; beyond it 507.")

    @property
    def database_url(self) -> str:
        """With the default filled in."""
        return self.database or f"sqlite:///{(self.home / 'control.sqlite').absolute()}"

    @property
    def queue_url(self) -> str:
        """With the default filled in."""
        return self.queue or str((self.home / "queue.sqlite").absolute())

    @property
    def location(self) -> str:
        """The repository, wherever the process that is told of it runs."""
        return self.repository if "://" in self.repository else str(Path(self.repository).absolute())

    @property
    def uploads_dir(self) -> Path:
        """Where uploads lie."""
        return self.home / "uploads"

    @property
    def runs_dir(self) -> Path:
        """A folder a run, for its report."""
        return self.home / "runs"


class ServeSettings(Settings):
    """Of the API."""

    host: str = Field("127.0.0.1", description="Address to listen on. Beyond loopback it takes --keys.")
    port: int = Field(8200, ge=0, le=65_535, description="0: any free port.")
    keys: Path | None = Field(None, description="File of keys; see `… control key`. None: everybody may do all.")
    insecure: bool = Field(False, description="Listen beyond loopback without keys all the same.")
    docs: bool = Field(False, description="Serve /docs and /openapi.json. Needs the package fastapi-offline.")

    allow_new_labels: bool = Field(False, description="Keep feedback with labels that the head does not know.")
    feedback_per_second: float = Field(50.0, gt=0, description="Of one key, on average; ten times as much at once.")
    auth_failures_per_minute: float = Field(30.0, gt=0, description="Of one address; beyond it 429 in place of 401.")
    max_text_characters: int = Field(100_000, ge=1, description="Of one text of feedback.")
    max_body_bytes: int = Field(1024 * 1024, ge=1_024, description="Of a JSON body; refused while it is read.")
    body_timeout_seconds: float = Field(30.0, gt=0, description="For a JSON body to arrive; uploads may rest that long.")
    max_concurrent_requests: int = Field(256, ge=1, description="Inside at once; beyond it 429.")
    drain_seconds: float = Field(5.0, ge=0, description="Given to requests in flight when told to stop.")

    @model_validator(mode="after")
    def _keep_the_door(self) -> Self:
        if reason := why_not_listen(self.host, self.keys, "--keys", insecure=self.insecure):
            raise ValueError(reason)
        return self


class WorkerSettings(Settings):
    """Of a worker."""

    embedding_address: str = Field("127.0.0.1:8101", description="HOST:PORT of the embedding service's gRPC.")
    heads_address: str = Field("", description="HOST:PORT of the head server's gRPC: it must serve a version before it is live.")
    embedding_key: SecretStr | None = Field(
        None, exclude=True, description="The key for the embedding service; others see flags, so set it in the environment."
    )
    embedding_key_file: Path | None = Field(None, exclude=True, description="In its place: a file with nothing but the key.")
    embedding_ca_file: Path | None = Field(
        None, exclude=True, description="PEM: who signed the embedding service's certificate. Turns TLS on."
    )
    heads_key: SecretStr | None = Field(None, exclude=True, description="Like --embedding-key, for the head server.")
    heads_key_file: Path | None = Field(None, exclude=True, description="In its place: a file with nothing but the key.")
    heads_ca_file: Path | None = Field(None, exclude=True, description="Like --embedding-ca-file, for the head server.")
    tls_certificate_file: Path | None = Field(
        None, exclude=True, description="PEM: the worker's own, for services that ask for one (mutual TLS)."
    )
    tls_key_file: Path | None = Field(None, exclude=True, description="PEM, that certificate's private key.")
    bundles: bool = Field(True, description="Make bundles anew when a run has made a head live; not where something else does.")
    cache_dir: Path = Field(Path("cache"), description="Where embeddings for training are kept.")
    trainer: str = Field("head_service.control.trainer:train_head", description="MODULE:FUNCTION that trains one head.")

    concurrency: int = Field(1, ge=1, le=64, description="Runs at once, each in a process of its own.")
    lease_seconds: float = Field(30.0, gt=0, description="A worker not heard of for so long is taken for dead.")
    poll_seconds: float = Field(1.0, gt=0, description="How often the database is asked for runs the queue did not tell of.")
    run_timeout_seconds: float = Field(3_600.0, gt=0, description="A run that takes longer has failed.")
    stop_seconds: float = Field(10.0, ge=0, description="Given to a training process to stop by itself; then it is killed.")
    drain_seconds: float = Field(20.0, ge=0, description="Given to runs to finish when told to stop; then they are given back.")
    max_child_bytes: int = Field(0, ge=0, description="Of address space of a training process; 0: no bound.")
    show_child_errors: bool = Field(False, description="Let training processes write to stderr; libraries may quote texts.")
    keep_uploads_days: float = Field(30.0, gt=0, description="An upload that no run needs is removed after that.")

    retrain_every_hours: float = Field(0.0, ge=0, description="Retrain heads on new feedback that often; 0: only by command.")
    retrain_min_rows: int = Field(100, ge=1, description="New rows that make a retraining worth it.")
    retrain_publish: Publish = Field("version", description="What a scheduled retraining's version becomes: version, or live.")

    @model_validator(mode="after")
    def _credentials_fit(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("the worker's certificate takes both tls_certificate_file and tls_key_file, or neither")
        if self.tls_certificate_file and not (self.embedding_ca_file or self.heads_ca_file):
            raise ValueError("tls_certificate_file is for services with TLS; give embedding_ca_file or heads_ca_file too")
        if (self.embedding_key and self.embedding_key_file) or (self.heads_key and self.heads_key_file):
            raise ValueError("a service's key is given by itself or by a file, not both")
        return self

    @model_validator(mode="after")
    def _make_sense_together(self) -> Self:
        if self.poll_seconds > self.lease_seconds / 2:
            raise ValueError("poll_seconds is above half of lease_seconds: leases would run out between two looks")
        return self
