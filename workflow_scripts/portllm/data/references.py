"""Names of models and adapters: a local directory, or an id on the Hugging Face Hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from portllm.data import fetching
from portllm.data.fetching import KeptFiles
from portllm.errors import InputError

_HUB_ID = re.compile(
    r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^:]+))?(:(?P<subfolder>[^:]+))?"
)


@dataclass(frozen=True)
class HubId:
    """A repository on the hub, with a branch, tag or commit and a folder in it where given."""

    name: str
    revision: str | None = None
    subfolder: str = ""


@dataclass(frozen=True)
class Source:
    """A model or an adapter in a directory; `hub` and `commit` say where it was fetched from."""

    directory: Path
    hub: HubId | None = None
    commit: str | None = None

    @property
    def base_name(self) -> str:
        """The name under which PEFT finds it as a base model: its hub id, else its directory."""
        return self.hub.name if self.hub else str(self.directory)

    def provenance(self) -> dict[str, str] | None:
        """Hub id, commit and subfolder, for a manifest; None for a local directory."""
        if self.hub is None:
            return None
        details = {"hub": self.hub.name, "revision": self.commit, "subfolder": self.hub.subfolder}
        return {name: value for name, value in details.items() if value}


def parse_hub_id(text: str) -> HubId | None:
    """Parse `owner/name@revision:subfolder`; None if the text is not a hub id."""
    match = _HUB_ID.fullmatch(text)
    if match is None:
        return None
    return HubId(match["name"], match["revision"], (match["subfolder"] or "").strip("/"))


def is_remote(text: str, mirror: str | None = None) -> bool:
    """Whether the hub or its cache is needed to find a model or an adapter."""
    return not mirror and not Path(text).exists() and parse_hub_id(text) is not None


def locate(text: str, kept: KeptFiles, *, option: str, mirror: str | None = None) -> Source:
    """Find a model or an adapter, and fetch it if it is on the hub.

    An existing directory takes precedence over a hub id of the same text.

    Args:
        text: a directory or a hub id.
        kept: the files to fetch.
        option: the command-line option, for messages.
        mirror: a local directory laid out like the hub, used instead.

    Raises:
        InputError: there is neither such a directory nor such a repository.
    """
    if Path(text).exists():
        return Source(Path(text))
    hub_id = parse_hub_id(text)
    if hub_id is None:
        raise InputError(
            f"{option}: {text} is neither a directory here nor a hub id "
            "(owner/name@revision:subfolder)"
        )
    if mirror:
        directory = Path(mirror, hub_id.name, hub_id.subfolder)
        if not directory.is_dir():
            raise InputError(f"{option}: neither {text} nor {directory} (--hub-mirror) exists")
        return Source(directory, hub_id)
    try:
        fetched = fetching.snapshot(hub_id.name, hub_id.revision, kept, subfolder=hub_id.subfolder)
    except InputError as error:
        raise InputError(f"{option}: {text} is not a directory here, and {error}") from error
    return Source(fetched.directory, hub_id, fetched.commit)
