"""What was asked and answered, as lists show it and as searches find it."""

from __future__ import annotations

from unicodedata import normalize

from storage.values import UNSTORABLE

EXCERPT = 200
"""Characters that a list shows of a text."""
PROMPT_WORDS, TARGET_WORDS = 16_000, 4_000
"""Characters of a prompt and of its target that a search looks at: those of a page of rows are read in no time."""


def excerpt(text: str) -> str:
    """The beginning, with a sign in the place of what Postgres cannot hold."""
    return UNSTORABLE.sub("\ufffd", text[:EXCERPT])


def words(prompt: str, target: str) -> str:
    """What searches compare with: the target first, as prompts can be long."""
    return f"{folded(target[:TARGET_WORDS])}\n{folded(prompt[:PROMPT_WORDS])}"


def folded(text: str) -> str:
    """The same for texts that differ in case, blanks or the composition of their characters."""
    plain = UNSTORABLE.sub("\ufffd", normalize("NFC", normalize("NFC", text).casefold()))
    return " ".join(plain.split())
