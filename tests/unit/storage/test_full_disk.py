"""A full disk ends a program with one line; earlier results stay, partial ones are not used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from conftest import PROJECT

from portllm.storage import files

PROGRAMS = PROJECT / "workflow_scripts"


def on_small_disk(directory: Path, script: str, *, kilobytes: int) -> str:
    """Run a shell script with a small tmpfs mounted at `directory`; return its output."""
    directory.mkdir()
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs {directory}"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "bash", "-c", f"{mount} || exit 99\n{script}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stdout:
        pytest.skip(f"needs to mount a tmpfs (root, or user namespaces): {done.stdout.strip()}")
    return done.stdout


WRITE = f"""
import sys
sys.path.insert(0, {str(PROGRAMS)!r})
from pathlib import Path
from portllm.storage import files
from portllm.command_line import run
place = Path(sys.argv[1])

def main():
    if sys.argv[2] == "json":
        files.write_json(place / "result.json", ["x" * 200_000])
    with files.whole_directory(place / "model") as directory:
        (directory / "weights").write_bytes(b"x" * 200_000)

run(main)
"""


def test_old_results_stay_and_partial_ones_are_removed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(WRITE)
    disk = tmp_path / "disk"
    start = f"{sys.executable} {program} {disk}"
    output = on_small_disk(
        disk,
        f"echo '[\"old\"]' > {disk}/result.json\n"
        f"{start} json; echo status $?\n"
        f"{start} directory; echo status $?\n"
        f"cat {disk}/result.json; ls -A {disk}",
        kilobytes=100,
    )
    lines = output.splitlines()
    assert lines[0].startswith("error: ")
    assert "No space left on device; free some space and rerun" in lines[0]
    assert lines[1] == "status 1"
    assert "No space left on device" in lines[2]
    assert lines[3:] == ["status 1", '["old"]', "result.json"]


@pytest.mark.slow
def test_a_training_resumes_after_space_is_freed(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    rows = [{"prompt": "is it so?", "completion": " yes"}] * 8
    (tmp_path / "task").mkdir()
    files.write_json_lines(tmp_path / "task/train.jsonl", rows)
    disk = tmp_path / "disk"
    train = (
        f"{sys.executable} {PROGRAMS}/train_patch.py --model {model} --task {tmp_path}/task"
        f" --max-steps 6 --checkpoint-steps 2 --batch-size 2 --rank 2 --work {disk}/work"
        f" --output {tmp_path}/patch"
    )
    output = on_small_disk(
        disk,
        f"{train}; echo status $?\n"
        f"ls -d {tmp_path}/patch\n"
        f"mount -o remount,size=50m {disk}\n"
        f"{train}; echo status $?\n"
        f"ls -A {disk}/work",
        kilobytes=60,
    )
    first, _, second = output.partition("status 1\n")
    assert first.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in first.splitlines()[-1]
    assert "Traceback" not in output
    assert "No such file or directory" in second.splitlines()[0]
    assert "removing the incomplete checkpoint" in second
    assert second.splitlines()[-1] == "status 0"
    training = json.loads((tmp_path / "patch/manifest.json").read_text())["training"]
    assert (training["steps"], training["resumed_from_step"]) == (6, 0)
