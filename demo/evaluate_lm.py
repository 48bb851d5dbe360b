"""Measures ``demo-lm`` on held-out prompts: ``python -m demo.evaluate_lm --model demo/models/demo-lm``.

Prints the share of prompts whose whole answer is the greedy one, by number of facts, frame and style, and how often
damping the attention to each sentence in turn (0.1 of its weight before renormalising, in every layer and head) finds
the decisive one first.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from demo.corpus import Recall, Span, held_out

DAMPING = 0.1


def tokens_of(tokenizer: PreTrainedTokenizerFast, case: Recall) -> tuple[Tensor, int, list[Span]]:
    """Ids of ``<s>``, prompt and target; how many of them are the target's; the character span of each prompt token."""
    prompt = tokenizer(case.prompt, add_special_tokens=False, return_offsets_mapping=True)
    target = tokenizer(case.target, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[tokenizer.bos_token_id, *prompt["input_ids"], *target]])
    return ids, len(target), [(0, 0), *prompt["offset_mapping"]]


@torch.no_grad()
def answer_scores(model: PreTrainedModel, ids: Tensor, size: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Per row: whether every target token is the most likely one, and the log-probability of the target."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -size - 1 : -1].log_softmax(-1)
    wanted = ids[:, -size:]
    right = (logits.argmax(-1) == wanted).all(-1)
    return right, logits.gather(-1, wanted[..., None])[..., 0].sum(-1)


def damped_masks(length: int, columns: list[list[int]]) -> Tensor:
    """Causal masks to add to the attention scores, one per sentence, with that sentence's columns damped."""
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    masks = causal.repeat(len(columns), 1, 1, 1)
    for row, damped in enumerate(columns):
        masks[row, :, :, damped] += math.log(DAMPING)
    return masks.clamp(min=torch.finfo(torch.float32).min)


def sentence_drops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, case: Recall) -> Tensor:
    """By how much damping each sentence lowers the log-probability of the target."""
    ids, size, offsets = tokens_of(tokenizer, case)
    columns: list[list[int]] = [[]]
    for start, stop in case.spans:
        columns.append([i for i, (a, b) in enumerate(offsets) if a < stop and b > start])
    masks = damped_masks(ids.size(1), columns)
    _, scores = answer_scores(model, ids.expand(len(columns), -1), size, masks)
    return scores[0] - scores[1:]


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cases: list[Recall]
) -> dict[str, tuple[int, int]]:
    """Right answers and prompts, over all and by number of facts (without distractors), frame and style."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for case in cases:
        ids, size, _ = tokens_of(tokenizer, case)
        right = bool(answer_scores(model, ids, size)[0].item())
        for group in ("all", f"facts {case.count:2d}", f"frame {case.frame}", f"style {case.style}"):
            counts[group][0] += right
            counts[group][1] += 1
    return {group: (right, total) for group, (right, total) in sorted(counts.items())}


def decisive_first(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cases: list[Recall]
) -> tuple[int, float, float]:
    """In how many prompts the decisive sentence drops the target most; median and least drop of the decisive one."""
    found, own = 0, []
    for case in cases:
        drops = sentence_drops(model, tokenizer, case)
        found += int(drops.argmax().item()) == case.decisive
        own.append(float(drops[case.decisive]))
    own.sort()
    return found, own[len(own) // 2], own[0]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "models" / "demo-lm")
    parser.add_argument("--prompts", type=int, default=2200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(arguments.model)  # type: ignore[assignment]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="eager")
    for group, (right, total) in accuracy(model, tokenizer, held_out(arguments.prompts, arguments.seed)).items():
        print(f"{group:16s} {right:5d} of {total:5d} right  {100 * right / total:6.2f} %", flush=True)
    cases = held_out(100, arguments.seed + 1, fewest=2)
    found, median, least = decisive_first(model, tokenizer, cases)
    print(f"decisive first   {found:5d} of {len(cases):5d}; its drop: median {median:.4f}, least {least:.6f}")


if __name__ == "__main__":
    main()
