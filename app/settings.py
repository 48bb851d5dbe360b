"""The only reader of the environment: every setting of the server, each under the prefix `WHENCE_`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WHENCE_", env_ignore_empty=True, hide_input_in_errors=True)

    host: str = Field(default="127.0.0.1", description="Address the server listens on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port the server listens on; 0 lets the system choose one."
    )
    data_dir: Path = Field(default=Path(".whence"), description="Folder of everything the server keeps on disk.")
    database_url: SecretStr | None = Field(
        default=None,
        description="Postgres to use, as postgresql://user:password@host/name; without it an embedded one starts.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Secret of the first (admin) key; without it the first start makes one.",
    )
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
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line logged."
    )
