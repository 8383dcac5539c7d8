"""Explain why a library cannot load a model or an adapter.

transformers and PEFT raise errors of any type for a damaged file, such as a TypeError for a text
in the place of a number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from portllm.errors import InputError, out_of_memory
from portllm.storage.file_systems import disk_full_message


@contextmanager
def explained(place: str | Path, action: str) -> Iterator[None]:
    """Turn errors of a library into InputErrors that start with `place`.

    Lack of memory and a full disk keep their own messages. `action` is what fails, such as "load
    this model".
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        names = " ".join(kind.__name__ for kind in type(error).__mro__)
        if out_of_memory(f"{names}: {error}") or disk_full_message(error):
            raise
        lines = str(error).strip().splitlines() or ["no message"]
        raise InputError(
            f"{place}: cannot {action}: {type(error).__name__}: {lines[0]:.300}"
        ) from error
