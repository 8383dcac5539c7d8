"""Stop a training whose loss is not finite, and refuse one whose loss is always zero."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from portllm.errors import InputError
from portllm.storage import files
from portllm.training.interruption import logged_losses


class Divergence(TrainerCallback):
    """Ends a training with an error at the first logged loss that is NaN or infinite.

    The Trainer replaces such losses in its log unless `logging_nan_inf_filter` is off. It logs the
    mean loss since its log before, so one bad step is enough. The error is raised at the end of the
    training; list this callback after `Interruption`, which restores the signal handlers there.
    """

    def __init__(self, training: str, setting: str, record: Path | None = None) -> None:
        """Name the training.

        Args:
            training: the start of the message, such as "patch training".
            setting: the setting of the learning rate.
            record: a JSON file for the message, for a parent process.
        """
        self._training, self._setting, self._record = training, setting, record
        self._message: str | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Stop the training, without a checkpoint, if the loss is not finite."""
        # Some trainers log formatted text.
        loss = float((logs or {}).get("loss", 0.0))
        if self._message is None and not math.isfinite(loss):
            self._message = message(
                self._training,
                f"the loss is {loss} at step {state.global_step} of {state.max_steps}",
                self._setting,
                args.learning_rate,
            )
            control.should_training_stop = True
            control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Raise InputError if the training was stopped or every logged loss is zero."""
        losses = logged_losses(state)
        if self._message is None and losses and not any(loss for _, loss in losses):
            self._message = (
                f"{self._training} learned nothing: the loss is 0 at every logged step; either no "
                "token is trained on, or the attention loses packed samples (sample_packing: "
                "false avoids that)"
            )
        if self._message is not None:
            if self._record is not None and state.is_world_process_zero:
                files.write_json(self._record, {"message": self._message})
            raise InputError(self._message)


def message(training: str, symptom: str, setting: str, learning_rate: float) -> str:
    """Word the error of a diverged training."""
    return f"{training} diverged: {symptom}; lower {setting} (found {learning_rate:g})"
