"""Measured angles of patches and updates that are known."""

from pathlib import Path
from typing import Any

from portllm.storage import files

NAMES = {"model": "m", "version": "v2", "trained_on": "base", "task": "t"}


def weight(layer: int, module: str, inner: float, **more: Any) -> dict[str, Any]:
    shares = {
        f"{kind}_{side}_{measure}": value
        for kind in ("update", "native")
        for side in ("column", "row")
        for measure, value in (("similarity", 0.25), ("expected", 0.125), ("angles", [30.0, 80.0]))
    }
    energies = {f"update_{side}_energy": 0.4 for side in ("column", "row")}
    expected = {f"update_{side}_energy_expected": 0.3 for side in ("column", "row")}
    return {
        "weight": f"model.layers.{layer}.{module}.weight",
        "layer": layer,
        "module": module,
        "norm": 2.0,
        "expected_cosine": 0.01,
        "update_norm": 5.0,
        "update_inner": inner,
        "native_norm": 1.0,
        "native_inner": inner / 5,
        **shares,
        **energies,
        **expected,
        **more,
    }


def save(path: Path, rows: list[dict[str, Any]], **names: Any) -> Path:
    files.write_json(path, {**NAMES, "seed": "1", **names, "weights": rows})
    return path
