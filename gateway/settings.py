"""The gateway's settings: flags, or environment variables with the prefix TRUNKLINE_GATEWAY_. What each one costs is said."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """All that can be set. Unknown flags are refused."""

    model_config = SettingsConfigDict(
        env_prefix="TRUNKLINE_GATEWAY_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="python -m gateway",
        cli_hide_none_type=True,
        extra="forbid",
    )

    host: str = Field("127.0.0.1", description="Address to listen on. Beyond loopback, anyone who reaches it may use it.")
    port: int = Field(8080, ge=0, le=65_535, description="0: any free port.")
    embedding_address: str = Field("127.0.0.1:8101", description="HOST:PORT of the embedding service's gRPC.")
    heads_address: str = Field("127.0.0.1:8500", description="HOST:PORT of the head server's gRPC.")
    catalogue: str = Field("catalogue.json", description="Path or http(s) URL of the catalogue.")
    catalogue_poll_seconds: float = Field(0.5, gt=0, description="How soon a new version is noticed.")

    default_timeout_seconds: float = Field(10.0, gt=0, description="For a request that names none.")
    max_timeout_seconds: float = Field(60.0, gt=0, description="No request waits longer, whatever it names.")
    head_timeout_seconds: float = Field(2.0, gt=0, description="A head that takes longer is that head's error.")
    max_texts: int = Field(1_024, ge=1, description="Of one request.")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1_024, description="Longer bodies are refused while they are read.")
    receive_timeout_seconds: float = Field(
        30.0, gt=0, description="For a request to arrive; callers on slow lines with large bodies need more."
    )
    max_concurrent_texts: int = Field(
        4_096, ge=1, description="Inside at once; beyond it callers get 429 at once. Higher lets them wait instead."
    )
    max_wait_seconds: float = Field(
        2.0, gt=0, description="What would have to wait longer, by how fast texts leave, gets 429 at once."
    )
    max_predict_calls: int = Field(1, ge=1, description="To one head at once; more, smaller calls cost CPU.")
    max_call_rows: int = Field(256, ge=1, description="Texts of one call to a head.")
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
    drain_seconds: float = Field(5.0, ge=0, description="Given to requests in flight when told to stop.")

    @model_validator(mode="after")
    def _make_sense_together(self) -> Self:
        if self.default_timeout_seconds > self.max_timeout_seconds:
            raise ValueError("default_timeout_seconds is above max_timeout_seconds; lower the one or raise the other")
        if self.max_concurrent_texts < self.max_texts:
            raise ValueError("max_concurrent_texts is below max_texts: the largest request could only come in alone")
        return self
