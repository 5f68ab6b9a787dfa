"""How to get the files of a dataset: the commands that collect or download them, and sentences for error messages."""

from __future__ import annotations

from pathlib import Path

from mfrl.catalogue import (
    DEFAULT_DATA_DIR,
    DOWNLOAD_URL,
    LARGE,
    PUBLISHED,
    downloadable,
    generation_settings,
    spelled,
)
from mfrl.data.minari_files import DEFAULT_ROOT, OWN_NAMESPACE
from mfrl.errors import CollectError
from mfrl.system.paths import pasted


def commands(dataset: str, data_dir: str | Path | None = None, suite: str = "ogbench") -> dict[str, str]:
    """The commands that make a dataset's files, by their verb, `collect` or `download`.

    Args:
        dataset: OGBench's name with its `-v0`, or a Minari id.
        data_dir: the folder for the files; None: OGBench's or Minari's own.
        suite: `ogbench`; any other name means Minari.
    """
    if suite == "ogbench":
        chosen, default = [f"env=ogbench/{dataset.removesuffix('-v0')}"], DEFAULT_DATA_DIR
        possible = {"collect": dataset in PUBLISHED, "download": downloadable(dataset)}
    else:
        chosen, default = _choice_of_minari(dataset), DEFAULT_ROOT
        own = dataset.startswith(f"{OWN_NAMESPACE}/")
        possible = {"collect": own, "download": not own}
    folder = Path(data_dir or default).expanduser()
    elsewhere = {} if folder == Path(default).expanduser() else {"data_dir": folder}
    return {verb: pasted("mfrl", verb, *chosen, **elsewhere) for verb, can in possible.items() if can}


def _choice_of_minari(dataset: str) -> list[str]:
    """The overrides that name a Minari dataset: its own choice of ``env=`` if it has one."""
    named = spelled(dataset) or ""
    return (
        [named] if named.startswith(("env=d4rl/", "env=minari/")) else ["env=minari/dataset", f"env.dataset={dataset}"]
    )


def how_to_get(dataset: str, data_dir: str | Path | None = None, suite: str = "ogbench") -> str:
    """A sentence that says how to get a missing dataset; arguments as in :func:`commands`."""
    ways = commands(dataset, data_dir, suite)
    if "collect" in ways:
        published = f", or fetch OGBench's own:  {ways['download']}" if "download" in ways else ""
        return f"collect it in the simulator:  {ways['collect']}{published}"
    if suite != "ogbench":
        return f"download it:  {ways['download']}"
    return why_not_collected(dataset, data_dir)


def why_not_collected(dataset: str, data_dir: str | Path | None = None) -> str:
    """A sentence that says why no script makes an OGBench dataset (with or without `-v0`), and where its files are."""
    try:
        generation_settings(dataset)
    except CollectError as error:
        reason = str(error)
    else:
        raise ValueError(f"{dataset} can be collected")
    name = dataset if dataset.endswith("-v0") else f"{dataset}-v0"
    ways = commands(name, data_dir)
    if "download" not in ways:
        return reason
    fetch = f"{reason} Fetch it:  {ways['download']}"
    if name in LARGE:
        return fetch
    train, val = (f"{DOWNLOAD_URL}/{name}{suffix}.npz" for suffix in ("", "-val"))
    folder = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
    return f"{fetch}   or download {train} and {val} yourself and put both in {folder}."
