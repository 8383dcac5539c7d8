"""Choices of equal log-likelihood, of which lm-eval takes the first.

In bfloat16 the best two choices of an item are often exactly equal. Which of them is chosen then
depends on their order in the task and says nothing about the model.
"""

from collections.abc import Sequence
from typing import Any

TIED = "tied"
"""Key of a sample whose first choice is tied: [worst, best] accuracy over the ways to choose."""


def best_choices(answers: Sequence[Sequence[Any]]) -> list[int]:
    """List the choices that share the highest log-likelihood.

    Args:
        answers: (log-likelihood, is greedy) of each choice.
    """
    values = [answer[0] for answer in answers]
    return [index for index, value in enumerate(values) if value == max(values)]


def accuracy_range(answers: Sequence[Sequence[Any]], target: Any, acc: float) -> list[float] | None:
    """Return the worst and best accuracy of an item over its tied choices; None without a tie.

    Args:
        answers: (log-likelihood, is greedy) of each choice.
        target: the index of the gold choice. Where a task gives anything else, the gold choice is
            assumed to be among the tied ones.
        acc: the accuracy with the first of them, 1 or 0.
    """
    best = best_choices(answers)
    if len(best) < 2:
        return None
    is_index = isinstance(target, int) and not isinstance(target, bool)
    return [0.0, 1.0 if acc or not is_index or target in best else 0.0]
