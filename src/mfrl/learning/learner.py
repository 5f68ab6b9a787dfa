r"""The only code that takes steps: gradient, clipping, Adam, averages, schedules and alpha, as one function of tensors.

    g      = grad L(theta; batch, drawn(seed, k))
    g      <- g min(1, c / |g|)                                      per network
    m      <- m + (1 - b1) (g - m),    v <- b2 v + (1 - b2) g^2
    theta  <- theta - lr(k) m^ / (sqrt(v^) + eps),   m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)      (arXiv 1412.6980)
    target <- target + tau (source - target)

The parameters of a network are views of one vector, so that a step is a few operations instead of a few for every
layer. Several members of a population add a leading axis to every vector. They share the number of the update, and with
it all rates.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mfrl.data.batch import Batch
from mfrl.learning.compiling import Compiled
from mfrl.randomness import Streams, key_of
from mfrl.schedules import warmup_cosine

if TYPE_CHECKING:
    from mfrl.algorithms.base import Algorithm
    from mfrl.algorithms.groups import Average, Group

BETAS, EPS = (0.9, 0.999), 1e-8
DRAWN_TOGETHER = 8  #: updates
_ALIGNED = 16  #: float32 numbers in 64 bytes


class Layout:
    """The places of a network's parameters in one vector. Each parameter keeps its order of memory.

    Parameters whose size is a multiple of 64 bytes come first, so that all of these are aligned.

    Args:
        prefix: of the parameters' names.
        network: the network.
    """

    def __init__(self, prefix: str, network: nn.Module) -> None:
        parameters = sorted(network.named_parameters(), key=lambda named: named[1].numel() % _ALIGNED != 0)
        self.names = [f"{prefix}.{name}" for name, _ in parameters]
        self.sizes = [p.numel() for _, p in parameters]
        # The order of dimensions in memory: convolutions have their channels last.
        self._order = [_in_memory(p) for _, p in parameters]
        self._shapes = [[p.shape[d] for d in order] for (_, p), order in zip(parameters, self._order, strict=True)]
        self._back = [[order.index(d) for d in range(len(order))] for order in self._order]

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a vector ``(size,)``."""
        parts = vector.split(self.sizes)
        return {
            name: part.view(shape).permute(back)
            for name, part, shape, back in zip(self.names, parts, self._shapes, self._back, strict=True)
        }

    def vector(self, named: Mapping[str, Tensor]) -> Tensor:
        """A new vector ``(size,)`` of parameters by name, the inverse of :meth:`views`."""
        return torch.cat([named[n].permute(o).flatten() for n, o in zip(self.names, self._order, strict=True)])


def _in_memory(p: Tensor) -> list[int]:
    """The dimensions, the one of the largest stride first."""
    steps = p.stride()
    return sorted(range(p.ndim), key=lambda d: -steps[d])


class Learner:
    """Trains one algorithm, or several members of a population that differ only in seed and alpha.

    The algorithms' parameters and buffers become views of the learner's tensors, which it updates in place.

    Args:
        algorithms: the members, on the device to train on.
        batch_size: of each member's batches.
        compiled: compile the whole update with torch.compile; its first call then takes a minute or so. "captured":
            and have it replayed as a CUDA graph, which it then stays but for the arguments, that are copied into it.

    Attributes:
        k: number of updates made.
    """

    def __init__(self, algorithms: Sequence[Algorithm], batch_size: int, compiled: Compiled = False) -> None:
        first = algorithms[0]
        self.algorithms, self.k = tuple(algorithms), first.k
        device = first.normalizer.mean.device
        self._groups = {group.network: group for group in first.groups}
        self._averages = first.averages
        self._layouts = {
            name: Layout(name, network)
            for name, network in first.named_children()
            if any(True for _ in network.parameters())
        }
        self._parameters = {name: self._adopt_parameters(layout) for name, layout in self._layouts.items()}
        parameters = {name for layout in self._layouts.values() for name in layout.names}
        self._buffers = {name: self._adopt_buffer(name) for name in first.state_dict() if name not in parameters}
        self._moments = {
            name: (torch.zeros_like(self._parameters[name]), torch.zeros_like(self._parameters[name]))
            for name in self._groups
        }
        self._steps = {name: torch.zeros((), device=device) for name in self._groups}
        self._k = torch.tensor(self.k, device=device)
        self._key = self._stack([key_of(algorithm.seed).to(device) for algorithm in algorithms])
        self._streams = Streams(first.draws(batch_size), "update", device)
        self._skeleton = _without_parameters(first)
        self._drawn: list[dict[str, Tensor]] = []
        self._captured = compiled == "captured"
        self._step = self._compiled() if compiled else self._update

    @torch.no_grad()
    def update(self, batch: Batch) -> tuple[tuple[str, ...], Tensor]:
        """One update of every member, in place.

        Args:
            batch: for several members, every field has a leading axis of members.

        Returns:
            the names of the scalars and their values, ``(scalars,)`` or, for several members, ``(scalars, members)``.
            The call does not wait for the device.
        """
        trained = tuple(name for name, group in self._groups.items() if group.steps_at(self.k))
        moved = tuple(average.target for average in self._averages if average.follows_at(self.k))
        if self._captured:
            torch.compiler.cudagraph_mark_step_begin()
        names, values = self._step(batch, self._numbers(), trained, moved)
        if self._captured:
            values = values.clone()  # the graph's own are overwritten by the next update
        self.k += 1
        for algorithm in self.algorithms:
            algorithm.k = self.k
        return names, values

    @property
    def device(self) -> torch.device:
        """The device that trains, also after the algorithms have moved elsewhere."""
        return self._k.device

    def rates(self) -> dict[str, float]:
        """Each network's learning rate in the next update."""
        return {name: float(_rate(group, torch.tensor(self.k))) for name, group in self._groups.items()}

    def _numbers(self) -> dict[str, Tensor]:
        """The random numbers of the next update. Those of ``DRAWN_TOGETHER`` updates are drawn in one call."""
        place = self.k % DRAWN_TOGETHER
        if place == 0 or not self._drawn:
            first = self.k - place
            k = torch.arange(first, first + DRAWN_TOGETHER, device=self._k.device)
            drawn = self._streams.numbers(self._key, k)
            self._drawn = [{name: x[i] for name, x in drawn.items()} for i in range(DRAWN_TOGETHER)]
        return self._drawn[place]

    # ---- one update, which torch.compile compiles as one graph

    def _compiled(self, backend: Any = "inductor") -> Callable[..., tuple[tuple[str, ...], Tensor]]:
        # torch.compile keeps what it compiled with a function's code: with a copy of it, no learner meets another's.
        update = type(self)._update
        own = FunctionType(update.__code__.replace(), update.__globals__, update.__name__)
        options: dict[str, Any] = {"guard_filter_fn": _arguments_alone}
        if self._captured:
            options["triton.cudagraphs"] = True
            for tensor in self._state():  # else the graph is given up: it would change what is copied into it
                torch._dynamo.mark_static_address(tensor)
        return partial(torch.compile(own, fullgraph=True, dynamic=False, backend=backend, options=options), self)

    def _update(
        self, batch: Batch, numbers: dict[str, Tensor], trained: tuple[str, ...], moved: tuple[str, ...]
    ) -> tuple[tuple[str, ...], Tensor]:
        gradients, metrics = self._gradients(batch, numbers, trained)
        for average in self._averages:
            if average.before and average.target in moved:
                self._follow(average)
        for name in trained:
            group, g = self._groups[name], gradients[name]
            # Compiled by torch 2.11, the norm of a vector of one number keeps its axis.
            norm = g.norm(dim=-1).reshape(g.shape[:-1])
            metrics[f"{name}_grad_norm"] = norm
            if group.clip < math.inf:
                g = g * (group.clip / (norm + 1e-6)).clamp(max=1.0)[..., None]
            self._steps[name].add_(1.0)
            adam_(self._parameters[name], g, *self._moments[name], self._steps[name], _rate(group, self._k))
        for average in self._averages:
            if not average.before and average.target in moved:
                self._follow(average)
        values = torch.stack(list(metrics.values()))  # before what follows: alpha among them is the buffer itself
        for name, value in self._after(metrics).items():
            self._buffers[name].copy_(value)
        self._k.add_(1)
        return tuple(metrics), values

    def _gradients(
        self, batch: Batch, numbers: dict[str, Tensor], trained: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss's gradients by network, each shaped like the network's vector, and the loss's scalars."""

        def of_a_member(
            free: dict[str, Tensor],
            fixed: dict[str, Tensor],
            buffers: dict[str, Tensor],
            numbers: dict[str, Tensor],
            fields: dict[str, Tensor],
        ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            noise, batch = self._streams.values(numbers), Batch(**fields)

            def loss(free: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
                named = dict(buffers)
                for name, vector in (free | fixed).items():
                    named |= self._layouts[name].views(vector)
                return functional_call(self._skeleton, named, ("loss", batch, noise, trained), tie_weights=False)

            if alone and not torch.compiler.is_compiling():  # the same; a transform costs time at every operation
                with torch.enable_grad():
                    leaves = {name: vector.detach().requires_grad_() for name, vector in free.items()}
                    value, metrics = loss(leaves)
                gradients = torch.autograd.grad(value, list(leaves.values()))
                return dict(zip(leaves, gradients, strict=True)), {name: m.detach() for name, m in metrics.items()}
            return grad(loss, has_aux=True)(free)

        alone = len(self.algorithms) == 1
        free = {name: self._parameters[name] for name in trained}
        fixed = {name: vector for name, vector in self._parameters.items() if name not in free}
        fields = {name: x for name, x in batch._asdict().items() if x is not None}
        arguments = free, fixed, self._buffers, numbers, fields
        return (of_a_member if alone else vmap(of_a_member))(*arguments)

    def _follow(self, average: Average) -> None:
        rate: float | Tensor = average.rate
        if average.from_start:
            rate = (1.0 / (self._k + 1)).clamp(min=average.rate)
        self._parameters[average.target].lerp_(self._parameters[average.source], rate)

    def _after(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        def of_a_member(buffers: dict[str, Tensor], metrics: dict[str, Tensor]) -> dict[str, Tensor]:
            return functional_call(self._skeleton, buffers, ("after", self._k, metrics), tie_weights=False)

        return (of_a_member if len(self.algorithms) == 1 else vmap(of_a_member))(self._buffers, metrics)

    # ---- what a checkpoint holds besides the algorithm's own parameters and buffers

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        """Copies of the moments of every Adam of a member, by the names of the parameters."""
        state = {}
        for name, moments in self._moments.items():
            first, second = (self._layouts[name].views(self._of(member, m).clone()) for m in moments)
            state[name] = {"step": int(self._steps[name]), "exp_avg": first, "exp_avg_sq": second}
        return {"updates": self.k, "adam": state}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], member: int = 0) -> None:
        """Load what :meth:`state_dict` returned. All members must be at the same update.

        Raises:
            KeyError, RuntimeError: the state belongs to other networks.
        """
        self.k = state["updates"]
        self._k.fill_(self.k)
        self._drawn.clear()
        for name, moments in self._moments.items():
            saved = state["adam"][name]
            self._steps[name].fill_(saved["step"])
            for vector, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
                self._of(member, vector).copy_(self._layouts[name].vector(saved[key]))

    def _state(self) -> Iterator[Tensor]:
        """Everything that an update changes in place."""
        yield from (self._k, *self._steps.values(), *self._parameters.values(), *self._buffers.values())
        for moments in self._moments.values():
            yield from moments

    # ---- members

    def _of(self, member: int, stacked: Tensor) -> Tensor:
        return stacked if len(self.algorithms) == 1 else stacked[member]

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))

    def _adopt_parameters(self, layout: Layout) -> Tensor:
        """Stack the members' parameters as vectors, and make the parameters views of the stack."""
        named = [dict(algorithm.named_parameters()) for algorithm in self.algorithms]
        stacked = self._stack([layout.vector({name: p.detach() for name, p in own.items()}) for own in named])
        for member, own in enumerate(named):
            for name, view in layout.views(self._of(member, stacked)).items():
                own[name].data = view
        return stacked

    def _adopt_buffer(self, name: str) -> Tensor:
        owners = [algorithm.get_submodule(name.rpartition(".")[0]) for algorithm in self.algorithms]
        last = name.rpartition(".")[2]
        stacked = self._stack([algorithm.get_buffer(name) for algorithm in self.algorithms])
        for member, owner in enumerate(owners):
            owner._buffers[last] = self._of(member, stacked)
        return stacked


def _arguments_alone(guards: Sequence[Any]) -> list[bool]:
    """Select what torch.compile checks before each call: only the arguments of the call.

    Of everything that tracing looks up in the learner, only values in tensors ever change. Checking all of it takes
    half a millisecond a call.
    """
    arguments = ("batch", "numbers", "trained", "moved")
    names = [guard.name.removeprefix("L['") for guard in guards]  # locals bear that in some versions
    return [not name or name.startswith(arguments) for name in names]


def adam_(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor, lr: Tensor) -> None:
    """Step t = 1, 2, ... of Adam, in place.

    Args:
        p, g, m, v: parameters, gradient and its two moments, of one shape.
        t, lr: number of the step and learning rate, without dimensions.
    """
    b1, b2 = BETAS
    m.lerp_(g, 1.0 - b1)
    v.mul_(b2).addcmul_(g, g, value=1.0 - b2)
    c1, c2 = -torch.expm1(t * math.log(b1)), (-torch.expm1(t * math.log(b2))).sqrt()
    # m/c1 / (sqrt(v)/c2 + eps), with the constants taken together
    p.addcmul_(m / v.sqrt().add_(EPS * c2), -lr * c2 / c1)


def _rate(group: Group, k: Tensor) -> Tensor:
    k = (k - group.begin).clamp(min=0)
    return group.lr * warmup_cosine(k, group.end - group.begin, group.warmup, group.floor)


def _without_parameters(algorithm: Algorithm) -> Algorithm:
    """A copy whose parameters have no storage. The learner calls it with its own tensors in their place."""

    def shapes(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
        for part in module.modules():
            yield from ((part, name, p) for name, p in part._parameters.items() if p is not None)

    memo = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for _, _, p in shapes(algorithm)}
    return copy.deepcopy(algorithm, memo)
