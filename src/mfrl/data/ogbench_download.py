"""OGBench's files from the server that publishes them, or else from a mirror.

A file is written to ``<name>.part``, goes on from there when the connection broke, and gets its name only when its
length and every checksum in it are right. Where it came from is noted in ``<name>.json`` beside it, and when a dataset
is complete in its provenance record: ``official`` if all of it came from OGBench's own server, else ``mirror``.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

import mfrl
from mfrl.catalogue import DOWNLOAD_URL, downloadable, in_many_files
from mfrl.data import ogbench_files, records
from mfrl.data.getting import commands
from mfrl.errors import DataError, require
from mfrl.system import signals
from mfrl.system.files import lack_of_room, move_into_place, one_at_a_time, write_json

#: Asked in turn when the official server does not give a file. A mirror is a base URL with OGBench's names below it:
#: ``<base>/<dataset>.npz`` and ``<base>/<dataset>-val.npz``; of a dataset in many files, ``<base>/<dataset>/`` is a
#: page that links to them, as web servers make it of a folder. This one was named by OGBench's author while the
#: official server was down (github.com/seohongpark/ogbench, issue 49); that its files lie so was not verified here.
MIRRORS = ("https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main",)

FIELDS = ("observations", "actions", "terminals", "qpos")
TIMEOUT = 10.0  # seconds without an answer
TRIES = 3  # connections to one server that may break before we give up
_PIECE = 1 << 20
_LONGEST_PAGE = 1 << 22


class Unavailable(Exception):
    """A server does not give the file; another may."""


class CutOff(Exception):
    """The connection ended before the file did."""


@dataclass
class Note:
    """What is known of a file while it is fetched, and until its dataset is complete.

    Attributes:
        url: asked for.
        bytes: the whole file's; None where the server does not tell.
        etag, last_modified: which version it is, in the server's words.
        sha256: once it is complete and checked.
        date: of that.
    """

    url: str
    bytes: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    sha256: str | None = None
    date: str | None = None

    @property
    def version(self) -> str | None:
        """What ``If-Range`` compares: a weak ETag does not promise the same bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


def download(
    dataset: str, data_dir: str | Path, mirrors: Sequence[str] | None = None, progress: bool = True
) -> dict[str, Any] | None:
    """Fetch the files of an OGBench dataset that are not there yet; what is there is left as it is.

    A dataset in many files (``...-100m-v0``) becomes the folder ``<data_dir>/<dataset>``, which appears when it is
    complete.

    Args:
        dataset: e.g. ``cube-single-play-v0``.
        data_dir: made if needed.
        mirrors: base URLs, asked after the official server; None for :data:`MIRRORS`, which says what they look like.
        progress: show a bar, or one line at the end where stderr is no terminal.

    Returns:
        The provenance record; None where part of the dataset was there already and nothing is known of it.

    Raises:
        ConfigError: a mirror that is no web address.
        DataError: no server gives the files, or they cannot be written; nothing half-written bears a file's name.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-v\d+", dataset):
        raise DataError(f"{dataset!r} is no name of an OGBench dataset")
    mirrors = MIRRORS if mirrors is None else tuple(mirrors)
    for url in mirrors:
        require("mirrors", str(url).startswith(("https://", "http://")), url, "addresses that start with https://")
    bases = [base.rstrip("/") for base in (DOWNLOAD_URL, *mirrors)]
    folder = Path(data_dir).expanduser()
    console = Console(stderr=True)
    try:
        with one_at_a_time(folder / f".{dataset}.download.lock"), _bar(console, progress) as bar:
            if in_many_files(dataset):
                record = _many_files(dataset, folder, bases, bar)
            else:
                record = _two_files(dataset, folder, bases, bar)
    except Unavailable as error:
        collect = commands(dataset, folder).get("collect")
        instead = f"; or collect it in the simulator:  {collect}" if collect else ""
        unknown = "" if downloadable(dataset) else ", and is none of the datasets that OGBench publishes"
        raise DataError(f"{dataset} cannot be downloaded{unknown}: {error}{instead}") from error
    except OSError as error:
        raise DataError(f"{dataset} cannot be written to {folder}: {error.strerror or error}") from error
    if progress:
        done = f"{dataset} is in {folder}: {'unrecorded' if record is None else record['source']}"
        console.print(escape(done), highlight=False, soft_wrap=True)
    return record


def _two_files(dataset: str, folder: Path, bases: list[str], bar: Progress) -> dict[str, Any] | None:
    train, val = ogbench_files.data_paths(folder, dataset)
    record = records.read(ogbench_files.record_path(folder, dataset), dataset)
    existing = [path for path in (train, val) if path.exists()]
    if len(existing) == 2:
        return record
    if record is not None:
        for path in existing:
            if path.name not in record.get("downloads", {}):
                raise DataError(
                    f"{path} is {record['source']}, and a download would not be the other half of it: move it away, or "
                    "choose another data_dir"
                )
            if path.stat().st_size == record["files"][path.name]["bytes"]:
                write_json(_note_path(path), record["downloads"][path.name] | record["files"][path.name])
    for path in (val, train):  # the training file last: without it nothing passes for a complete dataset
        if not path.exists():
            _fetch([f"{base}/{path.name}" for base in bases], path, bar)
    return _record(dataset, folder, (train, val))


def _many_files(dataset: str, folder: Path, bases: list[str], bar: Progress) -> dict[str, Any] | None:
    whole, part = folder / dataset, folder / f"{dataset}.part"
    if whole.exists():
        return records.read(ogbench_files.record_path(folder, dataset), dataset)
    part.mkdir(exist_ok=True)
    reasons = []
    for base in bases:
        try:
            names = listed(f"{base}/{dataset}/")
            break
        except Unavailable as error:
            reasons.append(f"{base}/{dataset}/ {error}")
    else:
        raise Unavailable("; ".join(reasons))
    for number, name in enumerate(names, start=1):
        if not (part / name).exists():
            _fetch([f"{base}/{dataset}/{name}"], part / name, bar, f"{number}/{len(names)} ")
    record = _record(dataset, folder, [part / name for name in names])
    move_into_place((part, whole))
    return record


def _record(dataset: str, folder: Path, paths: Iterable[Path]) -> dict[str, Any] | None:
    """Write the provenance of complete files from their notes, which then go; None, and no record, if one has none."""
    paths = list(paths)
    notes = {path: note for path in paths if (note := _read_note(path)) is not None and note.sha256}
    record = None
    if len(notes) == len(paths):
        official = all(note.url.startswith(f"{DOWNLOAD_URL}/") for note in notes.values())
        record = {
            "format": records.FORMAT,
            "dataset": dataset,
            "source": "official" if official else "mirror",
            "generator": records.generator("mfrl.data.ogbench_download.download"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "downloads": {path.name: _without(asdict(note), "sha256", "bytes") for path, note in notes.items()},
            "files": {path.name: {"sha256": note.sha256, "bytes": note.bytes} for path, note in notes.items()},
        }
        records.write(ogbench_files.record_path(folder, dataset), record)
    for path in paths:
        _note_path(path).unlink(missing_ok=True)
    return record


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _fetch(urls: list[str], path: Path, bar: Progress, prefix: str = "") -> None:
    """One file from the first server that gives it whole; its note stays beside it.

    Raises:
        Unavailable: none does.
    """
    task = bar.add_task(f"{prefix}{path.name}", total=None)
    begun = _read_note(path)
    # Where a part lies, it goes on at the server it came from; another's bytes would not fit it.
    urls = sorted(urls, key=lambda url: begun is None or url != begun.url)
    reasons = []
    for url in urls:
        try:
            _fetch_from(url, path, bar, task)
            break
        except Unavailable as error:
            reasons.append(f"{url} {error}")
    else:
        raise Unavailable("; ".join(reasons))
    bar.update(task, visible=False)


def _fetch_from(url: str, path: Path, bar: Progress, task: TaskID, again: bool = True) -> None:
    resumed = False
    for _ in range(TRIES):
        try:
            resumed |= _receive(url, path, bar, task)
            break
        except CutOff as error:
            reason = error
    else:
        kept = _resumable(url, path)
        hint = f"{_part(path).name} is kept, and the same command goes on from there" if kept else "try again later"
        raise DataError(f"{url} broke off {TRIES} times, {reason}; {hint}") from reason
    bar.update(task, description=f"checking {path.name}")
    if (damage := damaged(_part(path))) is not None:
        _discard(path)
        if resumed and again:  # perhaps glued from two versions: once more, from the start
            return _fetch_from(url, path, bar, task, again=False)
        raise Unavailable(f"gave a damaged file ({damage})")
    note = _read_note(path) or Note(url)
    note.url, note.bytes, note.sha256 = url, _part(path).stat().st_size, records.sha256(_part(path))
    note.date = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(_note_path(path), asdict(note))
    move_into_place((_part(path), path))
    return None


def _receive(url: str, path: Path, bar: Progress, task: TaskID) -> bool:
    """Ask for the file, or for the rest of it, and write what comes to its part.

    Returns:
        whether the part was begun earlier.

    Raises:
        Unavailable, CutOff: the part is left for another try.
        DataError: there is no room for it.
    """
    part, note = _part(path), _resumable(url, path)
    have = part.stat().st_size if note else 0
    if note and have == note.bytes:
        return True
    headers = {"Range": f"bytes={have}-", "If-Range": str(note.version)} if note else {}
    with _open(url, headers) as response:
        answer = Note(url, None, response.headers.get("ETag"), response.headers.get("Last-Modified"))
        resumes = response.status == 206
        if note and (response.status == 416 or (resumes and not _continues(response, note, answer, have))):
            _discard(path)  # another version by now
            return _receive(url, path, bar, task)
        if not resumes:
            have = 0
        if response.length is not None:
            answer.bytes = have + response.length
        pieces = _pieces(response)
        first = next(pieces, b"")
        if not have and first and not first.startswith(b"PK"):
            raise Unavailable(f"answers with {response.headers.get('Content-Type', 'something')}, not with a dataset")
        _check_room(part, answer.bytes)
        bar.update(task, total=answer.bytes, completed=have)
        try:
            with part.open("ab" if resumes else "wb") as file:
                if not resumes:  # from here on, the part is this version's
                    write_json(_note_path(path), asdict(answer))
                while first:
                    signals.obey()
                    file.write(first)
                    bar.advance(task, len(first))
                    first = next(pieces, b"")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{path.name} cannot be written to {path.parent}: {reason}; {_kept(url, path)}") from error
    size = part.stat().st_size
    if answer.bytes is not None and size != answer.bytes:
        raise CutOff(f"the last time after {size:,} of {answer.bytes:,} bytes")
    return resumes


def _kept(url: str, path: Path) -> str:
    """What becomes of a part when writing it failed."""
    if _resumable(url, path):
        return f"{_part(path).name} is kept, and the same command goes on from there"
    _discard(path)
    return "nothing of it is kept"


def _continues(response: HTTPResponse, note: Note, answer: Note, have: int) -> bool:
    """Whether an answer is the rest of the very file we have the first ``have`` bytes of."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have or (note.bytes and found[2] not in ("*", str(note.bytes))):
        return False
    return all(
        new in (None, old) for new, old in ((answer.etag, note.etag), (answer.last_modified, note.last_modified))
    )


def _open(url: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    """The answer to a request; of refusals only 416, that the range asked for is not there."""
    agent = {"User-Agent": f"mfrl/{mfrl.__version__}", "Accept-Encoding": "identity"}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=agent | (headers or {})), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and headers:
            return error  # type: ignore[return-value]
        error.close()
        raise Unavailable(f"answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(f"cannot be reached ({getattr(reason, 'strerror', None) or reason})") from error


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            piece = response.read(_PIECE)
        except (OSError, HTTPException) as error:
            raise CutOff(f"the last time with {error or type(error).__name__}") from error
        if not piece:
            return
        yield piece


def _check_room(part: Path, total: int | None) -> None:
    there = part.stat().st_size if part.exists() else 0  # overwritten or continued: either way it counts
    if total is not None and (lack := lack_of_room(part.parent, total - there, f"{part.stem} takes another")):
        raise DataError(lack)


def damaged(path: Path) -> str | None:
    """What is wrong with a file that should be an ``.npz`` with OGBench's fields; None where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                return f"the checksum of {bad} is wrong"
            missing = [field for field in FIELDS if f"{field}.npy" not in archive.namelist()]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__
    return f"field {missing[0]!r} is missing" if missing else None


def listed(url: str) -> list[str]:
    """The names of the ``.npz`` files that the page of a folder links to, in order; links out of it do not count.

    Raises:
        Unavailable: there is no such page, or no such link in it.
    """
    with _open(url) as response:
        try:
            page, base = response.read(_LONGEST_PAGE).decode("utf-8", "replace"), response.url
        except (OSError, HTTPException) as error:
            raise Unavailable(f"broke off ({error or type(error).__name__})") from error
    links = _Links()
    links.feed(page)
    folder = urlsplit(base)._replace(query="", fragment="")
    names = set()
    for href in links.found:
        link = urlsplit(urljoin(base, href))
        path = PurePosixPath(link.path)
        same = (link.scheme, link.netloc) == (folder.scheme, folder.netloc) and f"{path.parent}/" == folder.path
        if same and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.npz", path.name):
            names.add(path.name)
    if not names:
        raise Unavailable("lists no .npz file")
    return sorted(names)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_note(path: Path) -> Note | None:
    try:
        return Note(**json.loads(_note_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # none, or not one of ours: nothing is known


def _resumable(url: str, path: Path) -> Note | None:
    """The note of a part that can go on at ``url``; None where there is none."""
    note = _read_note(path)
    usable = note is not None and note.url == url and note.version is not None and _part(path).exists()
    return note if usable and _part(path).stat().st_size else None


def _discard(path: Path) -> None:
    _part(path).unlink(missing_ok=True)
    _note_path(path).unlink(missing_ok=True)


def _bar(console: Console, show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=10), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal))
