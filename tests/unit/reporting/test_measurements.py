"""Tables and figures of measurements, and of scores against scale, from numbers that are known."""

import math
from pathlib import Path

import pandas
import pytest
from exhibit_making import make_figure, make_table
from labels import assert_labels_stand_apart
from measured_weights import NAMES, save, weight
from scipy import stats

from portllm.comparison import score_table
from portllm.reporting import measurements, table_formats
from portllm.reporting.exhibits.scaling import scaled_scores
from portllm.reporting.figure_style import line_style
from portllm.storage import files

STATISTICS = {"statistics": {"level": 0.9}}


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    first = [weight(layer, name, 1.0) for layer in (0, 1, 2) for name in ("q_proj", "up_proj")]
    second = [{**row, "update_inner": 3.0} for row in first]
    return [save(tmp_path / "1.json", first), save(tmp_path / "2.json", second, seed="2")]


def test_weights_count_together_as_one_vector(tmp_path: Path) -> None:
    large = weight(1, "q_proj", 90.0, norm=10.0, update_norm=10.0, expected_cosine=0.02)
    path = save(tmp_path / "1.json", [weight(0, "q_proj", 0.0), large])
    numbers = measurements.angles([path], measurements.NAMES)
    assert numbers["update_cosine"].tolist() == pytest.approx([90 / math.sqrt(104 * 125)])
    elements = 0.01**-2 + 0.02**-2
    assert numbers["expected_cosine"].tolist() == pytest.approx([elements**-0.5])


def test_table_of_angles(sources: list[Path]) -> None:
    table = make_table("geometry", sources, {"kind": "geometry"})
    # Seeds of 0.1 and 0.3; six weights of ten thousand elements.
    assert table.text.to_numpy().tolist() == [
        [
            *("v2", "t", "+0.200 (±0.004)", "30", "40% (30%)"),
            *("+0.100 (±0.004)", "25% (12%)", "25% (12%)"),
        ]
    ]
    assert table.numbers["seeds"].tolist() == [2]
    by_module = make_table("geometry", sources, {"kind": "geometry", "by": "module"}).text
    assert by_module["module"].tolist() == ["q_proj", "up_proj"]
    latex = table_formats.to_latex(table.text, table.notes)
    assert not set("Δθ′−±") & set(latex)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    bare = weight(0, "q_proj", 0.0, update_norm=0.0, update_column_angles=[])
    bare |= dict.fromkeys(["update_column_energy", "update_column_similarity"])
    for name in [name for name in bare if name.startswith("native")]:
        bare.pop(name)
    path = save(tmp_path / "1.json", [bare, weight(1, "q_proj", 1.0)])
    by_layer = make_table("geometry", [path], {"kind": "geometry", "by": "layer"}).text
    assert by_layer["cos(Δθ, θ′ − θ)"].tolist() == ["–", "+0.100 (±0.010)"]
    assert by_layer["cos(Δθ, Δθ′)"].tolist() == ["–", "+0.100 (±0.010)"]
    assert by_layer["smallest angle, degrees"].tolist() == ["–", "30"]
    alone = make_table("geometry", [save(tmp_path / "2.json", [bare])], {"kind": "geometry"}).text
    assert alone.iloc[0, 2:].tolist() == ["–"] * 6


def test_figure_of_angles(sources: list[Path]) -> None:
    again = []
    for path in sources:
        document = files.read_json(path)
        names = {"version": "v3", "seed": document["seed"]}
        again.append(save(path.with_name(f"v3-{path.name}"), document["weights"], **names))
    figure = make_figure("geometry", [*sources, *again], {"width": 7.0, "height": 2.6}).figure
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert axes.get_xlabel() == "layer"
        assert axes.get_ylabel() in ("cosine", "multiple of random")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["q_proj"].get_ydata()) == pytest.approx([0.2, 0.2, 0.2])
    modules = [lines[name] for name in ("q_proj", "up_proj")]
    assert len({(line.get_marker(), line.get_linestyle()) for line in modules}) == 2
    # The band of random directions, and how often more than random the spaces are shared.
    assert max(lines["random"].get_ydata()) == pytest.approx(1.96 * 0.01)
    assert list(figure.axes[2].lines[0].get_ydata()) == pytest.approx([2.0, 2.0, 2.0])
    assert_labels_stand_apart(figure)


def slice_file(path: Path, version: str, seed: str, loss: float) -> Path:
    points = [
        {"t": t, "loss": loss + abs(t - 0.5), "stderr": 0.01, "n": 9}
        for t in (-0.25, 0.0, 0.5, 1.0)
    ]
    bare = {"loss": 4.0, "stderr": 0.1, "n": 9}
    names = {**NAMES, "version": version, "seed": seed}
    files.write_json(path, {**names, "un_patched": bare, "points": points, "barrier": 0.0})
    return path


def test_figure_of_loss_slices(tmp_path: Path) -> None:
    sources = [
        slice_file(tmp_path / f"{version}{seed}.json", version, seed, loss)
        for version in ("v2", "v3")
        for seed, loss in (("1", 1.0), ("2", 2.0))
    ]
    settings = {**STATISTICS, "width": 7.0, "height": 3.2}
    figure = make_figure("loss_slices", sources, settings).figure
    assert [axes.get_title() for axes in figure.axes] == [
        "v2, 2 seeds\nn = 9, un-patched: 4.00",
        "v3, 2 seeds\nn = 9, un-patched: 4.00",
    ]
    axes = figure.axes[0]
    assert list(axes.containers[0].lines[0].get_ydata()) == pytest.approx([2.25, 2.0, 1.5, 2.0])
    assert "nats per token" in axes.get_ylabel()
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    marks = {line.get_label(): line.get_xdata()[0] for line in points}
    assert marks == {"carried patch": 0.0, "re-trained patch": 1.0}
    (_, low), (_, high) = axes.containers[0].lines[2][0].get_segments()[0]
    assert (high - low) / 2 == pytest.approx(stats.norm.ppf(0.95) * 0.01)
    assert figure.legends[0].get_title().get_text() == "bars: 90 % intervals over the items"
    # All of every curve is to be seen.
    assert axes.get_ylim()[1] > 2.25
    assert_labels_stand_apart(figure)


METHODS = {
    "direct": {"kind": "direct"},
    "half": {"kind": "scaled", "scale": 0.5},
    "one": {"kind": "random_direction", "seed": 1},
    "two": {"kind": "random_direction", "seed": 2},
}


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    cells = [
        ("v2", "none", "none", 0.1),
        ("v2", "base", "direct", 0.9),
        ("v2", "base", "half", 0.6),
        ("v2", "base", "one", 0.1),
        ("v2", "base", "two", 0.3),
        # Not compared: a patch of its own, another patch, and a version without a sweep.
        ("v2", "v2", "direct", 1.0),
        ("v2", "v1", "direct", 0.2),
        ("v1", "base", "direct", 0.7),
    ]
    rows = [
        ["m", "t", version, trained_on, method, "1", "acc,none", value, 0.02, 400]
        for version, trained_on, method, value in cells
    ]
    path = tmp_path / "scores.csv"
    pandas.DataFrame(rows, columns=score_table.COLUMNS).to_csv(path, index=False)
    return path


def test_scores_against_scale(swept: Path) -> None:
    result = scaled_scores(swept, {"methods": METHODS, **STATISTICS})
    assert result[["random", "scale", "value", "runs"]].to_numpy().tolist() == [
        [False, 0.0, 0.1, 1],
        [False, 0.5, 0.6, 1],
        [False, 1.0, 0.9, 1],
        [True, 1.0, pytest.approx(0.2), 2],
    ]
    # Wilson's interval of 240 of 400.
    assert set(result["interval"]) == {"Wilson"}
    z, share, n = 1.644854, 0.6, 400
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    ends = result.loc[1, ["low", "high"]].tolist()
    assert ends == pytest.approx([middle - half, middle + half], abs=1e-5)


def test_figure_of_scale(swept: Path) -> None:
    settings = {"methods": METHODS, **STATISTICS, "width": 4.0, "height": 3.0}
    figure = make_figure("scaling", [swept], settings).figure
    (axes,) = figure.axes
    assert axes.get_title() == "v2\nt\nn = 400"
    assert figure.legends[0].get_title().get_text() == "bars: 90 % intervals over the items"
    assert axes.get_ylabel() == "score (%)"
    line, drawn = axes.containers
    assert list(line.lines[0].get_xdata()) == [0.0, 0.5, 1.0]
    assert list(line.lines[0].get_ydata()) == pytest.approx([10, 60, 90])
    assert list(drawn.lines[0].get_ydata()) == pytest.approx([20])
    assert_labels_stand_apart(figure)


def training_manifest(directory: Path, losses: list[list[float]], **names: str) -> Path:
    """Write the manifest of a patch, or of a version where no names are given."""
    stage = {"stage": "patch", "parameters": {"seed": 1}, "names": names}
    of_version = {"stage": "evolve", "parameters": {"recipe": {"seed": 7}}}
    directory.mkdir(parents=True)
    manifest = {**(stage if names else of_version), "training": {"losses": losses}}
    files.write_json(directory / "manifest.json", manifest)
    return directory


def test_figure_of_training_losses(tmp_path: Path) -> None:
    curve = [[1, 3.0], [2, 2.0], [3, 1.0]]
    sources = [
        training_manifest(tmp_path / "m/v2", curve),
        training_manifest(tmp_path / "m/v3", curve),
        training_manifest(tmp_path / "p1", curve, model="m", task="sst2", trained_on="base"),
        training_manifest(tmp_path / "p2", curve[:2], model="m", task="sst2", trained_on="v2"),
    ]
    drawing = make_figure("losses", sources, {"width": 7.0, "height": 3.2})
    axes = drawing.figure.axes
    assert [one.get_title() for one in axes] == ["updates", "sst2"]
    assert [line.get_label() for line in axes[1].lines] == ["base", "v2"]
    assert axes[1].lines[1].get_ydata().tolist() == [3.0, 2.0]
    # A version has the same style in every panel.
    assert axes[0].lines[0].get_linestyle() == axes[1].lines[1].get_linestyle()
    columns = ["model", "training", "version", "seed", "step", "loss"]
    assert drawing.numbers.columns.tolist() == columns
    assert drawing.numbers.iloc[0].tolist() == ["m", "updates", "v2", 7, 1, 3.0]
    assert_labels_stand_apart(drawing.figure)


def test_many_series_differ_in_colour_or_line() -> None:
    styles = [line_style(number) for number in range(40)]
    assert len({(style["color"], str(style["linestyle"])) for style in styles}) == 40
