"""The learner: one update as one graph, members as their solo runs, Adam as PyTorch's, and what goes on as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from tiny import ACTION_DIM, RESIDUAL, SPEC, batch
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._guards import TracingContext

from mfrl.algorithms.base import Algorithm, frozen_copy
from mfrl.algorithms.bc import BC
from mfrl.algorithms.driftql import DriftQL
from mfrl.algorithms.fbrac import FBRAC
from mfrl.algorithms.flow_bc import FlowBC
from mfrl.algorithms.flow_distilled import FlowDistilled
from mfrl.algorithms.fql import FQL
from mfrl.algorithms.gaussian_bc import GaussianBC
from mfrl.algorithms.groups import Average, Group
from mfrl.algorithms.ifql import IFQL
from mfrl.algorithms.iql import IQL
from mfrl.algorithms.meanflow_bc import MeanFlowBC
from mfrl.algorithms.meanflow_distill import MeanFlowDistill
from mfrl.algorithms.meanflowql import MeanFlowQL
from mfrl.algorithms.rebrac import ReBRAC
from mfrl.algorithms.sac import SAC
from mfrl.data.batch import Batch
from mfrl.errors import CheckpointError
from mfrl.learning.compiling import Compiled
from mfrl.learning.learner import Layout, Learner, adam_
from mfrl.learning.training import Training
from mfrl.networks.critic import QEnsemble, StateValue
from mfrl.networks.dit import DiT
from mfrl.networks.gaussian import GaussianMLP, SquashedGaussianMLP
from mfrl.networks.mean import MeanMLP
from mfrl.networks.mlp import MLP
from mfrl.networks.vector_field import VectorField
from mfrl.reformulation import Reformulation
from mfrl.settings import Settings
from mfrl.system.paths import CONFIG_DIR

SIZE = 12
# Of one layer each: torch.compile takes its time for every operation, and a second layer has none that the first lacks.
shallow_dit = partial(DiT, width=16, depth=1, mlp_ratio=2.0)
shallow_mlp = partial(MLP, hidden=[16], time_width=8)
shallow_critic = partial(QEnsemble, hidden=[16], ensemble=2)
shallow_field = partial(VectorField, hidden=[16])
shallow_mean = partial(MeanMLP, hidden=[16], squash=True)
shallow_value = partial(StateValue, hidden=[16])

#: Every algorithm of conf/algo by its name, and after a comma settings that make another update of it.
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "meanflowql": partial(MeanFlowQL, actor=shallow_dit, critic=shallow_critic, reformulation=RESIDUAL),
    "meanflowql, quickstart": partial(
        MeanFlowQL,
        actor=shallow_dit,
        critic=shallow_critic,
        reformulation=RESIDUAL,
        normalize_q="gradient",
        alpha_schedule="fixed",
        q_aggregation="min",
        clip_targets=True,
        actor_average=0.1,
    ),
    "meanflowql, two times, value, cosine": partial(
        MeanFlowQL,
        actor=shallow_mlp,
        critic=shallow_critic,
        reformulation=Reformulation(1.0, -1.0, instant_share=0.5),
        normalize_q="value",
        alpha_schedule="cosine",
        time_steps=None,
    ),
    "fql": partial(FQL, actor=shallow_field, critic=shallow_critic, actor_average=0.1),
    "meanflow_bc": partial(MeanFlowBC, actor=shallow_dit, reformulation=Reformulation(1.0, [0.0, -1.0])),
    "flow_bc": partial(FlowBC, actor=shallow_field, flow_steps=2),
    "flow_distilled": partial(FlowDistilled, actor=shallow_field, flow_steps=2),
    "bc": partial(BC, actor=shallow_mean),
    "iql": partial(IQL, actor=shallow_mean, critic=shallow_critic, value=shallow_value),
    "iql, ddpgbc": partial(IQL, actor=shallow_mean, critic=shallow_critic, value=shallow_value, extraction="ddpgbc"),
    "ifql": partial(IFQL, actor=shallow_field, critic=shallow_critic, value=shallow_value, flow_steps=2),
    "rebrac": partial(ReBRAC, actor=shallow_mean, critic=shallow_critic, alpha_critic=0.1),
    "fbrac": partial(FBRAC, actor=shallow_field, critic=shallow_critic, flow_steps=2),
    "meanflow_distill": partial(MeanFlowDistill, actor=shallow_mlp, critic=shallow_critic, reformulation=RESIDUAL),
    "driftql": partial(DriftQL, actor=shallow_field, critic=shallow_critic, num_generated=3),
    "gaussian_bc": partial(GaussianBC, actor=partial(GaussianMLP, hidden=[16])),
    "sac": partial(SAC, actor=partial(SquashedGaussianMLP, hidden=[16]), critic=shallow_critic, backup_entropy=True),
    "rlpd": partial(
        SAC,
        actor=partial(SquashedGaussianMLP, hidden=[16]),
        critic=partial(shallow_critic, ensemble=4, layer_norm=False),
        backup_entropy=True,
        target_aggregation="mean_minus_std",
        policy_aggregation="mean_minus_std",
    ),
}


def make(name: str, seed: int = 0, updates: int = 8, **settings: Any) -> Algorithm:
    torch.manual_seed(seed)
    return ALGORITHMS[name](spec=SPEC, updates=updates, seed=seed, **settings)


def batches(count: int, first: int = 0) -> list[Batch]:
    drawn = [batch(SIZE, seed=100 + first + k, dtype=torch.float32) for k in range(count)]
    # In every third transition the trajectory ends, and the data have no next action.
    ends = torch.arange(SIZE)[:, None] % 3 == 0
    return [one._replace(next_actions=torch.where(ends, torch.nan, one.actions.flip(0))) for one in drawn]


def parameters(algorithm: Algorithm) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}


def train(learner: Learner, data: list[Batch]) -> list[dict[str, Tensor]]:
    metrics = []
    for one in data:
        names, values = learner.update(one)
        metrics.append(dict(zip(names, values, strict=True)))
    return metrics


def assert_same(one: Tensor, other: Tensor, name: str) -> None:
    torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True, msg=name)


def stacked(members: list[Batch]) -> Batch:
    fields = zip(*members, strict=True)
    return Batch(*(None if field[0] is None else torch.stack(list(field)) for field in fields))


def test_no_algorithm_is_missing_here():
    assert {name.partition(",")[0] for name in ALGORITHMS} == {path.stem for path in CONFIG_DIR.glob("algo/*.yaml")}


# ---- one graph


#: Tracing takes seconds. "rlpd" has all that "sac" has, and the two MeanFlowQL differ from the first in their settings.
TRACED_SLOWLY = ("meanflowql, quickstart", "meanflowql, two times, value, cosine", "sac")


@pytest.mark.parametrize(
    ("name", "members"),
    # One example of two members is enough.
    [(name, 1) for name in ALGORITHMS if name not in TRACED_SLOWLY]
    + [("fql", 2)]
    + [pytest.param(name, 1, marks=pytest.mark.slow) for name in TRACED_SLOWLY]
    + [pytest.param(name, 2, marks=pytest.mark.slow) for name in ALGORITHMS if name != "fql"],
)
def test_an_update_is_one_graph_that_serves_all_updates(name: str, members: int):
    torch._dynamo.reset()
    traced, eager = (Learner([make(name, seed) for seed in range(members)], SIZE) for _ in range(2))
    counter = CompileCounter()
    traced._step = traced._compiled(counter)
    for one in batches(8):  # rates and alpha change from update to update
        (names, values), (same, wanted) = (
            learner.update(one if members == 1 else stacked([one] * members)) for learner in (traced, eager)
        )
        assert names == same
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-6, equal_nan=True)
    stages = 2 if name in ("flow_distilled", "rebrac") else 1  # rebrac: with a step of the policy, and without
    assert counter.frame_count == stages
    for mine, other in zip(traced.algorithms, eager.algorithms, strict=True):
        torch.testing.assert_close(parameters(mine), parameters(other), rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_update_asks_no_tensor_for_its_value_and_makes_none_elsewhere(name: str):
    # On the meta device there are no values to ask for, and what lies on another device cannot take part.
    learner = Learner([make(name).to("meta")], SIZE)
    names, values = learner.update(batches(1)[0].to(torch.device("meta")))
    assert values.device.type == "meta"
    assert values.shape == (len(names),)


@pytest.mark.parametrize(
    ("name", "members"),
    [
        pytest.param(name, members, marks=[] if (name, members) == (None, 1) else pytest.mark.slow)
        for name in (None, *ALGORITHMS)
        for members in (1, 2)
    ],
)
def test_what_a_captured_update_changes_stays_where_it_is(name: str | None, members: int):
    # What a CUDA graph needs, seen without one: all that it changes is marked to stay, arguments alone are copied in.
    torch._dynamo.reset()
    learner = Learner([make(name, k) if name else of_every_kind() for k in range(members)], SIZE, "captured")
    changed, copied = [], []

    def look(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        stay = TracingContext.get().fw_metadata.static_input_indices
        written = {node.args[0] for node in graph.graph.nodes if node.target == torch.ops.aten.copy_.default}
        changed.append({inputs.index(node) for node in written} - set(stay))
        copied.append(len(inputs) - len(stay))
        return graph.forward

    backend = aot_autograd(fw_compiler=look, keep_inference_input_mutations=True)
    learner._step = learner._compiled(lambda graph, inputs, **_: backend(graph, inputs))
    data = [one if members == 1 else stacked([one] * members) for one in batches(5)]
    train(learner, data)
    assert changed == [set()] * len(changed)
    assert len(changed) >= (1 if name else 2)
    fields = sum(field is not None for field in data[0])
    assert max(copied) <= fields + len(learner._numbers())


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("flow_bc", True),
        pytest.param("flow_bc", "captured", marks=pytest.mark.slow),  # without a GPU the same, but for its options
        pytest.param("meanflowql, quickstart", True, marks=pytest.mark.slow),
    ],
)
def test_compiled_updates_are_the_eager_ones_to_rounding(name: str, how: Compiled):
    torch._dynamo.reset()
    compiled, eager = (Learner([make(name)], SIZE, compiled) for compiled in (how, False))
    for one, other in zip(train(compiled, batches(3)), train(eager, batches(3)), strict=True):
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-5, msg=key)
    for key, value in parameters(compiled.algorithms[0]).items():
        torch.testing.assert_close(value, parameters(eager.algorithms[0])[key], rtol=1e-3, atol=2e-4, msg=key)


def test_two_learners_of_one_process_do_not_take_each_other_s_graph():
    torch._dynamo.reset()
    results = []
    for tau in (0.5, 0.001):
        averages = (Average("target", "one", tau),)
        learner, alone = (Learner([Quadratic(Group("one", 0.1, 10), averages=averages)], SIZE) for _ in range(2))
        learner._step = learner._compiled("eager")
        train(learner, batches(2))
        train(alone, batches(2))
        for key, value in parameters(learner.algorithms[0]).items():
            torch.testing.assert_close(value, parameters(alone.algorithms[0])[key], msg=key)
        results.append(parameters(learner.algorithms[0])["target.network.weight"])
    assert not torch.equal(*results)


# ---- a population


@pytest.mark.parametrize("name", ALGORITHMS)
def test_members_are_their_solo_runs_to_rounding(name: str):
    seeds, alphas = (3, 4, 5), (1.0, 10.0, 300.0)
    with_alpha = hasattr(make(name).settings, "alpha")
    settings = [{"alpha": alpha} if with_alpha else {} for alpha in alphas]
    together = Learner([make(name, s, **own) for s, own in zip(seeds, settings, strict=True)], SIZE)
    solo = [Learner([make(name, s, **own)], SIZE) for s, own in zip(seeds, settings, strict=True)]
    for k in range(8):
        own = [batches(1, 1000 * member + k)[0] for member in range(3)]
        names, values = together.update(stacked(own))
        for member, learner in enumerate(solo):
            alone = dict(zip(*learner.update(own[member]), strict=True))
            for key, value in zip(names, values[:, member], strict=True):
                torch.testing.assert_close(value, alone[key], rtol=2e-3, atol=1e-4, msg=f"{key}, update {k}")
    for member, learner in enumerate(solo):
        for key, value in parameters(together.algorithms[member]).items():
            torch.testing.assert_close(
                value, parameters(learner.algorithms[0])[key], rtol=1e-3, atol=1e-4, equal_nan=True, msg=key
            )
    first, second = (parameters(a) for a in together.algorithms[:2])
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_a_member_that_is_no_number_leaves_the_others_alone():
    def run(broken: bool) -> list[dict[str, Tensor]]:
        algorithms = [make("meanflowql", seed) for seed in (0, 1)]
        if broken:
            with torch.no_grad():
                next(algorithms[0].actor.parameters()).fill_(torch.nan)
        learner = Learner(algorithms, SIZE)
        train(learner, [stacked([one, one]) for one in batches(3)])
        return [parameters(a) for a in algorithms]

    whole, broken = run(False), run(True)
    assert not broken[0]["actor.network.embed.weight"].isfinite().any()
    for key, value in whole[1].items():
        assert_same(value, broken[1][key], key)


# ---- steps


class Quadratic(Algorithm):
    """Two networks pulled to zero, whose gradients are known."""

    Settings = Settings

    def __init__(self, *groups: Group, averages: tuple[Average, ...] = ()) -> None:
        super().__init__(SPEC, updates=10)
        torch.manual_seed(0)
        self.one = self.network(lambda o, a: nn.Linear(o, a))
        self.two = self.network(lambda o, a: nn.Linear(o, a))
        self.target = frozen_copy(self.one)
        self.groups, self.averages = groups, averages

    def loss(
        self, batch: Batch, noise: Mapping[str, Any], trained: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        parts = {name: sum(p.square().sum() for p in getattr(self, name).parameters()) for name in trained}
        total = sum(parts.values(), torch.zeros(()))
        return total, {"loss": total}


class Remembering(Quadratic):
    """With a buffer that changes from update to update."""

    def __init__(self, *groups: Group, averages: tuple[Average, ...] = ()) -> None:
        super().__init__(*groups, averages=averages)
        self.register_buffer("last_loss", torch.zeros(()))

    def after(self, k: Tensor, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"last_loss": metrics["loss"]}


def of_every_kind() -> Algorithm:
    """An algorithm with all that an update can change: networks, of which one joins in later, a target, a buffer."""
    groups = Group("one", lr=0.1, end=10, clip=1.0), Group("two", lr=0.1, begin=3, end=10)
    return Remembering(*groups, averages=(Average("target", "one", 0.125, from_start=True),))


def test_adam_is_that_of_pytorch():
    generator = torch.Generator().manual_seed(0)
    mine = torch.randn(40, generator=generator, dtype=torch.float64)
    other = nn.Parameter(mine.clone())
    m, v, t = torch.zeros_like(mine), torch.zeros_like(mine), torch.zeros((), dtype=torch.float64)
    optimizer = torch.optim.Adam([other], lr=1.0)
    for k in range(200):
        g = 10.0 ** torch.randint(-8, 4, (40,), generator=generator) * torch.randn(40, generator=generator)
        lr = 0.1 / (k + 1)
        adam_(mine, g.double(), m, v, t.add_(1.0), torch.tensor(lr))
        optimizer.param_groups[0]["lr"] = lr
        other.grad = g.double()
        optimizer.step()
    torch.testing.assert_close(mine, other.detach(), rtol=1e-6, atol=1e-8)


def test_a_group_steps_when_it_is_its_turn_and_at_its_rate():
    algorithm = Quadratic(
        Group("one", lr=0.1, end=10, every=2),
        Group("two", lr=0.1, end=10),
        Group("target", lr=0.2, begin=3, end=5, warmup=0.5),
    )
    learner = Learner([algorithm], SIZE)
    for k in range(10):
        before = parameters(algorithm)
        rates = learner.rates()
        learner.update(batches(1)[0])
        moved = {
            name.partition(".")[0] for name, p in parameters(algorithm).items() if not torch.equal(p, before[name])
        }
        # Over the two updates of its stage, the third network's rate rises during the first.
        assert moved == {"two"} | ({"one"} if k % 2 == 0 else set()) | ({"target"} if k == 4 else set()), k
        assert rates["one"] == pytest.approx(0.1)
        assert rates["target"] == pytest.approx(0.2 if k >= 4 else 0.0)


def test_a_gradient_is_clipped_by_its_norm_over_the_whole_network():
    free, clipped = (Quadratic(Group("one", 0.1, 10, clip=clip)) for clip in (float("inf"), 1e-3))
    norm = 2.0 * torch.cat([p.flatten() for p in free.one.parameters()]).norm()
    learners = [Learner([algorithm], SIZE) for algorithm in (free, clipped)]
    for learner in learners:
        (metrics,) = train(learner, batches(1))
        torch.testing.assert_close(metrics["one_grad_norm"], norm.detach())
    first, second = (learner._moments["one"][0] for learner in learners)
    torch.testing.assert_close(second, first * 1e-3 / norm.detach(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("before", [True, False])
def test_a_target_follows_its_source_as_it_was_before_or_after_the_step(before: bool):
    algorithm = Quadratic(Group("one", 0.1, 10), averages=(Average("target", "one", 0.25, before=before),))
    source, target = parameters(algorithm)["one.network.weight"], parameters(algorithm)["target.network.weight"]
    learner = Learner([algorithm], SIZE)
    for _ in range(3):
        learner.update(batches(1)[0])
        after = parameters(algorithm)["one.network.weight"]
        target = target + 0.25 * ((source if before else after) - target)
        torch.testing.assert_close(parameters(algorithm)["target.network.weight"], target)
        source = after


def test_an_average_from_the_start_is_the_mean_of_what_it_saw():
    algorithm = Quadratic(Group("one", 0.1, 20), averages=(Average("target", "one", 0.125, from_start=True),))
    learner, seen = Learner([algorithm], SIZE), []
    for k in range(12):
        learner.update(batches(1)[0])
        seen.append(parameters(algorithm)["one.network.weight"])
        if k < 8:
            torch.testing.assert_close(parameters(algorithm)["target.network.weight"], torch.stack(seen).mean(0))
    late = torch.stack(seen[:8]).mean(0)
    for weight in seen[8:]:
        late = late + 0.125 * (weight - late)
    torch.testing.assert_close(parameters(algorithm)["target.network.weight"], late)


# ---- where parameters lie, and what goes on


def test_parameters_are_views_of_one_vector_in_their_own_order_of_memory():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(5, 7)).to(memory_format=torch.channels_last)
    layout = Layout("net", network)
    named = {f"net.{name}": p.detach() for name, p in network.named_parameters()}
    views = layout.views(layout.vector(named))
    assert views.keys() == named.keys()
    for name, p in named.items():
        assert_same(views[name], p, name)
        assert views[name].stride() == p.stride(), name
    assert views["net.0.weight"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_learner_goes_on_as_if_it_had_never_stopped(name: str):
    whole = Learner([make(name)], SIZE)
    train(whole, batches(8))
    for stop in (3, 5):  # not at a multiple of what is drawn together
        first = Learner([make(name)], SIZE)
        train(first, batches(stop))
        saved, state = copy.deepcopy(first.state_dict()), parameters(first.algorithms[0])
        algorithm = make(name, seed=0)
        algorithm.load_state_dict(state)
        algorithm.k = stop
        second = Learner([algorithm], SIZE)
        second.load_state_dict(saved)
        train(second, batches(8 - stop, first=stop))
        for key, value in parameters(algorithm).items():
            assert_same(value, parameters(whole.algorithms[0])[key], key)


def test_a_member_s_state_is_that_of_a_run_of_its_own():
    together = Learner([make("fql", seed) for seed in (0, 1)], SIZE)
    train(together, [stacked([one, one]) for one in batches(3)])
    saved = together.state_dict(1)
    assert saved["updates"] == 3
    alone = Learner([make("fql", 1)], SIZE)
    alone.load_state_dict(saved)
    for key, value in alone.state_dict()["adam"]["critic"]["exp_avg"].items():
        assert torch.equal(value, saved["adam"]["critic"]["exp_avg"][key])
        assert value.abs().max() > 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_member_acts_to_the_bit_as_what_is_loaded_from_its_checkpoint(name: str):
    together = Learner([make(name, seed) for seed in range(3)], SIZE)
    train(together, [stacked([one] * 3) for one in batches(2)])
    observations, generator = batch(5, dtype=torch.float32).observations, torch.Generator().manual_seed(0)
    for algorithm in together.algorithms:
        loaded = make(name)
        loaded.load_state_dict(parameters(algorithm))
        member, other = algorithm.policy().folded(), loaded.policy().folded()
        noise = member.sample_noise((member.num_candidates, 5, ACTION_DIM), generator)
        with torch.no_grad():
            assert_same(member.act(observations, noise), other.act(observations, noise), name)


def test_what_acts_shares_the_learner_s_parameters():
    algorithm = make("meanflowql")
    policy = algorithm.policy()
    noise = torch.randn(5, 4, ACTION_DIM, generator=torch.Generator().manual_seed(0))
    observations = batch(4, dtype=torch.float32).observations
    before = policy.act(observations, noise)
    learner = Learner([algorithm], SIZE)
    torch.testing.assert_close(policy.act(observations, noise), before)
    train(learner, batches(6))
    assert not torch.allclose(policy.act(observations, noise), before)
    torch.testing.assert_close(algorithm.policy().act(observations, noise), policy.act(observations, noise))


@pytest.mark.parametrize("harm", ["no moments", "another network's", "a text for a moment"])
def test_moments_that_do_not_fit_are_refused(harm: str):
    learner = Learner([make("fql")], SIZE)
    train(learner, batches(2))
    saved = learner.state_dict()
    if harm == "no moments":
        del saved["adam"]["critic"]
    elif harm == "another network's":
        saved["adam"]["critic"] = saved["adam"]["actor"]
    else:
        saved["adam"]["critic"]["exp_avg"]["critic.network.head_weight"] = "zero"
    algorithm = make("fql")
    training = Training(algorithm, SIZE)
    training.load({"updates": 2, "learner": saved, "window": []})
    with pytest.raises(CheckpointError, match="moments of Adam do not fit"):
        training.on_fit_start()
