"""What a `tokenizer.json` may ask for: its rules run in the server's process, in a library that ends it in despair.

A rule that puts in more than it takes out can make gigabytes of a word, and an expression with a repeated choice in it
(`(a|a)+`) takes for ever; both are refused by their form, whatever the text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from explainers.errors import UnreadableModel

Node: TypeAlias = Mapping[str, Any]

PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
MOST_RULES = 64
MOST_GROWTH = 64.0
"""How many times longer all rules together may make a text."""
LONGEST_PATTERN = 4096
MOST_SPECIAL = 64
"""Tokens that are put around a text."""

REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,\}|\{\d{2,})")
CLASS = re.compile(r"\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]")
SIMPLE_GROUP = re.compile(r"\((?:\?i?:)?[^()*+?|,]*\)")
"""One that matches in a single way, and can be repeated like a letter."""
ESCAPED = re.compile(r"\\.", re.DOTALL)


def check(settings: Node) -> None:
    """Raises UnreadableModel for rules that could take all memory or all time."""
    rules = [rule for part in PARTS for rule in rules_of(settings.get(part))]
    if len(rules) > MOST_RULES:
        raise UnreadableModel(f"tokenizer.json has {len(rules)} rules; {MOST_RULES} at most are read")
    growth = 1.0
    for rule in rules:
        for pattern in patterns_of(rule):
            check_pattern(pattern)
        growth *= growth_of(rule)
        if growth > MOST_GROWTH:
            raise UnreadableModel("tokenizer.json: its rules can make a text too long")
        CHECKS.get(str(rule.get("type")), accept)(rule)
    model = settings.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise UnreadableModel("tokenizer.json: with `dropout` the same text has other tokens each time")


def rules_of(node: Any) -> Iterator[Node]:
    """Every rule in a part, those in sequences too."""
    waiting = [node]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting.extend(found)
        elif isinstance(found, dict):
            yield found
            waiting.extend(value for name, value in found.items() if name in ("normalizers", "pretokenizers"))
            waiting.extend(value for name, value in found.items() if name in ("processors", "decoders"))


def patterns_of(rule: Node) -> Iterator[str]:
    pattern = rule.get("pattern")
    if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        yield pattern["Regex"]


def check_pattern(pattern: str) -> None:
    """Raises UnreadableModel for an expression in which a group with a choice or a repetition is repeated."""
    plain = SIMPLE_GROUP.sub("x", ESCAPED.sub("x", CLASS.sub("x", pattern)))
    if len(pattern) > LONGEST_PATTERN or REPEATED_GROUP.search(plain):
        raise UnreadableModel("tokenizer.json: an expression can take too long: a group in it is repeated")


def growth_of(rule: Node) -> float:
    """How many times longer a rule may make a text; what it puts before it once counts little."""
    content = rule.get("content")
    if rule.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    pattern = rule.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str) and literal:
        return max(1.0, len(content) / len(literal))
    return 1.0 + len(content)


def accept(_: Node) -> None:
    return


def check_prepend(rule: Node) -> None:
    if len(str(rule.get("prepend", ""))) > MOST_SPECIAL:
        raise UnreadableModel("tokenizer.json: what it puts before a text is too long")


def check_template(rule: Node) -> None:
    pieces = [piece for name in ("single", "pair") for piece in listed(rule.get(name))]
    special = rule.get("special_tokens")
    ids = (
        [entry.get("ids") for entry in special.values() if isinstance(entry, dict)] if isinstance(special, dict) else []
    )
    if len(pieces) > MOST_SPECIAL or any(len(listed(each)) > MOST_SPECIAL for each in ids):
        raise UnreadableModel(f"tokenizer.json puts more than {MOST_SPECIAL} tokens around a text")


def check_charsmap(rule: Node) -> None:
    """A trie and the texts it points at (sentencepiece, src/normalizer.cc): the sizes it says are held against it."""
    try:
        data = base64.b64decode(str(rule.get("precompiled_charsmap") or ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnreadableModel("tokenizer.json: the table of characters is not in base64") from error
    size = int.from_bytes(data[:4], "little")
    if data and not (1024 <= size <= len(data) - 4 and size % 4 == 0):
        raise UnreadableModel("tokenizer.json: the table of characters claims another size than it has")


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


CHECKS: Mapping[str, Callable[[Node], None]] = {
    "Prepend": check_prepend,
    "TemplateProcessing": check_template,
    "Precompiled": check_charsmap,
}
"""Type of a rule -> what it must keep to, beside its expressions and its growth."""
