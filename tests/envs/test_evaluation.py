"""Evaluation: paired episodes, honest scores, videos."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from strange import MEDIUM, Explosive, Fragile, Short
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from envs.test_ogbench import backend_or_skip
from mfrl.envs import evaluation, ogbench
from mfrl.envs.evaluation import Evaluation, Evaluator
from mfrl.envs.vector import WorkerError
from mfrl.envs.video import tensorboard_gif, write_video
from mfrl.errors import DivergedError, EnvError

GOAL = (20.0, 20.0)


class Scripted:
    """An actor in the point maze; counts calls and notes the shapes it is asked for."""

    action_dim = 2
    num_candidates = 3

    def __init__(self) -> None:
        self.batches: set[tuple[int, ...]] = set()

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return 0.5 * torch.randn(shape, generator=generator)

    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        self.batches.add((*observations.shape, *noise.shape))
        return self.actions(observations, noise)

    def actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        raise NotImplementedError


class Still(Scripted):
    def actions(self, observations: Tensor, _noise: Tensor) -> Tensor:
        return torch.zeros_like(observations)


class Wander(Scripted):
    def actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        return (noise[1] + 0.01 * observations).clamp(-1, 1)


class Oracle(Scripted):
    """Walks to the goal along the simulator's own sub-goals, with noise."""

    def __init__(self) -> None:
        super().__init__()
        self._maze = ogbench.make(MEDIUM.env_id).unwrapped

    def actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        places = observations.double().numpy()
        ways = [self._maze.get_oracle_subgoal(xy, GOAL)[0] - xy for xy in places]
        ways = [way / max(np.linalg.norm(way), 0.2) for way in ways]
        return (torch.tensor(np.array(ways)).float() + noise[0]).clamp(-1, 1)


class Broken(Scripted):
    def actions(self, observations: Tensor, _noise: Tensor) -> Tensor:
        return torch.full_like(observations, float("nan"))


class WrongShape(Scripted):
    def actions(self, observations: Tensor, _noise: Tensor) -> Tensor:
        return observations[:, :1]


class Fatal(Scripted):
    def actions(self, observations: Tensor, _noise: Tensor) -> Tensor:
        return torch.full_like(observations, 0.5)


@pytest.fixture(scope="module")
def oracle() -> Evaluation:
    with Evaluator(MEDIUM, num_envs=4, workers=0) as evaluator:
        return evaluator.run(Oracle(), 6, record_paths=3)


def test_results_do_not_depend_on_how_many_environments_or_processes_run(oracle):
    for num_envs, workers in ((1, 0), (8, 2)):
        with Evaluator(MEDIUM, num_envs, workers) as evaluator:
            other = evaluator.run(Oracle(), 6, record_paths=3)
        for name in ("seeds", "returns", "successes", "lengths"):
            np.testing.assert_array_equal(getattr(oracle, name), getattr(other, name))
        for path, same in zip(oracle.paths, other.paths, strict=True):
            np.testing.assert_array_equal(path, same)


def test_runs_are_paired_episode_by_episode():
    # Neither the number of episodes, nor an earlier evaluation, nor another policy changes how one starts.
    with Evaluator(MEDIUM, num_envs=2, workers=0) as evaluator:
        few = evaluator.run(Wander(), 2, record_paths=2)
        more = evaluator.run(Wander(), 3, record_paths=3)
        still = evaluator.run(Still(), 3, record_paths=3)
    with Evaluator(MEDIUM, num_envs=2, workers=0, seed=1) as evaluator:
        elsewhere = evaluator.run(Still(), 2, record_paths=2)
    np.testing.assert_array_equal(few.seeds, more.seeds[:2])
    for path, same in zip(few.paths, more.paths[:2], strict=True):
        np.testing.assert_array_equal(path, same)
    np.testing.assert_array_equal([p[0] for p in more.paths], [p[0] for p in still.paths])
    assert len({tuple(p[0]) for p in more.paths}) == 3
    assert not set(elsewhere.seeds.tolist()) & set(still.seeds.tolist())
    assert not np.allclose(elsewhere.paths[0][0], still.paths[0][0])


def test_noise_differs_between_steps_candidates_and_episodes():
    noises = []

    class Listener(Still):
        def actions(self, observations, noise):
            noises.append(noise)
            return super().actions(observations, noise)

    with Evaluator(MEDIUM, num_envs=2, workers=0) as evaluator:
        evaluator.run(Listener(), 2)
    drawn = torch.stack(noises)
    assert drawn.shape == (1000, 3, 2, 2)
    assert drawn.unique().numel() == drawn.numel()
    assert drawn.std() == pytest.approx(0.5, rel=0.05)


def test_reaching_the_goal_is_success_with_the_return_and_length_of_the_way(oracle):
    assert oracle.successes.all()
    assert (oracle.lengths < 1000).all()
    # -1 a step, and 0 at the last, which is taken in the goal.
    np.testing.assert_array_equal(oracle.returns, -(oracle.lengths - 1.0))
    for path, length in zip(oracle.paths, oracle.lengths[:3], strict=True):
        assert path.shape == (length + 1, 2)
        assert np.linalg.norm(path[0]) < 2  # starts near (0, 0)
        assert np.linalg.norm(path[-2] - GOAL) <= 1
    assert oracle.summary()["eval/success"] == 1.0


def test_standing_still_is_failure_at_the_time_limit():
    with Evaluator(MEDIUM, num_envs=2, workers=0) as evaluator:
        result = evaluator.run(Still(), 3)
    assert result.summary() == {"eval/success": 0.0, "eval/return": -1000.0, "eval/length": 1000.0}
    assert result.paths == []


def test_every_action_call_has_the_same_shape():
    policy = Wander()
    with Evaluator(MEDIUM, num_envs=4, workers=0) as evaluator:
        evaluator.run(policy, 6)
    assert policy.batches == {(4, 2, 3, 4, 2)}


def test_progress_counts_finished_episodes():
    seen = []
    with Evaluator(MEDIUM, num_envs=2, workers=0) as evaluator:
        evaluator.run(Oracle(), 3, progress=lambda *report: seen.append(report))
    assert seen[-1] == (3, 3, 1.0)
    assert [done for done, *_ in seen] == sorted({done for done, *_ in seen})


def test_actions_that_are_not_finite_are_refused_and_evaluation_can_go_on():
    with Evaluator(MEDIUM, num_envs=2, workers=0) as evaluator:
        with pytest.raises(DivergedError, match="episode 0, step 0"):
            evaluator.run(Broken(), 2)
        assert evaluator.run(Still(), 1).lengths.tolist() == [1000]


def test_actions_of_the_wrong_shape_are_refused():
    with Evaluator(MEDIUM, num_envs=2, workers=0) as evaluator, pytest.raises(ValueError, match=r"\(2, 1\)"):
        evaluator.run(WrongShape(), 1)


def test_an_interrupted_evaluation_does_not_spoil_the_next():
    class Interrupt(Still):
        def actions(self, _observations, _noise):
            # In the middle of a step: the workers answer, but nobody has listened.
            evaluator.env._crew._send(0, ("step", ()))
            raise KeyboardInterrupt

    with Evaluator(MEDIUM, num_envs=1, workers=1) as evaluator:
        with pytest.raises(KeyboardInterrupt):
            evaluator.run(Interrupt(), 1)
        assert evaluator.run(Still(), 1).lengths.tolist() == [1000]


def test_an_evaluator_starts_afresh_after_its_workers_die():
    with Evaluator(Fragile(), num_envs=2, workers=1) as evaluator:
        with pytest.raises(WorkerError, match="killed"):
            evaluator.run(Fatal(), 2)
        assert evaluator.run(Still(), 1).lengths.tolist() == [1000]


# ---- several policies side by side


class Network(Scripted):
    """A network whose actions depend, in the last bits, on the shape and the neighbours of its batch."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 67), torch.nn.SiLU(), torch.nn.Linear(67, 2))

    def actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        return self.layers(torch.cat([observations / 20.0, noise[0]], -1)).clamp(-1, 1)


def assert_same(one: Evaluation, other: Evaluation) -> None:
    for name in ("seeds", "returns", "successes", "lengths"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for path, same in zip(one.paths, other.paths, strict=True):
        np.testing.assert_array_equal(path, same)


@pytest.mark.parametrize("most", [pytest.param(evaluation.MOST_SIDE_BY_SIDE, marks=pytest.mark.slow), 4])
def test_policies_side_by_side_are_evaluated_as_each_is_alone(most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluation, "MOST_SIDE_BY_SIDE", most)
    policies, seen = [Network(0), Oracle(), Network(1)], []
    with Evaluator(Short(400), num_envs=2, workers=2, policies=3) as evaluator:
        together = evaluator.run_each(policies, 3, progress=lambda *report: seen.append(report), record_paths=3)
        assert evaluator.env.num_envs == min(most, 6)
    with Evaluator(Short(400), num_envs=2, workers=0) as evaluator:
        for policy, result in zip(policies, together, strict=True):
            assert policy.batches == {(2, 2, 3, 2, 2)}
            assert_same(evaluator.run(policy, 3, record_paths=3), result)
    assert seen[-1] == (9, [result.successes.mean() for result in together])
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_policy_that_is_no_number_leaves_the_others_to_their_evaluation(oracle: Evaluation):
    class LateBroken(Wander):
        calls = 0

        def actions(self, observations: Tensor, noise: Tensor) -> Tensor:
            self.calls += 1
            return super().actions(observations, noise) / (self.calls <= 20)

    with Evaluator(MEDIUM, num_envs=4, workers=0, policies=3) as evaluator:
        late, result, broken = evaluator.run_each([LateBroken(), Oracle(), Broken()], 6, record_paths=3)
        assert_same(result, oracle)
        assert isinstance(late, DivergedError)
        assert "episode 0, step 20" in str(late)
        assert isinstance(broken, DivergedError)
        assert "episode 0, step 0" in str(broken)
        assert_same(evaluator.run(Oracle(), 6, record_paths=3), oracle)


def test_an_environment_that_blows_up_ends_the_evaluation_of_its_own_policy_alone():
    with Evaluator(Explosive(), num_envs=2, workers=1, policies=2) as evaluator:
        exploded, still = evaluator.run_each([Fatal(), Still()], 2)
    assert isinstance(exploded, EnvError)
    assert "episode 0 after 1 steps" in str(exploded)
    assert still.lengths.tolist() == [1000, 1000]


def test_policies_side_by_side_are_filmed_each_in_its_own_environment():
    backend_or_skip()
    with Evaluator(MEDIUM, num_envs=1, workers=1, policies=2) as evaluator:
        films = [r.frames for r in evaluator.run_each([Oracle(), Still()], 1, video_episodes=1, max_frames=4)]
        alone = [evaluator.run(policy, 1, video_episodes=1, max_frames=4).frames for policy in (Oracle(), Still())]
    for (film,), (same,) in zip(films, alone, strict=True):
        np.testing.assert_array_equal(film, same)
    assert not np.array_equal(films[0][0][-1], films[1][0][-1])


def test_scores_are_normalised_by_the_reference_returns():
    ones = np.ones(2)
    result = Evaluation(ones, 30 * ones, ones > 0, ones, 1.0, reference_returns=(10.0, 110.0))
    assert result.summary()["eval/normalized_score"] == pytest.approx(20.0)


def test_results_survive_json_with_every_episode(oracle):
    line = json.loads(json.dumps(oracle.to_json_dict()))
    assert line["returns"] == oracle.returns.tolist()
    assert line["successes"] == [True] * 6
    assert line["seeds"] == oracle.seeds.tolist()
    assert line["eval/success"] == 1.0


def test_filmed_episodes_are_the_evaluated_ones():
    backend_or_skip()
    with Evaluator(MEDIUM, num_envs=2, workers=2) as evaluator:
        plain = evaluator.run(Oracle(), 2, record_paths=2)
        filmed = evaluator.run(Oracle(), 2, record_paths=2, video_episodes=1, max_frames=20)
    np.testing.assert_array_equal(plain.lengths, filmed.lengths)
    np.testing.assert_array_equal(plain.paths[1], filmed.paths[1])
    (film,) = filmed.frames
    assert filmed.frame_stride == 50
    # The first state, every fiftieth and the last.
    assert len(film) == 1 + -(-filmed.lengths[0] // 50)
    assert film.shape[1:] == (256, 256, 3)
    # The ball is yellow: it starts in the lower left and ends in the upper right corner.
    lower_left, upper_right = (slice(192, None), slice(64)), (slice(64), slice(192, None))
    for frame, corner in ((film[0], lower_left), (film[-1], upper_right)):
        yellow = (frame[..., 0] > 150) & (frame[..., 2] < 120) & (frame[..., 1] > 110)
        assert yellow[corner].sum() > 0.9 * yellow.sum() > 0


@pytest.fixture
def frames() -> np.ndarray:
    """A white bar moving right over black, ten frames of 32 x 48."""
    film = np.zeros((10, 32, 48, 3), np.uint8)
    for i in range(10):
        film[i, :, 4 * i : 4 * i + 8] = 255
    return film


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_videos_play_back_what_was_written(frames, tmp_path, suffix):
    import imageio.v3 as iio

    path = write_video(frames, tmp_path / "new folder" / f"episode{suffix}", fps=10)
    read = iio.imread(path)
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < 6
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_video_that_fails_leaves_the_old_one_and_no_rest(frames, tmp_path, monkeypatch):
    path = write_video(frames, tmp_path / "episode.gif")
    old = path.read_bytes()
    monkeypatch.setattr("mfrl.system.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_video(frames[:2], path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["episode.gif"]


@pytest.mark.parametrize("name", ["episode.avi", "episode"])
def test_other_video_formats_are_refused(frames, tmp_path, name):
    with pytest.raises(ValueError, match="mp4"):
        write_video(frames, tmp_path / name)


def test_float_frames_are_refused(frames, tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_video(frames / 255, tmp_path / "episode.gif")


def test_tensorboard_gets_a_moving_image(frames, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        tensorboard_gif(writer, "eval/video", frames, step=7)
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Images("eval/video")
    image = Image.open(io.BytesIO(event.encoded_image_string))
    assert (event.step, image.format, image.n_frames, image.size) == (7, "GIF", 10, (48, 32))
