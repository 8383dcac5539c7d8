"""Train a small base model, tokenizer included, from scratch on a corpus."""

import argparse
import json
import logging
from pathlib import Path

from portllm import imports
from portllm.command_line import run
from portllm.storage import manifests

log = logging.getLogger("pretrain")

MEMORY_ADVICE = "a smaller batch_size or sequence_length of the model's base.from_scratch"
"""What would make it ask for less of a device's memory."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines with `text`")
    parser.add_argument(
        "--config",
        type=json.loads,
        required=True,
        help="JSON: model_type and other keys of transformers' model configuration",
    )
    parser.add_argument("--vocabulary-size", type=int, default=1024, help="tokens")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32, help="sequences a step")
    parser.add_argument("--sequence-length", type=int, default=64, help="tokens")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at its peak")
    parser.add_argument("--warmup-fraction", type=float, default=0.05, help="of the steps")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    imports.hide("sklearn", "scipy")
    import torch

    from portllm.storage import files
    from portllm.training import pretraining

    texts = [row["text"] for row in files.read_json_lines(arguments.corpus)]
    tokenizer = pretraining.train_tokenizer(texts, arguments.vocabulary_size)
    torch.manual_seed(arguments.seed)
    model = pretraining.build_model(arguments.config, tokenizer)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    log.info("%d parameters, %d tokens", model.num_parameters(), len(tokenizer))
    settings = {
        name: getattr(arguments, name)
        for name in (
            "steps",
            "batch_size",
            "sequence_length",
            "learning_rate",
            "warmup_fraction",
            "seed",
        )
    }
    losses = pretraining.pretrain(model, tokenizer, texts, **settings, log=log)
    with files.whole_directory(arguments.output) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        manifests.write_for_directory(
            directory,
            stage="base",
            parameters={**settings, "config": arguments.config},
            inputs={"corpus": manifests.content_hash(arguments.corpus)},
            cost=meter.read(),
            packages=("torch", "transformers", "tokenizers"),
            parameter_count=model.num_parameters(),
            final_loss=losses[-1],
        )


if __name__ == "__main__":
    run(main, memory_advice=MEMORY_ADVICE)
