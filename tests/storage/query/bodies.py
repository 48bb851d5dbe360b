"""Requests, put together briefly."""

from __future__ import annotations

from typing import Any

COUNT = {"function": "count"}
INCOME = {"property": "income"}


def call(function: str, alias: str | None = None, **parameters: Any) -> dict[str, Any]:
    made = {"function": function, "parameters": parameters}
    return made if alias is None else made | {"alias": alias}


def select(*items: Any, **more: Any) -> dict[str, Any]:
    return {"select": list(items), **more}


def where(**condition: Any) -> dict[str, Any]:
    return select(INCOME, filter=[condition])


def eq(value: Any, name: str = "income") -> dict[str, Any]:
    return where(property=name, comparator="eq", value=value)
