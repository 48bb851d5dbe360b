"""The only reader of the environment: every setting of the server, each under the prefix `WHENCE_`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WHENCE_", env_ignore_empty=True, hide_input_in_errors=True)

    host: str = Field(default="127.0.0.1", description="Address the server listens on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port the server listens on; 0 lets the system choose one."
    )
    data_dir: Path = Field(default=Path(".whence"), description="Folder of everything the server keeps on disk.")
    store_url: SecretStr | None = Field(
        default=None,
        description="Where training files, influence indexes and uploaded models are shared, as any URL of fsspec "
        "(s3://bucket/prefix, gs://bucket/prefix, file:///folder), without credentials; each machine then has a "
        "WHENCE_DATA_DIR of its own. Without it that folder itself is shared.",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="Postgres to use, as postgresql://user:password@host/name; without it an embedded one starts.",
    )
    database_password: SecretStr | None = Field(
        default=None, description="Password for WHENCE_DATABASE_URL, where it is not written into that."
    )
    database_password_file: Path | None = Field(default=None, description="File to read WHENCE_DATABASE_PASSWORD from.")
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Secret of the first (admin) key; without it the first start makes one.",
    )
    api_key_file: Path | None = Field(default=None, description="File to read WHENCE_API_KEY from.")
    models_dir: Path | None = Field(
        default=None,
        description="Folder below which models may be registered over HTTP; without it only the command line can.",
    )
    device: str | None = Field(
        default=None, description="Where models run (cpu, cuda:0, ...); without it the best one present."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU cores that models may use; without it all but one, which stays free for the server itself.",
    )
    queue_limit: int = Field(
        default=256, ge=1, description="Requests that may wait for the device before new ones get 503."
    )
    deadline_seconds: float = Field(
        default=240.0,
        gt=0,
        lt=300,
        description="Longest time a request waits; its work then goes on in the background.",
    )
    worker: bool = Field(
        default=True, description="Whether the server also works on jobs; without it `whence worker` does."
    )
    request_seconds: float | None = Field(
        default=3600.0,
        ge=0,
        lt=2**31,
        description="Longest time a request may take the device, as predicted before it begins; longer ones get 413. "
        "0: no limit. A key may have its own, as of the next three.",
    )
    job_seconds: float | None = Field(
        default=86_400.0, ge=0, lt=2**31, description="The same of a job (`Prefer: respond-async`). 0: no limit."
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Requests that compute, query or send rows, of one key in a minute; further ones get 429.",
    )
    seconds_per_minute: float | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Seconds of the device that one key may have in a minute; 60: all of one.",
    )
    concurrency: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Such requests of one key that may be under way at a time; further ones get 429.",
    )
    body_limit_bytes: int = Field(default=8 * 2**20, ge=1024, description="Largest request body; larger ones get 413.")
    upload_limit_bytes: int = Field(
        default=512 * 2**20, ge=1024, description="Largest multipart body, for files of rows; larger ones get 413."
    )
    context_model: str | None = Field(
        default=None,
        description="Model that answers /v1/explainability/context-attributor where a request names none; without it "
        "the only language model there is.",
    )
    open_docs: bool = Field(default=False, description="Whether /docs and /openapi.json are served without a key.")
    audit: Literal["off", "changes", "computations", "all"] = Field(
        default="computations",
        description="What the audit log keeps beside what was refused: changes, also computations, also reads; `off`: "
        "nothing at all.",
    )
    shutdown_seconds: float = Field(
        default=15.0,
        ge=0,
        le=600,
        description="Longest time that requests may still take once the server is told to end; those left get 503.",
    )
    ray_address: str | None = Field(
        default=None,
        pattern=r"^([^:/]+|\[[^]]+\]):\d+$",
        description="Ray cluster that runs the models which complete prompts, and helps with long jobs, as "
        "host:port of its head. This machine is one of its nodes. Needs the extra `ray`. Without it they run in the "
        "server itself.",
    )
    ray_token: SecretStr | None = Field(default=None, description="The token that the Ray cluster asks for.")
    ray_token_file: Path | None = Field(default=None, description="File to read WHENCE_RAY_TOKEN from.")
    ray_without_token: bool = Field(
        default=False, description="Whether a Ray cluster may be used that asks nobody for a token."
    )
    traces: bool = Field(
        default=False,
        description="Whether OpenTelemetry spans are sent to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra `otel`.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="How log lines look: JSON, or text for people; auto: text on a terminal, else JSON."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line logged."
    )

    @model_validator(mode="before")
    @classmethod
    def secrets_from_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Each secret from the file that is named instead of it; raises ValueError where both are given."""
        for name in ("database_password", "api_key", "ray_token"):
            file = given.get(f"{name}_file")
            if file is not None:
                if given.get(name) is not None:
                    raise ValueError(f"WHENCE_{name.upper()} and WHENCE_{name.upper()}_FILE are both set: give one")
                given |= {name: read_secret(Path(file))}
        return given

    @field_validator("store_url")
    @classmethod
    def plain_url(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None:
            url = given.get_secret_value()
            if re.search(r"[?#]|://[^/]*:[^/]*@", url):
                raise ValueError("must hold no credentials: they come from the machine, such as AWS_ACCESS_KEY_ID")
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s][^\s]*|[a-z][a-z0-9+.-]*:///[^\s]+", url) or "::" in url:
                raise ValueError("must be a URL such as s3://bucket/prefix, gs://bucket/prefix or file:///folder")
            if re.match(r"(file|local)://[^/]", url):
                raise ValueError("a folder's URL has three slashes: file:///folder")
        return given

    @model_validator(mode="after")
    def cluster_has_token(self) -> Self:
        if self.ray_address is not None and self.ray_token is None and not self.ray_without_token:
            raise ValueError("WHENCE_RAY_ADDRESS needs the cluster's token: set WHENCE_RAY_TOKEN_FILE")
        return self


def read_secret(file: Path) -> str:
    """The text of a small file without its last line's end. Raises ValueError where it cannot be read or is empty."""
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the secret in {file} cannot be read ({type(error).__name__})") from None
    if not text:
        raise ValueError(f"the secret in {file} is empty")
    return text
