"""What the command-line programs share: options, logging, the hub's switch, errors as one line."""

import argparse
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

from portllm.errors import InputError, out_of_memory
from portllm.storage.files import told_disk_is_full


def options(settings: dict[str, Any]) -> str:
    """Settings as command-line options: {"batch_size": 4} becomes `--batch-size 4`.

    None and False are left out, True is the bare option, a mapping is given as JSON.
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
    """Add `--names KEY=VALUE …`: what the study calls the thing that is made, for its manifest."""
    parser.add_argument(
        "--names",
        type=lambda text: tuple(text.split("=", 1)),
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="what the study calls it, for the manifest",
    )


def _set_environment(hub: bool) -> None:
    # These are read when the libraries are imported, so they are set before anything is.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"


def run(main: Callable[[], None], *, hub: bool = False, lighter: str = "") -> None:
    """Run a program's `main`; a mistake of the user's, or a lack of memory, ends it with one line.

    Without `hub`, the program cannot reach the model and data hubs and fails at once if it tries.
    `lighter` is what would make the program ask for less of the devices' memory.
    """
    _set_environment(hub)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    # By exception, so that what is half written is removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        full = told_disk_is_full(error)
        if full is not None:
            sys.exit(f"error: {full}; make room and run again, nothing half written is used")
        # By name: the libraries that define these errors are not imported here.
        names = " ".join(kind.__name__ for kind in type(error).__mro__)
        reason = out_of_memory(f"{names}: {error}", lighter=lighter)
        if reason is None:
            raise
        sys.exit(f"error: {reason}")
