"""The tables: each kind is a function from scores or measurements to a table.

A table is its numbers (CSV) and how people read them (Markdown and LaTeX). To add a kind, write
its function and register it under its name.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas

from portllm.comparison import arm_comparisons, published, score_table
from portllm.reporting import measurement_tables, paired_tables, update_tables
from portllm.reporting.formatting import (
    ExhibitSettings,
    Table,
    column_names,
    hours_text,
    published_text,
    value_text,
    with_intervals,
)
from portllm.storage import manifests, provenance
from portllm.storage.files import read_json


def main(sources: list[Path], settings: ExhibitSettings) -> Table:
    """The paper's main table: rows are the arms of each version, columns the tasks.

    `sources` are the table of scores and, for the intervals of scores such as F1, the result files
    of scoring jobs.
    """
    numbers = with_intervals(
        score_table.of_chosen_arms(sources[0], settings), settings["statistics"]["level"]
    )
    numbers = _with_items(numbers, arm_comparisons.intervals(sources[1:], settings))
    versions = list(dict.fromkeys(score_table.read(sources[0])["applied_to"]))
    counts = score_table.item_counts(numbers)
    names = {pair: f"{name}, n = {counts[pair]}" for pair, name in column_names(numbers).items()}
    texts = [
        value_text(*row)
        for row in zip(numbers["value"], numbers["stderr"], numbers["metric"], strict=True)
    ]
    if settings.get("published"):
        numbers = published.beside(numbers, published.read(Path(settings["published"])))
        columns = ("published", "difference", "published_possible", "metric")
        rows = zip(*(numbers[column] for column in columns), strict=True)
        added = ["" if pandas.isna(row[0]) else published_text(*row) for row in rows]
        texts = [text + more for text, more in zip(texts, added, strict=True)]
    shown = numbers.assign(
        column=[names[pair] for pair in zip(numbers["task"], numbers["metric"], strict=True)],
        text=texts,
    )
    wide = shown.pivot(index=["model", "applied_to", "arm"], columns="column", values="text")
    arms = list(settings["arms"])
    models = list(dict.fromkeys(numbers["model"]))
    order = sorted(
        wide.index,
        key=lambda row: (models.index(row[0]), versions.index(row[1]), arms.index(row[2])),
    )
    wide = wide.loc[order, list(dict.fromkeys(names.values()))].fillna("–")
    text = wide.reset_index().rename(columns={"applied_to": "version"})
    return Table(numbers, text.drop(columns="model") if len(models) == 1 else text)


def _with_items(numbers: pandas.DataFrame, found: pandas.DataFrame) -> pandas.DataFrame:
    """Scores with the intervals that their items give, where these are at hand."""
    keys = [*arm_comparisons.PLACE, "arm"]
    from_items = found.set_index(keys)
    placed = numbers.set_index(keys)
    there = from_items.index.intersection(placed.index)
    # Not DataFrame.update, which keeps the other interval where the items give none.
    placed.loc[there, from_items.columns] = from_items.loc[there]
    return placed.reset_index()[list(numbers.columns)]


def versions(sources: list[Path], settings: ExhibitSettings) -> Table:
    """How far each version's weights lie from its base's, as a relative Frobenius norm."""
    numbers = pandas.DataFrame([read_json(path) for path in sources])
    text = pandas.DataFrame(
        {
            "model": numbers["model"],
            "version": numbers["version"],
            "parameters": [f"{value:,}" for value in numbers["parameters"]],
            "‖θ‖": [f"{value:.2f}" for value in numbers["base_norm"]],
            "‖θ′ − θ‖": [f"{value:.2f}" for value in numbers["difference_norm"]],
            "‖θ′ − θ‖ / ‖θ‖": [f"{value:.1%}" for value in numbers["relative"]],
        }
    )
    return Table(numbers, text)


def norms(sources: list[Path], settings: ExhibitSettings) -> Table:
    """Norms of the naive update θ′ + Δθ and of the residual Δθ′ − Δθ, per version and task.

    Seeds are averaged. The relative residual is ‖Δθ′ − Δθ‖ / ‖Δθ‖.
    """
    keys = ["model", "version", "trained_on", "task"]
    measured = pandas.DataFrame([read_json(path) for path in sources])
    grouped = measured.drop(columns="seed").groupby(keys, sort=False, as_index=False)
    numbers = grouped.mean().merge(grouped.size().rename(columns={"size": "seeds"}), on=keys)
    text = numbers[keys].assign(
        **{
            "‖θ′ + Δθ‖": [f"{value:.2f}" for value in numbers["naive_norm"]],
            "σ₁(θ′ + Δθ)": [f"{value:.2f}" for value in numbers["naive_largest"]],
            "‖Δθ′ − Δθ‖": [f"{value:.2f}" for value in numbers["residual_norm"]],
            "σ₁(Δθ′ − Δθ)": [f"{value:.2f}" for value in numbers["residual_largest"]],
            "‖Δθ′ − Δθ‖ / ‖Δθ‖": [f"{value:.2f}" for value in numbers["relative_residual"]],
        }
    )
    return Table(numbers, text.rename(columns={"trained_on": "trained on"}))


def _memory(values: pandas.Series) -> list[str]:
    return ["–" if pandas.isna(value) else f"{value / 1e9:.2f}" for value in values]


def _cost_row(directory: Path) -> dict[str, Any]:
    made = read_json(directory / manifests.NAME)
    cost, names = made["cost"], made["names"]
    peaks = cost["peak_device_bytes"]
    return {
        "model": names["model"],
        "task": names["task"],
        "arm": "porting" if made["stage"] == "transplant" else "re-fine-tuning",
        "trainable_parameters": made["trainable_parameters"],
        "devices": cost["devices"],
        "device": cost["device"],
        "peak_device_bytes": max(peaks, default=None),
        "sum_device_bytes": sum(peaks) if peaks else None,
        "peak_host_bytes": cost["peak_host_bytes"],
        # Without a device, the hours are those of the processor.
        "hours": cost["wall_seconds"] * max(cost["devices"], 1) / 3600,
    }


def efficiency(sources: list[Path], settings: ExhibitSettings) -> Table:
    """What porting costs against re-fine-tuning, read from manifests; means over versions.

    Device memory is the peak of the fullest device, and the sum of all devices' peaks; hours are
    those of all devices together.
    """
    keys = ["model", "task", "arm", "device"]
    rows = pandas.DataFrame([_cost_row(path) for path in sources])
    grouped = rows.groupby(keys, sort=False, as_index=False)
    numbers = grouped.mean().merge(grouped.size().rename(columns={"size": "jobs"}), on=keys)
    text = numbers[keys].assign(
        **{
            "trainable parameters": [f"{value:,.0f}" for value in numbers["trainable_parameters"]],
            "GB per device": _memory(numbers["peak_device_bytes"]),
            "GB, all devices": _memory(numbers["sum_device_bytes"]),
            "GB, host": _memory(numbers["peak_host_bytes"]),
            "hours": hours_text(numbers["hours"]),
            "jobs": numbers["jobs"],
        }
    )
    if settings.get("published"):
        known = pandas.read_csv(settings["published"], comment="#")
        text = pandas.concat([text.astype(object), _published_costs(known)], ignore_index=True)
        text = text.fillna("–")
    return Table(numbers, text)


def _published_costs(known: pandas.DataFrame) -> pandas.DataFrame:
    names = {"trainable_parameters": "trainable parameters", "gpu_hours": "hours"}
    names |= {"gpu_memory_gb": "GB, all devices"}
    shown = known.rename(columns=names)
    shown["device"] = ["published: " + source for source in known["source"]]
    return shown[["model", "task", "arm", "device", *names.values()]].astype(object)


def costs(sources: list[Path], settings: ExhibitSettings) -> Table:
    """What all jobs of the study cost, by stage and device."""
    numbers = provenance.costs(provenance.read(sources))
    text = numbers[["stage", "device", "jobs"]].assign(
        **{
            "hours": hours_text(numbers["hours"]),
            "hours of the longest": hours_text(numbers["longest_hours"]),
            "device hours": hours_text(numbers["device_hours"]),
            "GB, host": _memory(numbers["peak_host_bytes"]),
            "GB per device": _memory(numbers["peak_device_bytes"]),
        }
    )
    return Table(numbers, text)


def origins(sources: list[Path], settings: ExhibitSettings) -> Table:
    """Which code and packages made the artefacts of each stage."""
    numbers = provenance.origins(provenance.read(sources))
    return Table(numbers, numbers)


KINDS: dict[str, Callable[[list[Path], ExhibitSettings], Table]] = {
    "main": main,
    "recovery": paired_tables.recovery,
    "comparisons": paired_tables.comparisons,
    "seeds": paired_tables.seeds,
    "versions": versions,
    "norms": norms,
    "efficiency": efficiency,
    "costs": costs,
    "provenance": origins,
    "temporal": update_tables.temporal,
    "trend": update_tables.trend,
    "geometry": measurement_tables.geometry,
}

_LATEX = {
    "±": r"$\pm$",
    "<": "$<$",
    "–": "--",
    "−": r"$-$",
    "‖": r"$\|$",
    "θ": r"$\theta$",
    "Δ": r"$\Delta$",
    "σ₁": r"$\sigma_1$",
    "′": "$'$",
}
_FITTED = r"""%% needs \usepackage{booktabs,graphicx}
\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%%
%s%%
}
"""


def to_latex(text: pandas.DataFrame, notes: Iterable[str] = ()) -> str:
    """The table as LaTeX with booktabs rules, notes in small type under it.

    One that is wider than the text is made smaller; no table is made larger.
    """
    latex = _FITTED % text.to_latex(index=False, escape=True).strip()
    for note in notes:
        # The paragraph ends within the group, or it would be set as the text around it is.
        latex += f"\\par\\smallskip{{\\footnotesize\\sloppy\\noindent {_latex_text(note)}\\par}}\n"
    for symbol, command in _LATEX.items():
        latex = latex.replace(symbol, command)
    return latex


def _latex_text(text: str) -> str:
    # Long file names hold no spaces: a line may end after a slash or an underscore of theirs.
    special = {character: "\\" + character for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = "".join(special.get(character, character) for character in text)
    return escaped.replace("/", r"/\allowbreak{}").replace(r"\_", r"\_\allowbreak{}")


def to_markdown(text: pandas.DataFrame, notes: Iterable[str] = ()) -> str:
    """The table as Markdown, notes under it; what is text already is left as it is."""
    table = text.to_markdown(index=False, disable_numparse=True) + "\n"
    return table + "".join(f"\n{note}\n" for note in notes)
