"""Downloads from a real server on this machine: resumed, verified, and never half under a file's name."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from rich.console import Console
from tiny import mfrl

from mfrl.app.fetch import fetch_missing
from mfrl.app.refusals import check_overrides
from mfrl.data import ogbench_download as module
from mfrl.data import ogbench_files
from mfrl.data.getting import commands
from mfrl.data.ogbench import OGBenchData
from mfrl.data.ogbench_download import download
from mfrl.errors import ConfigError, DataError

DATASET = "cube-single-play-v0"
TRAIN, VAL = f"{DATASET}.npz", f"{DATASET}-val.npz"
PART = f"{TRAIN}.part"


def archive(seed: int = 0, rows: int = 400, without: str = "") -> bytes:
    """An .npz with OGBench's fields, as long for every seed."""
    draw = np.random.default_rng(seed)
    fields = {name: draw.random((rows, 8)) for name in module.FIELDS if name != without}
    buffer = io.BytesIO()
    np.savez(buffer, **fields)
    return buffer.getvalue()


@dataclass
class Server:
    """What a real HTTP server serves, and how it misbehaves.

    Attributes:
        files: bodies by path.
        versions: ETags by path; a path without one has no validator at all.
        cut: by path, after how many bytes of each answer the connection breaks, one number for each request.
        status: by path, the status to refuse with.
        pages: HTML by path.
        asked: (path, Range) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    heeds_if_range: bool = True
    url: str = ""

    def put(self, name: str, body: bytes, version: str | None = '"1"') -> None:
        self.files[f"/{name}"] = body
        if version is None:
            self.versions.pop(f"/{name}", None)
        else:
            self.versions[f"/{name}"] = version

    def put_dataset(self) -> None:
        self.put(TRAIN, archive(0))
        self.put(VAL, archive(1, 40))

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, span = request.path, request.headers.get("Range")
        self.asked.append((path, span))
        if path in self.pages:
            return self.send(request, 200, self.pages[path].encode(), {"Content-Type": "text/html"})
        if path in self.status or path not in self.files:
            return self.send(request, self.status.get(path, 404), b"no", {})
        body, version = self.files[path], self.versions.get(path)
        headers = {"ETag": version} if version else {}
        same = request.headers.get("If-Range") == version or not self.heeds_if_range
        if span and version and same:
            first = int(re.fullmatch(r"bytes=(\d+)-", span)[1])
            if first >= len(body):
                return self.send(request, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            return self.send(request, 206, body[first:], headers)
        return self.send(request, 200, body, headers)

    def send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        limits = self.cut.get(request.path, [])
        request.wfile.write(body[: limits.pop(0)] if limits else body)


@pytest.fixture
def serve() -> Iterator[Callable[[], Server]]:
    started: list[ThreadingHTTPServer] = []

    def start() -> Server:
        server = Server()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, args=(0.01,), daemon=True).start()
        server.url = f"http://127.0.0.1:{started[-1].server_port}"
        return server

    yield start
    for http in started:
        http.shutdown()
        http.server_close()


@pytest.fixture
def official(serve: Callable[[], Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that stands for OGBench's own."""
    server = serve()
    monkeypatch.setattr(module, "DOWNLOAD_URL", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return server


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


COMPLETE = {TRAIN, VAL, f"{DATASET}.provenance.json"}


def test_both_files_come_with_a_record_that_matches_them(official: Server, tmp_path: Path) -> None:
    official.put_dataset()
    record = download(DATASET, tmp_path, mirrors=[])
    assert names(tmp_path) == COMPLETE
    assert (tmp_path / TRAIN).read_bytes() == official.files[f"/{TRAIN}"]
    assert record["source"] == "official"
    assert record["downloads"][TRAIN]["url"] == f"{official.url}/{TRAIN}"
    assert record["downloads"][TRAIN]["etag"] == '"1"'
    assert record["downloads"][TRAIN]["date"]
    assert ogbench_files.describe(tmp_path, DATASET) == record


def test_a_broken_connection_goes_on_where_it_stopped(official: Server, tmp_path: Path) -> None:
    official.put_dataset()
    official.cut[f"/{TRAIN}"] = [5000, 3000]
    download(DATASET, tmp_path, mirrors=[])
    assert (tmp_path / TRAIN).read_bytes() == official.files[f"/{TRAIN}"]
    assert [span for path, span in official.asked if path == f"/{TRAIN}"] == [None, "bytes=5000-", "bytes=8000-"]
    assert names(tmp_path) == COMPLETE


def test_a_connection_that_keeps_breaking_is_given_up_and_resumed_by_the_next_command(
    official: Server, tmp_path: Path
) -> None:
    official.put_dataset()
    official.cut[f"/{TRAIN}"] = [1000, 1000, 1000]
    with pytest.raises(DataError, match=rf"after 3,000 of .* bytes; {re.escape(PART)} is kept"):
        download(DATASET, tmp_path, mirrors=[])
    assert (tmp_path / PART).stat().st_size == 3000
    assert not (tmp_path / TRAIN).exists()
    record = download(DATASET, tmp_path, mirrors=[])
    assert official.asked[-1] == (f"/{TRAIN}", "bytes=3000-")
    assert names(tmp_path) == COMPLETE
    assert ogbench_files.describe(tmp_path, DATASET) == record


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(official: Server, tmp_path: Path, heeds_if_range: bool) -> None:
    official.put_dataset()
    official.cut[f"/{TRAIN}"] = [1000, 1000, 1000]
    with pytest.raises(DataError):
        download(DATASET, tmp_path, mirrors=[])
    official.put(TRAIN, archive(2), '"2"')
    official.heeds_if_range = heeds_if_range
    official.cut[f"/{TRAIN}"] = [0]
    official.asked.clear()
    record = download(DATASET, tmp_path, mirrors=[])
    assert official.asked == [(f"/{TRAIN}", "bytes=3000-"), (f"/{TRAIN}", None)]  # nothing was read of another version
    assert (tmp_path / TRAIN).read_bytes() == official.files[f"/{TRAIN}"]
    assert record["downloads"][TRAIN]["etag"] == '"2"'


def test_two_versions_under_one_etag_are_found_out_by_the_checksums(official: Server, tmp_path: Path) -> None:
    official.put_dataset()
    official.cut[f"/{TRAIN}"] = [9000, 0, 0]
    with pytest.raises(DataError):
        download(DATASET, tmp_path, mirrors=[])
    official.put(TRAIN, archive(2))
    assert len(archive(2)) == len(archive(0))
    download(DATASET, tmp_path, mirrors=[])
    assert (tmp_path / TRAIN).read_bytes() == official.files[f"/{TRAIN}"]


@pytest.mark.parametrize("version", [None, 'W/"1"'])
def test_without_a_version_to_compare_nothing_is_resumed(official: Server, tmp_path: Path, version: str | None) -> None:
    official.put(VAL, archive(1, 40))
    official.put(TRAIN, archive(0), version)
    official.cut[f"/{TRAIN}"] = [1000]
    download(DATASET, tmp_path, mirrors=[])
    assert [span for path, span in official.asked if path == f"/{TRAIN}"] == [None, None]
    assert names(tmp_path) == COMPLETE


def test_a_server_without_the_file_is_passed_over_for_a_mirror(
    official: Server, serve: Callable[[], Server], tmp_path: Path
) -> None:
    mirror = serve()
    mirror.put_dataset()
    record = download(DATASET, tmp_path, mirrors=[f"{mirror.url}/"])
    assert record["source"] == "mirror"
    assert record["downloads"][VAL]["url"] == f"{mirror.url}/{VAL}"
    assert {path for path, _ in official.asked} == {f"/{TRAIN}", f"/{VAL}"}


def test_one_file_from_a_mirror_makes_it_a_mirrors_dataset(
    official: Server, serve: Callable[[], Server], tmp_path: Path
) -> None:
    mirror = serve()
    mirror.put_dataset()
    official.put(VAL, archive(1, 40))
    assert download(DATASET, tmp_path, mirrors=[mirror.url])["source"] == "mirror"


def test_a_part_goes_on_at_the_server_it_came_from(
    official: Server, serve: Callable[[], Server], tmp_path: Path
) -> None:
    mirror = serve()
    mirror.put_dataset()
    mirror.cut[f"/{TRAIN}"] = [1000, 1000, 1000]
    with pytest.raises(DataError, match="broke off"):
        download(DATASET, tmp_path, mirrors=[mirror.url])
    official.put_dataset()
    download(DATASET, tmp_path, mirrors=[mirror.url])
    assert mirror.asked[-1] == (f"/{TRAIN}", "bytes=3000-")


def test_another_server_begins_anew(official: Server, serve: Callable[[], Server], tmp_path: Path) -> None:
    mirror = serve()
    mirror.put_dataset()
    mirror.cut[f"/{TRAIN}"] = [1000, 1000, 1000]
    with pytest.raises(DataError, match="broke off"):
        download(DATASET, tmp_path, mirrors=[mirror.url])
    mirror.status[f"/{TRAIN}"] = 503
    official.put(TRAIN, archive(2))  # under the same ETag
    download(DATASET, tmp_path, mirrors=[mirror.url])
    assert {span for _, span in official.asked} == {None}
    assert (tmp_path / TRAIN).read_bytes() == archive(2)


def test_a_page_of_html_is_no_dataset(official: Server, serve: Callable[[], Server], tmp_path: Path) -> None:
    official.pages = {f"/{TRAIN}": "<html>moved</html>", f"/{VAL}": "<html>moved</html>"}
    with pytest.raises(DataError, match="answers with text/html, not with a dataset"):
        download(DATASET, tmp_path, mirrors=[])
    assert names(tmp_path) == set()


def test_every_refusal_is_in_the_message(official: Server, serve: Callable[[], Server], tmp_path: Path) -> None:
    mirror = serve()
    mirror.status[f"/{VAL}"] = 503
    with pytest.raises(DataError, match=r"answers 404 .*answers 503") as error:
        download(DATASET, tmp_path, mirrors=[mirror.url])
    assert official.url in str(error.value)
    assert mirror.url in str(error.value)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == set()


def test_a_damaged_file_is_not_kept_and_another_server_is_asked(
    official: Server, serve: Callable[[], Server], tmp_path: Path
) -> None:
    official.put_dataset()
    body = bytearray(official.files[f"/{TRAIN}"])
    body[len(body) // 2] ^= 0xFF
    official.put(TRAIN, bytes(body))
    with pytest.raises(DataError, match="gave a damaged file"):
        download(DATASET, tmp_path, mirrors=[])
    assert not {TRAIN, PART} & names(tmp_path)
    mirror = serve()
    mirror.put_dataset()
    assert download(DATASET, tmp_path, mirrors=[mirror.url])["source"] == "mirror"


@pytest.mark.parametrize(
    ("body", "message"),
    [(archive(0, without="qpos"), "field 'qpos' is missing"), (archive(0)[:-100], "zip"), (b"PK nothing", "zip")],
)
def test_what_is_no_ogbench_archive_is_refused(official: Server, tmp_path: Path, body: bytes, message: str) -> None:
    official.put_dataset()
    official.put(TRAIN, body)
    with pytest.raises(DataError, match=rf"damaged file \(.*{message}"):
        download(DATASET, tmp_path, mirrors=[])
    assert not {TRAIN, PART} & names(tmp_path)


def test_a_wrong_length_is_told(official: Server, tmp_path: Path) -> None:
    official.put_dataset()
    official.put(TRAIN, archive(0), None)
    official.cut[f"/{TRAIN}"] = [2000, 2000, 2000]
    with pytest.raises(DataError, match=rf"after 2,000 of {len(archive(0)):,} bytes; try again later"):
        download(DATASET, tmp_path, mirrors=[])
    assert not (tmp_path / TRAIN).exists()


def test_files_that_are_there_are_left_alone(official: Server, tmp_path: Path) -> None:
    official.put_dataset()
    (tmp_path / TRAIN).write_bytes(b"mine")
    assert download(DATASET, tmp_path, mirrors=[]) is None
    assert (tmp_path / TRAIN).read_bytes() == b"mine"
    assert (tmp_path / VAL).exists()
    assert ogbench_files.describe(tmp_path, DATASET)["source"] == "unrecorded"
    asked = len(official.asked)
    assert download(DATASET, tmp_path, mirrors=[]) is None
    assert len(official.asked) == asked


def test_a_deleted_half_is_fetched_again_and_the_record_holds(official: Server, tmp_path: Path) -> None:
    official.put_dataset()
    first = download(DATASET, tmp_path, mirrors=[])
    (tmp_path / VAL).unlink()
    second = download(DATASET, tmp_path, mirrors=[])
    assert second["files"] == first["files"]
    assert ogbench_files.describe(tmp_path, DATASET)["source"] == "official"


def test_half_of_a_collected_set_is_not_completed_by_a_download(
    official: Server, data_dir: Path, tmp_path: Path
) -> None:
    dataset = "pointmaze-medium-explore-v0"
    for path in (ogbench_files.data_paths(data_dir, dataset)[0], ogbench_files.record_path(data_dir, dataset)):
        shutil.copy(path, tmp_path)
    with pytest.raises(DataError, match=r"is collected, and a download would not be the other half"):
        download(dataset, tmp_path, mirrors=[])
    assert official.asked == []


def test_no_network_is_told_at_once(official: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(module, "DOWNLOAD_URL", nobody)
    with pytest.raises(DataError, match=r"cannot be reached \(Connection refused\)"):
        download(DATASET, tmp_path, mirrors=[nobody])
    assert names(tmp_path) == set()


def test_a_disk_without_room_is_told_before_writing(
    official: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official.put_dataset()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="MB free"):
        download(DATASET, tmp_path, mirrors=[])
    assert names(tmp_path) == set()


def test_a_disk_that_fills_up_keeps_what_can_go_on(
    official: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official.put_dataset()

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 1000:  # there is room for the note on how to go on
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left on device; .* is kept"):
            download(DATASET, tmp_path, mirrors=[])
    assert not {TRAIN, VAL} & names(tmp_path)
    official.asked.clear()
    download(DATASET, tmp_path, mirrors=[])
    assert names(tmp_path) == COMPLETE
    assert official.asked == [(f"/{TRAIN}", None)]  # the other was whole, it only had no name yet


def test_a_full_disk_is_told(official: Server, tmp_path: Path) -> None:
    official.put_dataset()
    (tmp_path / PART).symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device; nothing of it is kept"):
        download(DATASET, tmp_path, mirrors=[])
    assert not {TRAIN, PART} & names(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(official: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        download(DATASET, tmp_path / "file" / "data", mirrors=[])


@pytest.mark.parametrize("dataset", ["../../etc/passwd", "a/b-v0", "cube single-v0", "/tmp/x-v0", "cube-single-play"])
def test_names_that_are_no_datasets_are_refused(official: Server, tmp_path: Path, dataset: str) -> None:
    with pytest.raises(DataError, match="no name of an OGBench dataset"):
        download(dataset, tmp_path, mirrors=[])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://host", "host/path", None])
def test_mirrors_are_web_addresses(official: Server, tmp_path: Path, mirror: str | None) -> None:
    with pytest.raises(ConfigError, match="must be addresses"):
        download(DATASET, tmp_path, mirrors=[mirror])


# ---- datasets in many files

LARGE = "cube-double-play-100m-v0"
SHARDS = sorted(f"cube-double-play-v0-{k:03d}{half}.npz" for k in range(2) for half in ("", "-val"))


def put_folder(server: Server) -> None:
    for k, name in enumerate(SHARDS):
        server.put(f"{LARGE}/{name}", archive(k, 40))
    links = [*SHARDS, "?C=N;O=D", "/datasets/", "../secret.npz", "..%2fevil.npz", ".hidden.npz", "notes.txt"]
    links += [f"http://elsewhere.example/{LARGE}/other.npz", "deep/er.npz", "//elsewhere.example/x.npz"]
    server.pages[f"/{LARGE}/"] = "".join(f'<a href="{link}">{link}</a>\n' for link in links)


def test_a_folder_of_files_appears_when_it_is_complete(official: Server, tmp_path: Path) -> None:
    put_folder(official)
    official.status[f"/{LARGE}/{SHARDS[3]}"] = 500
    with pytest.raises(DataError, match="answers 500"):
        download(LARGE, tmp_path, mirrors=[])
    assert not (tmp_path / LARGE).exists()
    official.status.clear()
    official.asked.clear()
    record = download(LARGE, tmp_path, mirrors=[])
    assert official.asked == [(f"/{LARGE}/", None), (f"/{LARGE}/{SHARDS[3]}", None)]
    assert names(tmp_path / LARGE) == set(SHARDS)
    assert record["source"] == "official"
    assert ogbench_files.describe(tmp_path, LARGE) == record
    assert names(tmp_path) == {LARGE, f"{LARGE}.provenance.json"}


def test_links_that_lead_out_of_the_folder_are_not_followed(official: Server, tmp_path: Path) -> None:
    put_folder(official)
    assert module.listed(f"{official.url}/{LARGE}/") == SHARDS


def test_a_mirror_without_the_folder_is_passed_over(
    official: Server, serve: Callable[[], Server], tmp_path: Path
) -> None:
    official.pages[f"/{LARGE}/"] = "<html>an empty folder</html>"
    mirror = serve()
    with pytest.raises(DataError, match=r"lists no \.npz file; .*answers 404"):
        download(LARGE, tmp_path, mirrors=[mirror.url])
    put_folder(mirror)
    assert download(LARGE, tmp_path, mirrors=[mirror.url])["source"] == "mirror"


# ---- where a user meets it


def test_the_datamodule_downloads_what_it_then_reads(
    official: Server, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = "pointmaze-medium-explore-v0"
    for path in ogbench_files.data_paths(data_dir, dataset):
        official.put(path.name, path.read_bytes())
    data = OGBenchData(dataset, data_dir=str(tmp_path))
    data.download(mirrors=[])
    data.setup()
    assert data.provenance()["source"] == "official"


def test_training_fetches_what_is_missing(official: Server, data_dir: Path, tmp_path: Path) -> None:
    dataset = "pointmaze-medium-explore-v0"
    for path in ogbench_files.data_paths(data_dir, dataset):
        official.put(path.name, path.read_bytes())
    data = OGBenchData(dataset, data_dir=str(tmp_path))
    console = Console(file=io.StringIO())
    fetch_missing(OmegaConf.create({"collect": None, "download": True}), data, console)
    data.setup()
    assert "downloading" in console.file.getvalue()


def test_the_command_asks_the_mirrors_given(serve: Callable[[], Server], data_dir: Path, tmp_path: Path) -> None:
    mirror = serve()
    for path in ogbench_files.data_paths(data_dir, "pointmaze-medium-explore-v0"):
        mirror.put(path.name, path.read_bytes())
    # a proxy that is not there keeps the official server out of reach, with or without a network
    environment = os.environ | {"https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    overrides = ["env=ogbench/pointmaze-medium-explore", f"data_dir={tmp_path}", f"mirrors=[{mirror.url}]"]
    done = mfrl("download", *overrides, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "pointmaze-medium-explore-v0 is in" in done.stderr
    assert ogbench_files.describe(tmp_path, "pointmaze-medium-explore-v0")["source"] == "mirror"


@pytest.mark.parametrize("choice", ["ogbench/visual-scene-play", "d4rl/pen-human", "minari/pointmaze-umaze"])
def test_what_can_be_trained_on_can_be_asked_for(choice: str) -> None:
    check_overrides("download", [f"env={choice}", "mirrors=[https://host/folder]"])


def test_what_cannot_be_downloaded_may_be_collected(official: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="or collect it in the simulator:  mfrl collect env=ogbench/cube-single-play"):
        download(DATASET, tmp_path, mirrors=[])
    with pytest.raises(DataError) as error:
        download("humanoidmaze-large-navigate-v0", tmp_path, mirrors=[])
    assert "collect" not in str(error.value)


def test_missing_data_names_both_commands(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        OGBenchData("cube-single-play", data_dir=str(tmp_path)).setup()
    both = commands(DATASET, tmp_path)
    assert both.keys() == {"collect", "download"}
    for command in both.values():
        assert command in str(error.value)
    assert commands("humanoidmaze-giant-stitch-v0").keys() == {"download"}
    assert commands("antmaze-giant-stitch-v0").keys() == {"collect", "download"}
    assert commands("pointmaze-giant-explore-v0").keys() == {"collect"}
    assert commands("nothing-v0") == {}


def test_an_interrupted_download_leaves_a_note_that_is_plain_json(official: Server, tmp_path: Path) -> None:
    official.put_dataset()
    official.cut[f"/{TRAIN}"] = [1000, 0, 0]
    with pytest.raises(DataError):
        download(DATASET, tmp_path, mirrors=[])
    note = json.loads((tmp_path / f"{TRAIN}.json").read_text())
    assert note["url"] == f"{official.url}/{TRAIN}"
    (tmp_path / f"{TRAIN}.json").write_text("{half")
    download(DATASET, tmp_path, mirrors=[])
    assert (tmp_path / TRAIN).read_bytes() == official.files[f"/{TRAIN}"]
