"""Tables of every kind, as LaTeX sets them."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import measured_weights
import paired_results
import pandas
import pytest
import update_scores
from conftest import PROJECT
from exhibit_making import KINDS, make_table

from portllm.reporting import table_formats
from portllm.reporting.formatting import Table
from portllm.storage import files

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


def manifests(directory: Path) -> list[Path]:
    """Directories of a trained patch and of its port, each with its manifest."""
    packages = dict.fromkeys(("peft", "tokenizers", "torch", "transformers"), "5.16.1+cpu")
    found = []
    for stage, trained in (("patch", 20_971_520), ("transplant", 0)):
        cost = {"wall_seconds": 3600, "peak_host_bytes": 2e9, "device": "cpu", "devices": 0}
        made = {
            "stage": stage,
            "names": {"model": "mistral_7b", "task": "demo_arithmetic"},
            "trainable_parameters": trained,
            "cost": {**cost, "peak_device_bytes": []},
            "code": "0.1.0 (42443c2+)",
            "packages": packages,
        }
        (directory / stage).mkdir(parents=True)
        files.write_json(directory / stage / "manifest.json", made)
        found.append(directory / stage)
    return found


def document(path: Path, **values: Any) -> list[Path]:
    files.write_json(path, values)
    return [path]


def every_kind(directory: Path) -> dict[str, Table]:
    """A table of each kind, from the numbers of its own tests."""
    scored = paired_results.collected(
        paired_results.write(directory, paired_results.TWO_SEEDS, task="task_a")
    )
    chain = [update_scores.chain_scores(directory / "chain.csv")]
    cell = {"model": "m_1", "version": "v2", "trained_on": "base", "task": "task_a", "seed": "1"}
    norms = ("naive_norm", "naive_largest", "residual_norm", "residual_largest")
    sources = {
        **dict.fromkeys(("main", "recovery"), scored),
        **dict.fromkeys(("comparisons", "seeds"), scored[1:]),
        **dict.fromkeys(("efficiency", "costs", "provenance"), manifests(directory)),
        **dict.fromkeys(("temporal", "trend"), chain),
        "versions": document(
            directory / "versions.json",
            **{"model": "m_1", "version": "v2", "parameters": 7_241_732_096},
            **{"base_norm": 10.0, "difference_norm": 1.5, "relative": 0.15},
        ),
        "norms": document(
            directory / "norms.json", **cell, **dict.fromkeys((*norms, "relative_residual"), 12.34)
        ),
        "geometry": [
            measured_weights.save(
                directory / "geometry.json", [measured_weights.weight(0, "q_proj", 1.0)]
            )
        ],
    }
    more = {
        "comparisons": paired_results.COMPARED,
        "temporal": update_scores.TWO_ARMS,
        "trend": update_scores.TWO_ARMS,
        "efficiency": {
            "published": str(PROJECT / "resources" / "published" / "portllm_efficiency.csv")
        },
    }
    return {
        kind: make_table(kind, paths, {**paired_results.SETTINGS, **more.get(kind, {})})
        for kind, paths in sources.items()
    }


@pytest.mark.skipif(
    shutil.which("pdflatex") is None,
    reason="pdflatex is not installed (Debian: texlive-latex-base, texlive-latex-recommended)",
)
def test_tables_of_every_kind_are_set_within_the_text(tmp_path: Path) -> None:
    found = every_kind(tmp_path)
    assert found.keys() == KINDS.of_group("tables").keys()
    note = "Left out: base/mergedt0/mergedt0/results_2026-03-02T00-18-12.061183.json (50 % & <1)."
    narrow = Table(pandas.DataFrame(), pandas.DataFrame({"a": ["1"]}), (note,))
    parts = [table_formats.to_latex(table.text, table.notes) for table in (*found.values(), narrow)]
    (tmp_path / "tables.tex").write_text(DOCUMENT % "\n\\bigskip\n\n".join(parts))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    log = (tmp_path / "tables.log").read_text(errors="replace")
    for complaint in ("Overfull", "Missing character"):
        assert [line for line in log.splitlines() if complaint in line] == []
