"""The key of the shared cache covers every file of the library that decides a shared output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from portllm.snakemake_hooks import output_cache
from portllm.snakemake_hooks.program_code import ProgramCode
from portllm.training import evolution

SCRIPTS = PROJECT / "workflow_scripts"

# Imports the programs, then executes the imports inside the functions of every module loaded so
# far, until no module is new.
IMPORT_EVERYTHING = """
import ast, importlib, json, sys
sys.path.insert(0, sys.argv[1])
roots = ["portllm", *sys.argv[2:]]
for program in sys.argv[2:]:
    importlib.import_module(program)
done = set()
while new := {name for name in sys.modules if name.partition(".")[0] in roots} - done:
    for name in sorted(new):
        module = sys.modules[name]
        tree = ast.parse(open(module.__file__).read())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for node in (node for function in functions for node in ast.walk(function)):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and "portllm" in ast.unparse(node):
                exec(ast.unparse(node), dict(vars(module)))
    done |= new
json.dump([sys.modules[name].__file__ for name in done], sys.stdout)
"""


def shared_files() -> list[Path]:
    return ProgramCode(SCRIPTS).files(*output_cache.PROGRAMS, output_cache.PLUGIN)


def test_every_module_that_python_imports_is_in_the_key() -> None:
    programs = [program.removesuffix(".py") for program in output_cache.PROGRAMS]
    command = [sys.executable, "-c", IMPORT_EVERYTHING, str(SCRIPTS), *programs]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {Path(name).relative_to(SCRIPTS) for name in json.loads(done.stdout)}
    assert Path("portllm/weights/adapters.py") in imported
    assert imported <= set(shared_files())


def test_the_module_that_axolotl_loads_by_name_is_in_the_key() -> None:
    module = evolution.PLUGIN.rpartition(".")[0].replace(".", "/") + ".py"
    assert Path(module) in shared_files()


def test_modules_of_stages_that_are_not_shared_are_not_in_the_key() -> None:
    names = {str(path) for path in shared_files()}
    assert {"portllm/training/patch_training.py", "portllm/data/corpora.py"} <= names
    packages = {name.split("/")[1] for name in names if "/" in name}
    assert not packages & {"scoring", "analysis", "statistics", "reporting", "snakemake_hooks"}
    assert not names & {"score.py", "plan.py", "make_table.py"}


def test_relative_imports_and_re_exports_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "portllm" / "part"
    package.mkdir(parents=True)
    (tmp_path / "portllm/__init__.py").touch()
    (package / "__init__.py").write_text("from .inner import value\n")
    (package / "inner.py").write_text("from portllm.part import deep\nvalue = deep.value\n")
    (package / "deep.py").write_text("value = 1\n")
    (package / "unused.py").touch()
    (tmp_path / "program.py").write_text("def main():\n    from portllm.part import value\n")
    monkeypatch.chdir(tmp_path.parent)  # Snakefile passes a relative path
    files = ProgramCode(Path(tmp_path.name)).files("program.py")
    assert [str(path) for path in files] == [
        "portllm/__init__.py",
        "portllm/part/__init__.py",
        "portllm/part/deep.py",
        "portllm/part/inner.py",
        "program.py",
    ]
