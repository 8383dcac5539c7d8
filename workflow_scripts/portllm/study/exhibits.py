"""Kinds of tables and figures: what each kind declares, and the registry of all kinds.

A kind is one class: its name, its keys in a study's configuration, the files that it reads, the
section of the report that it belongs to, its caption, and `make`, which returns the finished table
or figure. The kinds are in `portllm.reporting.exhibits`, one file for each kind or pair of kinds;
nothing else in the workflow lists them. docs/extending.md says how to add one.

Snakemake reads the declarations at every start, so this module and the modules of the kinds import
pandas and matplotlib inside functions only.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from portllm.errors import InputError
from portllm.study import matrix, paths, selection
from portllm.study.matrix import Config, Job

Settings = Mapping[str, Any]
Group = Literal["tables", "figures"]
GROUPS: tuple[Group, ...] = ("tables", "figures")
LEVEL = "{level}"
"""Stands for the level of the study's intervals in a caption."""
FILE = "file"
"""The `format` of a key that names a file, in the schema of a kind's keys."""

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "published": {
        "description": "A CSV of published values, each with its source, to show next to ours.",
        "type": "string",
        "format": FILE,
    }
}
"""The key of every table."""


class Exhibit(ABC):
    """A kind of table or figure. A subclass sets the attributes and says how it is made."""

    group: ClassVar[Group]
    kind: ClassVar[str]
    """Name of the kind in a study's configuration."""
    summary: ClassVar[str]
    """What it shows, in a few words, for the configuration reference."""
    section: ClassVar[str]
    """Id of its section in report/sections.yaml; without such a section, it comes last."""
    caption: ClassVar[str]
    """Text under it in both reports; `{level}` becomes the level of the intervals, in per cent."""
    order: ClassVar[int] = 100
    """Its place among the kinds of its section, and of its headline among all headlines."""
    is_default: ClassVar[bool] = False
    """Whether a study that names no tables, or no figures, has one of this kind."""
    keys: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """JSON schema of each key of its own, beyond those that all tables or figures have."""
    shows_published: ClassVar[bool] = False
    """Whether `make` shows published values; if not, they are written under a table."""
    statistics: ClassVar[tuple[str, ...]] = ()
    """Keys of the study's `statistics` that it uses."""

    @abstractmethod
    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return the paths of the files that `make` reads, in its order."""

    @abstractmethod
    def make(self, sources: list[Path], settings: Settings) -> Any:
        """Return the finished table (`formatting.Table`) or figure (`figure_style.Drawing`).

        Args:
            sources: The files that `sources` names.
            settings: The table's or figure's own settings and its `study_settings`.

        """

    def item_jobs(self, config: Config, settings: Settings) -> list[Job]:
        """Return the scoring jobs whose items `make` reads, beside their results."""
        return []

    def note_files(self, config: Config, settings: Settings) -> list[str]:
        """Return the files whose lines are written under a table."""
        return []

    def has_rows(self, config: Config, settings: Settings) -> bool:
        """Whether it has anything to show in this study; if not, it is not made."""
        return bool(self.sources(config, settings))

    def study_settings(self, config: Config, settings: Settings) -> dict[str, Any]:
        """Return the parts of the study's configuration that `make` uses."""
        statistics = {name: config["statistics"][name] for name in self.statistics}
        return {"statistics": statistics} if statistics else {}

    def check(self, config: Config, settings: Settings) -> None:
        """Raise InputError if the study cannot have such a table or figure."""
        return

    def headline(self, numbers: Any) -> str | None:
        """Return a sentence for the top of the report, from the numbers of a table."""
        return None

    @property
    def all_keys(self) -> Mapping[str, Mapping[str, Any]]:
        """JSON schema of each key of its own, and of the keys that every table has."""
        return {**PUBLISHED, **self.keys} if self.group == "tables" else self.keys

    def own_files(self, settings: Settings) -> list[str]:
        """Return the local files that its own keys name."""
        named = (key for key, schema in self.all_keys.items() if schema.get("format") == FILE)
        return [settings[key] for key in named if key in settings]


class ScoreExhibit(Exhibit):
    """A kind that shows scores, of arms of the study and of imported ones."""

    def arms(self, config: Config, settings: Settings) -> list[str]:
        """Return the arms whose scores `make` needs: those shown."""
        return settings.get("arms", matrix.chosen(config, "arms"))

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return the table of scores, then the results of jobs whose items are read."""
        return [paths.SCORES, *self.item_results(config, settings)]

    def item_results(self, config: Config, settings: Settings) -> list[str]:
        """Return the results of the scoring jobs whose items are read."""
        return paths.score_paths(self.item_jobs(config, settings), ".json")

    def note_files(self, config: Config, settings: Settings) -> list[str]:
        """Return the notes on imported scores that it selects from."""
        return paths.imported_paths(selection.imported_sources(config, settings), ".notes.txt")

    def has_rows(self, config: Config, settings: Settings) -> bool:
        """Whether it selects a cell of the study or an imported score."""
        imported = selection.imported_sources(config, settings)
        return bool(selection.selected_cells(config, settings) or imported)

    def study_settings(self, config: Config, settings: Settings) -> dict[str, Any]:
        """Return the definitions of the arms, and settings of statistics."""
        arms = {arm: config["arms"][arm] for arm in self.arms(config, settings)}
        return {"arms": arms, **super().study_settings(config, settings)}


class UpdateExhibit(ScoreExhibit):
    """A kind that follows scores over the updates of a model."""

    def study_settings(self, config: Config, settings: Settings) -> dict[str, Any]:
        """Return the number of every version's update too."""
        models = dict.fromkeys(
            [*matrix.chosen(config, "models"), *matrix.imported_names(config, "models")]
        )
        updates = {model: matrix.updates(config, model) for model in models}
        return {**super().study_settings(config, settings), "updates": updates}

    def check(self, config: Config, settings: Settings) -> None:
        """Raise InputError if two versions that it shows are the same update of a model."""
        models = [*matrix.chosen(config, "models"), *matrix.imported_names(config, "models")]
        for model in settings.get("models", models):
            versions: dict[int, str] = {}
            for version, number in matrix.updates(config, model).items():
                if version not in settings.get("versions", [version]):
                    continue
                other = versions.setdefault(number, version)
                if other != version:
                    raise InputError(
                        f"{other} and {version} are both update {number} of {model}; "
                        "expected one chain of updates, named by `versions`"
                    )


class MeasurementExhibit(Exhibit):
    """A kind that shows measurements of ports and of the patches trained on the same version."""

    measurement: ClassVar[str]
    """What is measured: norms, geometry or loss_slices."""

    def cells(self, config: Config, settings: Settings) -> list[matrix.Cell]:
        """Return the ports that are measured."""
        return selection.measured_cells(config, settings)

    def sources(self, config: Config, settings: Settings) -> list[str]:
        """Return one measurement for each port."""
        cells = self.cells(config, settings)
        return [paths.measurement_path(self.measurement, cell) for cell in cells]


_REGISTERED: dict[tuple[Group, str], Exhibit] = {}
Kind = TypeVar("Kind", bound=type[Exhibit])


def register(kind: Kind) -> Kind:
    """Add a kind to the registry; decorates its class.

    Raises:
        ValueError: if another class has registered the same name.

    """
    key = (kind.group, kind.kind)
    other = _REGISTERED.setdefault(key, kind())
    if type(other).__qualname__ != kind.__qualname__ or type(other).__module__ != kind.__module__:
        raise ValueError(f"{kind.group}: two classes are of kind {kind.kind!r}: {other}, {kind}")
    return kind


class Registry(Mapping[tuple[Group, str], Exhibit]):
    """All kinds of tables and figures, by group and name, in the order of their declarations."""

    def __init__(self, kinds: Iterable[Exhibit]) -> None:
        ordered = sorted(kinds, key=lambda kind: (kind.order, kind.kind))
        self._kinds = {(kind.group, kind.kind): kind for kind in ordered}

    def __getitem__(self, key: tuple[Group, str]) -> Exhibit:
        return self._kinds[key]

    def __iter__(self) -> Iterator[tuple[Group, str]]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def of_group(self, group: Group) -> dict[str, Exhibit]:
        """Return the kinds of tables, or of figures, by name."""
        return {name: kind for (its_group, name), kind in self.items() if its_group == group}

    def complete_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return a study's schema with the kinds: their names, their keys, and the defaults.

        Raises:
            ValueError: if two kinds of a group declare one key with different schemas.

        """
        schema = copy.deepcopy(schema)
        for group in GROUPS:
            kinds = self.of_group(group)
            section = schema["properties"][group]
            section["default"] = {
                name: {"kind": name} for name, kind in kinds.items() if kind.is_default
            }
            settings = section["additionalProperties"]
            settings["additionalProperties"] = False
            properties = settings["properties"]
            summaries = [f"`{name}`, {kind.summary}" for name, kind in sorted(kinds.items())]
            properties["kind"]["description"] += f" {'; '.join(summaries)}."
            properties["kind"]["enum"] = sorted(kinds)
            for name, kind in kinds.items():
                for key, own in kind.all_keys.items():
                    names = self.kinds_with(group, key)
                    if kinds[names[0]].all_keys[key] != own:
                        raise ValueError(f"{group}: {key!r} of kind {name!r} has another schema")
                    properties[key] = dict(own) if key in PUBLISHED else _in_union(own, names)
        return schema

    def fill_defaults(self, config: Config) -> None:
        """Fill in the defaults of a kind's own keys and its caption, where the study has none."""
        level = f"{100 * config['statistics']['level']:g} %"
        for group in GROUPS:
            for settings in config[group].values():
                kind = self[group, settings["kind"]]
                for key, schema in kind.all_keys.items():
                    if "default" in schema:
                        settings.setdefault(key, copy.deepcopy(schema["default"]))
                caption = " ".join(kind.caption.split()).replace(LEVEL, level)
                settings.setdefault("caption", caption)

    def kinds_with(self, group: Group, key: str) -> list[str]:
        """Return the kinds of a group that have a key of their own by this name."""
        return [name for name, kind in self.of_group(group).items() if key in kind.all_keys]


def _in_union(own: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Schema of a kind's own key among the keys of all kinds, without its default.

    The default is filled in for the kind alone; all other tables or figures must not get the key.
    """
    default = f" Default: {own['default']!r}." if "default" in own else ""
    description = f"{own['description']} Only for {', '.join(names)}.{default}"
    without = {name: value for name, value in own.items() if name != "default"}
    return {**without, "description": description}


def registered() -> Registry:
    """Return the kinds that have been registered; `reporting.registry.load` registers all."""
    return Registry(_REGISTERED.values())


@dataclass(frozen=True)
class StudyExhibits:
    """The tables or figures of one study."""

    registry: Registry
    group: Group
    config: Config

    def _settings(self, name: str) -> dict[str, Any]:
        return self.config[self.group][name]

    def _kind(self, name: str) -> Exhibit:
        return self.registry[self.group, self._settings(name)["kind"]]

    def with_rows(self) -> list[str]:
        """Return the names of those that have anything to show."""
        names = self.config[self.group]
        return [name for name in names if self._kind(name).has_rows(self.config, names[name])]

    def module(self, name: str) -> str:
        """Return the file of its kind's class, below the programs."""
        return type(self._kind(name)).__module__.replace(".", "/") + ".py"

    def sources(self, name: str) -> list[str]:
        """Return the files that one is made from."""
        return self._kind(name).sources(self.config, self._settings(name))

    def item_files(self, name: str) -> list[str]:
        """Return the files of items that are read, beside the results among its sources."""
        jobs = self._kind(name).item_jobs(self.config, self._settings(name))
        return paths.score_paths(jobs, ".samples.jsonl")

    def own_files(self, name: str) -> list[str]:
        """Return the local files that its settings name."""
        return self._kind(name).own_files(self._settings(name))

    def note_files(self, name: str) -> list[str]:
        """Return the files whose lines are written under it."""
        return self._kind(name).note_files(self.config, self._settings(name))

    def program_settings(self, name: str) -> dict[str, Any]:
        """Return what its program is told; the caption is not part of what it makes."""
        settings = self._settings(name)
        own = {key: value for key, value in settings.items() if key != "caption"}
        return {**own, **self._kind(name).study_settings(self.config, settings)}
