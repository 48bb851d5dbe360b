"""Tokens are read back only as they were signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tokens import HEADER, claims_of, encoded, is_token, signed

SECRET = b"s" * 32
CLAIMS = {"sub": "a", "tenant": "é", "exp": 100}
TOKEN = signed(CLAIMS, SECRET)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()


def test_the_form_is_that_of_the_standard() -> None:
    header, payload, signature = TOKEN.split(".")
    assert header == HEADER == part({"alg": "HS256", "typ": "JWT"})
    assert json.loads(base64.urlsafe_b64decode(payload + "==")) == CLAIMS
    digest = hmac.new(SECRET, f"{header}.{payload}".encode(), hashlib.sha256).digest()
    assert signature == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def test_the_example_of_the_standard() -> None:
    """RFC 7515, appendix A.1, whose header has line breaks: signed rightly, and still none of ours."""
    secret = base64.urlsafe_b64decode(
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow=="
    )
    text = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
        ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    )
    signature = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert encoded(hmac.digest(secret, text.encode(), "sha256")) == signature
    assert claims_of(f"{text}.{signature}", secret, 0) is None


def test_only_until_it_expires() -> None:
    assert claims_of(TOKEN, SECRET, 99.9) == CLAIMS
    assert claims_of(TOKEN, SECRET, 100) is None


@pytest.mark.parametrize("alg", ["none", "None", "HS512", "RS256", "hs256"])
def test_no_other_algorithm(alg: str) -> None:
    text = f"{part({'alg': alg, 'typ': 'JWT'})}.{part(CLAIMS)}"
    for signature in ("", encoded(hmac.digest(SECRET, text.encode(), "sha256"))):
        assert not is_token(f"{text}.{signature}")
        assert claims_of(f"{text}.{signature}", SECRET, 0) is None


@given(place=st.integers(0, len(TOKEN) - 1), to=st.characters(max_codepoint=255))
def test_no_character_may_differ(place: int, to: str) -> None:
    changed = TOKEN[:place] + to + TOKEN[place + 1 :]
    assert (claims_of(changed, SECRET, 0) is None) == (changed != TOKEN)


@pytest.mark.parametrize("ending", ["", ".", "=", " ", ".x", "\n"])
def test_nothing_more_and_nothing_less(ending: str) -> None:
    assert (claims_of(TOKEN + ending, SECRET, 0) is None) == (ending != "")
    assert claims_of(TOKEN[: len(TOKEN) // 2] + ending, SECRET, 0) is None
    assert claims_of(f"{HEADER}.{ending}", SECRET, 0) is None


def test_another_secret() -> None:
    assert claims_of(TOKEN, b"t" * 32, 0) is None
