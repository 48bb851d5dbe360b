"""The tokens of a text as rows: one for each predicted attribute and token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Integer, Text, bindparam, column, func, select, true
from sqlalchemy.dialects.postgresql import ARRAY


def words(tokens: Any, predicted: Sequence[str]) -> Any:
    """Beside a row of tokens: `predicted`, `token`, `position`; `place` in the arrays of scores, `output` from 1."""
    named = func.unnest(bindparam(None, list(predicted), ARRAY(Text)))
    outputs = named.table_valued(column("predicted", Text), with_ordinality="output", name="outputs").render_derived()
    pairs = func.unnest(tokens.c.tokens, tokens.c.positions).table_valued(
        column("token", Text), column("position", Integer), with_ordinality="rank", name="pairs"
    )
    pairs = pairs.render_derived()
    place = ((outputs.c.output - 1) * func.cardinality(tokens.c.tokens) + pairs.c.rank).label("place")
    each = select(outputs.c.predicted, outputs.c.output, pairs.c.token, pairs.c.position, place)
    return each.select_from(outputs.join(pairs, true())).correlate(tokens).lateral("cells")
