"""The explorer: pages for people, served by the server itself.

Context: engineers and auditors look rather than read. Decision: pages are rendered here with jinja2 and changed in
place with htmx, one file that ships in `static/`; they call the same use cases as the API, with the same scopes,
admission and audit. Nobody's script or style runs but ours (`pages.POLICY`), and the cookie of a sign-in opens pages
alone, never the API. Consequences: no build step, nothing from elsewhere, and forms work without the script too.
A new page is one module with a `Page`, and one line in `routes.PAGES`.
"""
