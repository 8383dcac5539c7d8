"""Score a version on one task: un-patched and with every adapter given, in one process."""

import argparse
import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from portllm import manifest
from portllm.command_line import add_names, run
from portllm.errors import InputError

log = logging.getLogger("score")

Cell = dict[str, Any]


def adapter(text: str) -> tuple[Cell, Path]:
    """Parse `trained_on/method/seed=directory`."""
    name, _, directory = text.partition("=")
    trained_on, method, seed = name.split("/")
    return {"trained_on": trained_on, "method": method, "seed": int(seed)}, Path(directory)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", type=Path, required=True, help="directory of the version")
    parser.add_argument("--task", type=Path, required=True, help="directory of the task data")
    add_names(parser)
    parser.add_argument("--lm-eval", required=True, help="the task's name in lm-eval")
    parser.add_argument("--include", help="folder of local task YAMLs")
    parser.add_argument("--allow-unsafe-code", action="store_true")
    parser.add_argument("--un-patched", action="store_true", help="score the version by itself")
    parser.add_argument(
        "--adapter",
        type=adapter,
        nargs="+",
        default=[],
        metavar="TRAINED_ON/METHOD/SEED=DIRECTORY",
        help="adapters to score, each with the names of its row",
    )
    parser.add_argument("--few-shot", type=int, default=0, help="examples in the prompt")
    parser.add_argument("--limit", type=int, help="score the first so many items")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-length", type=int, help="tokens")
    parser.add_argument("--bootstrap-iterations", type=int, default=1000)
    parser.add_argument("--results", type=Path, required=True, help="JSON to write")
    parser.add_argument("--samples", type=Path, required=True, help="JSON lines to write")
    return parser.parse_args()


def wanted_cells(arguments: argparse.Namespace) -> list[tuple[Cell, Path | None]]:
    """Names and adapter of every cell; the un-patched version has none."""
    un_patched: Cell = {"trained_on": "none", "method": "none", "seed": None}
    first: list[tuple[Cell, Path | None]] = [(un_patched, None)] if arguments.un_patched else []
    return first + arguments.adapter


def earlier_cells(arguments: argparse.Namespace) -> dict[str, tuple[Cell, list[Cell]]]:
    """Cells that an earlier run left, with their samples, by what they were made from."""
    from portllm import files

    try:
        cells = files.read_json(arguments.results)["cells"]
        rows = list(files.read_json_lines(arguments.samples))
    except (InputError, KeyError, TypeError):
        return {}
    by_key: dict[str, list[Cell]] = {}
    for row in rows:
        by_key.setdefault(row["cell"], []).append(row)
    # Every cell says how many rows it has, so a file that was cut off is not taken for whole.
    whole = (cell for cell in cells if len(by_key.get(cell["key"], ())) == cell["samples"])
    return {cell["key"]: (cell, by_key[cell["key"]]) for cell in whole}


def main() -> None:
    meter = manifest.Meter()
    arguments = parse_arguments()
    from portllm import files, ports, scoring, tasks

    packages = manifest.package_versions(("lm_eval", "torch", "transformers", "peft"))
    settings = scoring.Settings(
        **{field.name: getattr(arguments, field.name) for field in fields(scoring.Settings)}
    )
    task = tasks.load(
        arguments.lm_eval,
        include=arguments.include,
        dataset=(arguments.task / tasks.DATASET).absolute(),
        allow_unsafe_code=arguments.allow_unsafe_code,
    )
    inputs = {
        "version": manifest.content_hash(arguments.version),
        "task": manifest.content_hash(arguments.task),
        "definition": files.hash_value(
            tasks.definition_hashes(arguments.lm_eval, arguments.include)
        ),
    }
    device = manifest.device_cost()["device"]
    earlier = earlier_cells(arguments)
    model, tokenizer = scoring.load_version(arguments.version, settings.dtype)
    cells, rows = [], []
    for names, path in wanted_cells(arguments):
        content = manifest.content_hash(path) if path else None
        key = files.hash_value([names, inputs, content, asdict(settings), packages, device])[:16]
        if key in earlier:
            log.info("%s: scored before", names)
            cell, samples = earlier[key]
        else:
            log.info("%s: scoring", names)
            cell_meter = manifest.Meter()
            result = scoring.score(model, tokenizer, task, settings, adapter=path)
            samples = [{"cell": key, **names, **sample} for sample in result.samples]
            cell = {
                **names,
                "key": key,
                "adapter_content": content,
                "metrics": result.metrics,
                "samples": len(samples),
                "wall_seconds": cell_meter.read().wall_seconds,
            }
        cells.append({**cell, "applied": ports.how_applied(path)})
        rows += samples
    files.write_json_lines(arguments.samples, rows)
    document = manifest.describe(
        stage="score",
        parameters=asdict(settings),
        inputs=inputs,
        content={arguments.samples.name: files.hash_file(arguments.samples)},
        cost=meter.read(),
        packages=packages,
        names=dict(arguments.names),
        lm_eval={"task": arguments.lm_eval, "version": task.VERSION},
        cells=cells,
    )
    files.write_json(arguments.results, document)


if __name__ == "__main__":
    run(main)
