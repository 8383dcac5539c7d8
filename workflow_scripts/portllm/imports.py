"""Importing large libraries without the parts of them that are not used here."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Let what is imported in this block take `packages` for absent; they can be used after it.

    transformers and PEFT import whatever optional package they find, for features that a program
    may never touch: scikit-learn and SciPy alone take a second of every start.
    """
    hidden = [name for name in packages if name not in sys.modules]
    # None is Python's own mark for a module that cannot be imported.
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
