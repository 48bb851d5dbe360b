"""Every setting comes from the environment, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WHENCE_{name.upper()}", raising=False)
    settings = Settings()
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8000, Path(".whence"))
    assert settings.database_url is settings.api_key is settings.models_dir is settings.device is None
    assert settings.deadline_seconds < 300 and settings.body_limit_bytes < 10_000_000


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHENCE_PORT", "9000")
    monkeypatch.setenv("WHENCE_API_KEY", "sixteen-letters-and-more")
    monkeypatch.setenv("WHENCE_MODELS_DIR", "")
    settings = Settings()
    assert settings.port == 9000 and settings.models_dir is None
    assert "sixteen" not in repr(settings)


def test_bad_values_are_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHENCE_API_KEY", "short-secret")
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "short-secret" not in str(refused.value)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("wrong", ["inf", "nan", "-1", "1e12"])
@pytest.mark.parametrize("name", ["request_seconds", "job_seconds", "seconds_per_minute"])
def test_limits_are_numbers_that_can_be_counted(name: str, wrong: str) -> None:
    with pytest.raises(ValidationError):
        Settings(**{name: wrong})  # type: ignore[arg-type]
