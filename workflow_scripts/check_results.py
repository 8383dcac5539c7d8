"""List damaged results: truncated, emptied or changed files, and directories with files missing."""

import argparse
import sys
from pathlib import Path

from portllm.command_line import run
from portllm.storage import integrity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument(
        "--contents", action="store_true", help="also compare the SHA-256 of every file (slow)"
    )
    arguments = parser.parse_args()
    damaged = integrity.damaged(arguments.results, contents=arguments.contents)
    for path, problem in damaged:
        print(f"{path}: {problem}")
    if damaged:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
