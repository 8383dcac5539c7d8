"""The hash of a program's code: what changes it, and that it is kept between starts."""

import json
import os
from pathlib import Path

import pytest

from portllm.snakemake_hooks.program_code import ProgramCode

PROGRAM = (
    '"""A program."""\nfrom portllm import part\n\n\ndef main():\n    """Do it."""\n    part.f(1)\n'
)
PART = "def f(x):\n    return x\n"


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    package = tmp_path / "scripts" / "portllm"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "part.py").write_text(PART)
    (package / "other.py").write_text("x = 1\n")
    (package.parent / "program.py").write_text(PROGRAM)
    return package.parent


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("program.py", PROGRAM.replace("Do it.", "Do it well."), False),
        ("program.py", PROGRAM.replace("part.f(1)", "part.f( 1 )  # one"), False),
        ("program.py", PROGRAM.replace("part.f(1)", "part.f(2)"), True),
        ("portllm/part.py", PART.replace("return x", "return x + 1"), True),
        ("portllm/part.py", PART + "\n\n# The end.\n", False),
        ("portllm/other.py", "x = 2\n", False),
        # A text that is a value is no docstring.
        ("portllm/part.py", PART.replace("return x", 'return "x"'), True),
    ],
)
def test_only_code_that_the_program_uses_changes_the_key(
    scripts: Path, file: str, text: str, changes: bool
) -> None:
    before = ProgramCode(scripts).key("program.py")
    (scripts / file).write_text(text)
    assert (ProgramCode(scripts).key("program.py") != before) == changes


def test_keys_are_kept_until_a_file_changes(scripts: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    key = ProgramCode(scripts, kept).key("program.py")
    document = json.loads(kept.read_text())
    assert document["keys"] == {"program.py": key}
    kept.write_text(json.dumps({**document, "keys": {"program.py": "from the file"}}))
    assert ProgramCode(scripts, kept).key("program.py") == "from the file"
    # Whatever its time.
    path = scripts / "portllm/part.py"
    status = path.stat()
    path.write_text(PART.replace("x", "y"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ProgramCode(scripts, kept).key("program.py") not in (key, "from the file")
    kept.write_text("{")
    assert ProgramCode(scripts, kept).parameter("program.py").startswith("code ")
