"""The untrained ``demo-lm``: a small Llama whose first two layers start as a circuit that looks facts up.

From random weights a model this small can take long to discover that it must look things up. So training starts from
weights that already do it, roughly, and makes them good:

* three numbers of every embedding are marks: a constant, whether the word can be a key (a name, a city, a thing), and
  whether it can be a value (a city, a food, a digit);
* two heads of the first layer look 1 and 2 tokens back; two look for the key a few tokens back. Each writes what it
  saw, turned by a random matrix of its own, beside the token's own embedding;
* heads of the second layer look for values beside which the key seen by the present token was written, and copy them;
* everything else writes nothing yet.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.words import WORDS

CONTEXT: Final = 1024
SIZE: Final = 128
HEAD: Final = 32
KEYS: Final = ("name", "city", "thing", "colour", "event")
VALUES: Final = ("city", "country", "colour", "food", "place", "job", "language", "day")
_CONSTANT, _KEY, _VALUE = 0, 1, 2
_LOOKS: Final = ((1, False), (4, True), (4, True), (2, False))


def plain_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about a million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=SIZE,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=SIZE // HEAD,
        num_key_value_heads=SIZE // HEAD,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def orthonormal() -> Tensor:
    """A random matrix with orthonormal rows that reads or writes one head's share, marks left out."""
    rows: Tensor = torch.linalg.qr(torch.randn(SIZE, HEAD))[0].T.clone()
    rows[:, :3] = 0.0
    return rows


def start_embeddings(table: Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
    """Random embeddings, alike for a word with and without its space, and marked."""
    torch.nn.init.normal_(table, std=SIZE**-0.5)
    vocab = tokenizer.get_vocab()
    for form, index in vocab.items():
        spaced = vocab.get(f"\u0120{form}")
        if spaced is not None and len(form) > 1:
            table[index] = 0.7 * table[spaced] + 0.71 * table[index]
    table[:, :3] = 0.0
    table[:, _CONSTANT] = 0.5
    marked = {_KEY: [], _VALUE: list("0123456789")}
    marked[_KEY] += [word for kind in KEYS for word in WORDS[kind]]
    marked[_VALUE] += [word for kind in VALUES for word in WORDS[kind]]
    for column, words in marked.items():
        forms = [form for word in words for form in (word, f"\u0120{word}") if form in vocab]
        table[[vocab[form] for form in forms], column] = 0.5


def look_back(query: Tensor, key: Tensor, back: int, gated: bool, turn: Tensor) -> None:
    """Make one head's query and key see what is ``back`` tokens before, sharply, or the key words about there.

    Both are made of the constant mark. The rotary angles of a query turned by ``back`` tokens agree with those of the
    key that far back, and the fewer fast angles take part, the broader the view.
    """
    order = torch.arange(HEAD // 2)
    strength = torch.where((order < 4) & (order >= gated), 1.0 if gated else 1.2, 0.0)
    straight = torch.cat([strength, torch.zeros(HEAD // 2)])
    query *= 0.05
    key *= 0.05
    query[:, _CONSTANT] = torch.cat([strength * (turn * back).cos(), -strength * (turn * back).sin()])
    key[:, _CONSTANT] = 0.2 * straight if gated else straight
    if gated:
        key[:, _KEY] = straight


@torch.no_grad()
def start_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model that training starts from; draws on the global generator of torch."""
    model = plain_model(tokenizer)
    start_embeddings(model.model.embed_tokens.weight, tokenizer)
    model.model.norm.weight.fill_(3.0)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    slow = (torch.arange(HEAD) % (HEAD // 2) >= 6).float()[:, None]
    for head, (back, gated) in enumerate(_LOOKS):
        rows = slice(head * HEAD, (head + 1) * HEAD)
        read, write, copied = orthonormal(), orthonormal(), orthonormal()
        turn = model.model.rotary_emb.inv_freq
        look_back(first.q_proj.weight[rows], first.k_proj.weight[rows], back, gated, turn)
        first.v_proj.weight[rows] = (0.22 if gated else 0.1) * read
        first.o_proj.weight[:, rows] = write.T
        if head == len(_LOOKS) - 1:
            break  # the last head of the second layer starts free
        second.q_proj.weight[rows] = 1.7 * slow * (write if gated else read)
        second.k_proj.weight[rows] = 1.7 * slow * write
        if gated:
            second.q_proj.weight[rows.start + HEAD // 2 - 1, _CONSTANT] = 3.0
            second.k_proj.weight[rows.start + HEAD // 2 - 1, _VALUE] = 3.0
        second.v_proj.weight[rows] = 0.5 * copied
        second.o_proj.weight[:, rows] = 2.0 * copied.T
    return model
