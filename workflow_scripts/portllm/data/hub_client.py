"""The HTTP client that huggingface_hub and datasets use for fetching.

huggingface_hub retries some of its requests and not others: a 429 ends a look-up of a model, and a
503 a download. It checks the size of a download, not its content, and a download that trickles
never times out.
"""

import email.utils
import functools
import hashlib
import logging
import re
import time
from collections.abc import Iterator
from typing import Any, Protocol

import httpx
from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.utils import parse_ratelimit_headers

log = logging.getLogger(__name__)

RETRIES = 5
"""How often a request is repeated. Without advice from the server, after 1, 2, 4, … seconds."""
LONGEST_WAIT = 300
"""Seconds to wait at most because the server asks for it."""
SLOWEST = 10_000
"""Bytes a second below which a download is given up."""
WINDOW = 6 * constants.HF_HUB_DOWNLOAD_TIMEOUT
"""Seconds over which the rate is measured; 60, unless the user sets HF_HUB_DOWNLOAD_TIMEOUT."""


class FetchError(httpx.TransportError):
    """A request that this client has given up. huggingface_hub does not repeat it."""


class DamagedError(FetchError):
    """The content is not what the hub has under this name."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _CheckedStream(httpx.SyncByteStream):
    """The body of a response, whose rate and content are checked while it is read."""

    def __init__(self, response: httpx.Response) -> None:
        self._stream = response.stream
        self._name = (response.history or [response])[0].request.url.path.rpartition("/")[2]
        self._expected, self._hashes = _content_hashes(response)

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._stream)
        received, waited = 0, 0.0
        while True:
            start = time.monotonic()
            chunk = next(chunks, None)
            waited += time.monotonic() - start
            if chunk is None:
                break
            received += len(chunk)
            if waited >= WINDOW:
                if received < SLOWEST * waited:
                    raise FetchError(
                        f"{self._name} arrives too slowly: {received} bytes in {waited:.0f} s"
                    )
                received, waited = 0, 0.0
            for content_hash in self._hashes:
                content_hash.update(chunk)
            yield chunk
        found = [content_hash.hexdigest() for content_hash in self._hashes]
        if found and self._expected not in found:
            raise DamagedError(
                f"{self._name} arrived damaged: found {found[0]}, expected {self._expected}"
            )

    def close(self) -> None:
        self._stream.close()


def _content_hashes(response: httpx.Response) -> tuple[str, list[_Hash]]:
    """Return the ETag of a whole file on the hub, and new hashes of which one must equal it.

    The hub's ETag of a file in large-file storage is its SHA-256 (X-Linked-ETag, because the
    storage has ETags of its own); that of any other file is git's name of a blob. Caches of other
    makers take the SHA-1.
    """
    answers = [*response.history, response]
    hub_file = str(answers[0].request.url)
    if not (hub_file.startswith(constants.ENDPOINT) and "/resolve/" in hub_file):
        return "", []
    if response.request.method != "GET" or response.status_code != 200:
        return "", []
    linked = (answer.headers.get("X-Linked-ETag") for answer in answers)
    etag = next(filter(None, linked), response.headers.get("ETag", ""))
    is_linked = etag != response.headers.get("ETag", "")
    etag = etag.removeprefix("W/").strip('"')
    if is_linked and re.fullmatch(r"[0-9a-f]{64}", etag):
        return etag, [hashlib.sha256()]
    size, encoding = (response.headers.get(f"Content-{name}") for name in ("Length", "Encoding"))
    if re.fullmatch(r"[0-9a-f]{40}", etag) and size and not encoding:
        starts = (b"blob %d\0" % int(size), b"")
        return etag, [hashlib.sha1(start, usedforsecurity=False) for start in starts]
    return "", []


def _seconds_to_wait(response: httpx.Response, attempt: int) -> float:
    """Return how long to wait before a retry: as long as the server asks for, else 2^attempt."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1
    advice = response.headers.get("Retry-After", "")
    if advice.isdigit():
        return float(advice)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(advice).timestamp() - time.time())
    except ValueError:
        return float(2**attempt)


def _is_temporary(response: httpx.Response) -> bool:
    """Whether a failed request may be repeated: it was not processed, or it only reads."""
    request = response.request
    reads = request.method in ("GET", "HEAD") or "/paths-info/" in request.url.path
    return response.status_code == 429 or (
        reads and response.status_code in (408, 500, 502, 503, 504)
    )


class PatientClient(httpx.Client):
    """A client that waits for a busy server, and refuses slow or damaged downloads."""

    def send(self, request: httpx.Request, *, stream: bool = False, **more: Any) -> httpx.Response:
        """Send a request.

        Raises:
            FetchError: the server stays busy, or the download is slow or damaged.
        """
        if "/resolve/" in request.url.path:
            # The hash is that of the content, not that of a compressed copy.
            request.headers["Accept-Encoding"] = "identity"
        timeouts = request.extensions.get("timeout", {})
        # huggingface_hub sets none for look-ups.
        request.extensions["timeout"] = {
            name: WINDOW if timeouts.get(name) is None else timeouts[name]
            for name in ("connect", "read", "write", "pool")
        }
        for attempt in range(RETRIES + 1):
            response = super().send(request, stream=True, **more)
            if not _is_temporary(response):
                response.stream = _CheckedStream(response)
                if not stream:
                    response.read()
                return response
            response.close()
            answer = f"{response.status_code} {response.reason_phrase}"
            seconds = _seconds_to_wait(response, attempt)
            if seconds > LONGEST_WAIT:
                raise FetchError(f"the server answers {answer} and asks to wait {seconds:.0f} s")
            if attempt < RETRIES:
                log.warning("the server answers %s; trying again in %.0f s", answer, seconds)
                time.sleep(seconds)
        raise FetchError(f"the server answers {answer}, {RETRIES + 1} times in a row")


@functools.cache
def install() -> None:
    """Make huggingface_hub, and datasets with it, use this client."""
    default = get_session()
    hooks, timeout = default.event_hooks, default.timeout

    def client() -> httpx.Client:
        return PatientClient(event_hooks=hooks, follow_redirects=True, timeout=timeout)

    set_client_factory(client)
