"""The gateway's settings: flags, or environment variables with the prefix TRUNKLINE_GATEWAY_. What each one costs is said."""

import re
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clients.wire.addresses import is_http_url
from clients.wire.guard import why_not_listen
from clients.wire.logs import LogFormat

_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class Settings(BaseSettings):
    """All that can be set. Unknown flags are refused."""

    model_config = SettingsConfigDict(
        env_prefix="TRUNKLINE_GATEWAY_",
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="python -m gateway",
        cli_hide_none_type=True,
        extra="forbid",
    )

    host: str = Field("127.0.0.1", description="Address to listen on. Beyond loopback it takes --keys-file.")
    port: int = Field(8080, ge=0, le=65_535, description="0: any free port.")
    embedding_address: str = Field(
        "127.0.0.1:8101", description="HOST:PORT of the embedding service's gRPC; several replicas with commas between."
    )
    heads_address: str = Field(
        "127.0.0.1:8500", description="HOST:PORT of the head server's gRPC; several replicas with commas between."
    )
    stall_milliseconds: float = Field(
        200.0,
        gt=0,
        description="A replica that owes answers and gives no sign of life for so long is left alone, and its calls are moved.",
    )
    eject_seconds: float = Field(1.0, gt=0, description="For how long it is left alone at first, before it is asked again.")
    hedge_after_milliseconds: float = Field(
        0.0, ge=0, description="A call to a head that takes longer is made again at another replica; 0: never. Costs calls."
    )
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
        None, exclude=True, description="PEM: the gateway's own, for backends that ask for one (mutual TLS)."
    )
    tls_key_file: Path | None = Field(None, exclude=True, description="PEM, that certificate's private key.")
    catalogue: str = Field("catalogue.json", description="Path or http(s) URL of the catalogue.")
    catalogue_poll_seconds: float = Field(0.5, gt=0, description="How soon a new version is noticed.")

    keys_file: Path | None = Field(
        None, exclude=True, description="File of keys; see `trunkline keys`. None: whoever reaches the port may ask."
    )
    insecure: bool = Field(False, description="Listen beyond loopback without keys all the same.")
    auth_failures_per_minute: float = Field(30.0, gt=0, description="Of one address; beyond it 429 in place of 401.")
    admin_port: int | None = Field(
        None, ge=0, le=65_535, description="Also /metrics, /info and /docs on 127.0.0.1, without a key. 0: any free one."
    )
    docs: bool = Field(True, description="Serve /docs, /redoc and /openapi.json.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Sites whose scripts may ask, such as https://example.org, with commas between. None by default."
    )

    default_timeout_seconds: float = Field(10.0, gt=0, description="For a request that names none.")
    max_timeout_seconds: float = Field(60.0, gt=0, description="No request waits longer, whatever it names.")
    head_timeout_seconds: float = Field(2.0, gt=0, description="A head that takes longer is that head's error.")
    bundles: bool = Field(True, description="Ask several heads of one view in one call where the catalogue has a bundle of them.")
    max_texts: int = Field(1_024, ge=1, description="Of one request.")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1_024, description="Longer bodies are refused while they are read.")
    max_held_bytes: int = Field(
        256 * 1024 * 1024, ge=1_024, description="Of the bodies of all requests together; beyond it callers get 429."
    )
    receive_timeout_seconds: float = Field(
        30.0, gt=0, description="For a request to arrive; callers on slow lines with large bodies need more."
    )
    max_concurrent_texts: int = Field(
        4_096, ge=1, description="Inside at once; beyond it callers get 429 at once. Higher lets them wait instead."
    )
    max_wait_seconds: float = Field(
        2.0, gt=0, description="What would have to wait longer, by how fast texts are answered, gets 429 at once."
    )
    quick_tokens: bool = Field(
        False, description="Tokens by nanotoken, where it reads as the tokenizers library does; needs trunkline[quick-tokens]."
    )
    max_predict_calls: int = Field(1, ge=1, description="To one head at once; more, smaller calls cost CPU.")
    max_call_rows: int = Field(256, ge=1, description="Texts of one call to a head.")
    log_format: LogFormat = Field("text", description="On stderr; json: one object a line.")
    access_log: bool = Field(False, description="A line for each request: outcome, sizes and durations, never what was sent.")
    otlp_endpoint: str | None = Field(
        None, description="An OpenTelemetry collector for traces, http://HOST:4318; needs trunkline[otel]."
    )
    otlp_sample_ratio: float = Field(0.01, ge=0, le=1, description="Traces of requests that belong to none yet.")
    output_cache_bytes: int = Field(
        64 * 1024 * 1024, ge=0, description="Of outputs of heads, kept for texts that come again. 0: none are."
    )
    output_cache_min_accuracy: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Outputs are kept of heads whose recorded accuracy, or R², is at least this.",
    )
    output_cache_accuracy_gain: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Kept outputs end when the head's accuracy has grown by this much since.",
    )
    max_shadow_texts: int = Field(
        256, ge=0, description="Under way in shadow versions at once; more are left out. 0: no shadow runs."
    )
    max_streams: int = Field(64, ge=1, description="Open at once; each holds a connection and up to 8 MiB of lines.")
    drain_delay_seconds: float = Field(
        0.0,
        ge=0,
        description="When told to stop: for so long not ready, and requests are taken all the same; for balancers.",
    )
    drain_seconds: float = Field(5.0, ge=0, description="After that: given to requests in flight.")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """The environment gives one string, the command line a list of them."""
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            return value
        return tuple(one.strip() for part in parts for one in str(part).split(",") if one.strip())

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("an origin is http://HOST or https://HOST, with a port where it has one, and nothing after it")
        return origins

    @model_validator(mode="after")
    def _keep_the_door(self) -> Self:
        if reason := why_not_listen(self.host, self.keys_file, "--keys-file", insecure=self.insecure):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _credentials_fit(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("the gateway's certificate takes both tls_certificate_file and tls_key_file, or neither")
        if self.tls_certificate_file and not (self.embedding_ca_file or self.heads_ca_file):
            raise ValueError("tls_certificate_file is for backends with TLS; give embedding_ca_file or heads_ca_file too")
        if (self.embedding_key and self.embedding_key_file) or (self.heads_key and self.heads_key_file):
            raise ValueError("a backend's key is given by itself or by a file, not both")
        return self

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_a_collector(cls, url: str | None) -> str | None:
        if url is not None and not is_http_url(url):
            raise ValueError("is not an address such as http://HOST:4318; credentials go into OTEL_EXPORTER_OTLP_HEADERS")
        return url

    @field_validator("embedding_address", "heads_address")
    @classmethod
    def _name_replicas(cls, value: str) -> str:
        addresses = addresses_of(value)
        if not all(addresses):
            raise ValueError("an address is empty; write HOST:PORT, or several with commas between")
        if len(set(addresses)) < len(addresses):
            raise ValueError("an address is there twice; each replica is named once")
        return value

    @model_validator(mode="after")
    def _make_sense_together(self) -> Self:
        if self.default_timeout_seconds > self.max_timeout_seconds:
            raise ValueError("default_timeout_seconds is above max_timeout_seconds; lower the one or raise the other")
        if self.max_concurrent_texts < self.max_texts:
            raise ValueError("max_concurrent_texts is below max_texts: the largest request could only come in alone")
        return self


def addresses_of(addresses: str) -> list[str]:
    """The replicas that *addresses*, of a setting, names."""
    return [address.strip() for address in addresses.split(",")]
