"""Presets: every number against the published ones, tables that cannot be used, and tables of one's own."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from tiny import ENVIRONMENT, compose, mfrl

from mfrl.app import presets
from mfrl.app.checks import check_settings, refuse_settings_of_another_algorithm
from mfrl.app.overrides import Composer
from mfrl.app.parts import build_algorithm
from mfrl.app.refusals import check_overrides
from mfrl.catalogue import ONLINE, Task, benchmark, environments, others, tasks
from mfrl.data.batch import DataSpec
from mfrl.errors import ConfigError
from mfrl.networks.encoder import EncodedNetwork
from mfrl.runs.read import flatten
from mfrl.runs.targets import build
from mfrl.system.paths import CONFIG_DIR

PUBLISHED = Path(__file__).parents[1] / "fixtures" / "published"
METHODS = ("code", "fql", "paper")  # whose published figures are here for every task of the benchmark
BASELINES = ("fbrac", "ifql", "iql", "rebrac", "rlpd")  # whose published commands are for some tasks alone
TASKS = {task.name: task for task in benchmark()}
#: Settings that are no method's but ours, and what they are where a method as published has none of it.
OURS_OFF = {"algo.clip_targets": False, "algo.actor_average": None}


@cache
def composed(method: str) -> dict[str, DictConfig]:
    """All presets of a method, by task.

    Hydra, which takes long, composes one in ten and those that resemble none. What it would read of the others is laid
    over the one they resemble: their base, or the first one of their dataset. The one in ten must come to the same.
    """
    table, found, first = presets.tables()[method], {}, {}
    for number, (name, preset) in enumerate(presets.read(table).items()):
        alike = first.get(preset.task.env)
        if preset.base is not None:
            base, _, of = preset.base.partition("/")
            alike = OmegaConf.merge(composed(base)[of], OmegaConf.load(table.with_suffix(".yaml")))
        if alike is not None:
            row = presets.composed(table, name)
            del row["defaults"]
            found[name] = OmegaConf.merge(alike, row)
        if alike is None or number % 10 == 0:
            cfg = compose("train", f"experiment={method}/{name}")
            assert OmegaConf.to_container(found.setdefault(name, cfg)) == OmegaConf.to_container(cfg)
        first.setdefault(preset.task.env, found[name])
    return found


# ---- what was published


def rows(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def value(text: str) -> Any:
    """Of a cell, or of a flag of the published commands, which are Python's; lists as :func:`flatten` has them."""
    try:
        found = json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except ValueError:
        return text
    return tuple(found) if isinstance(found, list) else found


def kind(task: Task) -> str:
    return "d4rl" if task.suite == "d4rl" else "images" if len(task.observation) == 3 else "states"


def in_figures(name: str, task: Task) -> dict[str, Any]:
    """Figures by where they hold: everywhere, in a benchmark, for a robot, a dataset or a task; the last one counts."""
    dataset = task.env.partition("/")[2]
    places = {"all", task.suite, kind(task), dataset.partition("-")[0], dataset, task.name}
    return {row["setting"]: value(row["value"]) for row in rows(name) if row["where"] in places}


def in_commands_of_fql(task: Task) -> dict[str, Any]:
    """What FQL's code trains a task with: the flags of its command, and the code's defaults."""
    commands = {re.sub(r"-singletask|-v\d$", "", row["env"]): row["settings"] for row in rows("fql_commands")}
    flags = {row["setting"]: row["default"] for row in rows("fql_defaults")}
    flags |= dict(flag.split("=") for flag in commands[task.name].split(";"))
    given = {name.removeprefix("agent."): value(text) for name, text in flags.items()}
    assert (given["normalize_q_loss"], given["layer_norm"], given["actor_layer_norm"]) == (False, True, False)
    assert given.get("encoder") == ("impala_small" if kind(task) == "images" else None)
    hidden = tuple(int(width) for width in re.findall(r"\d+", given["value_hidden_dims"]))
    assert given["actor_hidden_dims"] == given["value_hidden_dims"]
    expected = {
        "algo_name": given["agent_name"],
        "variant.name": "none",
        "updates": given["offline_steps"],
        "batch_size": given["batch_size"],
        "eval.every": given["eval_interval"],
        "eval.episodes": given["eval_episodes"],
        "data.normalize": False,  # the code has no such thing
        "network.actor.hidden": hidden,
        "network.critic.hidden": hidden,
        "network.critic.ensemble": 2,
        "algo.alpha": given["alpha"],
        "algo.q_aggregation": given["q_agg"],
        "algo.discount": given["discount"],
        "algo.tau": given["tau"],
        "algo.flow_steps": given["flow_steps"],
        "algo.normalize_q": "none",
        "algo.sigma": 1.0,  # its noise is a standard one
        "algo.actor_lr": given["lr"],
        "algo.critic_lr": given["lr"],
    }
    if task.suite == "ogbench":
        expected |= {"env.frames": given["frame_stack"] or 1, "env.crop_probability": given["p_aug"] or 0.0}
    return expected


def published(method: str, task: Task) -> dict[str, Any]:
    if method == "fql":
        return OURS_OFF | in_commands_of_fql(task)
    paper = OURS_OFF | in_figures("meanflowql_paper", task)
    return paper | in_figures("meanflowql_code", task) if method == "code" else paper


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_is_what_was_published(method: str) -> None:
    table = presets.read(CONFIG_DIR / "presets" / f"{'paper' if method == 'code' else method}.csv")
    wrong = {}
    for name, cfg in composed(method).items():
        task = TASKS[name]
        expected = published(method, task) | {"env.dataset": environments()[task.env], "env.task": task.number}
        found = flatten(OmegaConf.to_container(cfg, resolve=False))
        of_algorithm = {key for key in found if re.match(r"algo\.(?!_|reformulation)", key)}
        of_algorithm -= {key for key in of_algorithm if str(found[key]).startswith("${")}
        for key in expected.keys() | of_algorithm:
            if key in expected:
                wrong |= {} if found[key] == expected[key] else {f"{name} {key}": (found[key], expected[key])}
                continue
            # Of what was not published the table says so, and whose value it takes, if a task has one.
            source = table[name].sources[key]
            assert source.startswith("no value known"), (name, key)
            if near := re.search(r"no value known: (\S+)'s \(", source):
                assert found[key] == published("paper", TASKS[near[1]])[key], (name, key)
        wrong |= {} if (cfg.get("encoder") is None) == (kind(task) != "images") else {name: "encoder"}
        check_settings(cfg)
        refuse_settings_of_another_algorithm(cfg, [])
    assert not wrong


#: Flags of the published commands of other methods, as our settings.
FLAGS = {
    "offline_steps": "updates",
    "frame_stack": "env.frames",
    "p_aug": "env.crop_probability",
    "agent.discount": "algo.discount",
    "agent.alpha": "algo.alpha",
    "agent.alpha_actor": "algo.alpha",
    "agent.alpha_critic": "algo.alpha_critic",
    "agent.num_samples": "algo.num_candidates",
    "online_steps": "online.steps",
    "balanced_sampling": "online.balanced",
    "start_training": "online.start_after",
    "agent.num_qs": "network.critic.ensemble",
    "agent.q_agg": "algo.target_aggregation",
}
#: Flags that one method's commands leave at the defaults of its code.
DEFAULTS = {"rlpd": {"start_training": "0", "agent.num_qs": "2", "agent.q_agg": "min"}}


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_s_presets_are_its_published_commands(method: str) -> None:
    table = presets.read(CONFIG_DIR / "presets" / f"{method}.csv")
    commands = {row["task"]: row for row in rows("baseline_commands") if row["method"] == method}
    assert table.keys() == commands.keys()
    for name, command in commands.items():
        cfg = composed(method)[name]
        expected = {"offline_steps": "1000000", "agent.discount": "0.99"}  # of main.py and of the agent's file
        expected |= DEFAULTS.get(method, {})
        given = expected | dict(flag.split("=") for flag in command["settings"].split(";"))
        assert given.pop("agent.encoder", None) == ("impala_small" if "encoder" in cfg and cfg.encoder else None)
        for flag, text in given.items():
            assert OmegaConf.select(cfg, FLAGS.get(flag, flag)) == value(text), (name, flag)
        own = {key for key in table[name].settings if key != "updates"}
        assert all(command["source"].split("@")[1].split()[0] in table[name].sources[key] for key in own)
        assert (cfg.algo_name, cfg.batch_size, cfg.data.normalize) == (method, 256, False)
        assert list(cfg.network.critic.hidden) == 4 * [512]
        check_settings(cfg)
        refuse_settings_of_another_algorithm(cfg, [])


def test_a_preset_is_of_the_environment_it_is_named_after() -> None:
    for name, cfg in composed("fql").items():
        task = TASKS[name]
        if task.suite == "ogbench":
            environment = re.sub(r"-(navigate|play)$", "", task.env.partition("/")[2])  # several datasets may share one
            assert build(cfg.data).env.env_id == f"{environment}-singletask-task{task.number}-v0"
        else:
            assert re.fullmatch(name.replace("-", "[-/]", 2) + r"-v\d", cfg.env.dataset.removeprefix("D4RL/"))


def test_these_methods_have_a_preset_for_each_of_the_73_tasks() -> None:
    assert len(TASKS) == 73
    for method in METHODS:
        assert [*presets.read(presets.tables()[method])] == [*TASKS]
    assert {*METHODS} <= {*presets.methods("pen-human")} <= {*presets.tables()}


def test_every_number_has_a_source() -> None:
    for method, path in presets.tables().items():
        for preset in presets.read(path).values():
            assert preset.settings.keys() == preset.sources.keys(), preset.task.name
        before = block = ""
        for line in (CONFIG_DIR / "presets" / f"{method}.yaml").read_text(encoding="utf-8").splitlines():
            code, _, comment = line.partition("#")
            if code and not code.startswith(" "):
                block = comment
            if re.search(r": .*\d|: null", code):
                assert comment or before.startswith("  #") or block, f"{method}: {line}"
            before = line


def test_presets_restate_every_setting_of_their_algorithm() -> None:
    """Or else a default that moves would move them."""
    for method, path in presets.tables().items():
        shared, rows = load(path.with_suffix(".yaml")), presets.read(path).values()
        if any(preset.base for preset in rows):
            continue
        (algorithm,) = (choice["override /algo"] for choice in shared["defaults"] if "override /algo" in choice)
        defaults = settings_of(algorithm)
        # What comes from elsewhere, as networks do, is no setting of the algorithm's own.
        wanted = {key for key, known in defaults.items() if key[0] != "_" and not re.match(r"[{$]", str(known))}
        for preset in rows:
            given = {key.removeprefix("algo.") for key in preset.settings if key.startswith("algo.")}
            assert given | shared["algo"].keys() == wanted, f"{method}/{preset.task.name}"


def settings_of(algorithm: str) -> dict[str, Any]:
    """What an algorithm's file sets of it, and the file that it starts from."""
    config = load(CONFIG_DIR / "algo" / f"{algorithm}.yaml")
    bases = [choice for choice in config.get("defaults", []) if isinstance(choice, str) and choice != "_self_"]
    return {key: value for base in bases for key, value in settings_of(base).items()} | config["algo"]


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", ["paper", "fql"])
@pytest.mark.parametrize("name", ["cube-double-play-task2", "visual-scene-play-task1", "pen-cloned"])
def test_networks_of_a_preset_are_of_the_published_sizes(method: str, name: str) -> None:
    images = {"image_shape": (3, 64, 64, 3)} if name.startswith("visual") else {}
    dim = 0 if images else 28
    spec = DataSpec(dim, 5, (0.0,) * dim, (1.0,) * dim, -1.0, 0.0, **images)
    module = build_algorithm(compose("train", f"experiment={method}/{name}"), spec)

    def weights(network: EncodedNetwork) -> int:
        return sum(p.numel() for p in network.network.parameters())

    features = 512 if images else 28
    hidden = 3 * (512 * 512 + 512)
    per_critic = (features + 5) * 512 + 512 + hidden + 4 * 2 * 512 + 512 + 1
    assert weights(module.critic) == 2 * per_critic
    if method == "fql":
        field = (features + 5 + 1) * 512 + 512 + hidden + 512 * 5 + 5
        assert weights(module.flow) == weights(module.actor) == field
    elif not images:
        # 3.83 M as published; query and key of an attention over one token, which have no effect, are left out.
        assert 3.1e6 < weights(module.actor) < 3.83e6
    assert (module.actor.encoder is not None) is bool(images)


def test_settings_of_a_preset_can_be_overridden() -> None:
    cfg = compose("train", "experiment=paper/scene-play-task2", "algo.alpha=300", "variant=velocity")
    assert (cfg.algo.alpha, cfg.variant.name, cfg.env.task, cfg.algo.num_candidates) == (300, "velocity", 2, 5)
    code = compose(
        "train", "experiment=code/scene-play-task2", "data.normalize=true", "env.task=3", "algo.discount=0.9"
    )
    assert (code.algo.critic_lr, code.data.normalize, code.env.task, code.algo.discount) == (3e-4, True, 3, 0.9)


# ---- names


def test_hydra_knows_every_name() -> None:
    composer = Composer("train")
    known = {name for name in composer.all_names("experiment") if not name.startswith("_")}
    files = {path.stem for path in (CONFIG_DIR / "experiment").glob("[!_]*.yaml")}
    assert known == files | {f"{m}/{name}" for m, table in presets.tables().items() for name in presets.read(table)}
    toys = {f"toy/{path.stem}" for path in (CONFIG_DIR / "env" / "toy").glob("[!_]*.yaml")}
    known = {name for name in composer.all_names("env") if not name.rpartition("/")[2].startswith("_")}
    assert known == {*environments(), *ONLINE, *toys, "minari/dataset", "gym/any"}
    assert composer.is_group("env")
    assert composer.is_group("experiment")


def test_other_applications_of_hydras_find_none_of_our_names(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("seed: 0\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = hydra.compose("app", ["+experiment=paper/pen-human"])
    assert cfg == {"seed": 0, "experiment": "paper/pen-human"}  # a setting of its own


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("paper/cube-duble-play-task2", "paper/cube-double-play-task2"),
        ("fql/pen-clone", "fql/pen-cloned"),
        ("code/pen-clone", "code/pen-cloned"),
        ("paper/antmaze-umaze-v2", "paper/antmaze-umaze"),
        ("cube-double-play-task2", "paper/cube-double-play-task2"),
        ("papr/pen-cloned", "paper/pen-cloned"),
    ],
)
def test_an_unknown_preset_is_answered_with_near_ones(wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"'experiment/{wrong}'.*{near}"):
        check_overrides("train", [f"experiment={wrong}"])


def test_every_task_of_every_dataset_may_have_a_preset() -> None:
    names = tasks()
    assert {task.name for task in (*benchmark(), *others())} <= names.keys()
    assert names["visual-cube-double-play-task3"].overrides == "env=ogbench/visual-cube-double-play env.task=3"
    assert (names["cube-triple-play-task1"].updates, names["cube-double-play-task1"].updates) == (None, 1_000_000)


# ---- tables of one's own


MINE = """task,base,updates,algo.alpha,algo.alpha source
cube-triple-play-task3,paper/cube-double-play-task2,,30,searched in July
pen-cloned,code/pen-cloned,70000,300.0,
pointmaze-medium-explore,,,2.5,
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder: a table and what its rows share, an experiment, an environment; its path has odd characters."""
    folder = tmp_path / "my conf=1"
    for group in ("presets", "experiment", "env"):
        (folder / group).mkdir(parents=True)
    (folder / "presets" / "mine.csv").write_text(MINE, encoding="utf-8-sig")  # as spreadsheets write it
    (folder / "presets" / "mine.yaml").write_text("# @package _global_\nseed: 7\nupdates: 5000\n")
    (folder / "experiment" / "quick.yaml").write_text(
        "# @package _global_\ndefaults: [mine/pen-cloned, {override /env: swing}]\nbatch_size: 32\n"
    )
    (folder / "env" / "swing.yaml").write_text(
        "# @package env\ndefaults: [minari/_base]\nname: swing\ndataset: my/swing-v0\n"
    )
    return folder


def looked_for(how: str, folder: Path) -> list[str]:
    return ["--config-dir", str(folder)] if how == "flag" else [f"hydra.searchpath=['file://{folder}']"]


@pytest.mark.parametrize("how", ["flag", "searchpath"])
def test_tables_and_files_of_ones_own_are_found_beside_ours(how: str, own: Path) -> None:
    def shown(*overrides: str) -> DictConfig:
        done = mfrl("train", *looked_for(how, own), *overrides, "--cfg", "job")
        assert done.returncode == 0, done.stderr
        return OmegaConf.create(done.stdout)

    cfg = shown("experiment=mine/cube-triple-play-task3")
    assert (cfg.env.name, cfg.env.task, cfg.algo.alpha, cfg.algo.num_candidates) == ("cube-triple-play", 3, 30, 5)
    assert (cfg.seed, cfg.updates, cfg.batch_size) == (7, 5000, 256)
    cfg = shown("experiment=quick")
    assert (cfg.env.name, cfg.updates, cfg.algo.alpha, cfg.algo.critic_lr) == ("swing", 70000, 300.0, 3e-4)
    assert (cfg.data.normalize, cfg.batch_size) == ("padded", 32)


def test_the_table_in_the_documentation_does_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "presets.md").read_text(encoding="utf-8")
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.csv").write_text(re.search(r"```csv\n(.+?)```", page, re.DOTALL)[1])
    done = mfrl("train", "--config-dir", str(tmp_path), "experiment=mine/cube-triple-play-task3", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    cfg, base = OmegaConf.create(done.stdout), compose("train", "experiment=paper/cube-double-play-task2")
    assert (cfg.env.name, cfg.env.task, cfg.algo.alpha) == ("cube-triple-play", 3, 300)
    cfg.algo.alpha = base.algo.alpha
    assert cfg.algo == base.algo


def test_tables_of_ones_own_have_near_names(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine/pen-clonde.*did you mean mine/pen-cloned"):
        check_overrides("train", ["experiment=mine/pen-clonde"], str(own))


@pytest.mark.parametrize("line", ["mfrl experiment/pa", "mfrl experiment/paper=antmaze-u", "mfrl env/d4rl=pen-"])
def test_the_shell_completes_names_of_tables_and_of_the_catalogue(line: str) -> None:
    completed = {
        "mfrl experiment/pa": {"experiment/paper="},
        "mfrl experiment/paper=antmaze-u": {"experiment/paper=antmaze-umaze", "experiment/paper=antmaze-umaze-diverse"},
        "mfrl env/d4rl=pen-": {f"env/d4rl=pen-{name}" for name in ("human", "cloned", "expert")},
    }
    done = mfrl("train", "-sc", "query=bash", env=ENVIRONMENT | {"COMP_LINE": line})
    assert (done.returncode, {*done.stdout.split()}) == (0, completed[line]), done.stderr


def test_a_table_by_the_name_of_one_of_ours_is_refused(own: Path) -> None:
    shutil.copy(own / "presets" / "mine.csv", own / "presets" / "paper.csv")
    with pytest.raises(ConfigError, match=r"presets/paper\.csv: .*another name"):
        check_overrides("train", ["experiment=paper/pen-cloned"], str(own))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("task,algo.alhpa\npen-cloned,3\n", ["line 1", "column 'algo.alhpa'", "algo.alpha"]),
        ("task,algo.alpha,algo.tau source,tua\npen-cloned,3,x,y\n", ["line 1", "column 'tua'"]),
        ("task,updtes source\npen-cloned,3\n", ["line 1", "column 'updtes source'", "updates"]),
        ("task,algo.alpha,algo.alpha\npen-cloned,3,4\n", ["line 1", "column 'algo.alpha'", "2 times"]),
        ("tasks,algo.alpha\npen-cloned,3\n", ["line 1", "column 'tasks'", "did you mean task"]),
        ("algo.alpha\n3\n", ["line 1", "a column 'task'"]),
        ("task;algo.alpha\npen-cloned;3\n", ["line 1", "column 'task;algo.alpha'"]),
        ("", ["line 1", "a column 'task'"]),
        ("task,algo.alpha\npen-cloned,3\npen-human,ten\n", ["line 3", "pen-human", "column 'algo.alpha'", "'ten'"]),
        ("task,algo.alpha\npen-cloned,NaN\n", ["line 2", "column 'algo.alpha'", "'NaN'"]),
        ("task,algo.alpha\npen-cloned,true\n", ["line 2", "column 'algo.alpha'", "'true'"]),
        ("task,updates\npen-cloned,1_000\n", ["line 2", "column 'updates'", "'1_000'"]),
        ("task,algo.alpha\npen-cloned,3\n\npen-cloned,4\n", ["line 4", "column 'task'", "pen-cloned", "line 2"]),
        ("task,algo.alpha\npen-cloned,3\npen-clone,4\n", ["line 3", "column 'task'", "'pen-clone'", "pen-cloned"]),
        ("task,algo.alpha\npen-cloned,3,4\n", ["line 2", "3 cells", "2 columns"]),
        ('task,algo.alpha\npen-cloned,"3\n', ["cannot be read as a table"]),
        ("task,base\npen-cloned,papr/pen-cloned\n", ["'experiment/papr/pen-cloned'", "paper/pen-cloned"]),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_place(table: str, told: list[str], tmp_path: Path) -> None:
    path = tmp_path / "presets" / "mine.csv"
    path.parent.mkdir()
    path.write_text(table)
    with pytest.raises(ConfigError) as caught:
        check_overrides("train", ["experiment=mine/pen-cloned"], str(tmp_path))
    for part in told if "base" in table else [str(path), *told]:
        assert part in str(caught.value)


def test_a_table_that_cannot_be_used_stops_the_command_before_anything_is_done(own: Path, tmp_path: Path) -> None:
    path = own / "presets" / "mine.csv"
    path.write_text("task,algo.alpha\npen-cloned,ten\n", encoding="utf-8")
    arguments = ["--config-dir", str(own), "experiment=mine/pen-cloned", f"run_dir={tmp_path}/run", "download=true"]
    done = mfrl("train", *arguments, env=ENVIRONMENT | {"MINARI_DATASETS_PATH": str(tmp_path / "minari")})
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert f"{path}, line 2: pen-cloned, column 'algo.alpha'" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "minari").exists()
    assert os.listdir(tmp_path) == [own.name]
    done = mfrl("train", "--config-dir", str(own), "--help")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
