"""How missing data are had: one answer for OGBench and for Minari, in commands and in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfrl.data.getting import commands, how_to_get, why_not_collected

ANY = "mfrl download env=minari/dataset"


@pytest.mark.parametrize(
    ("dataset", "suite", "expected"),
    [
        (
            "cube-single-play-v0",
            "ogbench",
            {
                "collect": "mfrl collect env=ogbench/cube-single-play",
                "download": "mfrl download env=ogbench/cube-single-play",
            },
        ),
        (
            "humanoidmaze-large-navigate-v0",
            "ogbench",
            {"download": "mfrl download env=ogbench/humanoidmaze-large-navigate"},
        ),
        ("pointmaze-large-explore-v0", "ogbench", {"collect": "mfrl collect env=ogbench/pointmaze-large-explore"}),
        ("D4RL/pen/human-v2", "minari", {"download": "mfrl download env=d4rl/pen-human"}),
        ("mfrl/pointmaze/umaze-v0", "minari", {"collect": "mfrl collect env=minari/pointmaze-umaze"}),
        (
            "mujoco/hopper/expert-v0",
            "minari",
            {"download": "mfrl download env=minari/dataset env.dataset=mujoco/hopper/expert-v0"},
        ),
        (
            "cube-single-play-v0",
            "minari",
            {"download": "mfrl download env=minari/dataset env.dataset=cube-single-play-v0"},
        ),
    ],
)
def test_each_dataset_has_its_commands_and_they_stand_in_the_words(
    dataset: str, suite: str, expected: dict[str, str], tmp_path: Path
) -> None:
    assert commands(dataset, suite=suite) == expected
    elsewhere = {verb: f"{command} data_dir={tmp_path}" for verb, command in expected.items()}
    assert commands(dataset, tmp_path, suite) == elsewhere
    for command in elsewhere.values():
        assert command in how_to_get(dataset, tmp_path, suite)


def test_what_nobody_makes_is_told_with_near_names_and_no_command() -> None:
    assert commands("cube-doubel-play-v0") == {}
    assert "cube-double-play-v0" in how_to_get("cube-doubel-play-v0")
    assert "mfrl" not in how_to_get("cube-doubel-play-v0")


def test_what_can_only_be_downloaded_says_where_its_files_are(tmp_path: Path) -> None:
    text = why_not_collected("humanoidmaze-large-navigate", tmp_path)
    for part in (
        "/humanoidmaze-large-navigate-v0.npz",
        "/humanoidmaze-large-navigate-v0-val.npz",
        f"put both in {tmp_path}",
    ):
        assert part in text
    large = why_not_collected("cube-double-play-100m-v0", tmp_path)  # in many files
    assert "mfrl download env=ogbench/cube-double-play-100m" in large
    assert ".npz" not in large
