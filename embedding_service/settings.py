"""The service's settings: flags, or environment variables with the prefix TRUNKLINE_EMBEDDING_. What each one costs is said."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from platformdirs import user_cache_path
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clients.wire.addresses import is_http_url
from clients.wire.chain import with_versions
from clients.wire.guard import why_not_listen
from embedding_service.bert_as_service import PoolingStrategy
from embedding_service.logs import LogFormat
from embedding_service.queue import QueueLimits

Engine = Literal[
    "auto", "onnx-fp32", "onnx-int8", "openvino-bf16", "openvino-fp32", "openvino-int8", "torch-fp32", "torch-bf16", "torch-fp16"
]


class Settings(BaseSettings):
    """All that can be set. Unknown flags are refused."""

    model_config = SettingsConfigDict(
        env_prefix="TRUNKLINE_EMBEDDING_",
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="python -m embedding_service",
        cli_hide_none_type=True,
        extra="forbid",
    )

    host: str = Field("127.0.0.1", description="Address to listen on. Beyond loopback it takes --keys-file.")
    grpc_port: int = Field(8101, ge=0, le=65_535, description="0: any free port.")
    http_port: int = Field(8100, ge=0, le=65_535, description="0: any free port.")

    keys_file: Path | None = Field(
        None, exclude=True, description="File of keys; see `trunkline keys`. None: whoever reaches the ports may ask."
    )
    insecure: bool = Field(
        False, description="Listen beyond loopback without keys, and for bert-as-service with keys, all the same."
    )
    auth_failures_per_minute: float = Field(30.0, gt=0, description="Of one address; beyond it 429 in place of 401.")
    tls_certificate_file: Path | None = Field(
        None, exclude=True, description="PEM, the chain too: gRPC and HTTP by TLS alone. Needs --tls-key-file."
    )
    tls_key_file: Path | None = Field(None, exclude=True, description="PEM, the certificate's private key.")
    tls_client_ca_file: Path | None = Field(
        None, exclude=True, description="PEM: only callers with a certificate signed by it are heard (mutual TLS)."
    )

    bert_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Where bert-as-service's client sends to, 5555 by habit; needs the extra zmq. 0: any.",
    )
    bert_port_out: int | None = Field(None, ge=0, le=65_535, description="Where it listens, 5556 by habit. 0: any free one.")
    bert_pooling: PoolingStrategy | None = Field(
        None, description="What bert-as-service's callers get; unset: the trunk's own. Never normalised."
    )
    bert_show_tokens: bool = Field(False, description="Send them the tokens too; every answer grows by them.")

    model: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="A trunk: a directory or a hub name, with NAME= before it to call it otherwise. Several: give it several"
        " times (in the environment: commas between); the first is the default. Unset: all-MiniLM-L6-v2.",
    )
    table: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="A resource table to serve beside the trunks, as NAME=FILE (word2vec, GloVe or fastText, text or binary,"
        " or .npy with .keys.txt beside it) or NAME=glove-6b-50d; several like several trunks.",
    )
    engine: Engine = Field("auto", description="auto: bfloat16 where a GPU with PyTorch or the processor has it, else float32.")
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("trunkline"),
        description="Downloads and prepared graphs; losing it costs a minute at the next start.",
    )
    layers: tuple[int, ...] = Field((-1,), description="Layers a view may ask for; each one more is computed and copied.")

    max_batch_tokens: int = Field(
        512, ge=1, description="Computed tokens of one forward pass; higher delays short texts behind full batches."
    )
    max_batch_requests: int = Field(32, ge=1, description="Rows of one forward pass.")
    pass_overhead: float | None = Field(
        None,
        ge=0,
        description="What a pass costs beside its tokens, in tokens; unset: the engine's own. Higher pads more.",
    )
    max_queued_tokens: int = Field(
        65_536, ge=1, description="Beyond it callers get 429 at once; higher lets them wait longer for the same throughput."
    )
    max_wait_seconds: float = Field(
        2.5, gt=0, description="Where what waits already would take longer to run, interactive callers get 429 at once."
    )
    max_queue_seconds: float = Field(
        10.0, gt=0, description="While the oldest entry has waited longer, callers get 429 instead of waiting behind it."
    )
    quick_tokens: bool = Field(
        False, description="Tokens by nanotoken, where it reads as the tokenizers library does; needs trunkline[quick-tokens]."
    )
    cache_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="Memory for vectors of texts seen before; 0: none. Equal texts at once always share a pass.",
    )
    cache_redis_url: SecretStr | None = Field(
        None, description="A Redis that services share vectors through, redis://, rediss:// or unix://; needs trunkline[redis]."
    )
    cache_redis_timeout_seconds: float = Field(
        0.05, gt=0, le=10, description="The longest an answer waits for that Redis; after a failure it is left alone for a while."
    )
    cache_redis_expiry_seconds: int = Field(7 * 86_400, ge=1, description="How long that Redis keeps a vector.")
    max_request_inputs: int = Field(1_024, ge=1, description="Inputs of one call.")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1_024, description="Of one HTTP body; longer ones are refused while read.")
    max_held_bytes: int = Field(
        256 * 1024 * 1024, ge=1_024, description="Of the HTTP bodies of all requests together; beyond it callers get 429."
    )
    default_timeout_seconds: float = Field(30.0, gt=0, description="For a call that brings no deadline, and the most it gets.")
    drain_seconds: float = Field(5.0, ge=0, description="Given to work in flight when told to stop.")

    preprocess: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Steps that texts go through before a trunk's own normaliser, with commas between, such as nfkc,lower."
        " They are part of the fingerprint: heads are trained anew. Not for tables.",
    )

    @field_validator("model", "table", "preprocess", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """The environment gives one string, the command line a list of them."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("preprocess")
    @classmethod
    def _are_known_steps(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return with_versions(name for given in names for name in given.split(","))

    log_format: LogFormat = Field("text", description="On stderr; json: one object a line.")
    access_log: bool = Field(False, description="A line for each request: outcome, sizes and durations, never what was sent.")
    otlp_endpoint: str | None = Field(
        None, description="An OpenTelemetry collector for traces, http://HOST:4318; needs trunkline[otel]."
    )
    otlp_sample_ratio: float = Field(0.01, ge=0, le=1, description="Traces of requests that belong to none yet.")

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_a_collector(cls, url: str | None) -> str | None:
        if url is not None and not is_http_url(url):
            raise ValueError("is not an address such as http://HOST:4318; credentials go into OTEL_EXPORTER_OTLP_HEADERS")
        return url

    @field_validator("cache_redis_url")
    @classmethod
    def _is_a_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _is_redis_url(url.get_secret_value()):
            raise ValueError("is not an address such as redis://HOST:PORT/0, rediss://HOST:PORT/0 or unix:///PATH")
        return url

    @model_validator(mode="after")
    def _keep_the_door(self) -> Self:
        if reason := why_not_listen(self.host, self.keys_file, "--keys-file", insecure=self.insecure):
            raise ValueError(reason)
        if self.bert_port is not None and self.keys_file is not None and not self.insecure:
            raise ValueError(
                "bert-as-service's protocol has no room for a key; leave bert_port out, or give --insecure to let its callers in"
            )
        return self

    @model_validator(mode="after")
    def _make_sense_together(self) -> Self:
        for table in self.table:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*=.+", table):
                raise ValueError("a table is given as NAME=FILE, the name of letters, digits, dots, dashes and underscores")
        if self.max_queued_tokens < self.max_batch_tokens:
            raise ValueError(
                "max_queued_tokens is below max_batch_tokens: no full batch could ever gather; raise the one or lower the other"
            )
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS takes both tls_certificate_file and tls_key_file, or neither")
        if self.tls_client_ca_file is not None and self.tls_certificate_file is None:
            raise ValueError("tls_client_ca_file needs tls_certificate_file and tls_key_file beside it")
        if (self.bert_port is None) != (self.bert_port_out is None):
            raise ValueError("bert-as-service has two ports; set both bert_port and bert_port_out, or neither")
        return self

    @property
    def queue_limits(self) -> QueueLimits:
        """The part that is the queue's."""
        return QueueLimits(
            max_batch_tokens=self.max_batch_tokens,
            max_batch_requests=self.max_batch_requests,
            pass_overhead=self.pass_overhead,
            max_queued_tokens=self.max_queued_tokens,
            max_wait_seconds=self.max_wait_seconds,
            max_queue_seconds=self.max_queue_seconds,
        )


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (reading it is the check)
    except ValueError:
        return False
    return bool(parts.path) if parts.scheme == "unix" else parts.scheme in {"redis", "rediss"} and bool(parts.hostname)
