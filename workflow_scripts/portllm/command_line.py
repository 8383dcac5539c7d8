"""Shared start of all programs: options, logging, offline mode, one-line errors."""

import argparse
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

from portllm import credentials
from portllm.errors import InputError, out_of_memory, worded
from portllm.storage.file_systems import disk_full_message


def options(settings: dict[str, Any]) -> str:
    """Write settings as command-line options: {"batch_size": 4} becomes `--batch-size 4`.

    None and False are omitted, True becomes a flag, a mapping becomes JSON.
    """
    words = []
    for name, value in settings.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            values = value if isinstance(value, list) else [value]
            words += [json.dumps(item) if isinstance(item, dict) else str(item) for item in values]
    return shlex.join(words)


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add `--names KEY=VALUE …`, the output's names in the study, recorded in its manifest."""
    parser.add_argument(
        "--names",
        type=lambda text: tuple(text.split("=", 1)),
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="the output's names in the study, for its manifest",
    )


def _set_environment(hub: bool) -> None:
    # The libraries read these variables on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
        credentials.drop()


def run(main: Callable[[], None], *, hub: bool = False, memory_advice: str = "") -> None:
    """Run a program's `main`; exit with one line on bad input, lack of memory or a file's error.

    SIGTERM and SIGINT end `main` by an exception. Afterwards, both are ignored: the program ends.

    Args:
        main: the program.
        hub: whether the program may use the Hugging Face Hub; without it, any access fails at once,
            and the environment holds no credentials.
        memory_advice: settings that reduce the program's GPU memory, for the error line.
    """
    _set_environment(hub)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    # An exception, so that context managers remove partial outputs.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        disk_full = disk_full_message(error)
        if disk_full is not None:
            sys.exit(f"error: {disk_full}; free some space and rerun")
        # Class names, because the libraries that define these errors are not imported here.
        names = " ".join(kind.__name__ for kind in type(error).__mro__)
        reason = out_of_memory(f"{names}: {error}", memory_advice=memory_advice)
        if reason is None and isinstance(error, OSError) and error.filename is not None:
            reason = worded(error)
        if reason is None:
            raise
        sys.exit(f"error: {reason}")
    finally:
        # The result is complete or removed. What is left are Python's and the libraries' own last
        # functions, in which an exception would be printed as a traceback. Not SIG_IGN, which
        # processes started later would inherit.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
