"""Bad input is reported in one line before any job starts."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Checkout

STUDY = "config.yaml"
Edit = Callable[[Any], Any]


def first(mapping: dict[str, Any]) -> Any:
    return next(iter(mapping.values()))


def set_parent(config: Any, child: int, parent: str) -> None:
    list(config["evolutions"].values())[child]["from"] = parent


def make_circle(config: Any) -> None:
    names = list(config["evolutions"])
    set_parent(config, 0, names[1])
    set_parent(config, 1, names[0])


def set_update(config: Any, parent: str, **adapter: str) -> Any:
    release = {"parent": parent, "adapter": adapter or {"hub": "acme/update"}}
    first(config["models"])["releases"] = {"v2": release}
    return release


CASES: dict[str, tuple[Edit, list[str]]] = {
    "unknown key": (
        lambda config: config["patch"].update(learning_rat=1),
        ["config.yaml: patch.learning_rat", "unknown key", "nearest: learning_rate"],
    ),
    "unknown key at the top": (
        lambda config: config.update(taks={}),
        ["config.yaml: taks", "unknown key", "nearest: tasks"],
    ),
    "wrong type": (
        lambda config: config["patch"].update(rank="eight"),
        ["config.yaml: patch.rank", "'eight'", "expected integer"],
    ),
    "missing key": (
        lambda config: config.pop("tasks"),
        ["config.yaml", "'tasks' is missing"],
    ),
    "no such backend": (
        lambda config: config["scoring"].update(backend="vlm"),
        ["config.yaml: scoring.backend", "'vlm'", "nearest: vllm"],
    ),
    "vllm without a GPU": (
        lambda config: config.update(scoring={"backend": "vllm"}, resources={"score": {"gpu": 0}}),
        ["config.yaml: resources.score.gpu", "found 0", "vllm needs a GPU"],
    ),
    "vllm with float32": (
        lambda config: config.update(scoring={"backend": "vllm", "dtype": "float32"}),
        ["config.yaml: scoring.dtype", "found 'float32'", "nearest: bfloat16"],
    ),
    "a chat template for a task that a patch is trained for": (
        lambda config: config["scoring"].update(chat_template=True),
        ["config.yaml: scoring.chat_template", "a patch is trained for task"],
    ),
    "turns without a chat template": (
        lambda config: first(config["tasks"]).update(fewshot_as_multiturn=True),
        ["config.yaml: tasks.", ".fewshot_as_multiturn", "no chat_template: true"],
    ),
    "DeepSpeed that is not installed": (
        lambda config: first(config["evolutions"]).update(overrides={"deepspeed": "zero3.json"}),
        ["evolutions.", "the package deepspeed", "envs/train.txt", "train.in", "fsdp_config"],
    ),
    "unknown key of Axolotl": (
        lambda config: first(config["evolutions"]).update(overrides={"lerning_rate": 1e-4}),
        [".overrides: lerning_rate is no key of Axolotl", "nearest: learning_rate"],
    ),
    "no such choice": (
        lambda config: config["patch"].update(loss_on="completions"),
        ["config.yaml: patch.loss_on", "'completions'", "nearest: completion"],
    ),
    "margin of zero": (
        lambda config: config.update(statistics={"margin": 0}),
        ["config.yaml: statistics.margin", "0", "minimum"],
    ),
    "level in per cent": (
        lambda config: config.update(statistics={"level": 95}),
        ["config.yaml: statistics.level", "95", "maximum of 1"],
    ),
    "bad name": (
        lambda config: config["tasks"].update({"a/b": {}}),
        ["config.yaml: tasks", "'a/b'", "Letters, digits"],
    ),
    "name with a line break": (
        lambda config: config["tasks"].update({"gsm8k\n": {}}),
        [r"config.yaml: tasks: found 'gsm8k\n', expected: Letters, digits"],
    ),
    "not a number": (
        lambda config: config["patch"].update(learning_rate=math.nan),
        ["config.yaml: patch.learning_rate: found nan, expected number up to 3.4e+38"],
    ),
    "number that float32 cannot hold": (
        lambda config: config["patch"].update(learning_rate=1e39),
        ["config.yaml: patch.learning_rate: found 1e+39, expected number up to 3.4e+38"],
    ),
    "seed that no generator takes": (
        lambda config: config.update(study={"seeds": [2**32]}),
        ["config.yaml: study.seeds.0: 4294967296 is greater than the maximum of 4294967295"],
    ),
    "names in place of definitions": (
        lambda config: (config.clear(), config.update(study=["demo"], arms=3)),
        ["config.yaml: defines no models or tasks"],
    ),
    "unknown task": (
        lambda config: config["tasks"].update(gsm8kk={}),
        ["config.yaml: tasks.gsm8kk", "lm-eval has no task 'gsm8kk'", "nearest: gsm8k"],
    ),
    "task without a training split": (
        lambda config: config["tasks"].update(truthfulqa_mc1={}),
        ["config.yaml: tasks.truthfulqa_mc1", "no training split"],
    ),
    "folder of tasks missing": (
        lambda config: first(config["tasks"]).update(include="resources/dmo"),
        ["config.yaml: tasks.", ".include", "no such directory: resources/dmo"],
    ),
    "missing subfolder": (
        lambda config: first(config["models"]).update(
            releases={"v2": {"path": "resources", "subfolder": "dmo"}}
        ),
        ["releases.v2.subfolder: resources has no folder 'dmo'; nearest: demo"],
    ),
    "subfolder outside": (
        lambda config: first(config["models"]).update(
            releases={"v2": {"hub": "acme/model", "subfolder": "../other"}}
        ),
        ["releases.v2.subfolder: found '../other', expected: Folder in the repository"],
    ),
    "update by an adapter without a parent": (
        lambda config: first(config["models"]).update(
            releases={"v2": {"adapter": {"hub": "acme/update"}}}
        ),
        ["releases.v2: the key 'parent' is missing"],
    ),
    "update of an unknown version": (
        lambda config: set_update(config, "lesons"),
        ["releases.v2.parent: no version named 'lesons'; nearest: lessons"],
    ),
    "updates in a circle": (
        lambda config: (
            set_update(config, "lessons"),
            config["evolutions"]["lessons"].update({"from": "v2"}),
        ),
        ["releases.v2.parent: versions form a cycle: v2 → lessons → v2"],
    ),
    "update by an adapter that is not there": (
        lambda config: set_update(config, "base", path="resources", subfolder="dmo"),
        ["releases.v2.adapter.subfolder: resources has no folder 'dmo'; nearest: demo"],
    ),
    "update by two adapters": (
        lambda config: set_update(config, "base", path="resources", hub="acme/update"),
        ["releases.v2.adapter: expected exactly one of hub, path; found hub and path"],
    ),
    "revision outside the adapter": (
        lambda config: set_update(config, "base", hub="acme/update").update(revision="main"),
        ["releases.v2.revision: expected it under `adapter`"],
    ),
    "base that has a parent": (
        lambda config: first(config["models"]).update(
            releases={"v2": {"hub": "acme/model", "parent": "base"}}
        ),
        ["releases.v2.parent: only a release with `adapter` has a parent"],
    ),
    "missing parent": (
        lambda config: set_parent(config, 0, "bas"),
        ["config.yaml: evolutions.", ".from", "no version named 'bas'", "nearest: base"],
    ),
    "circular parents": (make_circle, ["config.yaml: evolutions.", ".from", "form a cycle", "→"]),
    "unknown corpus": (
        lambda config: first(config["evolutions"]).update(corpus="lesons"),
        ["config.yaml: evolutions.", ".corpus", "no corpus named 'lesons'", "nearest: lessons"],
    ),
    "recipe missing": (
        lambda config: first(config["evolutions"]).update(recipe="config/axolotl/none.yaml"),
        ["config.yaml: evolutions.", ".recipe", "config/axolotl/none.yaml: no such file"],
    ),
    "model directory missing": (
        lambda config: config["models"].update(other={"base": {"path": "no/model"}}),
        ["config.yaml: models.other.base.path", "no such directory: no/model"],
    ),
    "two sources": (
        lambda config: config["models"].update(other={"base": {"path": "a", "hub": "b"}}),
        ["config.yaml: models.other.base", "exactly one of", "hub and path"],
    ),
    "unknown generator": (
        lambda config: first(config["corpora"])["sources"][0].update(
            generator="resources/demo/generate.py:pretrainin"
        ),
        ["config.yaml: corpora.", "generator", "'pretrainin'", "nearest: pretraining"],
    ),
    "unknown method": (
        lambda config: config.update(
            methods={"half": {"kind": "scald"}, "direct": {"kind": "direct"}}
        ),
        ["config.yaml: methods.half", "no transplant method 'scald'", "nearest: scaled"],
    ),
    "parameter of a method out of its range": (
        lambda config: config.update(
            methods={"trimmed": {"kind": "ties", "density": 2}, "direct": {"kind": "direct"}}
        ),
        ["config.yaml: methods.trimmed", "ties.density: found 2, expected a number from 0 to 1"],
    ),
    "unknown parameter of a method": (
        lambda config: config.update(
            methods={"half": {"kind": "scaled", "scal": 1}, "direct": {"kind": "direct"}}
        ),
        ["config.yaml: methods.half", "no parameter 'scal'", "nearest: scale"],
    ),
    "arm of an unknown version": (
        lambda config: config.update(
            arms={"ported": {"trained_on": "basis", "applied_to": "later"}}
        ),
        ["config.yaml: arms.ported.trained_on", "'basis'", "nearest: base"],
    ),
    "selection of an unknown model": (
        lambda config: config.update(study={"models": ["dmo"]}),
        ["config.yaml: study.models", "no model named 'dmo'", "nearest: demo"],
    ),
    "chain of an unknown corpus": (
        lambda config: config["evolutions"]["update"].update(corpus="text"),
        ["config.yaml: evolutions.update.corpus", "no corpus named 'text'", "nearest: texts"],
    ),
    "chain of no updates": (
        lambda config: config["evolutions"]["update"].update(updates=0),
        ["config.yaml: evolutions.update.updates", "0 is less than the minimum of 1"],
    ),
    "name of an update that is taken": (
        lambda config: config["evolutions"].update(
            {"update-2": dict(config["evolutions"]["lessons"])}
        ),
        ["config.yaml: evolutions.update-2", "taken by an update of the chain 'update'"],
    ),
    "evolution of an unknown task": (
        lambda config: config["evolutions"]["lessons"].update(tasks=["demo_sentimant"]),
        ["config.yaml: evolutions.lessons.tasks", "'demo_sentimant'", "nearest: demo_sentiment"],
    ),
    "part of a corpus that has fewer": (
        lambda config: config["corpora"]["texts"].update(part={"number": 3, "of": 2}),
        ["config.yaml: corpora.texts.part", "found part 3, expected 1 to 2"],
    ),
    "loss slice that leaves out the carried patch": (
        lambda config: config.update(loss_slices={"first": 0.5}),
        ["config.yaml: loss_slices.first", "0.5 is greater than the maximum of 0"],
    ),
    "table of angles by something else": (
        lambda config: config["tables"]["geometry"].update(by="modules"),
        ["config.yaml: tables.geometry.by", "'modules'", "nearest: module"],
    ),
    "merged checkpoint of no cell": (
        lambda config: config.update(
            merged=[
                {"model": "demo", "task": "nothing", "trained_on": "base", "applied_to": "base"}
            ]
        ),
        ["config.yaml: merged.0", "no cell of the study", "nothing"],
    ),
}


def refusal(checkout: Checkout, *arguments: str) -> str:
    """Run an invalid study and return the error line."""
    done = checkout.run("--cores", "1", *arguments)
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stdout
    assert "Traceback" not in done.stdout
    assert not (checkout.directory / "logs").exists(), "a job was started"
    return lines[0]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_reported_in_one_line(checkout: Checkout, case: str) -> None:
    change, expected = CASES[case]
    config = checkout.read(STUDY)
    change(config)
    checkout.write(STUDY, config)
    line = refusal(checkout)
    for part in expected:
        assert part in line


def test_a_recipe_that_does_not_parse(checkout: Checkout) -> None:
    recipe = checkout.directory / "config" / "axolotl" / "demo_lora.yaml"
    recipe.write_text("datasets: [\nlearning_rate: 1\n")
    line = refusal(checkout)
    assert "config/axolotl/demo_lora.yaml: does not parse as YAML: line 3" in line


def test_a_model_directory_without_weights(checkout: Checkout) -> None:
    model = checkout.directory / "bare"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").write_text("pickle")
    config = checkout.read(STUDY)
    config["models"]["bare"] = {"base": {"path": "bare"}}
    checkout.write(STUDY, config)
    line = refusal(checkout)
    assert "config.yaml: models.bare.base.path: bare has no weights in *.safetensors" in line
    assert "pytorch_model.bin is a pickle" in line


def test_errors_name_the_file_that_contains_the_key(checkout: Checkout, tmp_path: Path) -> None:
    top = tmp_path / "top.yaml"
    top.write_text("patch: {epoch: 3}\n")
    line = refusal(checkout, "--configfile", STUDY, str(top))
    assert f"{top}: patch.epoch: unknown key; nearest: epochs" in line


def config_refusal(checkout: Checkout, *config_files: str) -> str:
    """The one line with which config files are refused."""
    done = checkout.run("--dry-run", "--configfile", *config_files)
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if not line.startswith("Using workflow"))
    return line


@pytest.mark.parametrize(
    ("overlay", "base"),
    [
        # The study that defines what the overlay names, else the default study.
        ({"study": {"models": ["mistral-7b"]}}, "config/paper.yaml"),
        ({"patch": {"rank": 4}}, "config.yaml"),
    ],
)
def test_an_overlay_without_its_base(checkout: Checkout, overlay: Any, base: str) -> None:
    checkout.write("mine.yaml", overlay)
    assert config_refusal(checkout, "mine.yaml") == (
        "error: mine.yaml: defines no models or tasks, only changes to a study; name the study "
        f"first: --configfile {base} mine.yaml"
    )
    assert checkout.run("--dry-run", "--configfile", base, "mine.yaml").returncode == 0


def test_two_overlays_without_their_base(checkout: Checkout) -> None:
    checkout.write("mine.yaml", {"patch": {"rank": 4}})
    line = config_refusal(checkout, "mine.yaml", "config/only_mistral.yaml")
    assert line.endswith("--configfile config/paper.yaml mine.yaml config/only_mistral.yaml")


def multiplying_aliases() -> str:
    """YAML in which each of ten lists has nine aliases to the one before: 3·10⁹ values."""
    lists = [f"a{index}: &a{index} [{', '.join(9 * [f'*a{index - 1}'])}]" for index in range(1, 10)]
    return "\n".join(["a0: &a0 [x]", *lists])


def test_the_default_study_is_checked_before_snakemake_reads_it(checkout: Checkout) -> None:
    with (checkout.directory / STUDY).open("a") as file:
        file.write(f"\n{multiplying_aliases()}\n")
    assert re.match(r"error: config\.yaml: line \d+: found a value of over", refusal(checkout))


def test_task_files_and_recipes_have_limits(checkout: Checkout) -> None:
    recipe = checkout.directory / "config" / "axolotl" / "demo_lora.yaml"
    task = checkout.directory / "resources" / "demo" / "demo_arithmetic.yaml"
    for file in (recipe, task):
        original = file.read_text()
        file.write_text(f"{original}\n{multiplying_aliases()}\n")
        assert "found a value of over 1,000,000 characters" in refusal(checkout)
        file.write_text(original)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "config/papr.yaml",
            None,
            "--configfile config/papr.yaml: no such file; nearest: config/paper.yaml",
        ),
        ("config", None, "--configfile config: expected a file"),
        ("mine.yaml", "patch: {rank: 4\nstudy: {}", "mine.yaml: does not parse as YAML: line 2"),
        ("mine.yaml", "- patch", "mine.yaml: expected a mapping"),
        ("mine.yaml", multiplying_aliases(), "mine.yaml: line 6: found a value of over 1,000,000 "),
    ],
)
def test_config_files_that_cannot_be_read(
    checkout: Checkout, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (checkout.directory / name).write_text(text)
    assert config_refusal(checkout, "config.yaml", name).startswith(f"error: {message}")
