"""Hide optional packages from large libraries, to start programs faster.

transformers, PEFT and accelerate import every optional package they find. scikit-learn and SciPy
alone cost a second of every start.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from portllm.storage.files import read_json


def hide(*packages: str) -> list[str]:
    """Make later imports of `packages` fail; return those hidden (not imported before)."""
    hidden = [name for name in packages if name not in sys.modules]
    # Python refuses to import a module whose entry is None.
    sys.modules.update(dict.fromkeys(hidden))
    return hidden


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Hide `packages` from imports inside the block only."""
    hidden = hide(*packages)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def unused_in_training(model: Path) -> list[str]:
    """List optional packages that LoRA training on this model does not need."""
    quantisers = ["bitsandbytes", "torchao"]
    quantised = "quantization_config" in read_json(model / "config.json")
    return ["sklearn", "scipy", "datasets", *([] if quantised else quantisers)]
