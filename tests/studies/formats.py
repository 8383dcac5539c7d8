"""The demo's lessons in the formats of the paper's corpora."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "resources" / "demo" / "generate.py"


def _lessons(seed: int, documents: int) -> Iterator[dict[str, str]]:
    spec = importlib.util.spec_from_file_location("demo_generate", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield from module.lessons(seed, documents)


def openorca(seed: int, documents: int) -> Iterator[dict[str, str]]:
    """Rows as Open-Orca/OpenOrca has them."""
    for number, row in enumerate(_lessons(seed, documents)):
        question = f"{row['instruction']} {row['input']}".strip()
        yield {
            "id": f"flan.{number}",
            "system_prompt": "You are of help." if number % 2 else "",
            "question": question,
            "response": row["output"],
        }


def slimorca(seed: int, documents: int) -> Iterator[dict[str, Any]]:
    """Rows as Open-Orca/SlimOrca has them."""
    for row in openorca(seed, documents):
        turns = [("system", row["system_prompt"]), ("human", row["question"])]
        turns.append(("gpt", row["response"]))
        yield {"conversations": [{"from": who, "value": said} for who, said in turns if said]}


def instructions(seed: int, documents: int) -> Iterator[dict[str, str]]:
    """Rows as Open-Platypus and alpaca-gpt4 have them."""
    yield from _lessons(seed, documents)
