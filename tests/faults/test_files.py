"""Hostile and damaged files: nothing out of one runs, and none gives other weights or loses numbers without a word."""

from __future__ import annotations

import builtins
import copy
import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import tiny
import torch
from app.test_train import assert_equal, resume, weights
from gymnasium.spaces import Box
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from omegaconf import OmegaConf
from tiny import compose

from mfrl.app.evaluate import EvaluationError, evaluate_checkpoint
from mfrl.app.overrides import Composer
from mfrl.app.train import train
from mfrl.collect.minari.runner import collect
from mfrl.data.batch import DataSpec
from mfrl.data.minari import ADROIT_LABELS
from mfrl.envs.minari import write_spec
from mfrl.errors import CheckpointError, ConfigError, DataError, MfrlError
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.load import load_algorithm, load_data
from mfrl.runs.saved import NESTED_CLASSES, PART_CLASSES, Saved
from mfrl.system.paths import CONFIG_DIR

TOY = [*tiny.TOY, "eval.every=24", "checkpoint.keep_all=true"]
OBSERVATIONS, ACTIONS = Box(-np.inf, np.inf, (3,), np.float32), Box(-2.0, 2.0, (1,), np.float32)


def run(folder: Path, *overrides: str) -> dict:
    changes = [*overrides, f"run_dir={folder}"]
    return train(compose("train", *changes), changes)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its checkpoint at half way beside the last; copied before it is changed."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    run(folder, *TOY)
    return folder


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a log without an environment, and the folder its data lie in."""
    root = tmp_path_factory.mktemp("pendulum")
    invent(root, "my/log-v0", ACTIONS)
    run(root / "run", *LOGGED, "env.dataset=my/log-v0", f"data_dir={root / 'datasets'}")
    return root / "run", root / "datasets"


LOGGED = [
    "env=minari/dataset",
    "evaluation=held_out",
    "env.val_fraction=0.5",
    "network=small",
    "network.actor.width=16",
    "network.critic.hidden=[16]",
    "batch_size=8",
    "updates=6",
    "eval.every=6",
    "checkpoint.every=6",
    "accelerator=cpu",
]


def invent(root: Path, dataset: str, actions: Box) -> None:
    """A Minari dataset of two short episodes that records no environment."""
    rng = np.random.default_rng(0)
    episodes = [
        EpisodeBuffer(
            observations=rng.standard_normal((21, 3), np.float32),
            actions=rng.uniform(-1, 1, (20, 1)).astype(np.float32),
            rewards=rng.standard_normal(20).tolist(),
            terminations=20 * [False],
            truncations=[*19 * [False], True],
        )
        for _ in range(2)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root / "datasets"))
        (root / "datasets").mkdir(exist_ok=True)
        minari.create_dataset_from_buffers(dataset, episodes, observation_space=OBSERVATIONS, action_space=actions)


def changed(run_dir: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run whose checkpoint has another record, as somebody could have made it."""
    shutil.copytree(run_dir, to)
    path = to / "checkpoints" / "last.ckpt"
    checkpoint = load_checkpoint(path)
    change(checkpoint["mfrl"])
    torch.save(checkpoint, path)
    return to


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """What puts a value at a dotted key of the configuration."""

    def change(record: dict[str, Any]) -> None:
        *way, last = key.split(".")
        node = record["config"]
        for name in way:
            node = node[name]
        node[last] = value

    return change


# ---- A checkpoint executes nothing


def into_an_evaluation(run_dir: Path) -> None:
    evaluate_checkpoint(compose("eval", f"ckpt={run_dir}"))


def into_a_resumed_run(run_dir: Path) -> None:
    resume(run_dir, "updates=30")


def into_a_collection(run_dir: Path) -> None:
    collect("test/it-v0", run_dir / "collected", policy=f"ckpt:{run_dir}", progress=False)


ROUTES = [into_an_evaluation, into_a_resumed_run, into_a_collection]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("place", ["algo.actor", "algo.reformulation", "network.actor"])
def test_a_name_that_is_one_when_checked_and_another_when_built_is_neither(
    place: str, route: Callable[[Path], None], toy: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"

    def attack(record: dict[str, Any]) -> None:
        record["config"]["t"] = {"True": "os.system", "False": "mfrl.networks.mlp.MLP"}
        record["config"]["compile"] = True
        call = {"_target_": "${oc.select:'t.${compile}','os.system'}", "_args_": [f"touch {mark}"]}
        put(place, call)(record)

    with pytest.raises(CheckpointError, match="_target_"):
        route(changed(toy, tmp_path / "run", attack))
    assert not mark.exists()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "target", ["mfrl.system.files.write_text", "mfrl.runs.folder.RunFolder", "mfrl.study.toys.ToyData"]
)
def test_of_mfrl_itself_only_what_belongs_there_is_built(
    target: str, route: Callable[[Path], None], toy: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "written"
    node = {"_target_": target, "path": str(mark), "text": "x", "dataset": "moons"}
    with pytest.raises(CheckpointError, match=f"{target}.*algo.actor"):
        route(changed(toy, tmp_path / "run", put("network.actor", node)))
    assert not mark.exists()


@pytest.mark.parametrize("part", ["data", "eval"])
def test_the_data_and_the_evaluation_of_a_resumed_run_are_checked_too(part: str, toy: Path, tmp_path: Path) -> None:
    for key, value in ((f"{part}.x", {"_target_": "os.getcwd"}), (f"{part}._target_", "mfrl.networks.mlp.MLP")):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        with pytest.raises(CheckpointError, match=key.removesuffix("._target_")):
            into_a_resumed_run(changed(toy, tmp_path / "run", put(key, value)))
    _, record = load_algorithm(toy)
    record = copy.deepcopy(record)
    put("data.x", {"_target_": "os.getcwd"})(record)
    with pytest.raises(CheckpointError, match=r"data\.x"):
        load_data(record)


MLP = "mfrl.networks.mlp.MLP"
TRICKS = {
    "a name that is none": ({"_target_": 7}, "no name of a class"),
    "no name": ({"_target_": None}, "no name of a class"),
    "a list of names": ({"_target_": [MLP]}, "no name of a class"),
    "a name that is built first": ({"_target_": {"_target_": "os.getcwd"}}, "no name of a class"),
    "a package": ({"_target_": "mfrl"}, "not a class of mfrl"),
    "an empty name": ({"_target_": ""}, "not a class of mfrl"),
    "what a module of mfrl imported": ({"_target_": "mfrl.networks.mlp.nn.Linear"}, "not a class of mfrl"),
    "the same by another name": ({"_target_": "mfrl.networks.vector_field.MLP"}, "not a class of mfrl"),
    "a name with a space": ({"_target_": f"{MLP} "}, "not a class of mfrl"),
    "in a list": ([[{"_target_": "os.getcwd"}]], "not a class of mfrl"),
    "in a dictionary": ({"a": {"b": {"_target_": "os.getcwd"}}}, "not a class of mfrl"),
    "among the arguments": ({"_target_": MLP, "_args_": [{"_target_": "os.getcwd"}]}, "not a class of mfrl"),
    "arguments that are no list": ({"_target_": MLP, "_args_": "os"}, "an _args_ that is no list"),
    "left for others to build": ({"_target_": MLP, "_recursive_": False}, "_recursive_"),
    "partial, perhaps": ({"_target_": MLP, "_partial_": "os"}, "_partial_ that is no truth value"),
    "a conversion": ({"_target_": "os.getcwd", "_convert_": "object"}, "not a class of mfrl"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_of_hydras_gets_past_the_check(trick: str, toy: Path, tmp_path: Path) -> None:
    node, message = TRICKS[trick]
    with pytest.raises(CheckpointError, match=message):
        load_algorithm(changed(toy, tmp_path / "run", put("algo.actor", node)))


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.batch_size", "x"), ("data.seed", None), ("data.chunk", True), ("eval.seed", "1"), ("algo.actor_lr", [1])],
)
def test_a_setting_of_another_kind_is_refused_before_anything_is_built(
    key: str, value: Any, toy: Path, tmp_path: Path
) -> None:
    part = key.partition(".")[0]
    file = changed(toy, tmp_path / "run", put(key, value)) / "checkpoints" / "last.ckpt"
    saved = Saved(load_checkpoint(file)["mfrl"]["config"])
    with pytest.raises(CheckpointError, match=rf"{re.escape(repr(value))}.*{key}"):
        saved.check(part)
    with pytest.raises(CheckpointError, match=key):
        into_a_resumed_run(tmp_path / "run")


FOREIGN = [
    "${oc.env:SECRET}",
    "before ${oc.env:SECRET} after",
    "${oc.decode:'${oc.env:SECRET}'}",
    "${oc.select:nowhere,${oc.env:SECRET}}",
    "${oc.select:nowhere,'text'}",
    "${oc.create:{a:1}}",
    "${oc.dict.values:network}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${changed:}",
    "${spy:1}",
    "${ spy : 1 }",
    "${${seed}:1}",
    "${.seed}",
    "${..seed}",
    "${algo[seed]}",
    "\\\\${spy:1}",
    "${",
    "${seed",
]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The calls of a resolver, and a secret in the environment."""
    calls: list[Any] = []
    OmegaConf.register_new_resolver("spy", lambda *given: calls.append(given))
    monkeypatch.setenv("SECRET", "open sesame")
    yield calls
    OmegaConf.clear_resolver("spy")


@pytest.mark.parametrize("text", FOREIGN)
def test_interpolations_that_do_more_than_refer_are_not_evaluated(
    text: str, spy: list[Any], toy: Path, tmp_path: Path
) -> None:
    path = changed(toy, tmp_path / "run", put("algo.actor_lr", text))
    for route in (into_an_evaluation, into_a_resumed_run):
        with pytest.raises(CheckpointError) as error:
            route(path)
        assert "algo.actor_lr" in str(error.value)
        assert "sesame" not in str(error.value)
    path = changed(toy, tmp_path / "beside", put("log.note", text))
    with pytest.raises(CheckpointError):
        into_a_resumed_run(path)
    assert not spy


def test_an_escaped_interpolation_is_a_text_however_often_it_is_read(spy: list[Any], toy: Path, tmp_path: Path) -> None:
    path = changed(toy, tmp_path / "run", put("network.actor.hidden", ["\\${spy:1}"]))
    with pytest.raises(CheckpointError, match="cannot be built"):
        load_algorithm(path)
    assert Saved({"a": "\\${oc.env:SECRET}", "b": "\\\\${c}", "c": "x"}).plain("") == {
        "a": "${oc.env:SECRET}",
        "b": "\\x",
        "c": "x",
    }
    assert not spy


def test_references_mean_what_they_mean_to_omegaconf() -> None:
    config = {
        "seed": 3,
        "network": {"actor": {"hidden": [16, 32], "deep": "${seed}"}},
        "algo": {"actor": "${network.actor}", "encoder": "${oc.select:encoder,null}", "n": "${algo.actor.deep}"},
        "name": "a_${seed}_${algo.n}_${network.actor.hidden.1}",
        "marks": ["${seed}", None, True, 0.5],
        "null": "${oc.select:marks.1}",
        "text": "${algo.encoder}!",
    }
    assert Saved(config).plain("") == OmegaConf.to_container(OmegaConf.create(config), resolve=True)


@pytest.mark.parametrize(
    "config",
    [
        {"a": "${a}"},
        {"a": "${b}", "b": ["${a}"]},
        {"a": {"b": "${a}"}},
        {"a": 9 * ["${b}"], "b": 9 * ["${c}"], "c": 9 * ["${d}"], "d": 9 * ["${e}"], "e": 9 * ["x"]},
        {"a": {1: "x"}},
        {"a": torch.zeros(1)},
        {"a": b"x"},
        {"a": "${nowhere}"},
        {"a": "${b.c}", "b": 1},
        {"a": "x${b}", "b": [1]},
    ],
)
def test_what_refers_to_itself_or_to_nothing_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"\b[abe]\b"):
        Saved(config).plain("")
    loop: dict[str, Any] = {}
    loop["a"] = loop
    with pytest.raises(CheckpointError, match="refers to itself"):
        Saved(loop).plain("")


def test_the_list_of_classes_is_what_the_configurations_name() -> None:
    named = set()
    for path in CONFIG_DIR.rglob("*.yaml"):
        if path.parent.name in ("callbacks", "logger"):  # the user's to say, never a checkpoint's
            continue
        for line in path.read_text().splitlines():
            key, _, value = line.partition("#")[0].strip().partition(": ")
            if key in ("_target_", "datamodule") and value.startswith("mfrl."):
                named.add(value)
    assert {name for names in (*PART_CLASSES.values(), *NESTED_CLASSES.values()) for name in names} == named


@pytest.mark.parametrize(
    ("env", "algo"),
    [
        *(("d4rl/pen-human", algo) for algo in sorted(path.stem for path in CONFIG_DIR.glob("algo/*.yaml"))),
        ("ogbench/visual-cube-single-play", "meanflowql"),
        ("toy/two_moons", "meanflow_bc"),
    ],
)
def test_what_is_composed_can_be_read_back(env: str, algo: str) -> None:
    images = ["encoder=tiny"] if "visual" in env else []
    cfg = compose("train", f"env={env}", f"algo={algo}", "run_dir=x", *images)
    written, read = Saved(OmegaConf.to_container(cfg, resolve=False)), OmegaConf.to_container(cfg, resolve=True)
    assert written.plain("") == read
    for part in PART_CLASSES:
        written.check(part)


@pytest.mark.slow
def test_every_experiment_can_be_read_back() -> None:
    for name in Composer("train").all_names("experiment"):
        cfg = compose("train", f"experiment={name}", "run_dir=x")
        written = Saved(OmegaConf.to_container(cfg, resolve=False))
        assert written.plain("") == OmegaConf.to_container(cfg, resolve=True)
        for part in PART_CLASSES:
            written.check(part)


NAMES = st.sampled_from(
    [
        *PART_CLASSES["algo"],
        *NESTED_CLASSES["algo"],
        *PART_CLASSES["data"],
        *PART_CLASSES["eval"],
        *("this", "antigravity.geohash", "ftplib.FTP", "webbrowser.open", "xmlrpc.client.ServerProxy", "my_net.Net"),
        *(
            "mfrl.system.files.write_text",
            "mfrl.app.cli.main",
            "mfrl.networks.mlp.MLP",
            "mfrl.app.tasks",
            "mfrl.runs.folder.RunFolder",
        ),
    ]
)
TEXTS = NAMES | st.sampled_from(
    ["${target}", "${oc.select:target,null}", "${network.actor}", "${spy:1}", "\\${target}", "${now:%Y}", "x"]
)
LEAVES = TEXTS | st.none() | st.booleans() | st.integers(0, 3)
KEYS = st.sampled_from(["_target_", "_partial_", "_args_", "_recursive_", "_convert_", "hidden", "actor", "spec"])
NODES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
PLACES = [
    "algo.actor",
    "algo.reformulation",
    "algo",
    "network.actor",
    "algo._target_",
    "algo.seed",
    "eval",
    "data",
    "target",
]
SPEC = DataSpec(2, 2, (0.0, 0.0), (1.0, 1.0), -1.0, 0.0)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(PLACES), NODES, min_size=1, max_size=3))
def test_no_text_of_a_saved_configuration_reaches_an_import(changes: dict[str, Any], toy: Path, spy: list[Any]) -> None:
    config = copy.deepcopy(
        SAVED.setdefault("toy", load_checkpoint(toy / "checkpoints" / "last.ckpt")["mfrl"]["config"])
    )
    for key, value in changes.items():
        with suppress(KeyError, TypeError, IndexError):  # a change before it took the place away
            put(key, value)({"config": config})
    allowed = {name for names in (*PART_CLASSES.values(), *NESTED_CLASSES.values()) for name in names}
    texts = {text for text in all_texts(config) if text not in allowed}
    with recorded_imports() as names:
        for part, more in (("algo", {"spec": SPEC}), ("data", {}), ("eval", {})):
            try:
                Saved(config).check(part)(**more)
            except MfrlError:
                continue
    asked = {name for name in names if any(text == name or text.startswith(f"{name}.") for text in texts)}
    of_allowed = {".".join(name.split(".")[:k]) for name in allowed for k in range(1, name.count(".") + 2)}
    assert asked <= of_allowed
    assert not spy


SAVED: dict[str, Any] = {}


def all_texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from all_texts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from all_texts(value)
    elif isinstance(node, str):
        yield node


class recorded_imports:
    """Every name that is imported meanwhile, by a statement or by a call; the imports take place."""

    def __enter__(self) -> list[str]:
        self.names: list[str] = []
        self.patch = pytest.MonkeyPatch()
        for module, name in ((builtins, "__import__"), (importlib, "import_module"), (importlib, "__import__")):
            self.patch.setattr(module, name, self._recording(getattr(module, name)))
        return self.names

    def _recording(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def record(name: str, *arguments: Any, **further: Any) -> Any:
            self.names.append(name)
            return function(name, *arguments, **further)

        return record

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


# ---- Whom to trust, where to write and what to fetch is not asked of the file


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_resumed_run_reads_where_the_file_says_and_writes_where_the_user_does(
    pendulum: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of the user"))
    shutil.copytree(pendulum[1], tmp_path / "data", ignore=shutil.ignore_patterns(".prepared"))
    before = everything_in(tmp_path / "data")

    def attack(record: dict[str, Any]) -> None:
        record["config"] |= {"run_dir": str(tmp_path / "elsewhere"), "data_dir": str(tmp_path / "data")}
        record["config"]["data"]["cache"] = str(tmp_path / "cache")
        record["config"]["trainer"] = {"_target_": "os.getcwd", "default_root_dir": str(tmp_path / "elsewhere")}
        record["config"]["download"] = True

    assert resume(changed(pendulum[0], tmp_path / "run", attack), "updates=12")["updates"] == 12
    assert everything_in(tmp_path / "data") == before
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run", "of the user"}
    written = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (written.run_dir, written.trainer._target_) == (str(tmp_path / "run"), "lightning.Trainer")
    assert resume(tmp_path / "run", "updates=18", f"data.cache={tmp_path / 'cache'}")["updates"] == 18
    assert (tmp_path / "cache").is_dir()


@pytest.mark.parametrize("how", [{"policy": "random", "gym_id": "my_evil:Env-v0", "trust": ["my_evil"]}, None])
def test_missing_data_are_not_fetched_because_a_file_says_so(
    how: dict[str, Any] | None, pendulum: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)

    def attack(record: dict[str, Any]) -> None:
        record["config"] |= {"collect": how, "download": how is None, "data_dir": str(tmp_path / "empty")}

    with pytest.raises(DataError, match="is not in"):
        resume(changed(pendulum[0], tmp_path / "run", attack), "updates=12")
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("place", ["env.gym_id", "record"])
def test_an_environment_of_a_package_is_imported_if_the_user_trusts_it(
    place: str, pendulum: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"evil_{place[:3]}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    name = f"evil_{place[:3]}:Env-v0"

    def attack(record: dict[str, Any]) -> None:
        record["config"]["trust"] = record["config"]["data"]["trust"] = [f"evil_{place[:3]}"]
        if place == "record":
            record["env"] |= {"gym_spec": json.dumps({"id": name}), "trust": (f"evil_{place[:3]}",)}
        else:
            put(place, name)(record)

    path = changed(pendulum[0], tmp_path / "run", attack)
    routes = [into_a_resumed_run] if place != "record" else [into_a_collection, into_an_episode]
    for route in routes:
        with pytest.raises(MfrlError, match=f"trust=.evil_{place[:3]}."):
            route(path)
    assert not (tmp_path / "mark").exists()


def into_an_episode(run_dir: Path) -> None:
    evaluate_checkpoint(compose("eval", f"ckpt={run_dir}", "episodes=1", "num_envs=1", "seed=0", "workers=0"))


@pytest.mark.parametrize(
    "change", [{"suite": 3}, {"frames": "2"}, {"observation_keys": "abc"}, {"reference_returns": (1.0, 1.0)}, {"x": 1}]
)
def test_an_environment_that_is_no_description_is_refused(change: dict, pendulum: tuple[Path, Path], tmp_path: Path):
    path = changed(pendulum[0], tmp_path / "run", lambda record: record["env"].update(change))
    with pytest.raises(CheckpointError, match="does not describe its environment as mfrl does"):
        into_an_episode(path)


OWN = """
from mfrl.networks.mlp import MLP
from mfrl.networks.dit import DiT
from os import system

class Mine(MLP):
    pass

def mine(*arguments, **settings):
    return MLP(*arguments, **settings)
"""


def test_networks_of_a_trusted_package_are_built_and_others_are_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    run(tmp_path / "run", *TOY, "network.actor._target_=my_nets.Mine", "updates=6", "eval.every=6")
    monkeypatch.delitem(sys.modules, "my_nets")
    for route in (into_an_evaluation, into_a_resumed_run):
        with pytest.raises(CheckpointError, match=r"my_nets\.Mine.*algo\.actor.*trust=\[my_nets\]"):
            route(tmp_path / "run")
    assert "my_nets" not in sys.modules
    trust = "trust=[my_nets]"
    evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}", trust))
    assert resume(tmp_path / "run", "updates=12", trust)["updates"] == 12
    for name in ("my_nets.mine", "my_nets.system", "my_nets.DiT", "my_nets.nothing"):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        path = changed(tmp_path / "run", tmp_path / "copy", put("network.actor._target_", name))
        with pytest.raises(CheckpointError, match=f"{name}.*algo.actor"):
            load_algorithm(path, ("my_nets",))


def test_what_the_user_has_evaluated_is_recorded_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.25")
    monkeypatch.chdir(tmp_path)
    changes = [*TOY, "algo.actor_lr='${oc.decode:${oc.env:RATE}}'", "run_dir=runs/rate_${oc.env:RATE}_${seed}"]
    train(compose("train", *changes), changes)
    again = [*changes, "existing=continue"]
    assert train(compose("train", *again), again)["updates"] == 24
    monkeypatch.delenv("RATE")
    path = tmp_path / "runs" / "rate_0.25_0"
    assert OmegaConf.load(path / "config.yaml").algo.actor_lr == 0.25
    into_an_evaluation(path)
    assert resume(path, "updates=30")["updates"] == 30
    assert changes[-2] in OmegaConf.to_container(OmegaConf.load(path / "overrides.yaml"))
    with pytest.raises(ConfigError, match=r"algo\.actor_lr=\$\{oc\.env:NOWHERE\}"):
        run(tmp_path / "none", *TOY, "algo.actor_lr=${oc.env:NOWHERE}")
    assert not (tmp_path / "none").exists()


def test_what_a_run_folder_says_was_overridden_is_not_evaluated(toy: Path, tmp_path: Path, spy: list[Any]) -> None:
    shutil.copytree(toy, tmp_path / "run")
    (tmp_path / "run" / "overrides.yaml").write_text("- algo.alpha=${spy:1}\n- run_dir=a/${nowhere}\n")
    resume(tmp_path / "run", "updates=30")
    assert not spy
    assert "${nowhere}" in (tmp_path / "run" / "overrides.yaml").read_text()


# ---- Damaged checkpoints


def parts_of(whole: bytes) -> tuple[list[int], list[int]]:
    """Places in the records of a zip archive, which its checksums cover, and places outside of them."""
    covered: list[int] = []
    with tempfile.TemporaryFile() as file:
        file.write(whole)
        for entry in zipfile.ZipFile(file).infolist():
            name, further = (int.from_bytes(whole[entry.header_offset + k :][:2], "little") for k in (26, 28))
            start = entry.header_offset + 30 + name + further
            covered += range(start, start + entry.compress_size)
    return covered, sorted(set(range(len(whole))) - set(covered))


def flip(path: Path, whole: bytes, place: int, bit: int) -> None:
    damaged = bytearray(whole)
    damaged[place] ^= 1 << bit
    path.write_bytes(damaged)


FLIPS = [pytest.param(24, id="some"), pytest.param(200, id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("flips", FLIPS)
def test_no_flipped_bit_and_no_zeroed_page_gives_other_weights(flips: int, toy: Path, tmp_path: Path) -> None:
    whole, path, rng = (toy / "checkpoints" / "last.ckpt").read_bytes(), tmp_path / "flipped.ckpt", random.Random(0)
    covered, _ = parts_of(whole)
    for place in rng.sample(covered, flips):
        flip(path, whole, place, rng.randrange(8))
        with pytest.raises(
            CheckpointError, match=r"flipped.ckpt cannot be read, it is damaged: the checksum of its rec"
        ):
            load_checkpoint(path)
    for page in rng.sample(range(len(whole) // 4096), 3):
        path.write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        with pytest.raises(CheckpointError, match="it is damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("flips", [pytest.param(100, id="some"), pytest.param(3000, id="many", marks=pytest.mark.slow)])
def test_a_flip_where_no_checksum_looks_is_refused_or_changes_nothing(flips: int, toy: Path, tmp_path: Path) -> None:
    whole, path, rng = (toy / "checkpoints" / "last.ckpt").read_bytes(), tmp_path / "flipped.ckpt", random.Random(0)
    saved, (_, free) = torch.load(toy / "checkpoints" / "last.ckpt", weights_only=True), parts_of(whole)
    contents = [k for k in free if k > whole.index(b"PK\x01\x02")]  # the table of contents is where it could matter
    for places in (free, contents):
        for place in rng.sample(places, flips // 2):
            flip(path, whole, place, rng.randrange(8))
            try:
                assert equal(load_checkpoint(path), saved), f"byte {place}"
            except CheckpointError:
                continue


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_a_record_that_its_table_of_contents_calls_a_folder_is_damage(toy: Path, tmp_path: Path) -> None:
    # torch reads nothing of it then, and gives whatever lay in memory.
    whole, at, entries = (toy / "checkpoints" / "last.ckpt").read_bytes(), 0, 0
    while (at := whole.find(b"PK\x01\x02", at + 1)) > 0:
        flip(tmp_path / "x.ckpt", whole, at + 38, 4)
        with pytest.raises(CheckpointError, match="as a folder"):
            load_checkpoint(tmp_path / "x.ckpt")
        entries += 1
    assert entries > 10


def test_the_last_whole_checkpoint_beside_a_damaged_one_is_named_and_serves(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    damage(folder / "last.ckpt")
    for route in (into_an_evaluation, into_a_resumed_run, again):
        with pytest.raises(CheckpointError, match=r"last\.ckpt.*update=24\.ckpt"):
            route(tmp_path / "run")
    damage(folder / "update=24.ckpt")
    with pytest.raises(CheckpointError, match=r"update=12.ckpt is whole"):
        again(tmp_path / "run")
    shutil.copy(folder / "update=12.ckpt", folder / "last.ckpt")  # as it is told
    assert again(tmp_path / "run")["updates"] == 24
    assert_equal(weights(tmp_path / "run"), weights(toy))
    damage(folder / "update=12.ckpt")
    damage(folder / "update=24.ckpt")
    damage(folder / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"No older one that is whole.*keep_all=true"):
        into_an_evaluation(tmp_path / "run")


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.unlink()  # the files at two updates may be one
    flip(path, whole, parts_of(whole)[0][len(whole) // 3], 5)


def again(run_dir: Path) -> dict:
    (run_dir / "result.json").unlink(missing_ok=True)
    return run(run_dir, *TOY, "existing=continue")


@pytest.mark.parametrize(
    "missing", ["state_dict", "updates", "callbacks", "mfrl.config", "mfrl.provenance", "mfrl.env"]
)
def test_a_checkpoint_without_a_part_of_it_is_refused(missing: str, toy: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(toy / "checkpoints" / "last.ckpt")
    *way, last = missing.split(".")
    node = checkpoint["mfrl"] if way else checkpoint
    for value in (None, "x"):
        node[last] = value
        torch.save(checkpoint, tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match=f"its {missing} is missing or of another kind"):
            load_algorithm(tmp_path / "x.ckpt")


def test_what_a_checkpoint_holds_for_lightning_decides_nothing(toy: Path, tmp_path: Path) -> None:
    runs = [tmp_path / str(number) for number in range(3)]
    for path, value in zip(runs, ("as it is", None, "x"), strict=True):
        shutil.copytree(toy, path)
        file = path / "checkpoints" / "last.ckpt"
        checkpoint = load_checkpoint(file)
        for part in ("pytorch-lightning_version", "epoch", "global_step", "loops", "optimizer_states", "lr_schedulers"):
            if value is None:
                del checkpoint[part]
            elif value == "x":
                checkpoint[part] = value
        torch.save(checkpoint, file)
        assert resume(path, "updates=30")["updates"] == 30
    for path in runs[1:]:
        assert_equal(weights(path), weights(runs[0]))


@pytest.mark.parametrize("state", ["x", {"worst": {}}, {"worst": {"Q": "much"}, "sentences": {}, "least": {}}])
def test_a_run_whose_record_of_warnings_is_none_is_not_gone_on_with(state: Any, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = load_checkpoint(file)
    (name,) = checkpoint["callbacks"]
    torch.save(checkpoint | {"callbacks": {name: state}}, file)
    with pytest.raises(CheckpointError, match=r"(worst|sentences)="):
        into_a_resumed_run(tmp_path / "run")


@pytest.mark.parametrize("key", ["seed", "updates", "algo_name", "env", "env.name", "variant.name", "data", "log"])
def test_a_run_whose_checkpoint_lacks_a_setting_is_not_gone_on_with(key: str, toy: Path, tmp_path: Path) -> None:
    *way, last = key.split(".")

    def drop(record: dict[str, Any]) -> None:
        node = record["config"]
        for name in way:
            node = node[name]
        del node[last]

    for number, change in enumerate((drop, put(key, -1), put(key, None))):
        path = changed(toy, tmp_path / str(number), change)
        with pytest.raises(CheckpointError, match=key):
            into_a_resumed_run(path)


def test_settings_that_came_after_a_run_began_are_as_they_are_by_default(toy: Path, tmp_path: Path) -> None:
    def drop(record: dict[str, Any]) -> None:
        del record["config"]["threads"]
        del record["config"]["bf16"]
        del record["config"]["checkpoint"]["minutes"]

    assert resume(changed(toy, tmp_path / "run", drop), "updates=30")["updates"] == 30
    resume(toy_copy := changed(toy, tmp_path / "whole", lambda record: None), "updates=30")
    assert_equal(weights(tmp_path / "run"), weights(toy_copy))


def test_what_is_overridden_as_a_run_goes_on_is_evaluated_for_the_user(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPDATES", "30")
    shutil.copytree(toy, tmp_path / "run")
    more = ["updates='${oc.decode:${oc.env:UPDATES}}'", "checkpoint={every: '${oc.decode:${oc.env:UPDATES}}'}"]
    assert resume(tmp_path / "run", *more)["updates"] == 30
    written = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (written.updates, written.checkpoint.every) == (30, 30)
    with pytest.raises(ConfigError, match=r"updates=\$\{oc.env:NOWHERE\} has no value"):
        resume(tmp_path / "run", "updates=${oc.env:NOWHERE}")


def test_a_checkpoint_needs_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    run(tmp_path / "run", *TOY)
    with pytest.raises(FileNotFoundError):
        tempfile.mkstemp()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []

    def told(name: str, which: Callable[..., str]) -> None:
        function = getattr(os, name)

        def tell(*arguments: Any) -> Any:
            done.append((name, which(*arguments)))
            return function(*arguments)

        monkeypatch.setattr(os, name, tell)

    told("fsync", lambda descriptor: os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
    told("replace", lambda source, target: os.path.basename(target))
    run(tmp_path / "run", *TOY, "updates=6", "eval.every=6", "checkpoint.keep_all=false")
    at = done.index(("replace", "last.ckpt"))
    assert done[at - 1][0] == "fsync"
    assert done[at - 1][1].endswith(".ckpt")
    assert done[at + 1] == ("fsync", "checkpoints")


# ---- Folders that cannot be written to, and links


def test_numbers_that_cannot_be_written_are_told_first(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy, tmp_path / "run")
    known = evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}"))
    (file,) = (tmp_path / "run" / "checkpoints").glob("evaluation*.json")
    file.unlink()
    file.mkdir()
    (tmp_path / "taken").touch()
    for out in ([], [f"out={tmp_path / 'taken' / 'below'}"]):
        capfd.readouterr()
        with pytest.raises(EvaluationError, match="out="):
            evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}", *out))
        said = capfd.readouterr()
        assert known["env"] in said.err
        assert json.loads(said.out)["eval/w2"] == known["eval/w2"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting needs root")
def test_a_run_on_a_read_only_disk_is_evaluated(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "run")
    evaluate = f"{sys.executable} -c 'from mfrl.app.cli import main; main()' eval ckpt=run"
    script = f"mount --bind run run && mount -o remount,ro,bind run && {evaluate}"
    command = ["unshare", "-m", "sh", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no mounting here")
    said = " ".join(done.stderr.split())
    assert "run/checkpoints: Read-only file system" in said
    assert "Traceback" not in said
    assert done.returncode == 1
    assert said.index("toy/") < said.index("Read-only")
    assert json.loads(done.stdout)["updates"] == 24


@pytest.mark.parametrize("link", ["checkpoints", "checkpoints/last.ckpt"])
def test_checkpoints_may_be_a_link_to_another_disk(link: str, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "run")
    shutil.copy(toy / "checkpoints" / "update=12.ckpt", tmp_path / "run" / "checkpoints" / "last.ckpt")
    place, elsewhere = tmp_path / "run" / link, tmp_path / "disk" / link
    elsewhere.parent.mkdir(parents=True)
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere)
    half = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    into_an_evaluation(tmp_path / "run")
    assert resume(tmp_path / "run" / "checkpoints" / "last.ckpt")["updates"] == 24
    assert_equal(weights(tmp_path / "run"), weights(toy))
    if link == "checkpoints":
        assert place.is_symlink()
        assert_equal(load_checkpoint(elsewhere / "last.ckpt")["state_dict"], weights(toy))
    else:  # replaced and not followed: it may be another run's
        assert elsewhere.read_bytes() == half


@pytest.mark.parametrize("link", ["checkpoints", "checkpoints/last.ckpt"])
def test_a_link_that_leads_nowhere_is_no_reason_to_begin_anew(link: str, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "run")
    place = tmp_path / "run" / link
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "unmounted")
    for route in (into_an_evaluation, into_a_resumed_run, again):
        with pytest.raises(CheckpointError, match=rf"{link}.*unmounted"):
            route(tmp_path / "run")
    assert (tmp_path / "run" / "eval.jsonl").read_text() == (toy / "eval.jsonl").read_text()


def test_a_link_to_a_checkpoint_leads_to_its_run(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "run")
    (tmp_path / "latest.ckpt").symlink_to(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert resume(tmp_path / "latest.ckpt", "updates=30")["updates"] == 30
    assert json.loads((tmp_path / "run" / "result.json").read_text())["updates"] == 30
    (tmp_path / "new").symlink_to(tmp_path / "run")
    assert resume(tmp_path / "new", "updates=36")["updates"] == 36
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").run_dir == str(tmp_path / "run")


# ---- Another environment than the run's


ONCE = ["episodes=2", "num_envs=2", "workers=0", "seed=0"]


def test_a_run_without_an_environment_is_evaluated_in_one_that_is_named(
    pendulum: tuple[Path, Path], tmp_path: Path
) -> None:
    here = [f"ckpt={pendulum[0]}", *ONCE, f"out={tmp_path}", "env.gym_id=Pendulum-v1"]
    report = evaluate_checkpoint(compose("eval", *here, "env.max_episode_steps=7", "env.reference_returns=[-100,0]"))
    assert report["env"] == "Pendulum-v1"
    assert report["lengths"] == [7, 7]
    assert report["eval/normalized_score"] == pytest.approx(100 + report["eval/return"])
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation-last-env=Pendulum-v1-seed=0-episodes=2.json"]
    heavier = evaluate_checkpoint(compose("eval", *here, "env.max_episode_steps=7", "+env.gym_kwargs.g=30.0"))
    assert heavier["returns"] != report["returns"]
    assert "eval/normalized_score" not in heavier


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["env.gym_id=MountainCarContinuous-v0"], r"shows observations of shape \(2,\), .* trained on \(3,\)"),
        (["env.gym_id=CartPole-v1"], "need a vector of continuous actions"),
        (["env.gym_id=Pendulm-v1"], "did you mean Pendulum-v1"),
        (["env.gym_id=my_robot:Reach-v0"], r"trust=\[my_robot\]"),
        (["env.max_episode_steps=7"], r"env.max_episode_steps: of which environment\? .*env.gym_id=NAME-v0"),
        (["env.gym_id=Pendulum-v1", "env.observation_keys=[a]"], "observations are no dictionary"),
        (["env.gym_id=pointmaze-medium-singletask-v0"], r"shows observations of shape \(2,\)"),
        (["env.gym_id=pointmaze-medium-singletask-v0", "env.max_episode_steps=7"], "which OGBench defines"),
        (["env.gym_id=pointmaze-medium-v0"], r"another goal in every episode.* e\.g\. pointmaze-medium-singletask-v0"),
        (["env.gym_id=ogbench:pointmaze-medium-v0"], "another goal in every episode"),
        *(
            ([f"num_candidates={value}"], f"num_candidates={value} must be a whole number of at least 1")
            for value in ("0", "-1", "1.5", "many")
        ),
    ],
)
def test_an_environment_that_is_not_for_the_policy_is_refused(
    settings: list[str], message: str, pendulum: tuple[Path, Path]
) -> None:
    with pytest.raises(MfrlError, match=message):
        evaluate_checkpoint(compose("eval", f"ckpt={pendulum[0]}", *ONCE, *settings))


def test_an_environment_with_other_bounds_of_its_actions_is_refused(tmp_path: Path, toy: Path) -> None:
    invent(tmp_path, "my/unit-v0", Box(-1.0, 1.0, (1,), np.float32))
    run(tmp_path / "run", *LOGGED, "env.dataset=my/unit-v0", f"data_dir={tmp_path / 'datasets'}")
    with pytest.raises(MfrlError, match=r"Pendulum-v1.*\[-2\.0\].*\[-1\.0\]"):
        evaluate_checkpoint(compose("eval", f"ckpt={tmp_path / 'run'}", *ONCE, "env.gym_id=Pendulum-v1"))
    with pytest.raises(ConfigError, match="judged by its samples, in no environment"):
        evaluate_checkpoint(compose("eval", f"ckpt={toy}", "env.gym_id=Pendulum-v1"))


def test_a_checkpoint_that_does_not_know_its_bounds_is_evaluated_with_a_word(
    pendulum: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = changed(pendulum[0], tmp_path / "run", lambda record: record.pop("action_bounds"))
    evaluate_checkpoint(compose("eval", f"ckpt={path}", *ONCE, "env.gym_id=Pendulum-v1", "env.max_episode_steps=7"))
    assert "does not say in which bounds" in " ".join(capfd.readouterr().err.split())


def test_what_was_put_around_the_environment_in_training_is_not_put_around_another_without_a_word(
    pendulum: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = {"name": "AdroitLabels", "entry_point": ADROIT_LABELS, "kwargs": {"rule": "pen"}}
    spec = write_spec("AdroitHandPen-v1", wrappers=[labels])
    path = changed(pendulum[0], tmp_path / "run", lambda record: record["env"].update(gym_spec=spec))
    here = [f"ckpt={path}", *ONCE, "env.gym_id=Pendulum-v1", "env.max_episode_steps=7"]
    report = evaluate_checkpoint(compose("eval", *here))
    (note,) = report["notes"]
    assert "Pendulum-v1" in note
    assert "AdroitLabels" in note
    assert note in " ".join(capfd.readouterr().err.split())


def test_a_checkpoint_whose_data_are_no_description_of_data_is_refused(toy: Path, tmp_path: Path) -> None:
    for number, change in enumerate(
        (
            {"observation_dim": "2"},
            {"action_dim": 0},
            {"observation_mean": 9 * (0.0,)},
            {"observation_std": "ab"},
            {"reward_min": None},
            {"reward_max": float("nan")},
            {"image_shape": (3, 64), "observation_dim": 0},
            {"x": 1},
        )
    ):
        path = changed(toy, tmp_path / str(number), lambda record, c=change: record["spec"].update(c))
        with pytest.raises(CheckpointError, match=next(iter(change))):
            load_algorithm(path)
