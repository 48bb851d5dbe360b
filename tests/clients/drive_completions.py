"""Scenes of completing with the unmodified `aleph-alpha-client`; prints what the client returned as JSON.

python drive_completions.py SCENE HOST TOKEN
"""

import asyncio
import json
import sys
from dataclasses import asdict

from aleph_alpha_client import (
    AsyncClient,
    Client,
    CompletionRequest,
    EvaluationRequest,
    ExplanationRequest,
    Prompt,
    PromptGranularity,
    Text,
    TextControl,
    Tokens,
)
from aleph_alpha_client.chat import ChatRequest, FinishReason, Message, Role, StreamOptions, Usage

MODEL = "tiny-lm"
TEXT = "Anna lives in Oslo. Ben lives in Rome. Anna lives in"
TARGET = " Oslo."
PROMPT = Prompt.from_text(TEXT)
FACTOR = 0.1


def controlled(start, length, factor=FACTOR):
    return Prompt([Text(TEXT, [TextControl(start=start, length=length, factor=factor)])])


SUPPRESSED = controlled(0, 19, 0.0)
COMPLETIONS = {
    "greedy": CompletionRequest(prompt=PROMPT, maximum_tokens=8),
    "suppressed": CompletionRequest(prompt=SUPPRESSED, maximum_tokens=8),
    "multiplicative": CompletionRequest(prompt=SUPPRESSED, maximum_tokens=8, control_log_additive=False),
    "similar": CompletionRequest(prompt=SUPPRESSED, maximum_tokens=8, contextual_control_threshold=0.1),
    "details": CompletionRequest(prompt=PROMPT, maximum_tokens=8, log_probs=2, tokens=True, raw_completion=True),
    "echo": CompletionRequest(prompt=PROMPT, maximum_tokens=4, log_probs=0, tokens=True, echo=True),
    "several": CompletionRequest(prompt=PROMPT, maximum_tokens=8, n=3, temperature=1.0, top_k=50, top_p=0.95),
    "best": CompletionRequest(prompt=PROMPT, maximum_tokens=8, n=2, best_of=4, temperature=1.0),
    "shaped": CompletionRequest(
        prompt=PROMPT,
        maximum_tokens=8,
        minimum_tokens=2,
        logit_bias={70: 5.0, 71: -5.0},
        presence_penalty=0.5,
        frequency_penalty=0.5,
        repetition_penalties_include_prompt=True,
        stop_sequences=["Rome", "\n"],
    ),
    "to the end": CompletionRequest(prompt=Prompt([Tokens([70, 71] * 120, [])])),  # of the context
    "nothing": CompletionRequest(prompt=Prompt([]), maximum_tokens=0),
}
STREAMED = [name for name in COMPLETIONS if name != "best"]
CHAT = ChatRequest(model=MODEL, messages=[Message(role=Role.User, content=TEXT)], maximum_tokens=8)


def evaluate(client):
    explained = client.explain(
        ExplanationRequest(
            prompt=PROMPT, target=TARGET, control_factor=FACTOR, prompt_granularity=PromptGranularity.Sentence
        ),
        model=MODEL,
    )
    scores = [asdict(score) for score in explained.explanations[0].items[0].scores]
    plain = client.evaluate(EvaluationRequest(prompt=PROMPT, completion_expected=TARGET), model=MODEL)
    found = [
        client.evaluate(
            EvaluationRequest(prompt=controlled(score["start"], score["length"]), completion_expected=TARGET),
            model=MODEL,
        )
        for score in scores
    ]
    return {"scores": scores, "plain": asdict(plain), "controlled": [asdict(answer) for answer in found]}


async def evaluate_async(client):
    answer = await client.evaluate(EvaluationRequest(prompt=PROMPT, completion_expected=TARGET), model=MODEL)
    return asdict(answer)


def complete(client):
    return {name: client.complete(request, model=MODEL).to_json() for name, request in COMPLETIONS.items()}


async def complete_async(client):
    answers = await asyncio.gather(*(client.complete(request, model=MODEL) for request in COMPLETIONS.values()))
    return {name: answer.to_json() for name, answer in zip(COMPLETIONS, answers, strict=True)}


async def complete_with_streaming(client):
    async def items(name):
        stream = client.complete_with_streaming(COMPLETIONS[name], model=MODEL)
        return [{"kind": type(item).__name__, **asdict(item)} async for item in stream]

    return {name: await items(name) for name in STREAMED}


async def leave(client):
    """Goes away after the first piece of a long completion."""
    request = CompletionRequest(prompt=PROMPT, minimum_tokens=10_000, temperature=1.0, n=64)
    stream = client.complete_with_streaming(request, model=MODEL)
    item = await anext(stream)
    await stream.aclose()
    return {"kind": type(item).__name__}


async def chat(client):
    return asdict(await client.chat(CHAT, model=MODEL))


def chat_sync(client):
    return asdict(client.chat(CHAT, model=MODEL))


async def chat_with_streaming(client):
    request = ChatRequest(**{**vars(CHAT), "stream_options": StreamOptions(include_usage=True)})
    found = []
    async for item in client.chat_with_streaming(request, model=MODEL):
        if isinstance(item, FinishReason):
            found.append({"finish_reason": item.value})
        else:
            found.append({"usage": asdict(item)} if isinstance(item, Usage) else asdict(item))
    return found


def mistakes(client):
    wrong = {
        "too many tokens": CompletionRequest(prompt=PROMPT, maximum_tokens=100_000),
        "best of too few": CompletionRequest(prompt=PROMPT, n=2, best_of=2),
        "steering": CompletionRequest(prompt=PROMPT, steering_concepts=["kind"]),
    }
    found = {}
    for name, request in wrong.items():
        try:
            client.complete(request, model=MODEL)
        except ValueError as error:
            found[name] = json.loads(error.args[1])["code"]
    return found


async def mistake_in_a_stream(client):
    request = CompletionRequest(prompt=PROMPT, maximum_tokens=100_000)
    try:
        async for _ in client.complete_with_streaming(request, model=MODEL):
            pass
    except ValueError as error:
        return json.loads(error.args[1])["code"]


def with_sync(work):
    def scene(host, token):
        return work(Client(token=token, host=host))

    return scene


def with_async(work):
    async def opened(host, token):
        async with AsyncClient(token=token, host=host) as client:
            return await work(client)

    return lambda host, token: asyncio.run(opened(host, token))


SCENES = {
    "evaluate": with_sync(evaluate),
    "evaluate, async": with_async(evaluate_async),
    "complete": with_sync(complete),
    "complete, async": with_async(complete_async),
    "complete with streaming": with_async(complete_with_streaming),
    "leave": with_async(leave),
    "chat": with_sync(chat_sync),
    "chat, async": with_async(chat),
    "chat with streaming": with_async(chat_with_streaming),
    "mistakes": with_sync(mistakes),
    "mistake in a stream": with_async(mistake_in_a_stream),
}

if __name__ == "__main__":
    json.dump(SCENES[sys.argv[1]](*sys.argv[2:]), sys.stdout)
