"""The API's description: /openapi.json for programs, /docs for people; both need a key unless opened by setting."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import Response

from app.dependencies import JsonResponse, KeyedRoute
from app.errors import Problem, problems


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a request or answer; `depth` says how deeply it is nested."""

    name: str
    kind: str
    default: str
    required: bool
    description: str
    depth: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One route as the page shows it."""

    anchor: str
    method: str
    path: str
    tag: str
    summary: str
    description: str
    parameters: tuple[Field, ...]
    body: tuple[Field, ...]
    example: str
    answer: tuple[Field, ...]
    statuses: tuple[tuple[str, str], ...]


def add_docs(app: FastAPI, *, open_docs: bool) -> None:
    router = APIRouter(route_class=APIRoute if open_docs else KeyedRoute, include_in_schema=False)
    router.get("/openapi.json")(openapi)
    router.get("/docs")(docs)
    app.router.routes.extend(router.routes)
    app.openapi = lambda: description(app)  # type: ignore[method-assign]


async def openapi(request: Request) -> Response:
    return JsonResponse(request.app.openapi())


async def docs(request: Request) -> Response:
    document = request.app.openapi()
    page = environment().get_template("docs.html").render(info=document["info"], operations=list(operations(document)))
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy()})


def description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once; with our one error body in place of the framework's."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        name_bounds(document)
        schemas = document["components"]["schemas"]
        schemas["Problem"] = problem_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        say_scopes(app, document)
        for route in app.routes:
            if isinstance(route, APIRoute) and route.include_in_schema:
                for method in map(str.lower, route.methods or ()):
                    operation = document["paths"][route.path_format][method]
                    complete(method, operation, getattr(route, "passing", None))
        app.openapi_schema = document
    return app.openapi_schema


BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def name_bounds(document: Any) -> None:
    """Gives bounds their names in JSON Schema: pydantic leaves its own where a number passes a validator first."""
    if isinstance(document, dict) and "type" in document:
        for own, name in BOUNDS.items():
            if own in document:
                document[name] = document.pop(own)
    for part in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        name_bounds(part)


def say_scopes(app: FastAPI, document: dict[str, Any]) -> None:
    """Which scopes an operation needs, as its dependency says: for programs as roles of the key, any one of which will
    do (OpenAPI 3.1, Security Requirement Object), for people as the last line of the description."""
    for route in app.routes:
        if not isinstance(route, KeyedRoute) or route.needs is None or not route.include_in_schema:
            continue
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            operation["security"] = [{"key": [scope]} for scope in route.needs.scopes]
            words = " or ".join(f"`{scope}`" for scope in route.needs.scopes)
            operation["description"] += f"\n\nNeeds a key with the scope {words}."


def complete(method: str, operation: dict[str, Any], passing: int | None) -> None:
    """Adds the refusals that need no word of the route: of what is read, of the database, of what is kept."""
    responses = operation["responses"]
    statuses = [400] if responses.pop("422", None) else []
    statuses += [passing or 503] if "security" in operation or method == "post" else []
    statuses += [passing or 507] if "security" in operation and method != "get" else []
    for status, refusal in problems(*statuses).items():
        responses.setdefault(str(status), refusal)
    operation["responses"] = dict(sorted(responses.items()))


def problem_schema() -> dict[str, Any]:
    schema = Problem.model_json_schema()
    parts = schema.pop("$defs")
    schema["properties"]["errors"]["anyOf"][0]["items"] = parts["FieldProblem"]
    schema["properties"]["limit"]["anyOf"][0] = parts["LimitProblem"]
    return schema


@cache
def environment() -> Environment:
    made = Environment(loader=PackageLoader("app"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters["prose"] = prose
    return made


@cache
def policy() -> str:
    """The Content-Security-Policy of the page: its own style and script, and requests to this server."""
    style, script = (environment().get_template(name).render() for name in ("docs.css", "docs.js"))
    allowed = f"style-src {source(style)}; script-src {source(script)}; connect-src 'self'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def source(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            yield operation_of(document, method.upper(), path, about)


def operation_of(document: Mapping[str, Any], method: str, path: str, about: Mapping[str, Any]) -> Operation:
    content = about.get("requestBody", {}).get("content", {}).get("application/json", {})
    examples = [json.dumps(example["value"], indent=2) for example in content.get("examples", {}).values()]
    good = [response for status, response in about["responses"].items() if status.startswith("2")]
    answer = good[0].get("content", {}).get("application/json", {}).get("schema", {})
    return Operation(
        anchor=about["operationId"],
        method=method,
        path=path,
        tag=about["tags"][0],
        summary=about["summary"],
        description=about.get("description", ""),
        parameters=tuple(parameter_of(parameter) for parameter in about.get("parameters", [])),
        body=tuple(fields(document, content.get("schema", {}))),
        example=examples[0] if examples else "",
        answer=tuple(fields(document, answer)),
        statuses=tuple((status, response["description"]) for status, response in about["responses"].items()),
    )


def parameter_of(parameter: Mapping[str, Any]) -> Field:
    name = f"{parameter['name']} ({parameter['in']})"
    schema, required = parameter["schema"], parameter.get("required", False)
    return Field(name, kind_of(schema), default_of(schema), required, parameter["description"], 0)


def fields(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> Iterator[Field]:
    """The members of an object, each followed by the members of the objects it holds."""
    for target in targets(document, schema):
        required = target.get("required", ())
        for name, about in target.get("properties", {}).items():
            yield Field(name, kind_of(about), default_of(about), name in required, about.get("description", ""), depth)
            yield from fields(document, about, depth + 1)


def targets(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The object schemas that a schema means: itself, what it refers to, its alternatives, its entries."""
    if "$ref" in schema:
        yield from targets(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    elif "properties" in schema:
        yield schema
    elif "items" in schema:
        yield from targets(document, schema["items"])
    else:
        for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            yield from targets(document, alternative)


def default_of(schema: Mapping[str, Any]) -> str:
    """The default as JSON; nothing for null and empty ones, which the description explains."""
    default = schema.get("default")
    return "" if default in (None, [], "") else json.dumps(default)


def prose(text: str) -> Markup:
    """A description with its `code` and *stress* marked up."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*\n]+)\*", r"<em>\1</em>", marked))  # noqa: S704 - escaped above


def kind_of(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "items" in schema:
        return f"array of {kind_of(schema['items'])}"
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if schema.get("default") is not None:  # which null stands for
        alternatives = [each for each in alternatives if each != {"type": "null"}]
    return " | ".join(dict.fromkeys(map(kind_of, alternatives))) or str(schema.get("type", "any"))
