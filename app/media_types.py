"""Which of the forms of an answer an Accept header wants most (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

JSON, HTML, SVG = "application/json", "text/html", "image/svg+xml"


def preferred(accept: str, forms: Sequence[str]) -> str:
    """The form that is wanted most; a tie goes to the one named first, else to the first of `forms`, which is offered
    also where none is wanted."""
    ranked = [(quality(accept, form), -position_of(accept, form), form) for form in forms]
    best = max(ranked, key=lambda entry: entry[:2])
    return best[2] if best[0] > 0 else forms[0]


def position_of(accept: str, media_type: str) -> int:
    """Where a header names a media type; those that only a range stands for come last."""
    names = [entry.partition(";")[0].strip() for entry in accept.lower().split(",")]
    return names.index(media_type) if media_type in names else len(names)


def quality(accept: str, media_type: str) -> float:
    """How much (0 to 1) an Accept header wants a media type: its most specific range decides."""
    wanted = {}
    for entry in accept.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        weights = [part[2:] for part in parameters if part.startswith("q=")]
        wanted[name] = weight_of(weights[0]) if weights else 1.0
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((wanted[name] for name in ranges if name in wanted), 0.0)


def weight_of(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
