"""The regular expressions for module names in an adapter's configuration.

PEFT matches each with the name of every module. Matching takes exponential time for patterns such
as `(a+)+!`, so it is tried here first, with a limit.
"""

import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from portllm.errors import InputError, shown

CPU_SECONDS = 10.0
"""Most CPU time to match all patterns with all names; a 70B model's take milliseconds."""

# As PEFT's `get_pattern_key`, `match_target_against_key` and `check_target_module_exists` do.
_FORMS = {
    "rank_pattern": r"(.*\.)?(PATTERN)$",
    "alpha_pattern": r"(.*\.)?(PATTERN)$",
    "target_modules": r"(?:PATTERN)\Z",
    "exclude_modules": r"(?:PATTERN)\Z",
    "modules_to_save": r"(^|.*\.)PATTERN($|\..*)",
    "layers_pattern": r".*?\.PATTERN\.(\d+)\.",
}
_TEXTS = ("target_modules", "exclude_modules")
"""Keys whose value is a pattern where it is a text, and a list of plain names otherwise."""


def value(config: Mapping[str, Any], patterns: str, module: str, default: Any) -> Any:
    """Return the value of the first pattern under the key `patterns` that matches a module."""
    for pattern, found in (config.get(patterns) or {}).items():
        if re.match(_FORMS[patterns].replace("PATTERN", pattern), module):
            return found
    return default


def check(config: Mapping[str, Any], modules: Iterable[str], place: str | Path) -> None:
    """Match all patterns of a configuration with the names of modules.

    Raises:
        InputError: a pattern is not a regular expression, or matching takes too long. The message
            starts with `place`.
    """
    names = list(modules)
    current = ("", "", "")
    try:
        with _cpu_limit(CPU_SECONDS):
            for current in _patterns(config):
                compiled = re.compile(current[-1])
                for name in names:
                    compiled.match(name)
    except (_TooSlowError, re.error, RecursionError, OverflowError) as error:
        key, pattern, _ = current
        problem = " that is quick to match" if isinstance(error, _TooSlowError) else f": {error}"
        raise InputError(
            f"{place}: {key}: found {shown(pattern)}, expected a regular expression{problem}"
        ) from None


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield key, pattern, and the pattern as PEFT embeds it."""
    for key, form in _FORMS.items():
        found = config.get(key) or ()
        if isinstance(found, str):
            found = [found]
        elif key in _TEXTS:
            continue
        for pattern in found:
            yield key, pattern, form.replace("PATTERN", pattern)


class _TooSlowError(Exception):
    """The limit of CPU time is reached."""


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """Raise `_TooSlowError` when the process has used more CPU time; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return

    def stop(number: int, frame: Any) -> None:
        raise _TooSlowError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
