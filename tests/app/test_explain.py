from __future__ import annotations

import pytest

from tests.app.conftest import PROMPT, TARGET, Running

pytestmark = pytest.mark.anyio


async def test_first(running: Running) -> None:
    r = await running.explain()
    print(r.status_code, r.text[:2000])
    assert r.status_code == 200
    r2 = await running.explain()
    assert r2.content == r.content
    i = r.json()["id"]
    h = await running.client.get(f"/explanations/{i}", headers={"accept": "text/html"})
    print(h.headers)
    open("/tmp/heat.html", "w").write(h.text)
    print((await running.client.get(f"/explanations/{i}")).text[:1500])
    for p in ("/explanations?limit=1", "/models", "/models_available", "/readyz", "/healthz", "/version", "/v1/version", "/nope", "/openapi.json"):
        q = await running.client.get(p)
        print(p, q.status_code, q.text[:600])
    t = await running.explain(target_granularity="token", prompt=[{"type": "text", "data": PROMPT}, {"type": "token_ids", "data": [3, 4]}])
    print(t.text[:3000])
    open("/tmp/heat2.html", "w").write((await running.client.get(f"/explanations/{t.json()['id']}", headers={"accept": "text/html"})).text)
