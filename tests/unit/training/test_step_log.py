"""Lines of progress in training logs: when they come and what they say."""

import logging

import pytest
import tiny

from portllm.training import patch_training, pretraining
from portllm.training.patch_training import LoraSettings
from portllm.training.step_log import StepLog


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith("step ")]


def test_a_line_comes_first_last_and_every_30_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seconds = iter([0.0, *(10.0 + step for step in range(100))])
    step_log = StepLog(100, clock=lambda: next(seconds))
    for step in range(1, 101):
        step_log.update(step, 2.5 if step > 50 else None)
    assert lines(caplog) == [
        # The first step takes 10 s, all others 1 s.
        "step 1/100, 0.1 steps/s, 16 min left",
        "step 31/100, 1.0 steps/s, 69 s left",
        "step 61/100, 1.0 steps/s, loss 2.5, 39 s left",
        "step 91/100, 1.0 steps/s, loss 2.5, 9 s left",
        "step 100/100, 1.0 steps/s, loss 2.5",
    ]


def test_a_resumed_training_counts_its_own_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seconds = iter([0.0, 0.1, 10.1])
    step_log = StepLog(100, first=51, clock=lambda: next(seconds))
    step_log.update(51)
    step_log.update(100)
    assert lines(caplog)[-1] == "step 100/100, 4.9 steps/s"


def test_patch_training_logs_its_steps(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    directory = tiny.save_model(tmp_path_factory.mktemp("model"))
    examples = [{"prompt": "a", "completion": " b"}] * 6
    settings = LoraSettings(max_steps=6, batch_size=1, checkpoint_steps=0)
    patch_training.train(directory, examples, settings, tmp_path_factory.mktemp("work"))
    assert len(lines(caplog)) == 2


def test_pretraining_logs_its_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokenizer = tiny.tokenizer()
    model = pretraining.build_model(tiny.config(), tokenizer)
    settings = {"steps": 6, "batch_size": 2, "sequence_length": 16, "learning_rate": 1e-2}
    pretraining.pretrain(
        model, tokenizer, tiny.SENTENCES, **settings, warmup_fraction=0, seed=1, log=logging.root
    )
    first, last = lines(caplog)
    assert first.startswith("step 1/6, ")
    assert last.startswith("step 6/6, ")
    assert "loss " in last
