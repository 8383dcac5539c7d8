"""Encoding of training examples, and reproducible trainings."""

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM

from portllm.errors import InputError
from portllm.study.stage_settings import batches_per_device
from portllm.training import patch_training, resuming
from portllm.training.patch_training import IGNORED, LoraSettings

TOKENIZER = tiny.tokenizer()
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=40)


def lm_eval_split(prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Split context and continuation as lm-eval does."""
    model = SimpleNamespace(backend="causal", tokenizer=TOKENIZER, add_bos_token=None)
    model.prefix_token_id = TOKENIZER.bos_token_id
    model.tok_encode = lambda text, **more: HFLM.tok_encode(model, text, **more)
    return HFLM._encode_pair(model, prompt, completion)


@settings(max_examples=100, deadline=None)
@given(prompt=TEXT.filter(str.strip), completion=TEXT)
@example(prompt="e", completion="rs").via("a token reaches over the border")
def test_the_loss_covers_the_tokens_that_lm_eval_scores(prompt: str, completion: str) -> None:
    context, continuation = lm_eval_split(prompt, completion)
    assume(continuation)
    encoded = patch_training.encode(TOKENIZER, prompt, completion, LoraSettings(max_length=10_000))
    scored = [*continuation, TOKENIZER.eos_token_id]
    assert encoded["input_ids"] == [*TOKENIZER.encode(prompt + completion), TOKENIZER.eos_token_id]
    assert encoded["input_ids"][len(context) :] == scored
    assert encoded["labels"] == [IGNORED] * len(context) + scored


@pytest.mark.parametrize(("prompt", "completion"), [("e", "r"), ("th", "e")])
def test_a_token_that_spans_prompt_and_completion_is_learned(prompt: str, completion: str) -> None:
    context, continuation = lm_eval_split(prompt, completion)
    assert not continuation
    encoded = patch_training.encode(TOKENIZER, prompt, completion, LoraSettings())
    learnt = [*TOKENIZER.encode(completion, add_special_tokens=False), TOKENIZER.eos_token_id]
    assert encoded["input_ids"] == [*context, *learnt]
    assert encoded["labels"] == [IGNORED] * len(context) + learnt


def test_long_prompts_are_truncated_at_their_start() -> None:
    whole = patch_training.encode(TOKENIZER, "word " * 50 + "end:", " yes", LoraSettings())
    cut = patch_training.encode(
        TOKENIZER, "word " * 50 + "end:", " yes", LoraSettings(max_length=12)
    )
    assert len(cut["input_ids"]) == len(cut["labels"]) == 12
    assert cut["input_ids"] == whole["input_ids"][-12:]
    assert cut["labels"] == whole["labels"][-12:]
    assert cut["labels"][0] == IGNORED
    assert cut["labels"][-1] == TOKENIZER.eos_token_id


def test_loss_on_everything() -> None:
    encoded = patch_training.encode(TOKENIZER, "a b", " c", LoraSettings(loss_on="everything"))
    assert encoded["labels"] == encoded["input_ids"]


def test_padding() -> None:
    batch = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    padded = patch_training.pad(batch, padding=2)
    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, 2, 2]]
    assert padded["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("examples", "settings", "expected"),
    [
        (10, LoraSettings(batch_size=4, epochs=2), 6),
        (10, LoraSettings(batch_size=4, epochs=2, gradient_accumulation=2), 4),
        (10, LoraSettings(batch_size=4, epochs=2, max_steps=5), 5),
    ],
)
def test_number_of_steps(examples: int, settings: LoraSettings, expected: int) -> None:
    assert patch_training.total_steps(examples, settings) == expected


@pytest.mark.parametrize(
    ("batches", "devices", "expected"),
    [
        ((4, 1), 1, (4, 1)),
        ((4, 1), 4, (1, 1)),
        ((4, 8), 4, (4, 2)),
        ((4, 2), 8, (1, 1)),
        ((6, 4), 6, (2, 2)),
    ],
)
def test_devices_divide_the_examples_of_an_update(
    batches: tuple[int, int], devices: int, expected: tuple[int, int]
) -> None:
    assert batches_per_device(*batches, devices) == expected
    assert math.prod(expected) * devices == math.prod(batches)


def test_an_update_that_cannot_be_divided_is_an_error() -> None:
    with pytest.raises(InputError, match="3 GPUs cannot share an update"):
        batches_per_device(4, 2, 3)


def _train(model: Path, work: Path, **more: object) -> tuple[dict[str, torch.Tensor], dict]:
    settings = LoraSettings(
        **{"max_steps": 4, "batch_size": 2, "learning_rate": 1e-2, "rank": 2, **more}
    )
    examples = [
        {"prompt": "is it so?", "completion": " yes"},
        {"prompt": "or?", "completion": " no"},
    ]
    trained, metrics = patch_training.train(model, examples * 4, settings, work)
    factors = {
        name: parameter.detach().clone()
        for name, parameter in trained.named_parameters()
        if parameter.requires_grad
    }
    return factors, metrics


def test_patches_are_equal_for_equal_seeds_only(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    first, _ = _train(model, tmp_path / "a", seed=1)
    again, _ = _train(model, tmp_path / "b", seed=1)
    other, _ = _train(model, tmp_path / "c", seed=2)
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all("lora_" in name for name in first)


def test_a_resumed_training_gives_the_same_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.save_model(tmp_path / "model")
    whole, _ = _train(model, tmp_path / "whole", seed=1, checkpoint_steps=2)

    pad, batches = patch_training.pad, []

    def failing_pad(batch: list, padding: int) -> dict:
        batches.append(batch)
        if len(batches) == 4:
            raise RuntimeError("the power goes out")
        return pad(batch, padding)

    monkeypatch.setattr(patch_training, "pad", failing_pad)
    with pytest.raises(RuntimeError, match="power"):
        _train(model, tmp_path / "interrupted", seed=1, checkpoint_steps=2)
    assert (tmp_path / "interrupted" / "checkpoint-2").exists()

    steps = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *more: steps.append(1) or step(self, *more)
    )
    resumed, _ = _train(model, tmp_path / "interrupted", seed=1, checkpoint_steps=2)
    assert len(steps) == 2, "steps 1 and 2 are not done again"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_training_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    model, work = tiny.save_model(tmp_path / "model"), tmp_path / "stopped"
    whole, metrics = _train(model, tmp_path / "whole", seed=1, checkpoint_steps=0)
    assert (metrics["steps"], metrics["resumed_from_step"]) == (4, 0)

    pad, batches = patch_training.pad, []

    def signalling_pad(batch: list, padding: int) -> dict:
        batches.append(batch)
        if len(batches) == 3:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return pad(batch, padding)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(patch_training, "pad", signalling_pad)
    with pytest.raises(SystemExit) as ended:
        _train(model, work, seed=1, checkpoint_steps=0)
    monkeypatch.setattr(patch_training, "pad", pad)
    assert ended.value.code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == before
    checkpoint = resuming.last_complete(work)
    # The Trainer may fetch a batch ahead.
    assert checkpoint in (work / "checkpoint-2", work / "checkpoint-3")

    resumed, metrics = _train(model, work, seed=1, checkpoint_steps=0)
    assert f"checkpoint-{metrics['resumed_from_step']}" == checkpoint.name
    assert metrics["earlier_seconds"] > 0
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("epochs", [True, False])
def test_a_training_killed_after_its_last_step_takes_no_further_one(
    tmp_path: Path, epochs: bool
) -> None:
    model, work = tiny.save_model(tmp_path / "model"), tmp_path / "work"
    # A step at a learning rate of zero would change nothing.
    settings = {"seed": 1, "checkpoint_steps": 1, "scheduler": "constant"}
    # At the end of an epoch, or in the middle of one.
    steps = {"max_steps": None, "epochs": 1} if epochs else {"max_steps": 3}
    whole, metrics = _train(model, work, **settings, **steps)
    again, repeated = _train(model, work, **settings, **steps)
    assert repeated["steps"] == metrics["steps"]
    assert repeated["resumed_from_step"] == metrics["steps"] - 1
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_flipped_byte_in_a_checkpoint_changes_no_patch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, work = tiny.save_model(tmp_path / "model"), tmp_path / "work"
    whole, _ = _train(model, work, seed=1, checkpoint_steps=1)
    weights = work / "checkpoint-3" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0x40
    weights.write_bytes(content)

    resumed, metrics = _train(model, work, seed=1, checkpoint_steps=1)
    assert metrics["resumed_from_step"] == 2
    assert "setting the damaged checkpoint aside: " in caplog.text
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_training_stops_at_the_first_loss_that_is_not_finite(tmp_path: Path) -> None:
    model, before = tiny.save_model(tmp_path / "model"), signal.getsignal(signal.SIGTERM)
    message = (
        r"^patch training diverged: the loss is nan at step [23] of 4; "
        r"lower patch\.learning_rate \(found 1e\+38\)$"
    )
    with pytest.raises(InputError, match=message):
        _train(model, tmp_path / "work", learning_rate=1e38, checkpoint_steps=1)
    assert signal.getsignal(signal.SIGTERM) == before
    assert resuming.last_complete(tmp_path / "work") is None or not any(
        resuming.damage(path) for path in (tmp_path / "work").glob("checkpoint-*")
    )


def test_an_adapter_that_is_not_finite_is_an_error_though_its_losses_are(tmp_path: Path) -> None:
    # The loss of a step is that before its update, so that one step cannot show a NaN.
    model = tiny.save_model(tmp_path / "model")
    message = (
        r"^patch training diverged: \d+ of 28 tensors of the adapter are not finite "
        r"\(first: .*lora_A.*\) after 1 steps \(loss [\d.]+\); "
        r"lower patch\.learning_rate \(found 1e\+39\)$"
    )
    with pytest.raises(InputError, match=message):
        _train(model, tmp_path / "work", learning_rate=1e39, max_steps=1)


def test_a_version_that_is_not_finite_is_not_trained_on(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    tiny.spoil(model)
    message = r"^1 of 21 weights of .*/model are not finite \(first: model\.layers\.0.*q_proj"
    with pytest.raises(InputError, match=message):
        _train(model, tmp_path / "work")
