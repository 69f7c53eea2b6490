"""One address to the bytes of an image, or to the cause why not: servers refuse, stall and lie."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from softclip_cli import __version__
from softclip_cli.data.decode import ImageError, open_header
from softclip_cli.errors import HostError

if TYPE_CHECKING:
    import aiohttp

USER_AGENT = f"softclip/{__version__} (download of an image set)"
MAX_BYTES = 32 << 20
MAX_REDIRECTS = 10
PER_HOST = 16  # connections to one server: more is rude, and gets refused
TRANSIENT = frozenset(
    {"timeout", "no-connection", "cut-off", "http-429", "http-500", "http-502", "http-503", "http-504"}
)
LONGEST_PAUSE = 30.0
# What a server says with `X-Robots-Tag` when its images are not to be trained on; img2dataset heeds the same.
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        connections: addresses fetched at once.
        timeout: seconds for one try, from the first contact to the last byte.
        retries: further tries after a failure that may pass.
        pause: seconds before the first further try; doubled for each one after it.
        max_bytes: larger images are refused.
    """

    connections: int = 64
    timeout: float = 20.0
    retries: int = 2
    pause: float = 1.0
    max_bytes: int = MAX_BYTES


@dataclass(slots=True)
class Fetched:
    """An image, or the cause why there is none.

    Attributes:
        data: the file as it came; None if it failed.
        cause: a short name for counting, such as "http-404"; empty if it did not fail.
        detail: for people.
        format, width, height: as the image's header says.
    """

    data: bytes | None = None
    cause: str = ""
    detail: str = ""
    format: str = ""
    width: int = 0
    height: int = 0


class Fetcher:
    """Fetches addresses over one session; use as an asynchronous context manager.

    Raises:
        HostError: the package `aiohttp` is not installed.
    """

    def __init__(self, options: FetchOptions) -> None:
        self.options = options
        self._hosts: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._session: Any = None

    async def __aenter__(self) -> Fetcher:
        aiohttp = import_aiohttp()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, use_dns_cache=True),
            timeout=aiohttp.ClientTimeout(total=self.options.timeout),
            headers={"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # an image that is packed once more is a trap
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Fetched:
        """Fetch one address, with further tries after failures that may pass; never raises for what a server does."""
        host = urlsplit(url).netloc.rpartition("@")[2].lower() if "[" not in url else url
        gate = self._hosts.get(host)
        if gate is None:
            gate = self._hosts[host] = asyncio.Semaphore(PER_HOST)
        pause = self.options.pause
        for attempt in range(self.options.retries + 1):
            async with gate:
                found, wanted = await self._once(url)
            if found.cause not in TRANSIENT or attempt == self.options.retries:
                break
            await asyncio.sleep(min(max(pause, wanted), LONGEST_PAUSE))
            pause *= 2
        return found

    async def _once(self, url: str) -> tuple[Fetched, float]:
        """One try, and the pause that the server asks for."""
        aiohttp = import_aiohttp()
        try:
            async with self._session.get(url, max_redirects=MAX_REDIRECTS) as response:
                if response.status != 200:
                    cause = f"http-{response.status}"
                    return Fetched(cause=cause, detail=str(response.reason or "")), _retry_after(response.headers)
                if opted_out(response.headers.getall("X-Robots-Tag", [])):
                    return Fetched(cause="opted-out", detail="X-Robots-Tag"), 0.0
                return await self._body(response), 0.0
        except TimeoutError:
            return Fetched(cause="timeout", detail=f"longer than {self.options.timeout:g} s"), 0.0
        except aiohttp.TooManyRedirects:
            return Fetched(cause="too-many-redirects", detail=f"more than {MAX_REDIRECTS}"), 0.0
        except (
            aiohttp.InvalidURL,
            aiohttp.NonHttpUrlClientError,
            aiohttp.NonHttpUrlRedirectClientError,
            UnicodeError,
        ) as error:
            return Fetched(cause="no-http-address", detail=str(error)[:200]), 0.0
        except aiohttp.ClientSSLError as error:
            return Fetched(cause="bad-certificate", detail=str(error)[:200]), 0.0
        except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError) as error:
            return Fetched(cause="no-connection", detail=str(error)[:200]), 0.0
        except (aiohttp.ClientPayloadError, ConnectionResetError) as error:
            return Fetched(cause="cut-off", detail=str(error)[:200]), 0.0
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Fetched(cause="no-http", detail=f"{type(error).__name__}: {error}"[:200]), 0.0

    async def _body(self, response: aiohttp.ClientResponse) -> Fetched:
        limit = self.options.max_bytes
        pieces: list[bytes] = []
        size = 0
        too_large = response.content_length is not None and response.content_length > limit
        while not too_large and (piece := await response.content.readany()):
            pieces.append(piece)
            size += len(piece)
            too_large = size > limit
        if too_large:
            response.close()
            return Fetched(cause="too-large", detail=f"more than {limit:,} bytes")
        data = b"".join(pieces)
        try:
            header = open_header(data)
        except ImageError as error:
            kind = response.headers.get("Content-Type", "no type")
            return Fetched(cause=error.kind, detail=f"sent as {kind}: {error.why}"[:200])
        return Fetched(data, format=str(header.format), width=header.width, height=header.height)


def import_aiohttp() -> Any:
    """The HTTP client.

    Raises:
        HostError: it is not installed.
    """
    try:
        import aiohttp
    except ImportError as error:
        raise HostError(
            "downloading needs the package aiohttp", str(error), "install it: pip install 'softclip[download]'"
        ) from error
    return aiohttp


def opted_out(headers: list[str]) -> bool:
    """Whether `X-Robots-Tag` headers keep everybody, or us by name, from training on the image."""
    for header in headers:
        agent, colon, rest = header.partition(":")
        if colon and agent.strip().lower() not in {"softclip", "*"}:
            continue
        directives = rest if colon else header
        if any(word.strip().lower() in OPT_OUT for word in directives.split(",")):
            return True
    return False


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
