"""Pretrain a small base model and its tokenizer from scratch on a corpus."""

import argparse
import logging
from pathlib import Path

from portllm import lazy_imports
from portllm.command_line import run
from portllm.storage import manifests
from portllm.study import schema

log = logging.getLogger("pretrain")

MEMORY_ADVICE = "a smaller batch_size or sequence_length of the model's base.from_scratch"
"""How to reduce GPU memory, for out-of-memory errors."""

SECTION = "models.*.base.from_scratch"
TRAINING = ("steps", "batch_size", "sequence_length", "learning_rate", "warmup_fraction", "seed")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines with `text`")
    schema.add_options(parser, SECTION, "config", "vocabulary_size", *TRAINING)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    lazy_imports.hide("sklearn", "scipy")
    from portllm.jobs import torch_devices

    torch_devices.check(single=True)
    import torch

    from portllm.storage import files
    from portllm.training import pretraining

    texts = [row["text"] for row in files.read_json_lines(arguments.corpus)]
    tokenizer = pretraining.train_tokenizer(texts, arguments.vocabulary_size)
    torch.manual_seed(arguments.seed)
    model = pretraining.build_model(arguments.config, tokenizer)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    log.info("%d parameters, %d tokens", model.num_parameters(), len(tokenizer))
    training = {name: getattr(arguments, name) for name in TRAINING}
    losses = pretraining.pretrain(model, tokenizer, texts, **training, log=log)
    with files.whole_directory(arguments.output) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        manifests.write_for_directory(
            directory,
            stage="base",
            parameters={**training, "config": arguments.config},
            inputs={"corpus": manifests.content_hash(arguments.corpus)},
            cost=meter.read(),
            packages=("torch", "transformers", "tokenizers"),
            parameter_count=model.num_parameters(),
            final_loss=losses[-1],
        )


if __name__ == "__main__":
    run(main, memory_advice=MEMORY_ADVICE)
