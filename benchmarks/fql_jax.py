"""FQL's own code, driven by benchmarks/compare.py: a line of JSON in, a line of JSON out.

    python benchmarks/fql_jax.py CHECKOUT [--hidden 512 512 512 512]

    {"updates": 8}  -> seconds of so many updates
    {"act": 50}     -> seconds of an action for so many observations, the median of some calls

CHECKOUT is a clone of github.com/seohongpark/fql. The batches lie on the device, so that its data set costs nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from typing import Any

import flax
import jax
import numpy as np
from timing import median_seconds

OBSERVATION, ACTION, BATCH = 28, 5, 256


def random_batch(seed: int) -> dict[str, jax.Array]:
    draw = np.random.default_rng(seed)
    batch = {
        "observations": draw.standard_normal((BATCH, OBSERVATION)),
        "actions": np.tanh(draw.standard_normal((BATCH, ACTION))),
        "rewards": -np.ones(BATCH),
        "masks": np.ones(BATCH),
        "next_observations": draw.standard_normal((BATCH, OBSERVATION)),
    }
    return {name: jax.device_put(x.astype(np.float32)) for name, x in batch.items()}


def millions(tree: Any) -> float:
    return sum(x.size for x in jax.tree_util.tree_leaves(tree)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout")
    parser.add_argument("--hidden", type=int, nargs="+", default=[512] * 4)
    args = parser.parse_args()
    sys.path.insert(0, args.checkout)
    from agents.fql import FQLAgent, get_config

    config = get_config()
    config.actor_hidden_dims = config.value_hidden_dims = tuple(args.hidden)
    config.alpha = 300.0
    batches = [random_batch(seed) for seed in range(8)]
    agent = FQLAgent.create(0, batches[0]["observations"], batches[0]["actions"], config)
    held = agent.network.params
    target = millions(held["modules_target_critic"])
    told = {
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "device": str(jax.devices()[0])},
        "parameters": {"trained": millions(held) - target, "all": millions(held)},
    }
    for line in sys.stdin:
        asked = json.loads(line)
        if "updates" in asked:
            start = time.perf_counter()
            for k in range(asked["updates"]):
                agent, _ = agent.update(batches[k % len(batches)])
            jax.block_until_ready(agent.network.params)
            seconds = time.perf_counter() - start
        else:
            draw = np.random.default_rng(0)
            observations = draw.standard_normal((asked["act"], OBSERVATION)).astype(np.float32)
            act = partial(agent.sample_actions, observations, seed=jax.random.PRNGKey(0))
            seconds = median_seconds(lambda act=act: np.asarray(act()))
        print(json.dumps({"seconds": seconds, **told}), flush=True)


if __name__ == "__main__":
    main()
