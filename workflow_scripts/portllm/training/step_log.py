"""Log the progress of a training: step, rate, loss and the time left, at most every 30 s."""

import logging
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from portllm.jobs.durations import format_duration

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 30.0
"""Seconds between two lines, the first and the last step excepted."""


class StepLog:
    """Logs a line for the first step, the last step, and every 30 s in between."""

    def __init__(
        self,
        total: int,
        *,
        first: int = 1,
        logger: logging.Logger = log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            total: the number of the last step.
            first: the number of the first step, more than 1 in a resumed training.
            logger: where the lines go.
            clock: seconds from any fixed time.
        """
        self._total, self._first = total, first
        self._logger, self._clock = logger, clock
        self._start = self._last_line = clock()
        self._steps_at_start = first - 1

    def update(self, step: int, loss: float | None = None) -> None:
        """Note that a step is done. `loss` is the training loss in nats per token, if known."""
        now = self._clock()
        is_first, is_last = step == self._first, step == self._total
        if is_first or is_last or now - self._last_line >= INTERVAL_SECONDS:
            self._last_line = now
            self._logger.info("%s", self._line(step, loss, now - self._start))
        if is_first:
            # The first step is slow: it loads kernels and allocates memory. Leave it out.
            self._start, self._steps_at_start = now, step

    def _line(self, step: int, loss: float | None, seconds: float) -> str:
        parts = [f"step {step}/{self._total}"]
        rate = (step - self._steps_at_start) / seconds if seconds > 0 else 0.0
        if rate > 0:
            parts.append(f"{rate:.1f} steps/s" if rate >= 1 else f"{rate:.2g} steps/s")
        if loss is not None:
            parts.append(f"loss {loss:.3g}")
        if rate > 0 and step < self._total:
            parts.append(f"{format_duration((self._total - step) / rate)} left")
        return ", ".join(parts)


class StepLogCallback(TrainerCallback):
    """Logs the progress of transformers' Trainer. It changes no state of the training.

    The loss is the one that the Trainer has logged last, the mean since its log before.
    """

    def __init__(self, logger: logging.Logger = log) -> None:
        self._logger = logger
        self._step_log: StepLog | None = None
        self._loss: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock."""
        if state.is_world_process_zero:
            self._step_log = StepLog(
                state.max_steps, first=state.global_step + 1, logger=self._logger
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the loss."""
        loss = (logs or {}).get("loss", self._loss)
        # Some trainers log formatted text.
        self._loss = None if loss is None else float(loss)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log a line if one is due. The last one waits for the loss of its step."""
        if self._step_log and state.global_step < state.max_steps:
            self._step_log.update(state.global_step, self._loss)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log the last step."""
        if self._step_log and state.global_step == state.max_steps:
            self._step_log.update(state.global_step, self._loss)
