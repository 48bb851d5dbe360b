"""Scores of tokens against the field's packages and against the definitions, on the same classifier and texts."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding

from explainers.answers import SAME_OUTPUT
from explainers.errors import MissingCapability
from explainers.methods.integrated_gradients import IntegratedGradientsConfig
from explainers.methods.text_lime import ENUMERATED, RIDGE, RIDGE_OF_ALL
from explainers.predictor import TextPredictor
from explainers.sequence_classifier import SequenceClassifier
from explainers.text_masks import TextOptions, cut
from explainers.types import Attribution, Feature, Span
from explainers.verdicts import Finding, gap, in_errors, package, warnings_ignored

FEWEST_TOKENS = 6
"""Below, samples of the package say too little."""

GRADIENTS = {torch.float32: 1e-4}
"""How far two ways through one network may differ in its dtype, relative to the largest score."""

LOW_PRECISION = 5e-2

INCOMPLETE = 0.05
"""How far integrated gradients may miss a prediction, relative to the larger of it and one."""


@warnings_ignored()
def lime_agrees(
    predictor: TextPredictor,
    texts: Sequence[str],
    found: Sequence[Sequence[Attribution]],  # (S, n): by seed and text
    options: TextOptions,
    samples: int,
) -> Finding:
    """Against `lime.lime_text`, word by place, with what becomes of removed words and the ridge taken from ours.

    Its own ridge of 1 hides what short texts say.
    """
    engine, ridge = package("lime.lime_text"), package("sklearn.linear_model").Ridge
    ours, theirs, errors = [], [], []
    for place, text in enumerate(texts):
        tokens = len(found[0][place].features)
        regressor = ridge(alpha=RIDGE_OF_ALL if tokens <= ENUMERATED else RIDGE)
        explainers = [_explainer(engine, options, seed) for seed in range(len(found))]
        runs = np.stack([_package_lime(each, predictor, text, tokens, samples, regressor) for each in explainers])
        mine = np.stack([answers[place].values for answers in found])  # (S, K, M)
        ours.append(mine.mean(axis=0).ravel())
        theirs.append(runs.mean(axis=0).ravel())
        errors.append(_errors(mine, runs).ravel())
    note = f"{len(texts)} texts, {len(found)} seeds, {samples} samples"
    return in_errors(np.concatenate(ours), np.concatenate(theirs), np.concatenate(errors), note)


def _explainer(engine: Any, options: TextOptions, seed: int) -> Any:
    return engine.LimeTextExplainer(
        feature_selection="none",
        split_expression=options.delimiter,
        bow=False,  # each occurrence is a token of its own
        mask_string=options.placeholder if options.removal == "placeholder" else "",
        random_state=seed,
    )


def _package_lime(
    explainer: Any, predictor: TextPredictor, text: str, tokens: int, samples: int, regressor: Any
) -> NDArray[np.float64]:  # (K, M)
    outputs = range(len(predictor.outputs))
    told = explainer.explain_instance(
        text, predictor.predict, labels=outputs, num_features=tokens, num_samples=samples, model_regressor=regressor
    )
    slopes = np.zeros((len(outputs), tokens))
    for output in outputs:
        for place, slope in told.local_exp[output]:
            slopes[output, place] = slope
    return slopes


def _errors(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:  # (S, K, M) x 2 -> (K, M)
    """Of the difference of two means over seeds: tokens are drawn alike, so none errs much less than the others do."""
    spread = ours.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)
    return np.asarray(np.sqrt(np.maximum(spread, spread.mean(axis=1, keepdims=True)) / len(ours)))


def by_definition(predictor: TextPredictor, text: str, tokens: Sequence[Span]) -> NDArray[np.float64]:  # (K, M)
    """Shapley values as they are defined: what a token adds to each set of the others, removed words deleted."""
    players, codes = len(tokens), np.arange(2 ** len(tokens))
    values = predictor.predict([_left(text, tokens, code) for code in codes.tolist()])  # (2^M, K)
    shares = np.zeros((len(predictor.outputs), players))
    for player in range(players):
        without = codes[(codes >> player & 1) == 0]
        sizes = (without[:, None] >> np.arange(players) & 1).sum(axis=1)
        odds = np.array([1 / (players * comb(players - 1, size)) for size in sizes.tolist()])
        shares[:, player] = odds @ (values[without | 1 << player] - values[without])
    return shares


def _left(text: str, tokens: Sequence[Span], code: int) -> str:
    """The text with the tokens whose bit is 0 deleted."""
    for place in reversed(range(len(tokens))):
        if not code >> place & 1:
            text = text[: tokens[place].start] + text[tokens[place].stop :]
    return text


def shap_agrees(predictor: TextPredictor, text: str, found: Attribution) -> Finding:
    """Against the definition, over all sets of the tokens of a short text."""
    tokens = cut(text, str(found.facts["delimiter"])).tokens
    theirs = by_definition(predictor, text, tokens)
    scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
    return Finding(gap(found.values, theirs), SAME_OUTPUT * scale, f"{len(tokens)} tokens")


@warnings_ignored()
def gradients_agree(model: SequenceClassifier, texts: Sequence[str], found: Sequence[Attribution]) -> Finding:
    """Against `captum.attr.IntegratedGradients` over the embeddings themselves, where ours is over their layer.

    Pieces that share a token with another are left out: how to divide it is a matter of choice.
    """
    engine, apart, scale, count = package("captum.attr").IntegratedGradients, 0.0, 0.0, 0
    for text, answer in zip(texts, found, strict=True):
        encoding = model.encode(text)
        by_token = _package_gradients(engine, model, encoding)  # (K, S)
        places = _owners(encoding, answer.features)
        for piece, tokens in places.items():
            theirs = by_token[:, tokens].sum(axis=1)
            apart = max(apart, gap(answer.values[:, piece], theirs))
            scale = max(scale, float(np.abs(theirs).max()))
        count += len(places)
    tolerance = GRADIENTS.get(model.network.dtype, LOW_PRECISION) * scale
    return Finding(apart, tolerance, f"{count} tokens of {len(texts)} texts")


def _owners(encoding: Encoding, pieces: Sequence[Feature]) -> dict[int, list[int]]:
    """The model's tokens of each piece that has its tokens for itself."""
    owners: dict[int, list[int]] = {place: [] for place in range(len(pieces))}
    for token, ((start, stop), special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True)):
        if special:
            continue
        spans = [piece.place for piece in pieces]
        met = [place for place, span in enumerate(spans) if _meet(span, start, stop)]
        for place in met:
            owners.get(place, []).append(token)
        if len(met) > 1:
            for place in met:
                owners.pop(place, None)
    return owners


def _meet(span: object, start: int, stop: int) -> bool:
    return isinstance(span, Span) and max(span.start, start) < min(span.stop, stop)


def _package_gradients(engine: Any, model: SequenceClassifier, encoding: Encoding) -> NDArray[np.float64]:  # (K, S)
    ids, there, types = model.tensors([encoding])
    token = model.pad if model.mask is None else model.mask
    if token is None:
        raise MissingCapability("the model has neither a mask nor a padding token")
    special = torch.tensor(encoding.special_tokens_mask, dtype=torch.bool, device=ids.device)[None]
    embeddings = model.network.get_input_embeddings()
    typed = {"token_type_ids": types} if getattr(model.network.config, "type_vocab_size", 0) > 1 else {}

    def forward(points: torch.Tensor) -> torch.Tensor:
        others = {"attention_mask": there, **typed}
        wide = {name: values.expand(len(points), -1) for name, values in others.items()}
        logits: torch.Tensor = model.network(inputs_embeds=points, **wide).logits.double()
        if model.kind == "value":
            return logits
        return logits.softmax(dim=-1) if model.kind == "single-label" else logits.sigmoid()

    with torch.no_grad():
        start, stop = embeddings(torch.where(special, ids, token)), embeddings(ids)
    steps = IntegratedGradientsConfig().steps
    try:
        found = [
            engine(forward).attribute(stop, start, target=output, n_steps=steps, internal_batch_size=16)
            for output in range(len(model.outputs))
        ]
    except TypeError as error:
        raise MissingCapability("the model takes token ids only, no embeddings") from error
    return np.stack([each.detach().double().sum(dim=-1)[0].cpu().numpy() for each in found])


def gradients_add_up(outputs: NDArray[np.float64], found: Sequence[Attribution]) -> Finding:  # (n, K)
    """Scores, what lies outside of all pieces and the base value, against outputs that were predicted apart."""
    sums = np.stack(
        [
            answer.values.sum(axis=1) + answer.facts["outside_pieces"] + np.asarray(answer.base_values)
            for answer in found
        ]
    )
    return Finding(gap(sums, outputs), INCOMPLETE * max(1.0, float(np.abs(outputs).max(initial=0.0))))
