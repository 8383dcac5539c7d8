"""Snakemake's output cache, with entries that are private and checked before they are used."""

import os
from pathlib import Path
from typing import Any

import snakemake.workflow
from snakemake.caching.local import OutputFileCache
from snakemake.logging import logger

from portllm.errors import InputError
from portllm.snakemake_hooks import cache_entries, cache_links
from portllm.snakemake_hooks.cache_entries import DamagedEntryError, ForeignEntryError

_results: set[Path] = set()


def install(results: Path) -> None:
    """Make this Snakemake use `SharedCache`. Call this where the workflow is defined.

    Args:
        results: the directory of results of the workflow; a run of several modules has several.
    """
    _results.add(results)
    # Snakemake has no option for the class. It looks this name up when it prepares the jobs.
    snakemake.workflow.LocalOutputFileCache = SharedCache


class SharedCache(OutputFileCache):
    """Entries as `cache_entries` defines them, under the keys that Snakemake computes."""

    def __init__(self) -> None:
        super().__init__()
        self._access = cache_entries.access(os.environ)

    async def exists(self, job: Any) -> bool:
        """Whether a dry run can say that the job's outputs are in the cache."""
        try:
            for _, entry in await self._entries(job):
                cache_entries.check(entry, self._access, contents=False)
        except (OSError, InputError, DamagedEntryError, ForeignEntryError):
            return False
        return True

    async def fetch(self, job: Any) -> None:
        """Link the job's outputs to the cache.

        Raises:
            CacheMissException: an output is not in the cache, or not usable. Snakemake then runs
                the job.
        """
        for artefact, entry in await self._entries(job):
            if not self._take(artefact, entry, contents=True):
                self.raise_cache_miss_exception(job)

    async def store(self, job: Any) -> None:
        """Move the outputs of a finished job to the cache and link them.

        Where this fails, the outputs stay in the checkout: the job has succeeded.
        """
        for artefact, entry in await self._entries(job):
            try:
                self._store(artefact, entry)
            except OSError as error:
                reason = error.strerror or str(error)
                logger.warning(f"{artefact} stays in this checkout: cannot store {entry}: {reason}")

    def _store(self, artefact: Path, entry: Path) -> None:
        try:
            cache_entries.store(artefact, entry, self._access)
            logger.info(f"Moving output file {artefact} to cache.")
            # Its hashes were computed when it was made. Only a copy has to be compared with them.
            is_copy = artefact.stat().st_dev != entry.stat().st_dev
            self._take(artefact, entry, contents=is_copy)
        except FileExistsError:
            # Another run has stored it meanwhile.
            if not self._take(artefact, entry, contents=True) and not os.path.lexists(entry):
                # What was there was damaged, and is in quarantine now.
                cache_entries.store(artefact, entry, self._access)
                self._take(artefact, entry, contents=False)

    def _take(self, artefact: Path, entry: Path, *, contents: bool) -> bool:
        """Check an entry and link it. If it is damaged, move it away.

        Returns:
            Whether the artefact is linked to the entry.
        """
        try:
            inode = entry.lstat().st_ino
            checked = cache_entries.check(entry, self._access, contents=contents)
        except FileNotFoundError:
            return False
        except ForeignEntryError as reason:
            logger.warning(
                f"{entry} is not used: {reason}. Set {cache_entries.GROUP} to share with a group."
            )
            return False
        except (DamagedEntryError, InputError, OSError) as reason:
            self._discard(entry, inode, str(reason))
            return False
        roots = [root for root in _results if artefact.is_relative_to(root)]
        cache_links.link(artefact, entry, checked, max(roots, key=lambda root: len(root.parts)))
        return True

    def _discard(self, entry: Path, inode: int, reason: str) -> None:
        try:
            moved = cache_entries.quarantine(entry, inode, reason, self._access)
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning(f"{entry} is damaged ({reason}) and stays: {error.strerror}.")
            return
        logger.warning(f"{entry} is damaged ({reason}). Moved it to {moved}.")

    async def _entries(self, job: Any) -> list[tuple[Path, Path]]:
        # Absolute: links must lead there from any directory.
        pairs = await self.get_outputfiles_and_cachefiles(job)
        return [(artefact, entry.absolute()) for artefact, entry in pairs]
