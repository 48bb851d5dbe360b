"""A user of the unmodified `seekrai`, waiting or with await: prints what the client returned as JSON.

python drive_seekr.py MODE-SCENE HOST TOKEN, with MODE `sync` or `async`
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from seekrai import AsyncSeekrFlow, SeekrFlow
from seekrai.error import SeekrFlowException

MODEL = "tiny-lm"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Anna lives in Oslo. Where does Anna live? \u2028 \u00fc"},
]
PAIR = {
    "messages": [{"role": "user", "content": "Who keeps the mill?"}, {"role": "assistant", "content": "Anna \u2028"}]
}


class Waiting:
    """The client that waits."""

    def __init__(self, host, token):
        self.client = SeekrFlow(api_key=token, base_url=host.rstrip("/") + "/v1")

    def of(self, result):
        """What a call returns."""
        return result

    def every(self, stream):
        """All that a stream tells."""
        return list(stream)


class Awaiting:
    """The client with await."""

    def __init__(self, host, token):
        self.loop = asyncio.Runner()
        self.client = AsyncSeekrFlow(api_key=token, base_url=host)

    def of(self, result):
        return self.loop.run(result)

    def every(self, stream):
        async def collect():
            return [chunk async for chunk in stream]

        return self.loop.run(collect())


def written(name, *rows):
    """A new file of that name with these rows, each an object or a line."""
    path = Path(tempfile.mkdtemp()) / name
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def plain(result):
    return result.model_dump(mode="json", exclude_none=True)


def files(user):
    of, api = user.of, user.client.files
    path = written("facts.jsonl", *[PAIR] * 300)
    if isinstance(user, Waiting):  # the other one has no upload of one file
        file = api.upload(path)
    else:
        (file,) = of(api.bulk_upload([path]))
    several = of(api.bulk_upload([path, written("b.jsonl", {"text": "a"})], purpose="pre-train"))
    target = Path(tempfile.mkdtemp()) / "back.jsonl"
    back = of(api.retrieve_content(file.id, output=target))
    found = {
        "file": plain(file),
        "several": [each.filename for each in several],
        "same": of(api.retrieve(file.id)) == file,
        "listed": [each.id for each in of(api.list(limit=3)).data] == [each.id for each in (*several[::-1], file)],
        "by size": of(api.list(sort_by="size", sort_order="asc", purpose="pre-train", limit=1)).data[0].filename,
        "content": target.read_bytes() == path.read_bytes(),
        "size": [back.size, path.stat().st_size],
        "renamed": of(api.rename(file.id, "c.jsonl")).filename,
    }
    found["deleted"] = [of(api.delete(each.id)).deleted for each in (file, *several)]
    found["gone"] = refusal(lambda: of(api.retrieve(file.id)))
    bad = written("bad.jsonl", PAIR, "{", {"text": ""})
    found["bad"] = refusal(lambda: of(api.bulk_upload([bad])))
    return found


def models(user):
    return [plain(model) for model in user.of(user.client.models.list()).data]


def chat(user):
    ask = user.client.chat.completions.create
    whole = user.of(ask(model=MODEL, messages=MESSAGES, max_tokens=12))
    chunks = user.every(user.of(ask(model=MODEL, messages=MESSAGES, max_tokens=12, stream=True)))
    more = {"logprobs": True, "top_logprobs": 2, "echo": True, "n": 2, "temperature": 0, "stop": ["Q:"]}
    asked = user.of(ask(model=MODEL, messages=MESSAGES, max_completion_tokens=3, **more))
    return {
        "whole": plain(whole),
        "streamed": "".join(chunk.choices[0].delta.content for chunk in chunks),
        "ends": [chunk.choices[0].finish_reason for chunk in chunks],
        "chunk": plain(chunks[0]),
        "asked": plain(asked),
        "default": plain(user.of(ask(model=MODEL, messages=MESSAGES)))["usage"]["completion_tokens"],
    }


def deployments(user):
    of, api = user.of, user.client.deployments
    (own,) = [each for each in of(api.list()).data if each.model_id == MODEL]
    found = {"own": plain(own)}
    named = {"name": "mill facts", "description": "Who keeps it", "model_type": "Base Model", "n_instances": 1}
    found["named"] = refusal(lambda: of(api.create(model_id=MODEL, **named)).name)
    found["again"] = refusal(lambda: of(api.create(model_id=MODEL, **named)))
    found["demoted"] = of(api.demote(own.id)).status
    ask = user.client.chat.completions.create
    found["off"] = refusal(lambda: of(ask(model=own.id, messages=MESSAGES)))
    found["promoted"] = of(api.promote(own.id)).status
    found["chat"] = of(ask(model=own.id, messages=MESSAGES, max_tokens=3)).model == own.id
    found["counted"] = of(api.retrieve(own.id)).total_output_tokens > own.total_output_tokens
    return found


def sources(user):
    of, ask = user.of, user.client.explainability.get_context_attribution
    asked = {
        "context": "Anna lives in Oslo.\u2028Ben is in Röme. 𝄞 is a key.\n\nIt is cold.",
        "query": "Where is Anna?",
    }
    asked["response"] = " Anna is in Oslo. 𝄞 It is\u2028cold."
    whole = of(ask(**asked))
    return {
        "asked": asked,
        "whole": plain(whole),
        "same": of(ask(**asked)) == whole,
        "marked": plain(of(ask(**asked, highlight="Oslo", granularity="paragraph", top_k=1, num_ablations=32))),
        "unmarked": refusal(lambda: of(ask(**asked, highlight="Rome"))),
        "blank": refusal(lambda: of(ask(context=" ", query="", response="a"))),
        "long": refusal(lambda: of(ask(context="a b " * 5_000, query="", response="a"))),
        "run": refusal(lambda: of(user.client.explainability.get_context_attribution_from_run("thread-1"))),
    }


def errors(user):
    of, client = user.of, user.client
    ask = client.chat.completions.create
    stranger = type(user)(str(client.client.base_url), "wrong")
    return {
        "key": refusal(lambda: stranger.of(stranger.client.models.list())),
        "model": refusal(lambda: of(ask(model="org/none", messages=MESSAGES))),
        "deployment": refusal(lambda: of(client.deployments.retrieve("deployment-77"))),
        "file": refusal(lambda: of(client.files.delete("file-77"))),
        "long": refusal(lambda: of(ask(model=MODEL, messages=[{"role": "user", "content": "a b " * 5_000}]))),
        "tools": refusal(lambda: of(ask(model=MODEL, messages=MESSAGES, tools=[{"type": "function"}]))),
        "json": refusal(lambda: of(ask(model=MODEL, messages=MESSAGES, response_format={"type": "json_object"}))),
        "tuning": refusal(lambda: of(client.fine_tuning.list())),
        "documents": refusal(lambda: of(client.files.bulk_upload([written("a.md", "# a")], purpose="alignment"))),
    }


def refusal(call):
    """The class of the error and the code and message in its text; what came instead where there was none."""
    try:
        return call()
    except SeekrFlowException as error:
        body = json.loads(str(error).partition(" - ")[2])
        return [type(error).__name__, error.http_status, body["code"], body["message"]]


SCENES = {scene.__name__: scene for scene in (files, models, chat, deployments, sources, errors)}


def main(chosen, host, token):
    mode, _, scene = chosen.partition("-")
    user = {"sync": Waiting, "async": Awaiting}[mode](host, token)
    json.dump(SCENES[scene](user), sys.stdout)


main(*sys.argv[1:])
