"""Importing large libraries without the parts of them that are not used here.

transformers, PEFT and accelerate import whatever optional package they find, for features that a
program may never touch: scikit-learn and SciPy alone take a second of every start.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from portllm.storage.files import read_json


def leave_out(*packages: str) -> list[str]:
    """Let all that is imported from now on take `packages` for absent; return those hidden."""
    hidden = [name for name in packages if name not in sys.modules]
    # None is Python's own mark for a module that cannot be imported.
    sys.modules.update(dict.fromkeys(hidden))
    return hidden


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Leave `packages` out of what is imported in this block; they can be used after it."""
    hidden = leave_out(*packages)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def unused_in_training(model: Path) -> list[str]:
    """What training LoRA on this model does not need of what may be installed."""
    quantisers = ["bitsandbytes", "torchao"]
    quantised = "quantization_config" in read_json(model / "config.json")
    return ["sklearn", "scipy", "datasets", *([] if quantised else quantisers)]
