"""The request to a transplanting command, and its validation."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portllm.cli import outputs
from portllm.data import references
from portllm.errors import InputError
from portllm.weights import finite


@dataclass(frozen=True)
class Request:
    """A user's request: patches on a base model, written as an adapter or as checkpoints.

    `patches` and `base` are directories or hub ids. With `unmerge`, the patches are subtracted.
    """

    patches: list[str]
    base: str
    weights: list[float] | None = None
    method: str = "direct"
    parameters: dict[str, float | int] = field(default_factory=dict)
    adapter: Path | None = None
    checkpoints: list[Path] = field(default_factory=list)
    unmerge: bool = False
    threads: int | None = None
    push_to_hub: str | None = None
    dry_run: bool = False
    allow_other_tokenizer: bool = False
    hub_mirror: str | None = None
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: argparse.Namespace, **outputs: Any) -> "Request":
        """Build a request from parsed options, of which a command may define only some."""
        given = vars(arguments)
        same = ("method", "threads", "push_to_hub", "dry_run", "allow_other_tokenizer")
        options = {name: given[name] for name in (*same, "hub_mirror") if name in given}
        return cls(
            patches=arguments.patch,
            base=arguments.base,
            weights=given.get("weight"),
            parameters=dict(given.get("parameter", ())),
            names=dict(given.get("names", ())),
            **options,
            **outputs,
        )

    @property
    def needs_hub(self) -> bool:
        """Whether the hub is needed, for an upload or a download."""
        inputs = (self.base, *self.patches)
        remote = any(references.is_remote(text, self.hub_mirror) for text in inputs)
        return remote or self.push_to_hub is not None

    def check(self) -> None:
        """Raise InputError for contradictory options, and for outputs that would destroy data."""
        patches, checkpoints = len(self.patches), len(self.checkpoints)
        if self.push_to_hub and checkpoints != 1:
            raise InputError(
                f"--push-to-hub uploads one merged checkpoint: {checkpoints} checkpoints to write, "
                "expected one --output"
            )
        if self.weights and len(self.weights) != patches:
            raise InputError(
                f"--weight: {len(self.weights)} given, expected one for each of {patches} patches"
            )
        for weight in self.weights or ():
            finite.check_number(weight, "--weight")
        if checkpoints > 1 and checkpoints != patches:
            raise InputError(
                f"--output: {checkpoints} given, expected one (the sum of all patches) or one for "
                f"each of {patches} patches"
            )
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads: found {self.threads}, expected one or more")
        self.check_outputs([Path(text) for text in (self.base, *self.patches)])

    @property
    def outputs(self) -> list[Path]:
        """All directories to write."""
        return [*self.checkpoints, *([self.adapter] if self.adapter else [])]

    def check_outputs(self, inputs: Iterable[Path]) -> None:
        """Raise InputError for outputs that would destroy data; see `outputs.check_outputs`."""
        outputs.check_outputs(self.outputs, inputs)
