"""All pages, in the order of the navigation. A new one is one line here."""

from __future__ import annotations

from fastapi import FastAPI

from app.explorer import jobs, predictions, prompt, stored, training
from app.explorer.pages import Page
from app.explorer.sign_in import sign_in_routes

PAGES: tuple[Page, ...] = (
    prompt.PAGE,
    predictions.PAGE,
    training.PAGE,
    jobs.PAGE,
    stored.PAGE,
)  # fmt: skip


def add_explorer(app: FastAPI) -> None:
    app.state.pages = PAGES
    for routes in (sign_in_routes, *(page.routes for page in PAGES)):
        app.router.routes.extend(routes())
