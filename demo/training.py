"""What the training of both demo models has in common: optimizers, learning rates, and the loop over lessons."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor

from demo.muon import Muon

WARM_UP: Final = 50
DECAY: Final = 0.2
REPORT_EVERY: Final = 25

Lesson: TypeAlias = Callable[[], tuple[Tensor, Mapping[str, float]]]
"""The loss of the next batch, and the share of right answers by what was asked."""


class Course(Protocol):
    """A part of the curriculum; it ends after ``steps``, or once ``enough`` of the answers are right."""

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def enough(self) -> float: ...


def optimizers(
    matrices: Sequence[Tensor], tables: Sequence[Tensor], scales: Sequence[Tensor], rates: tuple[float, float, float]
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and for norms and biases, at one rate each."""
    inner, embeddings, norms = rates
    groups = [{"params": tables, "lr": embeddings}, {"params": scales, "lr": norms}]
    found: list[torch.optim.Optimizer] = [Muon(matrices, inner, decay=DECAY)]
    found.append(torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0))
    for group in [group for optimizer in found for group in optimizer.param_groups]:
        group["top"] = group["lr"]
    return found


def scale_of(course: Course, inner: int, step: int, *, falling: bool) -> float:
    """Learning rates rise over the first steps; where ``falling``, they fall to a hundredth in the last two thirds."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * max(0.01, min(1.0, 1.5 * (1 - inner / course.steps))) if falling else warm


def train_stage(
    course: Course,
    lesson: Lesson,
    answers: Iterable[str],
    found: Iterable[torch.optim.Optimizer],
    step: int,
    *,
    falling: bool,
) -> int:
    """Train until the stage ends; returns the number of steps taken since the beginning of all."""
    began, average = time.monotonic(), dict.fromkeys(answers, 0.0)
    for inner in range(course.steps):
        loss, shares = lesson()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in found:
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * scale_of(course, inner, step, falling=falling)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average |= {name: 0.95 * average[name] + 0.05 * share for name, share in shares.items()}
        step += 1
        if step % REPORT_EVERY == 0:
            rights = ", ".join(f"{name} {share:.3f}" for name, share in average.items())
            passed = time.monotonic() - began
            print(f"{course.name}: step {step}, {passed:.0f} s, loss {loss.item():.3f}, right {rights}", flush=True)
        if min(average.values()) >= course.enough:
            break
    return step
