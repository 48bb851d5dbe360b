"""The attribution methods by their public name: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from explainers.language_model import LanguageModel
from explainers.methods import ablation, atman, gradient, screened
from explainers.plan import Plan
from explainers.types import AblationConfig, AtmanConfig, Attribution, Checkpoint, Prompt, ScreenedConfig


@dataclass(frozen=True, slots=True)
class Method:
    """`attribute(model, prompt, target, config, checkpoint)` blocks until done; run it on the device thread.

    `explain(plan, checkpoint)` does the same for a question that is planned already. A method that runs a `gradient`
    approximates; `exact` says whether it also runs passes for single chunks.
    """

    attribute: Callable[[LanguageModel, Prompt, str, Any, Checkpoint], Attribution]
    explain: Callable[[Plan, Checkpoint], Attribution]
    config: type[AtmanConfig]
    gradient: bool = False
    exact: bool = True
    revision: int = 1
    """Raised when the method's numbers change, so that stored answers of the old ones are not served as new."""

    @property
    def approximate(self) -> bool:
        return self.gradient


METHODS: Mapping[str, Method] = {
    "atman": Method(atman.attribute, atman.explain, AtmanConfig),
    "ablation": Method(ablation.attribute, ablation.explain, AblationConfig),
    "gradient": Method(gradient.attribute, gradient.explain, AtmanConfig, gradient=True, exact=False),
    "screened": Method(screened.attribute, screened.explain, ScreenedConfig, gradient=True),
}
