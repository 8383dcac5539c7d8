"""Save a checkpoint when a signal stops a training, and mark complete checkpoints.

transformers' own `enable_jit_checkpoint` may save between a backward pass and its optimiser step,
so that a resumed training diverges, and it ends with exit status 0.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from portllm.training import resuming

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)

POINTS = 200
"""Largest number of losses that a manifest records."""


_in_training = threading.Event()


def _block_signals_in_workers() -> None:
    # A job is stopped by signals to all its processes. If a data loader's worker ended at once, the
    # training would fail before it has saved the checkpoint.
    if _in_training.is_set():
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


os.register_at_fork(after_in_child=_block_signals_in_workers)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def logged_losses(state: TrainerState) -> list[list[float]]:
    """Return [step, loss] for every loss that the Trainer has logged, in nats per token."""
    # Some trainers log formatted text.
    return [
        [row["step"], round(float(row["loss"]), 6)] for row in state.log_history if "loss" in row
    ]


def thinned(losses: list[list[float]]) -> list[list[float]]:
    """Return at most `POINTS` evenly spread entries, the last one included."""
    stride = -(-len(losses) // POINTS) or 1
    return losses[::-1][::stride][::-1]


class Interruption(TrainerCallback):
    """Saves a checkpoint at the end of the step on SIGTERM or SIGINT, then exits with an error.

    Attributes:
        steps: steps at the end of the training.
        resumed_from_step: steps that an earlier process has done.
        earlier_seconds: wall time of that process.
        losses: [step, loss] of at most `POINTS` logged steps, those of earlier processes included.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """`seconds` returns the wall time of this process so far."""
        self.steps = 0
        self.resumed_from_step = 0
        self.earlier_seconds = 0.0
        self.losses: list[list[float]] = []
        self._seconds = seconds
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            log.warning("%s: saving a checkpoint after this step", signal.strsignal(number))
        self._signal = number

    def _is_to_stop(self, device: torch.device) -> bool:
        if not _distributed():
            return self._signal is not None
        # All processes stop after the same step, whichever of them got the signal first.
        signalled = torch.tensor(int(self._signal is not None), device=device)
        torch.distributed.all_reduce(signalled, op=torch.distributed.ReduceOp.MAX)
        return bool(signalled)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Install the signal handlers; Axolotl's own would exit with status 0."""
        self.resumed_from_step = state.global_step
        if state.global_step:
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            self.earlier_seconds = resuming.read_seal(checkpoint).get("seconds", 0.0)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        _in_training.set()
        if state.global_step:
            log.info("resumed after step %d of %d", state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Make the Trainer save and stop if a signal has arrived."""
        if self._is_to_stop(args.device):
            self._signal = self._signal or signal.SIGTERM
            control.should_save = control.should_training_stop = True
        self._skip_last(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Do not save a checkpoint of the last step."""
        self._skip_last(state, control)

    @staticmethod
    def _skip_last(state: TrainerState, control: TrainerControl) -> None:
        # The Trainer looks at the number of steps after a step only. If it resumes in the middle of
        # an epoch after the last one, it takes another.
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Mark the checkpoint as complete when every process has written its part."""
        if _distributed():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            seconds = round(self.earlier_seconds + self._seconds(), 3)
            resuming.seal(checkpoint, step=state.global_step, seconds=seconds)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Exit with an error if a signal stopped the training before its last step."""
        self.steps = state.global_step
        self.losses = thinned(logged_losses(state))
        _in_training.clear()
        # The handler of SIGINT is not restored, because Axolotl's would exit with status 0.
        signal.signal(signal.SIGTERM, self._previous[signal.SIGTERM])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._signal is not None and state.global_step < state.max_steps:
            log.warning(
                "stopped after step %d of %d; rerun to resume from there",
                state.global_step,
                state.max_steps,
            )
            raise SystemExit(128 + self._signal)

    def summary(self) -> dict[str, Any]:
        """Return the attributes, for a manifest."""
        return {
            "steps": self.steps,
            "resumed_from_step": self.resumed_from_step,
            "earlier_seconds": self.earlier_seconds,
            "losses": self.losses,
        }
