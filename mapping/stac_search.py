"""Items of a STAC catalogue: from an API by its address, or from a catalogue or folder of item files on disk.

Needs `pip install 'agriclip[stac]'`.
"""

from __future__ import annotations

import calendar
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError


def search_items(
    source: str | Path,
    bbox: Sequence[float] | None = None,
    datetime: str | None = None,
    collections: Sequence[str] | None = None,
    max_cloud: float | None = None,
    retries: int = 3,
) -> list[Any]:
    """Find items in an API, a catalogue or a folder.

    Args:
        source: Address of a STAC API or of a `catalog.json`; or a local catalogue, or a folder of item files (JSON).
        bbox: West, south, east, north in degrees.
        datetime: A date or period as in STAC: `2023-06`, `2023-05-01/2023-08-31`, `../2023-08-31`.
        collections: Names of collections.
        max_cloud: Highest `eo:cloud_cover` in %; items that do not say theirs are kept.
        retries: Further tries when an address does not answer.

    Returns:
        `pystac.Item`s with absolute addresses of their files, by time and id; none when nothing matches.

    Raises:
        AgriClipError: For a source that cannot be read or does not answer, and for periods that cannot be understood.
    """
    period = _period(datetime)
    if bbox is not None and len(bbox) != 4:
        raise AgriClipError(f"bbox must be west, south, east, north in degrees, not {list(bbox)}.")
    found: Iterable[Any]
    if str(source).startswith(("http://", "https://")):
        found = _remote_items(str(source), bbox, datetime, collections, max_cloud, retries)
    else:
        found = _local_items(Path(source))
    kept = []
    for item in found:
        cloud = item.properties.get("eo:cloud_cover")
        if (
            (bbox is None or _touches(item.bbox, bbox))
            and _within(item, period)
            and (collections is None or item.collection_id in collections)
            and (max_cloud is None or cloud is None or cloud <= max_cloud)
        ):
            item.make_asset_hrefs_absolute()
            kept.append(item)
    return sorted({item.id: item for item in kept}.values(), key=lambda item: (time_of(item), item.id))


def _remote_items(
    url: str,
    bbox: Sequence[float] | None,
    period: str | None,
    collections: Sequence[str] | None,
    max_cloud: float | None,
    retries: int,
) -> list[Any]:
    client_module, api = import_extra("pystac_client"), import_extra("pystac_client.exceptions")
    io = import_extra("pystac_client.stac_api_io").StacApiIO(max_retries=retries, timeout=30)
    errors = (api.APIError, import_extra("requests").RequestException, OSError, import_extra("pystac").STACError)
    try:
        client = client_module.Client.open(url, stac_io=io)
        if not client.conforms_to("ITEM_SEARCH"):
            return list(client.get_items(recursive=True))  # files on a server, with no search
        asked: dict[str, Any] = {"bbox": bbox and list(bbox), "datetime": period, "collections": collections}
        if max_cloud is not None and client.conforms_to("QUERY"):
            asked["query"] = {"eo:cloud_cover": {"lte": max_cloud}}
        return list(client.search(**asked).items())
    except (*errors, ValueError) as error:
        raise AgriClipError(
            f"The STAC address '{url}' does not answer as a catalogue ({short_reason(error)}); check it, and whether "
            "it can be reached from here."
        ) from error


def _local_items(source: Path) -> Iterator[Any]:
    pystac = import_extra("pystac")
    if not source.exists():
        raise AgriClipError(f"'{source}' does not exist; give a STAC address, a catalog.json or a folder of items.")
    root = next((source / n for n in ("catalog.json", "collection.json") if (source / n).is_file()), source)
    try:
        if root.is_file():
            content = json.loads(root.read_text(encoding="utf-8"))
            if content.get("type") == "Feature":
                yield pystac.Item.from_file(str(root))
            else:
                yield from pystac.Catalog.from_file(str(root)).get_items(recursive=True)
            return
        for file in sorted(source.rglob("*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("type") == "Feature" and "stac_version" in content:
                yield pystac.Item.from_file(str(file))
    except (ValueError, KeyError, OSError, pystac.STACError, pystac.STACTypeError) as error:
        reason = short_reason(error)
        raise AgriClipError(f"'{source}' cannot be read as STAC ({reason}); check its JSON files.") from error


def _touches(box: Sequence[float] | None, asked: Sequence[float]) -> bool:
    """Whether two boxes in degrees overlap, also across the antimeridian; an item without a box is taken."""
    if box is None:
        return True
    west, south, east, north = (*box[:2], *box[len(box) // 2 : len(box) // 2 + 2])
    asked_west, asked_south, asked_east, asked_north = asked
    east, asked_east = (e + 360.0 if e < w else e for w, e in ((west, east), (asked_west, asked_east)))
    across = any(west + turn <= asked_east and east + turn >= asked_west for turn in (-360.0, 0.0, 360.0))
    return across and south <= asked_north and north >= asked_south


def _period(text: str | None) -> tuple[datetime, datetime]:
    """First and last moment of a date or period of STAC."""
    ends = (text or "../..").split("/")
    first, last = (ends[0], ends[-1]) if len(ends) <= 2 else ("", "")
    try:
        start = datetime.min.replace(tzinfo=UTC) if first in ("..", "") and text != "" else _moment(first)[0]
        stop = datetime.max.replace(tzinfo=UTC) if last in ("..", "") else _moment(last)[1]
        if len(ends) > 2 or start > stop:
            raise ValueError
    except ValueError:
        raise AgriClipError(
            f"'{text}' is no date or period; write 2023-06-01, 2023-06 or 2023-05-01/2023-08-31."
        ) from None
    return start, stop


def _moment(text: str) -> tuple[datetime, datetime]:
    """First and last moment of `2023`, `2023-06`, `2023-06-01` or a full timestamp."""
    if "T" in text:
        exact = datetime.fromisoformat(text)
        exact = exact if exact.tzinfo else exact.replace(tzinfo=UTC)
        return exact, exact
    year, month, day = ([int(part) for part in text.split("-")] + [0, 0])[:3]
    last = (month or 12, day or calendar.monthrange(year, month or 12)[1])
    start = datetime(year, month or 1, day or 1, tzinfo=UTC)
    return start, datetime(year, *last, tzinfo=UTC) + timedelta(days=1) - timedelta(microseconds=1)


def _within(item: Any, period: tuple[datetime, datetime]) -> bool:
    first = item.common_metadata.start_datetime or item.datetime
    last = item.common_metadata.end_datetime or item.datetime
    return first is None or last is None or (first <= period[1] and last >= period[0])


def time_of(item: Any) -> str:
    """When an item was taken, in UTC, as ISO text; empty where it does not say."""
    moment = item.datetime or item.common_metadata.start_datetime
    return moment.astimezone(UTC).isoformat() if moment else ""


def short_reason(error: BaseException) -> str:
    """First line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def import_extra(name: str) -> Any:
    """A module of the extra, or a sentence that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise AgriClipError(f"Reading STAC needs {name}; install it with: pip install 'agriclip[stac]'.") from error


__all__ = ["import_extra", "search_items", "short_reason", "time_of"]
