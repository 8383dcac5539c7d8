"""Snakemake's output cache, with entries that are private and checked before they are used."""

import os
from pathlib import Path
from typing import Any

import snakemake.workflow
from snakemake.caching.local import OutputFileCache
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from portllm.errors import InputError
from portllm.snakemake_hooks import cache_entries, cache_links
from portllm.snakemake_hooks.cache_entries import Checked, DamagedEntryError, ForeignEntryError

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
            if not self._take(artefact, entry):
                self.raise_cache_miss_exception(job)

    async def store(self, job: Any) -> None:
        """Move the outputs of a finished job to the cache and link them.

        If an entry cannot be stored, the output stays in the checkout: the job has succeeded.

        Raises:
            WorkflowError: an entry was stored, but cannot be linked. The next run takes it, or
                makes it again.
        """
        for artefact, entry in await self._entries(job):
            try:
                checked = self._store(artefact, entry)
            except OSError as error:
                reason = error.strerror or str(error)
                logger.warning(f"{artefact} stays in this checkout: cannot store {entry}: {reason}")
                continue
            # Not to be kept otherwise: its files are hard links to those of the entry.
            if checked is not None and not self._link(artefact, entry, checked):
                raise WorkflowError(f"{entry} vanished while it was stored")

    def _store(self, artefact: Path, entry: Path) -> Checked | None:
        """Store an artefact; if another run has stored it meanwhile, link that entry instead.

        Returns:
            The files of the new entry; None if there is another.
        """
        try:
            checked = cache_entries.store(artefact, entry, self._access)
        except FileExistsError:
            if self._take(artefact, entry):
                return None
            # What was there was damaged. If it is not in quarantine now, this fails.
            checked = cache_entries.store(artefact, entry, self._access)
        logger.info(f"Moving output file {artefact} to cache.")
        return checked

    def _take(self, artefact: Path, entry: Path) -> bool:
        """Check an entry and link it. If it is damaged, move it away.

        Returns:
            Whether the artefact is linked to the entry.
        """
        try:
            inode = entry.lstat().st_ino
            checked = cache_entries.check(entry, self._access, contents=True)
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
        return self._link(artefact, entry, checked)

    @staticmethod
    def _link(artefact: Path, entry: Path, checked: Checked) -> bool:
        roots = [root for root in _results if artefact.is_relative_to(root)]
        results = max(roots, key=lambda root: len(root.parts))
        try:
            cache_links.link(artefact, entry, checked, results)
        except FileNotFoundError:
            return False  # another run has moved it away meanwhile
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
