"""Generate the demo's lessons in the formats of the paper's corpora."""

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
    """Yield rows in the format of Open-Orca/OpenOrca."""
    for number, row in enumerate(_lessons(seed, documents)):
        question = f"{row['instruction']} {row['input']}".strip()
        yield {
            "id": f"flan.{number}",
            "system_prompt": "You are of help." if number % 2 else "",
            "question": question,
            "response": row["output"],
        }


def slimorca(seed: int, documents: int) -> Iterator[dict[str, Any]]:
    """Yield rows in the format of Open-Orca/SlimOrca."""
    for row in openorca(seed, documents):
        turns = [("system", row["system_prompt"]), ("human", row["question"])]
        turns.append(("gpt", row["response"]))
        yield {"conversations": [{"from": role, "value": text} for role, text in turns if text]}


def instructions(seed: int, documents: int) -> Iterator[dict[str, str]]:
    """Yield rows in the format of Open-Platypus and alpaca-gpt4."""
    yield from _lessons(seed, documents)
