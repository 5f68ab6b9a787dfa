"""The tasks by name: configurations, sizes and defaults against the environments, and what is said of the data."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from rich.console import Console
from tiny import compose

from hydra_plugins.mfrl_configurations import Environments
from mfrl.app import tasks
from mfrl.app.refusals import check_overrides
from mfrl.app.tasks import choose, find_data
from mfrl.catalogue import (
    LARGE,
    PUBLISHED,
    TRAINED_POLICY,
    TasksError,
    benchmark,
    environments,
    others,
    singletask_id,
    spelled,
)
from mfrl.data import minari_files, ogbench_files, records
from mfrl.errors import ConfigError, EnvError

OGBENCH = sorted(env for env in environments() if env.startswith("ogbench/"))
MAZE = "ogbench/pointmaze-medium-explore"  # what the shared fixture has collected


def test_the_benchmark_has_73_tasks() -> None:
    names = [task.name for task in benchmark()]
    assert len(set(names)) == len(names) == 73
    ours = [task for task in benchmark() if task.suite == "ogbench"]
    assert sum(len(task.observation) == 1 for task in ours) == 50
    assert sum(len(task.observation) == 3 for task in ours) == 5
    assert {task.env for task in benchmark()} <= set(environments())
    assert not {task.name for task in others()} & set(names)


def test_every_dataset_of_ogbench_has_a_configuration() -> None:
    # the 85 of OGBench's README.md without powderworld's three; its 11 large sets; and mazes explored here only
    assert len(TRAINED_POLICY | PUBLISHED.keys()) == 82 + 4
    datasets = TRAINED_POLICY | PUBLISHED.keys() | LARGE
    assert {f"ogbench/{dataset.removesuffix('-v0')}" for dataset in datasets} == set(OGBENCH)


def test_every_ogbench_configuration_names_its_environment_and_one_in_ten_composes() -> None:
    import ogbench as _  # noqa: F401 - registers the environments

    configurations = Environments("mfrl", "catalogue://")
    for number, choice in enumerate(OGBENCH):
        name = choice.partition("/")[2]
        pixels = name.startswith("visual-")
        # What Hydra reads of each, which is all in which they differ; it composes these two kinds.
        shared = "ogbench/_visual" if pixels else "ogbench/_base"
        made = configurations.generate("env/ogbench", name)
        assert made == {"defaults": [shared], "name": name, "dataset": environments()[choice]}
        assert environments()[choice] == f"{name}-v0"
        for task in (None, 1, 2, 3, 4, 5):
            assert singletask_id(made.dataset, task) in gymnasium.registry
        if number % 10:
            continue
        cfg = compose("train", f"env={choice}")
        assert (cfg.env.name, cfg.data.dataset, cfg.env.task) == (name, f"{name}-v0", None)
        assert (cfg.env.frames, cfg.env.crop_probability) == ((3, 0.5) if pixels else (1, 0.0))
        assert (cfg.get("encoder") is not None) == pixels


@pytest.mark.parametrize("suite", ["d4rl", "minari"])
def test_every_configuration_of_a_minari_dataset_names_it_as_the_catalogue_does(suite: str) -> None:
    for env, dataset in environments().items():
        if env.startswith(suite):
            cfg = compose("train", f"env={env}")
            assert (f"{suite}/{cfg.env.name}", cfg.data.dataset) == (env, dataset)


def test_large_sets_belong_to_the_environment_of_the_small_ones() -> None:
    for dataset in LARGE:
        assert singletask_id(dataset, 3) == singletask_id(dataset.replace("-100m", ""), 3)


def test_tasks_of_images_are_those_of_states_seen_in_64_x_64_pixels() -> None:
    import ogbench as _  # noqa: F401 - registers the environments

    visual = [task for task in benchmark() + others() if task.env.startswith("ogbench/visual-")]
    assert len(visual) == 35
    for task in visual:
        name = task.env.partition("/")[2]
        shown, hidden = (gymnasium.spec(singletask_id(n)) for n in (name, name.removeprefix("visual-")))
        how = {"ob_type", "width", "height", "visualize_info", "render_mode", "camera_name"}
        assert shown.entry_point == hidden.entry_point
        assert {key: value for key, value in shown.kwargs.items() if key not in how} == hidden.kwargs
        assert (shown.kwargs["ob_type"], shown.kwargs["height"], shown.kwargs["width"]) == ("pixels", 64, 64)
        assert task.observation == (64, 64, 3)
    # the benchmark takes task 1 of each, whatever OGBench's default is
    assert {(task.number, task.default) for task in visual if task.updates} == {(1, False)}


# ---- names


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cube-single-play-singletask-task2-v0", "env=ogbench/cube-single-play env.task=2"),
        ("ogbench/cube-single-play-v0", "env=ogbench/cube-single-play"),
        ("visual-scene-play-singletask-v0", "env=ogbench/visual-scene-play"),
        ("cube-triple-play-100m-v0", "env=ogbench/cube-triple-play-100m"),
        ("antmaze-umaze-v2", "env=d4rl/antmaze-umaze"),
        ("D4RL/antmaze/umaze-diverse-v1", "env=d4rl/antmaze-umaze-diverse"),
        ("D4RL/pen/human-v2", "env=d4rl/pen-human"),
        ("cube-single-v0", None),
        ("cube-single-play-singletask-task6-v0", None),
        ("", None),
    ],
)
def test_other_names_of_a_task_are_understood(name: str, overrides: str | None) -> None:
    assert spelled(name) == overrides


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env=ogbench/cube-single-play-singletask-task2-v0", r"env=ogbench/cube-single-play env\.task=2"),
        ("env=d4rl/antmaze-umaze-v2", "env=d4rl/antmaze-umaze"),
        ("env=ogbench/cube-single-v0", "ogbench/cube-single-play"),
        ("env=ogbench/powderworld-easy-play-v0", "discrete actions"),
    ],
)
def test_other_spellings_are_answered_with_ours(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_overrides("train", [override])


@pytest.mark.parametrize(
    ("dataset", "message"), [("powderworld-easy-play-v0", "discrete"), ("cube-single-play-singletask-v0", "env.task=2")]
)
def test_datasets_that_are_none_of_ours_are_refused_with_the_reason(dataset: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        singletask_id(dataset)


def test_tasks_are_chosen_by_any_name() -> None:
    assert [task.number for task in choose(["cube-single-play"])] == [1, 2, 3, 4, 5]
    assert [task.name for task in choose(["scene-play-task3", "D4RL/pen/human-v2"])] == [
        "scene-play-task3",
        "pen-human",
    ]
    assert choose(["ogbench/cube-triple-noisy"])[0].updates is None
    assert len(choose([])) == 73
    assert len(choose([], every=True)) == 73 + len(environments()) - 33
    with pytest.raises(TasksError, match="cube-single-play"):
        choose(["cube-sngle-play"])


# ---- data


@pytest.fixture
def folder(data_dir: Path, tmp_path: Path) -> Path:
    """A copy of the collected data that a test may change."""
    for path in data_dir.glob("pointmaze*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_collected_data_are_found_with_the_state_of_their_checksums(folder: Path) -> None:
    found = find_data(MAZE, str(folder))
    assert (found.state, found.checked, found.problem, found.get) == ("collected", "sizes", None, {})
    assert found.bytes == sum(path.stat().st_size for path in folder.glob("*.npz"))
    assert find_data(MAZE, str(folder), verify=True).checked == "checksums"


def test_changed_files_are_unrecorded(folder: Path) -> None:
    path = ogbench_files.data_paths(folder, "pointmaze-medium-explore-v0")[0]
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    assert find_data(MAZE, str(folder)).state == "collected"  # as long as before
    found = find_data(MAZE, str(folder), verify=True)
    assert (found.state, found.checked) == ("unrecorded", None)
    assert "checksum" in found.problem
    path.write_bytes(changed + b"0")
    assert "size" in find_data(MAZE, str(folder)).problem


@pytest.mark.parametrize("content", ["{half", "[]", '{"dataset": 1}', '{"dataset": "pointmaze-medium-explore-v0"}'])
def test_a_record_that_cannot_be_read_speaks_of_nothing(folder: Path, content: str) -> None:
    ogbench_files.record_path(folder, "pointmaze-medium-explore-v0").write_text(content)
    found = find_data(MAZE, str(folder))
    assert found.state == "unrecorded"
    assert ".provenance.json" in found.problem


def test_a_record_speaks_for_exactly_its_files(folder: Path) -> None:
    path = ogbench_files.record_path(folder, "pointmaze-medium-explore-v0")
    record = json.loads(path.read_text())
    (first, *_), files = record["files"], record["files"]
    for other in ({first: files[first]}, files | {"more.npz": files[first]}):
        path.write_text(json.dumps(record | {"files": other}))
        assert find_data(MAZE, str(folder)).state == "unrecorded"


def test_one_file_of_two_is_incomplete_and_the_remedy_named(folder: Path) -> None:
    ogbench_files.data_paths(folder, "pointmaze-medium-explore-v0")[1].unlink()
    found = find_data(MAZE, str(folder))
    assert found.state == "incomplete"
    assert "-val.npz missing" in found.problem
    assert found.get == {"collect": f"mfrl collect env={MAZE} data_dir={folder}"}


def test_files_without_a_record_are_unrecorded_and_downloads_what_they_are(folder: Path) -> None:
    record = ogbench_files.record_path(folder, "pointmaze-medium-explore-v0")
    written = json.loads(record.read_text())
    for source in ("official", "mirror"):
        record.write_text(json.dumps(written | {"source": source}))
        assert find_data(MAZE, str(folder), verify=True).state == source
    record.unlink()
    assert (find_data(MAZE, str(folder)).state, find_data(MAZE, str(folder)).checked) == ("unrecorded", None)


def test_missing_data_say_how_they_are_had(tmp_path: Path) -> None:
    found = find_data("ogbench/cube-single-play", str(tmp_path))
    assert (found.state, found.folder) == ("nothing", str(tmp_path))
    assert found.get.keys() == {"collect", "download"}
    assert find_data("d4rl/pen-human", str(tmp_path)).get == {
        "download": f"mfrl download env=d4rl/pen-human data_dir={tmp_path}"
    }
    assert find_data("minari/pointmaze-umaze", str(tmp_path)).get.keys() == {"collect"}


def test_large_sets_are_found_in_their_folder(tmp_path: Path) -> None:
    dataset, env = "cube-double-play-100m-v0", "ogbench/cube-double-play-100m"
    (tmp_path / dataset).mkdir()
    names = [f"cube-double-play-v0-{k:03d}{half}.npz" for k in range(3) for half in ("", "-val")]
    for name in names:
        (tmp_path / dataset / name).write_bytes(b"1")
    files = {name: records.fingerprint(tmp_path / dataset / name) for name in names}
    record = {"dataset": dataset, "source": "official", "files": files}
    records.write(ogbench_files.record_path(tmp_path, dataset), record)
    assert find_data(env, str(tmp_path), verify=True).state == "official"
    (tmp_path / dataset / names[2]).unlink()
    assert find_data(env, str(tmp_path)).state == "incomplete"


def test_minaris_folder_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = environments()["d4rl/pen-human"]
    assert find_data("d4rl/pen-human").state == "nothing"
    data = tmp_path / dataset / "data"
    data.mkdir(parents=True)
    (data / "main_data.hdf5").write_bytes(b"1")
    assert find_data("d4rl/pen-human").state == "incomplete"
    (data / "metadata.json").write_text("{}")
    assert find_data("d4rl/pen-human").state == "unrecorded"
    files = {f"data/{path.name}": records.fingerprint(path) for path in data.iterdir()}
    record = {"format": 1, "dataset": dataset, "source": "official", "files": files}
    (tmp_path / dataset / minari_files.RECORD).write_text(json.dumps(record))
    assert find_data("d4rl/pen-human", verify=True).state == "official"


# ---- the command


def test_unfolded_the_table_has_a_line_for_every_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks.main(["--data-dir", str(folder), "--all-tasks"])
    lines = capsys.readouterr().out.splitlines()
    for task in benchmark():
        assert [line for line in lines if line.startswith(f"{task.name} ") and task.overrides in line]


def test_the_table_has_a_line_for_every_dataset_with_its_tasks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks.main(["--data-dir", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split()[0]: line for line in lines if line.startswith(("ogbench/", "d4rl/"))}
    assert cells.keys() == {task.env for task in benchmark()}
    assert " 1-5 (2) " in cells["ogbench/cube-single-play"]
    assert " 1 " in cells["ogbench/visual-scene-play"]
    assert any("--all-tasks" in line for line in lines)
    assert max(map(len, lines)) <= 120
    assert " code, fql, paper " in cells["ogbench/scene-play"]
    assert " code, fql, paper +4 " in cells["ogbench/visual-scene-play"], "how many more there are"
    tasks.main(["--data-dir", str(folder), "scene-play-task2", "scene-play-task4", "pen-human"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("ogbench/scene-play ") and " 2, 4 (2) " in line]
    assert "mfrl train env=ogbench/scene-play env.task=2" in "\n".join(lines)


@pytest.mark.parametrize("state", ["nothing", "official"])
@pytest.mark.parametrize("width", [80, 120, 140, 200])
@pytest.mark.parametrize("all_tasks", [False, True])
def test_a_table_fits_the_terminal_and_keeps_names_and_what_to_do(
    state: str, width: int, all_tasks: bool, tmp_path: Path
) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    data = {task.env: find_data(task.env, str(tmp_path)) for task in benchmark()}
    if state != "nothing":
        data = {env: tasks.Data(state, "checksums", "", 1, None, {}) for env in data}
    tasks.show([(task, data[task.env]) for task in benchmark()], console, all_tasks)
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= width
    assert ("presets" in lines[0]) == (width >= 120)
    for task in benchmark():
        remedy = " or ".join(data[task.env].get) or f"{state} (checksums)"
        (line,) = (line for line in lines if line.split()[:1] == [task.name if all_tasks else task.env])
        assert line.strip().endswith(remedy)


def test_available_and_json_tell_programs_what_is_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--all", "--available", "--verify", "--json", "--data-dir", str(folder)]
    tasks.main(arguments)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["overrides"] == f"env={MAZE}"
    assert (found["observation"], found["action"]) == ([2], 2)
    assert (found["data"]["state"], found["data"]["checked"]) == ("collected", "checksums")


def test_a_dataset_shows_the_methods_with_settings_for_any_of_its_tasks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--all-tasks"]):
        tasks.main(["cube-triple-play", "--data-dir", str(folder), *arguments])
        assert "fbrac, ifql, iql, rebrac, rlpd" in capsys.readouterr().out
    tasks.main(["cube-triple-play", "--data-dir", str(folder), "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert {"rlpd/cube-triple-play-task1", "iql/cube-triple-play-task5"} <= set(found["presets"])


def test_the_command_loads_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys; sys.argv = ['mfrl', 'tasks', 'cube-sngle-play']\n"
        "from mfrl.app.cli import main\n"
        "try: main()\n"
        "finally: print({'torch', 'gymnasium', 'ogbench', 'minari', 'mujoco', 'h5py'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "did you mean cube-single-play" in done.stderr
    assert done.stdout.strip() == "set()"
