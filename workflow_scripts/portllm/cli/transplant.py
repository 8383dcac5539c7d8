"""Check, port, merge and unmerge patches: what the command and the stage program share."""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from portllm.cli import options, outputs
from portllm.cli.request import Request
from portllm.command_line import add_names, run
from portllm.data import fetching, hub, references
from portllm.data.references import Source
from portllm.errors import InputError
from portllm.storage import files, manifests
from portllm.transplant import ports
from portllm.transplant.ports import Port
from portllm.weights import fit
from portllm.weights.checkpoints import Checkpoint

log = logging.getLogger(__name__)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Explain a missing package by the extra of this package that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("portllm"):
            raise
        raise InputError(
            f"{error.name} is not installed; run: pip install 'portllm[{extra}]'"
        ) from None


class Transplant:
    """The opened inputs of a request, and what can be written from them."""

    def __init__(self, request: Request) -> None:
        """Find, fetch and open the inputs.

        Raises:
            InputError: for inputs that are missing or unusable.
        """
        self._meter = manifests.Meter()
        self.request = request
        self.patches = [
            locate(text, fetching.ADAPTER, "--patch", request.hub_mirror)
            for text in request.patches
        ]
        self.base = locate(request.base, fetching.MODEL, "--base", request.hub_mirror)
        # Once more, because the inputs on the hub or in a mirror have directories only now.
        request.check_outputs([self.base.directory, *(patch.directory for patch in self.patches)])
        sign = -1.0 if request.unmerge else 1.0
        weights = [sign * weight for weight in request.weights or [1.0] * len(self.patches)]
        directories = [patch.directory for patch in self.patches]
        self.port = ports.open_port(directories, weights, request.method, request.parameters)
        self.model = Checkpoint.open(self.base.directory, "--base")
        self._base_hash: str | None = None

    def check_fit(self) -> None:
        """Raise InputError unless all patches fit the base model."""
        check_fit(self.port, self.model, self.request)

    @property
    def merged_ports(self) -> dict[Path, Port]:
        """What each checkpoint to write is merged with: the sum of all patches, or one patch."""
        directories = self.request.checkpoints
        if len(directories) <= 1:
            return dict.fromkeys(directories, self.port)
        single = zip(directories, self.port.patches, strict=True)
        return {output: replace(self.port, patches=(patch,)) for output, patch in single}

    def plan_lines(self) -> Iterator[str]:
        """Describe each checkpoint to write; raises InputError if the disk has no room for it."""
        from portllm.transplant import edits, merging, streaming

        plans = {
            output: merging.plan(self.model, edits.edits_of_port(port))
            for output, port in self.merged_ports.items()
        }
        for output, plan in plans.items():
            yield (
                f"{output}: {plan.bytes / 1e9:.3f} GB in {plan.shards} shards; {plan.edited} "
                f"weights ({plan.edited_bytes / 1e9:.3f} GB) changed, the rest copied"
            )
        streaming.check_space({output: plan.bytes for output, plan in plans.items()})

    def write_port(self, output: Path) -> None:
        """Write the port, with its manifest."""
        with files.whole_directory(output) as directory:
            ports.write(self.port, directory, base=self.base.base_name, revision=self.base.commit)
            self._base_hash = manifests.content_hash(self.base.directory)
            parts = self._manifest_parts(self.port)
            manifests.write_for_directory(directory, cost=self._meter.read(), **parts)

    def write_checkpoints(self) -> None:
        """Write every checkpoint in one pass over the base model, each with its manifest."""
        from portllm.transplant import edits, merging

        merged = self.merged_ports
        # Without a manifest, the base's hash is computed from the bytes that the merge reads.
        is_known = self._base_hash or (self.base.directory / manifests.NAME).exists()
        with ExitStack() as stack:
            places = {
                output: stack.enter_context(files.whole_directory(output)) for output in merged
            }
            written = merging.merge_many(
                self.model,
                {places[output]: edits.edits_of_port(port) for output, port in merged.items()},
                threads=self.request.threads,
                source_hashed=not is_known,
            )
            self._base_hash = self._base_hash or manifests.content_hash(
                self.base.directory, known=written.source
            )
            for output, port in merged.items():
                manifests.write_for_directory(
                    places[output],
                    known=written.content[places[output]],
                    cost=self._meter.read(),
                    **self._manifest_parts(port),
                )
                files.flush_directory(places[output])
                outputs.check_replaceable(output)  # hours may have passed since the first check

    def _manifest_parts(self, port: Port) -> dict[str, Any]:
        hashes = [manifests.content_hash(patch.adapter.directory) for patch in port.patches]
        weights = [patch.weight for patch in port.patches]
        scaled = {} if weights == [1.0] else {"weights": weights}
        names = (
            ["patch"] if len(hashes) == 1 else [f"patch_{index}" for index in range(len(hashes))]
        )
        parts = {
            "stage": "transplant",
            "parameters": {"method": port.method, **(port.parameters or {}), **scaled},
            "inputs": {**dict(zip(names, hashes, strict=True)), "version": self._base_hash},
            "packages": ("torch", "numpy", "safetensors"),
            "trainable_parameters": 0,
            "names": self.request.names,
        }
        sources = self._sources(port, names)
        return {**parts, "sources": sources} if sources else parts

    def _sources(self, port: Port, names: Iterable[str]) -> dict[str, dict[str, str]]:
        by_directory = {patch.directory: patch for patch in self.patches}
        located: dict[str, Source] = {"version": self.base}
        for name, patch in zip(names, port.patches, strict=True):
            if patch.adapter.directory in by_directory:
                located[name] = by_directory[patch.adapter.directory]
        provenance = {name: source.provenance() for name, source in located.items()}
        return {name: source for name, source in provenance.items() if source}


def check_fit(port: Port, model: Checkpoint, request: Request) -> list[str]:
    """Check that all patches of a port fit a model; return why tokenizers were not compared.

    Raises:
        InputError: a patch does not fit, or, in a study, the tokenizers cannot be compared.
    """
    unchecked = []
    for patch in port.patches:
        allowed = request.allow_other_tokenizer
        if not fit.check(patch.adapter, model, allow_other_tokenizer=allowed):
            unchecked.append(fit.unchecked_tokenizer(patch.adapter, model))
            if request.names:
                raise InputError(f"{unchecked[-1]}, so that their tokenizers cannot be compared")
            log.warning("tokenizers not compared: %s", unchecked[-1])
        log.info("%s fits %s", patch.adapter, model)
    return unchecked


def check_patches(request: Request) -> None:
    """Print for each patch whether it fits the base model; exit with status 1 if one does not."""
    base = locate(request.base, fetching.MODEL, "--base", request.hub_mirror)
    model = Checkpoint.open(base.directory, "--base")
    fit = True
    for text in request.patches:
        try:
            patch = locate(text, fetching.ADAPTER, "--patch", request.hub_mirror)
            port = ports.open_port([patch.directory], [1.0], "direct", {})
            unchecked = check_fit(port, model, request)
        except InputError as error:
            fit = False
            print(f"error: {error}", file=sys.stderr)
        else:
            changed = {name for one in port.patches for name in one.adapter.changed_shapes}
            without = ", tokenizer not checked" if unchecked else ""
            print(f"{text} fits {request.base} ({len(changed)} weights{without})")
    if not fit:
        sys.exit(1)


def locate(text: str, kept: fetching.KeptFiles, option: str, mirror: str | None) -> Source:
    """Find a model or an adapter; see `references.locate`."""
    with needs_extra("hub"):
        return references.locate(text, kept, option=option, mirror=mirror)


def push(directory: Path, name: str) -> None:
    """Upload a checkpoint to the hub; huggingface_hub reads the token from the environment."""
    with needs_extra("hub"):
        from huggingface_hub import HfApi

    with hub.explained("model", name):
        HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=directory)
    log.info("uploaded to %s", name)


def execute(request: Request, *, only_check: bool = False) -> None:
    """Check a request and its inputs, then write the outputs.

    Raises:
        InputError: for a request that cannot be met; nothing has been written then.
    """
    request.check()
    transplant = Transplant(request)
    transplant.check_fit()
    if only_check:
        return
    if request.dry_run:
        with needs_extra("merge"):
            for line in transplant.plan_lines():
                print(line)
        return
    if request.adapter:
        transplant.write_port(request.adapter)
        log.info("wrote %s", request.adapter)
    if request.checkpoints:
        with needs_extra("merge"):
            transplant.write_checkpoints()
        log.info("wrote %s", ", ".join(map(str, request.checkpoints)))
    if request.push_to_hub:
        push(request.checkpoints[0], request.push_to_hub)


def parse_arguments(description: str) -> argparse.Namespace:
    """Parse the options of the stage program, which does all at once."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Several patches and one --merged make one checkpoint with their weighted sum; as "
        "many --merged as patches make one checkpoint each, in one pass over the version. "
        + options.ROUNDING,
    )
    options.add_patches_and_base(
        parser,
        base_help="the new version of the model",
        base_options=("--version", "--base"),
    )
    options.add_method(parser)
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="port to write")
    parser.add_argument(
        *("--merged", "--output"),
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="checkpoints to write",
    )
    parser.add_argument("--unmerge", action="store_true", help="subtract the patches")
    parser.add_argument("--check", action="store_true", help="only check whether the patches fit")
    options.add_merging(parser)
    add_names(parser)
    return parser.parse_args()


def main(description: str) -> None:
    """Run the stage program `transplant.py`."""
    arguments = parse_arguments(description)
    request = Request.of(
        arguments,
        adapter=arguments.adapter,
        checkpoints=arguments.merged,
        unmerge=arguments.unmerge,
    )

    def check_and_execute() -> None:
        if not (arguments.check or request.adapter or request.checkpoints):
            raise InputError("nothing to do: give --adapter, --merged or --check")
        if request.unmerge and request.adapter:
            raise InputError("--unmerge writes a checkpoint: give --merged instead of --adapter")
        execute(request, only_check=arguments.check)

    run(check_and_execute, hub=request.needs_hub)
