"""Scenes with the unmodified `aleph-alpha-client`: run by its own interpreter, prints what the client returned as JSON.

python drive_aleph_alpha.py SCENE HOST TOKEN
"""

import asyncio
import base64
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from aleph_alpha_client import (
    AsyncClient,
    Client,
    ControlTokenOverlap,
    CustomGranularity,
    DetokenizationRequest,
    ExplanationPostprocessing,
    ExplanationRequest,
    Image,
    ImageControl,
    Prompt,
    PromptGranularity,
    TargetGranularity,
    Text,
    TextControl,
    TokenControl,
    TokenizationRequest,
    Tokens,
)

MODEL = "tiny-lm"
TEXT = "Anna lives in Oslo. Ben lives in Rome.\n\nAnna lives in"
TARGET = " Oslo."
PROMPT = Prompt.from_text(TEXT)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # a PNG
# A bitmap of 36 x 24 pixels, made here since this environment need not draw.
PIXELS = b"".join(bytes((x * 7 % 256, y * 10 % 256, 200 if x < 12 else 20)) for y in range(24) for x in range(36))
SIZES = (54 + len(PIXELS), 0, 54, 40, 36, 24)
HEAD = b"BM" + b"".join(number.to_bytes(4, "little") for number in SIZES) + b"\x01\x00\x18\x00" + bytes(24)
PICTURE = base64.b64encode(HEAD + PIXELS).decode()


def asked(prompt=PROMPT, target=TARGET, **options):
    return ExplanationRequest(prompt=prompt, target=target, **options)


def controlled(factor, overlap=None):
    return Prompt([Text(TEXT, [TextControl(start=0, length=19, factor=factor, token_overlap=overlap)])])


SENTENCE = PromptGranularity.Sentence
EXPLANATIONS = {
    "automatic": asked(),
    "token": asked(prompt_granularity=PromptGranularity.Token),
    "word": asked(prompt_granularity=PromptGranularity.Word),
    "sentence": asked(prompt_granularity=SENTENCE),
    "sentence as a string": asked(prompt_granularity="sentence"),
    "paragraph": asked(prompt_granularity=PromptGranularity.Paragraph),
    "custom": asked(prompt_granularity=CustomGranularity("\n\n")),
    "each target token": asked(prompt_granularity=SENTENCE, target_granularity=TargetGranularity.Token),
    "complete": asked(prompt_granularity=SENTENCE, target_granularity=TargetGranularity.Complete),
    "factor 1": asked(prompt_granularity=SENTENCE, control_factor=1.0),
    "factor 0": asked(prompt_granularity=SENTENCE, control_factor=0.0),
    "multiplicative": asked(prompt_granularity=SENTENCE, control_log_additive=False),
    "similar tokens": asked(prompt_granularity=SENTENCE, contextual_control_threshold=0.5),
    "threshold 0": asked(prompt_granularity=SENTENCE, contextual_control_threshold=0.0),
    "absolute": asked(prompt_granularity=SENTENCE, postprocessing=ExplanationPostprocessing.Absolute),
    "square": asked(prompt_granularity=SENTENCE, postprocessing=ExplanationPostprocessing.Square),
    "normalized": asked(prompt_granularity=SENTENCE, normalize=True),
    "overlap complete": asked(prompt_granularity=SENTENCE, control_token_overlap=ControlTokenOverlap.Complete),
    "suppressed": asked(prompt=controlled(0.0), prompt_granularity=SENTENCE),
    "amplified": asked(prompt=controlled(3.0, ControlTokenOverlap.Complete), prompt_granularity=SENTENCE),
    "token ids": asked(
        prompt=Prompt([Text.from_text("Oslo is in"), Tokens([40, 41, 42], [TokenControl(pos=1, factor=0.5)])]),
        prompt_granularity=PromptGranularity.Word,
    ),
    "no prompt": asked(prompt=Prompt([])),
}

MISTAKES = {
    "image": asked(prompt=Prompt([Image(PIXEL, None, [])])),
    "unknown granularity": asked(prompt_granularity="chapter"),
    "empty delimiter": asked(prompt_granularity=CustomGranularity("")),
    "negative factor": asked(control_factor=-1.0),
    "no target": asked(target=""),
    "control outside the text": asked(prompt=Prompt([Text("Oslo", [TextControl(start=2, length=9, factor=0.5)])])),
    "unknown token": asked(prompt=Prompt([Tokens([10_000_000], [])])),
    "too long": asked(prompt=Prompt.from_text("Oslo " * 5000)),
    "threshold above 1": asked(contextual_control_threshold=1.5),
}


def caught(error):
    return {"type": type(error).__name__, "status": error.args[0], "body": json.loads(error.args[1])}


def with_sync(work):
    def scene(host, token):
        return work(Client(token=token, host=host))

    return scene


def with_async(work):
    async def opened(host, token):
        async with AsyncClient(token=token, host=host) as client:
            return await work(client)

    return lambda host, token: asyncio.run(opened(host, token))


def explain(client):
    return {name: asdict(client.explain(request, model=MODEL)) for name, request in EXPLANATIONS.items()}


async def explain_async(client):
    answers = await asyncio.gather(*(client.explain(request, model=MODEL) for request in EXPLANATIONS.values()))
    return {name: asdict(answer) for name, answer in zip(EXPLANATIONS, answers, strict=True)}


def with_text(client):
    request = EXPLANATIONS["each target token"]
    return asdict(client.explain(request, model=MODEL).with_text_from_prompt(request))


def mistakes(client):
    found = {}
    for name, request in MISTAKES.items():
        try:
            found[name] = {"type": "none", "body": asdict(client.explain(request, model=MODEL))}
        except (ValueError, RuntimeError, OSError) as error:
            found[name] = caught(error)
    return found


def one_mistake(client):
    try:
        client.explain(MISTAKES["negative factor"], model=MODEL)
    except ValueError as error:
        return caught(error)


async def one_mistake_async(client):
    try:
        await client.explain(MISTAKES["negative factor"], model=MODEL)
    except ValueError as error:
        return caught(error)


def refused(client):
    try:
        client.explain(EXPLANATIONS["sentence"], model=MODEL)
    except PermissionError as error:
        return caught(error)


async def refused_async(client):
    try:
        await client.explain(EXPLANATIONS["sentence"], model=MODEL)
    except PermissionError as error:
        return caught(error)


def unknown_model(client):
    try:
        client.explain(EXPLANATIONS["sentence"], model="nowhere/at-all")
    except RuntimeError as error:
        return caught(error)


def images(client):
    """The same image as bytes, as a file, cropped, and with controls; scores also in pixels."""
    data = base64.b64decode(PICTURE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.bmp"
        path.write_bytes(data)
        sources = {
            "bytes": Image.from_image_source(data),
            "path": Image.from_image_source(path),
            "name": Image.from_image_source(str(path)),
            "cropped": Image.from_file_with_cropping(str(path), 2, 3, 10),
            "removed": Image.from_image_source(data, [ImageControl(0, 0, 1, 1, 0.0)]),
            "complete": Image.from_image_source(
                data, [ImageControl(0.1, 0.1, 0.3, 0.2, 0.5, ControlTokenOverlap.Complete)]
            ),
        }
    found = {}
    for name, image in sources.items():
        prompt = Prompt([Text.from_text("Anna lives in"), image])
        answer = client.explain(asked(prompt, prompt_granularity=SENTENCE), model="tiny-vision")
        found[name] = asdict(answer)
        found[f"{name}, in pixels"] = asdict(answer.with_image_prompt_items_in_pixels(prompt))
    return found


def no_image(client):
    """One call each, whatever is wrong with the image."""
    damaged = {"text": b"hello", "cut off": base64.b64decode(PICTURE)[:99], "empty": b""}
    found = {}
    for name, data in damaged.items():
        try:
            client.explain(asked(Prompt([Image.from_image_source(data)])), model="tiny-vision")
        except ValueError as error:
            found[name] = caught(error)
    return found


def around(client):
    client.validate_version()
    tokenizer = client.tokenizer(MODEL)
    tokenized = client.tokenize(TokenizationRequest(prompt=TEXT, tokens=True, token_ids=True), model=MODEL)
    detokenized = client.detokenize(DetokenizationRequest(token_ids=tokenizer.encode(TARGET).ids), model=MODEL)
    return {
        "version": client.get_version(),
        "models": client.models(),
        "tokenized": asdict(tokenized),
        "encoded": {"tokens": tokenizer.encode(TEXT).tokens, "token_ids": tokenizer.encode(TEXT).ids},
        "detokenized": detokenized.result,
        "decoded": tokenizer.decode(tokenizer.encode(TARGET).ids),
    }


async def around_async(client):
    await client.validate_version()
    tokenizer = await client.tokenizer(MODEL)
    tokenized = await client.tokenize(TokenizationRequest(prompt=TEXT, tokens=True, token_ids=True), model=MODEL)
    detokenized = await client.detokenize(DetokenizationRequest(token_ids=tokenizer.encode(TARGET).ids), model=MODEL)
    return {
        "version": await client.get_version(),
        "models": await client.models(),
        "tokenized": asdict(tokenized),
        "encoded": {"tokens": tokenizer.encode(TEXT).tokens, "token_ids": tokenizer.encode(TEXT).ids},
        "detokenized": detokenized.result,
        "decoded": tokenizer.decode(tokenizer.encode(TARGET).ids),
    }


SCENES = {
    "explain": with_sync(explain),
    "explain, async": with_async(explain_async),
    "with text": with_sync(with_text),
    "mistakes": with_sync(mistakes),
    "one mistake": with_sync(one_mistake),
    "one mistake, async": with_async(one_mistake_async),
    "refused": with_sync(refused),
    "refused, async": with_async(refused_async),
    "unknown model": with_sync(unknown_model),
    "images": with_sync(images),
    "no image": with_sync(no_image),
    "around": with_sync(around),
    "around, async": with_async(around_async),
    "nice": lambda host, token: asdict(
        Client(token=token, host=host, nice=True, hosting="aleph-alpha").explain(EXPLANATIONS["sentence"], model=MODEL)
    ),
}

if __name__ == "__main__":
    json.dump(SCENES[sys.argv[1]](*sys.argv[2:]), sys.stdout)
