"""`mfrl eval`: evaluate the policy of a checkpoint in the environment of its run, or in another one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from mfrl.algorithms.policy import Policy
from mfrl.callbacks.evaluation import FPS
from mfrl.data.batch import DataSpec
from mfrl.data.minari import two_numbers
from mfrl.envs import ogbench
from mfrl.envs.evaluation import Evaluation, Evaluator
from mfrl.envs.minari import action_bounds, write_spec
from mfrl.envs.spec import EnvSpec
from mfrl.envs.video import write_video
from mfrl.errors import CheckpointError, ConfigError, EnvError, MfrlError, require
from mfrl.runs.checkpoint import find_checkpoint
from mfrl.runs.load import load_algorithm, recorded_env
from mfrl.runs.saved import Saved
from mfrl.runs.scores import format_score, score_name
from mfrl.runs.targets import plain_settings
from mfrl.study.evaluate import SampleEvaluation, SampleEvaluator
from mfrl.study.toys import find_toy
from mfrl.system.files import write_json


class EvaluationError(MfrlError):
    """The results of an evaluation could not be written. They were printed."""


def chosen_env(cfg: DictConfig, recorded: EnvSpec, record: dict[str, Any], data: DataSpec) -> EnvSpec:
    """The environment that the user names, after checking that it fits the policy.

    Args:
        cfg: the configuration (conf/eval.yaml); its ``env`` and ``trust`` are read.
        recorded: the run's own environment.
        record: from :func:`load_algorithm`.
        data: the data that the policy was trained on.

    Raises:
        ConfigError: ``env.gym_id`` is missing, or this environment does not have the settings that are given.
        EnvError: the environment cannot be built, or has other observations or actions than the policy.
    """
    changes = plain_settings(cfg.env)
    gym_id = changes.pop("gym_id")
    given = [f"env.{name}" for name, value in changes.items() if value not in (None, {}, [])]
    if gym_id is None:
        raise ConfigError(f"{', '.join(given)}: of which environment? Name it: env.gym_id=NAME-v0")
    if recorded.suite == "toy":
        raise ConfigError(
            f"env.gym_id={gym_id}: a run on {recorded.env_id} is judged by its samples, in no environment"
        )
    if ogbench.registers(gym_id):
        if given:
            raise ConfigError(f"{given[0]} is no setting of {gym_id}, which OGBench defines")
        name = gym_id.removeprefix("ogbench:")
        spec = replace(recorded, env_id=name, suite="ogbench", gym_spec=None, reference_returns=None)
    else:
        gym_spec = write_spec(gym_id, changes["gym_kwargs"], changes["max_episode_steps"])
        keys, returns = changes["observation_keys"] or recorded.observation_keys, changes["reference_returns"]
        spec = replace(
            recorded,
            env_id=gym_id,
            suite="minari",
            gym_spec=gym_spec,
            observation_keys=keys and tuple(keys),
            reference_returns=two_numbers("env.reference_returns", returns),
            trust=tuple(cfg.trust),
        )
    refuse_other_shapes(spec, data, record.get("action_bounds"))
    return spec


def wrappers_of(gym_spec: str | None) -> list[str]:
    """The names of the wrappers in an environment's description (JSON). Nothing is imported."""
    try:
        wrappers = json.loads(gym_spec or "{}")["additional_wrappers"]
        return [str(wrapper["name"]) for wrapper in wrappers]
    except (ValueError, KeyError, TypeError):
        return []


def refuse_other_shapes(spec: EnvSpec, data: DataSpec, bounds: list[list[float]] | None) -> None:
    """Check that an environment has the observations and actions that a policy was trained on. It is built once.

    Args:
        spec: the environment.
        data: the data that the policy was trained on.
        bounds: the lowest and the highest actions ``(2, action_dim)`` of the data, which the policy knows as -1 and 1;
            None if the checkpoint does not have them.

    Raises:
        EnvError: shapes or bounds differ. The message says which.
        CheckpointError: ``bounds`` has another form.
    """
    env = spec.make()
    try:
        shown, wanted = env.observation_space.shape, tuple(data.image_shape or (data.observation_dim,))
        taken = env.action_space.shape
        low, high = action_bounds(env.unwrapped.action_space)
    finally:
        env.close()
    if shown != wanted:
        keys = f" with observation_keys={list(spec.observation_keys)}" if spec.observation_keys else ""
        raise EnvError(
            f"{spec.env_id} shows observations of shape {shown}{keys}, and the policy was trained on {wanted}"
        )
    if taken != (data.action_dim,):
        raise EnvError(
            f"{spec.env_id} takes actions of shape {taken}, and the policy was trained on {(data.action_dim,)}"
        )
    if bounds is None:
        return
    if np.shape(bounds) != (2, data.action_dim):
        raise CheckpointError(f"the checkpoint does not describe its actions as mfrl does: bounds {bounds!r}")
    for in_env, in_data, what in zip((low, high), bounds, ("low", "high"), strict=True):
        if not np.allclose(in_env, in_data):
            raise EnvError(
                f"actions of {spec.env_id} are bounded ({what}) by {in_env.tolist()}, those the policy was trained on "
                f"by {list(in_data)}: what it does would mean something else there"
            )


def evaluate_checkpoint(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate a checkpoint as its run did, changed by the user's settings, and write all numbers to a file.

    Args:
        cfg: the composed configuration (conf/eval.yaml).

    Returns:
        what the file holds.

    Raises:
        CheckpointError: see :func:`load_algorithm`.
        ConfigError: the run's kind of evaluation does not have a setting, a setting is out of its range, or neither the
            run nor the user gives it.
        EnvError: the run's data have no environment, or the environment does not fit the policy.
        EvaluationError: the file could not be written. The numbers were printed.
    """
    console = Console(stderr=True)
    path = find_checkpoint(cfg.ckpt)
    module, record = load_algorithm(path, tuple(cfg.trust))
    spec, policy = recorded_env(record, tuple(cfg.trust)), module.policy().folded()
    in_other_env = any(value not in (None, {}, []) for value in plain_settings(cfg.env).values())
    notes = []
    if in_other_env:
        recorded, spec = spec, chosen_env(cfg, spec, record, module.spec)
        if "action_bounds" not in record:
            notes.append(
                f"{path} does not say in which bounds the actions of its data were: those of {spec.env_id} are taken"
            )
        if wrappers := wrappers_of(recorded.gym_spec):
            notes.append(
                f"rewards and observations are those of {spec.env_id} as it gives them: what was put around "
                f"{recorded.env_id} in training ({', '.join(wrappers)}) is not put around it"
            )
    has_samples = spec.suite == "toy"
    names = ("samples", "seed") if has_samples else ("episodes", "num_envs", "workers", "seed")
    foreign = [name for name in ("episodes", "num_envs", "workers", "samples") if name not in names]
    for name in foreign + ["num_candidates", "video"] * has_samples:
        if cfg[name] is not None and cfg[name] is not False:
            raise ConfigError(f"{name} is no setting of an evaluation of {spec.env_id} ({', '.join(names)} are)")
    if cfg.num_candidates is not None:
        policy.check_candidates(cfg.num_candidates)
        policy.num_candidates = cfg.num_candidates
    if not has_samples:
        spec.check()
    settings = as_evaluated(cfg, record["config"], names, f"{path} is of a run that was not evaluated in {spec.env_id}")
    for note in notes:
        console.print(escape(note), highlight=False)
    result: SampleEvaluation | Evaluation
    frames: list[np.ndarray] = []
    if has_samples:
        result = SampleEvaluator(find_toy(spec.env_id), **settings).run(policy)
    else:
        result = run_episodes(spec, policy, console, videos=cfg.videos if cfg.video else 0, **settings)
        frames = result.frames

    report = {"ckpt": str(path), "env": spec.env_id, "updates": module.k, **settings}
    report |= {"num_candidates": policy.num_candidates} | result.to_json_dict() | ({"notes": notes} if notes else {})
    table = Table(title=escape(f"{spec.env_id} · update {module.k:,}"), show_header=False)
    for key, value in result.summary().items():
        table.add_row(score_name(key), f"[bold]{format_score(key, value)}[/]")
    table.add_row("evaluated over", f"{report['episodes']} {names[0]}")
    table.add_row("data", escape(f"{record['provenance']['dataset']} ({record['provenance'].get('source')})"))
    console.print(table, highlight=False)

    out = Path(cfg.out).expanduser() if cfg.out else path.parent
    where = f"-env={re.sub(r'[^A-Za-z0-9._-]', '_', spec.env_id)}" if in_other_env else ""
    chosen = "" if cfg.num_candidates is None else f"-num_candidates={cfg.num_candidates}"
    file = out / f"evaluation-{path.stem}{where}{chosen}-seed={settings['seed']}-episodes={report['episodes']}.json"
    videos = [out / f"{path.stem}{where}-episode={k}.mp4" for k in range(len(frames))]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, report)
        for video, film in zip(videos, frames, strict=True):
            write_video(film, video, FPS)
    except OSError as error:
        print(json.dumps(report))  # so that no number is lost
        raise EvaluationError(
            f"the numbers above could not be written to {out}: {error.strerror or error}. Name a folder that can be "
            "written to: out=FOLDER"
        ) from error
    for what in (f"every number   {file}", *(f"video          {video}" for video in videos)):
        console.print(escape(what), highlight=False, soft_wrap=True)
    return report


def as_evaluated(cfg: DictConfig, config: dict[str, Any], names: tuple[str, ...], otherwise: str) -> dict[str, Any]:
    """The settings of an evaluation: those that are given, and the run's own for the rest.

    Args:
        cfg: has these settings, null where they are not given.
        config: of the checkpoint.
        otherwise: said where neither has one.

    Raises:
        ConfigError: one is missing, or is no such number.
    """
    evaluated = Saved(config).group("eval")
    settings = {name: evaluated.get(name) if cfg[name] is None else cfg[name] for name in names}
    if missing := [name for name, value in settings.items() if value is None and name != "workers"]:
        raise ConfigError(f"{otherwise}, so say how: {' '.join(f'{name}=...' for name in missing)}")
    for name, value in settings.items():
        least = 0 if name in ("workers", "seed") else 1
        holds = (name == "workers" and value is None) or (type(value) is int and value >= least)
        require(name, holds, value, f"a whole number of at least {least}")
    return settings


def run_episodes(
    spec: EnvSpec, policy: Policy, console: Console, episodes: int, videos: int, **settings: Any
) -> Evaluation:
    """Run episodes in the simulator, with a progress bar.

    Args:
        videos: number of episodes to film.
        settings: arguments of :class:`mfrl.envs.evaluation.Evaluator`.
    """
    with Evaluator(spec, **settings) as evaluator, Progress(console=console, transient=True) as bar:
        task = bar.add_task("evaluate", total=episodes)
        return evaluator.run(
            policy,
            episodes,
            progress=lambda done, total, success: bar.update(
                task, completed=done, description="evaluate" if success is None else f"success {success:.2f}"
            ),
            video_episodes=videos,
        )
