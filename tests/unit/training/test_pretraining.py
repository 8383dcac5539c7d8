"""Models trained from scratch: ordinary checkpoints, equal for equal seeds."""

import logging
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from portllm.errors import InputError
from portllm.training import pretraining

TOKENIZER = tiny.tokenizer()
LOG = logging.getLogger(__name__)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=60))
def test_the_tokenizer_round_trips_any_text_without_special_tokens(text: str) -> None:
    assume(not any(special in text for special in TOKENIZER.all_special_tokens))
    ids = TOKENIZER.encode(text)
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("model_type", ["mistral", "llama", "gemma2"])
def test_any_causal_architecture_is_saved_and_loaded(tmp_path: Path, model_type: str) -> None:
    directory = tiny.save_model(tmp_path / "model", model_type=model_type)
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.config.model_type == model_type
    assert model.config.vocab_size == len(tokenizer) == len(TOKENIZER)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id


def _pretrained(
    seed: int, steps: int = 30, learning_rate: float = 1e-2
) -> tuple[dict[str, torch.Tensor], list[float]]:
    torch.manual_seed(seed)
    model = pretraining.build_model(tiny.config(), TOKENIZER)
    settings = {"steps": steps, "batch_size": 4, "sequence_length": 16}
    settings["learning_rate"] = learning_rate
    losses = pretraining.pretrain(
        model, TOKENIZER, tiny.SENTENCES * 20, **settings, warmup_fraction=0.1, seed=seed, log=LOG
    )
    return model.state_dict(), losses


def test_pretraining_learns_and_is_reproducible() -> None:
    first, losses = _pretrained(1)
    again, _ = _pretrained(1)
    other, _ = _pretrained(2)
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 8}, "the key 'model_type' is missing"),
        ({"model_type": "mistral", "vocab_size": 10}, "vocab_size"),
    ],
)
def test_invalid_configurations_are_errors(config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pretraining.build_model(config, TOKENIZER)


def test_too_little_text_for_a_block_is_an_error() -> None:
    with pytest.raises(InputError, match="tokens of text, expected at least one block"):
        pretraining.pack(["short"], TOKENIZER, 1000)


def test_a_loss_that_is_not_finite_ends_a_pretraining() -> None:
    message = (
        r"^pretraining diverged: the loss is nan at step \d of 30; "
        r"lower base\.from_scratch\.learning_rate \(found 1e\+30\)$"
    )
    with pytest.raises(InputError, match=message):
        _pretrained(1, learning_rate=1e30)


def test_weights_that_are_not_finite_end_a_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step

    def overflow(optimizer: torch.optim.AdamW, *more: object) -> None:
        step(optimizer, *more)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0][0] = torch.inf

    # The loss of a step is that before its update, so that the last update is in no loss.
    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    message = r"1 of 21 weights are not finite \(first: model\.embed_tokens.*\) after 1 steps"
    with pytest.raises(InputError, match=message):
        _pretrained(1, steps=1)
