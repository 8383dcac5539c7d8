"""The command-line options of `portllm` and of the stage program for transplanting.

This module imports nothing heavy, so that `--help` is quick.
"""

import argparse
import re
from collections.abc import Sequence

REFERENCE = "OWNER/NAME[@REVISION][:SUBFOLDER]"
"""How to write a model or an adapter on the Hugging Face Hub."""

ROUNDING = (
    "Unmerging subtracts what was merged, to within two roundings: of weights W with the change D, "
    "stored with unit roundoff u (bfloat16 2^-8, float16 2^-11, float32 2^-24), each number comes "
    "back to within u·(|W + D| + |W|), to first order in u."
)


def number_parameter(text: str) -> tuple[str, float | int]:
    """Parse `name=value`; a value written as a whole number stays one."""
    name, _, value = text.partition("=")
    return name, int(value) if re.fullmatch(r"[+-]?\d+", value) else float(value)


def add_patches_and_base(
    parser: argparse.ArgumentParser, *, base_help: str, base_options: Sequence[str] = ("--base",)
) -> None:
    """Add the options that name the patches and the model, and how they are compared."""
    parser.add_argument(
        "--patch",
        nargs="+",
        required=True,
        metavar="PATCH",
        help=f"LoRA adapters in PEFT's layout, or one port: directories or {REFERENCE}",
    )
    parser.add_argument(
        *base_options,
        dest="base",
        required=True,
        metavar="MODEL",
        help=f"{base_help}: a directory or {REFERENCE}",
    )
    parser.add_argument(
        "--allow-other-tokenizer",
        action="store_true",
        help="accept a tokenizer with another vocabulary than the patch was trained with",
    )
    parser.add_argument(
        "--hub-mirror", metavar="DIR", help="local directory laid out like the hub, used instead"
    )


def add_method(parser: argparse.ArgumentParser) -> None:
    """Add the options for the transplant method and the weights of the patches."""
    parser.add_argument(
        "--weight", type=float, nargs="+", metavar="W", help="factor of each patch; default 1"
    )
    parser.add_argument(
        "--method", default="direct", help="transplant method; default direct (add the patch)"
    )
    parser.add_argument(
        "--parameter",
        type=number_parameter,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the method",
    )


def add_merging(parser: argparse.ArgumentParser) -> None:
    """Add the options for writing checkpoints."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads that merge; default OMP_NUM_THREADS, else all cores, at most four",
    )
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the checkpoint there")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print what would be written, and check for space",
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the options of `portllm plan`."""
    parser.add_argument(
        "--configfile",
        nargs="+",
        default=[],
        metavar="FILE",
        help="the study's configuration files; default config.yaml of the workflow",
    )
    parser.epilog = "All other options are passed to Snakemake, for example --config KEY=VALUE."
