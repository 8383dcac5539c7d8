"""Checkouts that use one shared cache while entries are damaged and runs are killed.

`python cache_storm.py DIRECTORY SEED RUNS`, with Snakemake's interpreter and the library on its
path. Each run is a forked process that does with a few artefacts what Snakemake does, through the
workflow's own cache. Prints the counts and what broke as JSON.
"""

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import snakemake.cli  # noqa: F401 - imports the modules of Snakemake in an order that works
from snakemake.exceptions import CacheMissException, WorkflowError

import portllm
from portllm.snakemake_hooks import cache_adapter, cache_entries, cache_links, output_cache
from portllm.storage import files, manifests

SCRIPTS = Path(portllm.__file__).parents[1]
KEYS = ("base", "patch")
CHECKOUTS = 3
DAMAGES = ("flip", "flip and hide", "cut", "no record", "nest", "empty", "swap")


class KeyedCache(cache_adapter.SharedCache):
    """The cache under given keys, which Snakemake would compute from a job."""

    async def get_outputfiles_and_cachefiles(self, job: SimpleNamespace) -> list[tuple[Path, Path]]:
        return [(job.artefact, self.path / job.key)]


def make(artefact: Path, key: str) -> None:
    """Train: the bytes differ from run to run, and tell whether they are whole."""
    body = os.urandom(20_000)
    with files.whole_directory(artefact) as partial:
        digest = hashlib.sha256(body).hexdigest().encode()
        (partial / "weights.safetensors").write_bytes(digest + body)
        cost = manifests.Meter().read()
        manifests.write_for_directory(
            partial, stage=key, parameters={}, inputs={}, content_at=time.time(), cost=cost
        )


def is_whole(artefact: Path) -> bool:
    """Whether weights are those that some run has made."""
    try:
        content = (artefact / "weights.safetensors").read_bytes()
        json.loads((artefact / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    return content[:64] == hashlib.sha256(content[64:]).hexdigest().encode()


def run(checkout: Path, cache: Path) -> int:
    """Do what a run of the workflow does; return the number of results that it used unwhole.

    A result that is not whole at the end must be noticed by the next start.
    """
    results = checkout / "results"
    environment = {output_cache.VARIABLE: str(cache)}
    output_cache.prepare(environment, SCRIPTS)
    os.environ.update(environment)
    cache_adapter.install(results)
    files.remove_leftovers(results)
    shared = KeyedCache()
    damaged = dict(cache_links.damaged(results, update=True))
    for key in KEYS:
        artefact, incomplete = results / key, checkout / f"{key}.incomplete"
        job = SimpleNamespace(artefact=artefact, key=key)
        if artefact in damaged:
            incomplete.touch()
        if incomplete.exists():
            shutil.rmtree(artefact, ignore_errors=True)
        if not artefact.exists():
            incomplete.touch()
            try:
                asyncio.run(shared.fetch(job))
            except CacheMissException:
                make(artefact, key)
                try:
                    asyncio.run(shared.store(job))
                except WorkflowError:
                    continue  # the job has failed, and is run again
            incomplete.unlink()
    done = [results / key for key in KEYS if not (checkout / f"{key}.incomplete").exists()]
    unwhole = [artefact for artefact in done if not is_whole(artefact)]
    noticed = dict(cache_links.damaged(results, update=False))
    # Another run may be replacing an entry just now.
    unnoticed = [path for path in unwhole if path not in noticed and not is_whole(path)]
    return len(unnoticed)


def damage(entry: Path, chance: random.Random) -> bool:
    """Damage an entry; return False if another process is replacing it."""
    kind = chance.choice(DAMAGES)
    weights, record = entry / "content/weights.safetensors", entry / "entry.json"
    try:
        status = weights.stat()
        if kind == "flip and hide" and time.time() - status.st_ctime < 0.2:
            # Not promised: the run that has just stored it trusts its own hashes.
            kind = "flip"
        if kind.startswith("flip"):
            with weights.open("r+b") as file:
                place = chance.randrange(64, status.st_size)
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 1 << chance.randrange(8)]))
            if kind == "flip and hide":
                os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif kind == "cut":
            os.truncate(chance.choice((weights, record)), chance.randrange(status.st_size))
        elif kind == "no record":
            record.unlink()
        elif kind == "nest":
            shutil.copytree(entry / "content", entry / entry.name)
        elif kind == "empty":
            shutil.rmtree(entry)
            entry.mkdir()
        else:
            weights.with_name("copy").write_bytes(os.urandom(status.st_size))
            weights.with_name("copy").replace(weights)
    except OSError:
        return False
    return True


def start(checkout: Path, cache: Path) -> int:
    """Fork a run of a checkout; its exit status is the number of results it used unwhole."""
    child = os.fork()
    if child:
        return child
    status = 100
    try:
        with (checkout / "log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            status = run(checkout, cache)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)


def problems_after(checkouts: list[Path], cache: Path) -> list[str]:
    """Run every checkout to its end without attacks; list what is wrong after that."""
    problems = []
    for staging in cache.glob(f"*/{cache_entries.STAGING}*"):
        # Of processes that were killed before they could lock anything.
        os.utime(staging, (0, 0))
    for checkout in checkouts:
        status = os.waitstatus_to_exitcode(os.waitpid(start(checkout, cache), 0)[1])
        if status:
            problems.append(f"{checkout.name} ended with status {status} after the storm")
        artefacts = [checkout / "results" / key for key in KEYS]
        problems += [f"{path} is not whole" for path in artefacts if not is_whole(path)]
        problems += [f"left {path}" for path in checkout.rglob("*.partial-*")]
        log = (checkout / "log").read_text()
        if "Traceback" in log:
            problems.append(f"{checkout.name}: {log[log.index('Traceback') :][:3000]}")
    (folder,) = cache.iterdir()
    quarantine = folder / cache_entries.QUARANTINE
    for path in folder.iterdir():
        if path.name in KEYS:
            cache_entries.check(path, cache_entries.Access(), contents=True)
            open_to_others = [part for part in path.rglob("*") if part.lstat().st_mode & 0o077]
            problems += [f"{part} is open to others" for part in open_to_others]
        elif path != quarantine:
            problems.append(f"left {path}")
    for path in quarantine.glob("*"):
        if path.suffix != ".txt" and not Path(f"{path}.reason.txt").exists():
            problems.append(f"{path} has no reason")
    return problems


def main() -> None:
    """Keep every checkout running; after each short while, damage an entry or kill a run."""
    os.umask(0)
    directory, seed, runs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    cache = directory / "cache"
    # The last one has linked nothing when the storm ends.
    *checkouts, new = (directory / f"checkout{number}" for number in range(CHECKOUTS + 1))
    for checkout in (*checkouts, new):
        (checkout / "results").mkdir(parents=True)
    # The key of the code takes half a second, and is the same for all.
    output_cache.code_key = lambda scripts: "storm"
    counts = {"runs": 0, "kill": 0, "damage": 0}
    broken: list[str] = []
    running: dict[int, Path] = {}
    while counts["runs"] < runs or running:
        idle = [checkout for checkout in checkouts if checkout not in running.values()]
        if idle and counts["runs"] < runs:
            checkout = chance.choice(idle)
            running[start(checkout, cache)] = checkout
            counts["runs"] += 1
        time.sleep(chance.uniform(0, 0.03))
        action = chance.random()
        entries = [path for path in cache.glob("*/*") if path.name in KEYS]
        if action < 0.25 and entries:
            counts["damage"] += damage(chance.choice(sorted(entries)), chance)
        elif action < 0.4 and running:
            os.kill(chance.choice(sorted(running)), signal.SIGKILL)
            counts["kill"] += 1
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                checkout, code = running.pop(child), os.waitstatus_to_exitcode(status)
                if code not in (0, -signal.SIGKILL):
                    broken.append(f"a run of {checkout.name} ended with status {code}")
    broken += problems_after([*checkouts, new], cache)
    json.dump({**counts, "broken": broken}, sys.stdout)


main()
