"""Which picture an answer is: of the scores of one row, or of the rows of a query, drawn by `app.plots`.

A query says by its `select` what it is about: the page asks the same queries as everybody, and whoever asks one of
them for `image/svg+xml` gets the picture that the page shows.
"""

from __future__ import annotations

import hashlib
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from app.plots.bars import Bar, bar_plot, regional_plot
from app.plots.beeswarm import Swarm, beeswarm
from app.plots.canvas import Plot, style_sheet
from app.plots.lines import Line, line_plot
from app.plots.tokens import Token, token_map
from app.plots.waterfall import waterfall
from app.scores import Explanation
from explainers.errors import InvalidRequest

Kind = Literal["waterfall", "bars", "tokens"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MOST_ROWS = 200_000
ATTRIBUTE, TOKEN, SCORE = "explainer_attribute", "explainer_token", "explainer_score"
PREDICTED, ALGORITHM = "explainer_predicted_attribute", "explainer_algo"
MEANS: Mapping[str, tuple[str, str, str]] = {
    "avgAbs": ("Mean size of scores", "Importance over time", "mean |score|"),
    "avg": ("Mean score", "Mean score over time", "mean score"),
}
"""What a mean of scores is called: in a region, over time, and on its axis."""
OWN_KEYS = {"regionalFeatureImportances": "regionalFeatureImportance"}
"""Of functions whose rows are not named like them."""
NO_PICTURE = (
    f"these rows are no picture: select {ATTRIBUTE} with {SCORE}; {ATTRIBUTE} or {TOKEN} with avgAbs or avg of "
    f"{SCORE}, and with roundTimestamp for lines over time; regionalFeatureImportances; or nlp_explanation"
)


# -- of one row --------------------------------------------------------------------------------------------------------


def explanation_plot(
    explanation: Explanation,
    subject: str,
    given: Mapping[str, Any],
    *,
    output: str | None = None,
    kind: str | None = None,
) -> Plot:
    """The scores of one row: its tokens, a waterfall where scores add up to the output, or else bars.

    `given` are the values of its inputs; without an `output` its first. Raises InvalidRequest for an output or a kind
    that this explanation has not.
    """
    row = output_place(explanation, output)
    name = explanation.outputs[row]
    is_text = any(part.token is not None for part in explanation.parts)
    offered = offered_kinds(explanation, is_text=is_text)
    chosen = kind or offered[0]
    if chosen not in offered:
        raise InvalidRequest(f"must be one of: {', '.join(offered)}", "/plot")
    title, axis = f"{name} of {subject}, {explanation.algorithm}", f"output {name}"
    try:
        if chosen == "tokens":
            return token_map(title, tokens_of(explanation, row))
        bars = bars_of(explanation, row, {} if is_text else given)
        if chosen == "waterfall" and explanation.base_values is not None:
            return waterfall(title, float(explanation.base_values[row]), bars, axis=axis)
        return bar_plot(title, bars, axis=f"score for {axis}")
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def offered_kinds(explanation: Explanation, *, is_text: bool) -> list[Kind]:
    """The usual one first. Scores add up only to what they were computed from: a line's do not."""
    adds_up = explanation.base_values is not None and not np.isnan(explanation.base_values).any()
    return [*(["tokens"] if is_text else []), *(["waterfall"] if adds_up else []), "bars"]  # type: ignore[list-item]


def output_place(explanation: Explanation, output: str | None) -> int:
    if output is None:
        return 0
    if output not in explanation.outputs:
        raise InvalidRequest(f"must be one of: {', '.join(explanation.outputs)}", "/predicted_attribute_name")
    return explanation.outputs.index(output)


def bars_of(explanation: Explanation, row: int, given: Mapping[str, Any]) -> list[Bar]:
    values = explanation.values[row].tolist()
    errors = [None] * len(values) if explanation.errors is None else explanation.errors[row].tolist()
    return [
        Bar(part.token or part.attribute, value, shown(given.get(part.attribute)), error)
        for part, value, error in zip(explanation.parts, values, errors, strict=True)
    ]


def tokens_of(explanation: Explanation, row: int) -> list[Token]:
    pairs = zip(explanation.parts, explanation.values[row].tolist(), strict=True)
    return [Token(part.token or "", value, part.position or 0) for part, value in pairs]


def shown(value: Any) -> str:
    """An input's value beside its name."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- of the rows of a query --------------------------------------------------------------------------------------------


def query_plot(body: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Plot:
    """The picture of a query's answer; raises InvalidRequest where the rows are none, or mix what is not alike."""
    if len(rows) > MOST_ROWS:
        raise InvalidRequest(f"these are {len(rows)} rows: at most {MOST_ROWS} are drawn")
    keys = {role_of(item): key_of(item) for item in body["select"]}
    if not rows:
        raise InvalidRequest("no rows answer this query: there is nothing to draw")
    try:
        return drawn(body, keys, rows)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def drawn(body: Mapping[str, Any], keys: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Plot:
    about = about_of(body, rows, keys)
    mean = next((role for role in keys if role in MEANS), None)
    part = keys.get(ATTRIBUTE) or keys.get(TOKEN)
    if "regionalFeatureImportances" in keys:
        return regional(rows, ATTRIBUTE, keys["regionalFeatureImportances"], "avgAbs", about)
    if "nlp_explanation" in keys:
        return tokens_plot(rows, keys["nlp_explanation"])
    if mean and part and "roundTimestamp" in keys:
        return over_time(rows, keys, part, mean, about)
    if mean and part:
        return regional(rows, part, keys[mean], mean, about)
    if SCORE in keys and ATTRIBUTE in keys:
        return scores_plot(rows, keys, about)
    raise InvalidRequest(NO_PICTURE, "/select")


def role_of(item: Mapping[str, Any]) -> str:
    """What a column is: its property, or its function; an aggregate only where it is one of scores."""
    if "property" in item:
        return str(item["property"])
    function = str(item["function"])
    of_scores = (item.get("parameters") or {}).get("property") == SCORE
    return function if function not in MEANS or of_scores else f"{function} of something else"


def key_of(item: Mapping[str, Any]) -> str:
    """Under which its values are in the rows."""
    usual = item.get("property") or OWN_KEYS.get(item.get("function", ""), item.get("function"))
    return str(item.get("alias") or usual)


def about_of(body: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> str:
    """The output and the algorithm of the scores. Raises InvalidRequest where those of several may be mixed."""
    regional = next((item for item in body["select"] if item.get("function") == "regionalFeatureImportances"), None)
    if regional is not None:
        return f" for {(regional.get('parameters') or {}).get('predicted_attribute_name', '')}"
    if not {ATTRIBUTE, TOKEN} & keys.keys():
        return ""
    output, algorithm = (pinned(body, rows, keys, name) for name in (PREDICTED, ALGORITHM))
    return f" for {output}, {algorithm}"


def pinned(body: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str], name: str) -> str:
    """The one value of a column: by a filter, or since all rows say so."""
    for condition in body.get("filter") or body.get("where") or []:
        if condition.get("property") == name and condition.get("comparator") == "eq":
            return str(condition.get("value"))
    said = {row[keys[name]] for row in rows} if name in keys else set()
    if len(said) == 1:
        return str(said.pop())
    raise InvalidRequest(f"scores of several kinds may be mixed here: filter by one {name} (comparator eq)", "/filter")


def regional(rows: Sequence[Mapping[str, Any]], part: str, key: str, mean: str, about: str) -> Plot:
    """Bars from zero for sizes; to both sides of it for means, which have a sign."""
    title, _, axis = MEANS[mean]
    bars = [Bar(str(row[part]), number(row[key])) for row in rows]
    return (regional_plot if mean == "avgAbs" else bar_plot)(f"{title}{about}", bars, axis=axis)


def scores_plot(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str], about: str) -> Plot:
    """Bars where each input has one score, or else a beeswarm, coloured where inputs are selected beside scores."""
    by_input: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_input.setdefault(str(row[keys[ATTRIBUTE]]), []).append(row)
    score = keys[SCORE]
    if len(by_input) == len(rows):
        errors = keys.get("explainer_score_stderr", "")
        bars = [
            Bar(name, number(row[score]), shown(row.get(name)), row.get(errors)) for name, (row,) in by_input.items()
        ]
        return bar_plot(f"Scores{about}", bars, axis="score")
    swarms = [
        Swarm(name, np.array([number(row[score]) for row in mine]), values_of(mine, name))
        for name, mine in by_input.items()
    ]
    return beeswarm(f"Scores{about}", swarms, axis="score")


def values_of(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    return np.array([number(row.get(name)) for row in rows])


def over_time(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str], part: str, mean: str, about: str) -> Plot:
    time, value, (_, title, axis) = keys["roundTimestamp"], keys[mean], MEANS[mean]
    known = {(row[time], str(row[part])): number(row[value]) for row in rows if row[time] is not None}
    times = sorted({moment for moment, _ in known})
    names = dict.fromkeys(name for _, name in known)
    lines = [Line(name, tuple(known.get((moment, name), math.nan) for moment in times)) for name in names]
    return line_plot(f"{title}{about}", [datetime.fromisoformat(moment) for moment in times], lines, axis=axis)


def tokens_plot(rows: Sequence[Mapping[str, Any]], key: str) -> Plot:
    entries = rows[0][key] if isinstance(rows[0][key], list) else [rows[0][key]]
    if len(rows) > 1 or len(entries) != 1 or len(entries[0]["importance_scores"]) != 1:
        raise InvalidRequest("a heat map is one of one inference and one nlp_predicted_attribute: filter by them")
    entry = entries[0]
    tokens = [
        Token(each["token"], number(each["value"]), each["position"])
        for each in entry["importance_scores"][0]["tokens"]
    ]
    return token_map(f"{entry['predicted_attribute_name']}, {entry['algorithm']}", tokens)


def number(value: Any) -> float:
    """NaN for what is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


@cache
def file_policy() -> str:
    """The Content-Security-Policy of a drawing alone: nothing but the style sheet in it."""
    digest = b64encode(hashlib.sha256(style_sheet().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
