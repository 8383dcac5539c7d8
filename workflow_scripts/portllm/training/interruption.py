"""Trainings that end on a signal with a checkpoint, and checkpoints that say that they are whole.

transformers has `enable_jit_checkpoint` for the former. It may save between a backward pass and
its step, from where a resumed training goes another way, and it ends as if all had been done.
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


_in_training = threading.Event()


def _leave_signals_to_the_parent() -> None:
    # Who stops a job signals all of its processes. A data loader's worker that ended at once would
    # take the training with it before the checkpoint is written.
    if _in_training.is_set():
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


os.register_at_fork(after_in_child=_leave_signals_to_the_parent)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class Interruption(TrainerCallback):
    """On SIGTERM or SIGINT, a checkpoint at the end of the step and an exit status that is not 0.

    `seconds` tells how long the process has been at work. After the training, `steps` has been
    reached, of which `resumed_from_step` were done by an earlier process in `earlier_seconds`.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.steps = 0
        self.resumed_from_step = 0
        self.earlier_seconds = 0.0
        self._seconds = seconds
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            log.warning("%s: a checkpoint is written after this step", signal.strsignal(number))
        self._signal = number

    def _is_to_stop(self, device: torch.device) -> bool:
        if not _distributed():
            return self._signal is not None
        # All processes stop after the same step, whichever of them has been told first.
        told = torch.tensor(int(self._signal is not None), device=device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return bool(told)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take over the signals, from Axolotl too: its own handler ends with status 0."""
        self.resumed_from_step = state.global_step
        if state.global_step:
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            self.earlier_seconds = resuming.read_seal(checkpoint).get("seconds", 0.0)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        _in_training.set()
        if state.global_step:
            log.info("resumed after step %d of %d", state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Let the Trainer save and stop where a signal has come."""
        if self._is_to_stop(args.device):
            self._signal = self._signal or signal.SIGTERM
            control.should_save = control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Seal the checkpoint when every process has written its part."""
        if _distributed():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            seconds = round(self.earlier_seconds + self._seconds(), 3)
            resuming.seal(checkpoint, step=state.global_step, seconds=seconds)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End the process where a signal has stopped the training before its last step."""
        self.steps = state.global_step
        _in_training.clear()
        # SIGINT is not given back to Axolotl, which would end with status 0.
        signal.signal(signal.SIGTERM, self._previous[signal.SIGTERM])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._signal is not None and state.global_step < state.max_steps:
            log.warning(
                "stopped after step %d of %d; run again to resume from there",
                state.global_step,
                state.max_steps,
            )
            raise SystemExit(128 + self._signal)

    def described(self) -> dict[str, float | int]:
        """What a manifest says of the training."""
        return {
            "steps": self.steps,
            "resumed_from_step": self.resumed_from_step,
            "earlier_seconds": self.earlier_seconds,
        }
