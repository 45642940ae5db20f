"""A mixture of experts beside its experts computed one by one, each on all tokens.

    python bench/experts.py
    python bench/experts.py --experts 64 --top-k 8 --expert-dim 512

One layer, value and gradients by its weights and its input, float32. One by one, every expert
sees every token and the router's weights pick what counts, so E / k times the products are done.
Medians over rounds in turn, in one process; the last number of a line can be compared.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np

from keras_encdec.layers.experts import MixtureOfExperts
from keras_encdec.spec import MoESpec


def one_by_one(layer, weights, x):
    """What the layer gives, by a loop over all experts."""
    router, gate, up, down = weights
    probabilities = jax.nn.softmax(x @ router, axis=-1)
    best, chosen = jax.lax.top_k(probabilities, layer.spec.top_k)
    best = best / best.sum(-1, keepdims=True)
    output = jnp.zeros_like(x)
    for i in range(layer.spec.num_experts):
        weight = jnp.where(chosen == i, best, 0).sum(-1)[..., None]
        output += weight * ((jax.nn.silu(x @ gate[i]) * (x @ up[i])) @ down[i])
    return output


def together(layer, weights, x):
    tensors = list(zip(layer.trainable_variables, weights, strict=True))
    (output, _), _ = layer.stateless_call(
        [value for _, value in tensors], [], x, jnp.ones(x.shape[:2], "bool")
    )
    return output


def seconds(function, *given):
    begin = time.perf_counter()
    jax.block_until_ready(function(*given))
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = {"experts": 8, "top-k": 2, "width": 512, "expert-dim": 1024, "rounds": 7}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024, 4096])
    options = parser.parse_args()
    spec = MoESpec(options.experts, options.top_k, options.expert_dim)
    layer = MixtureOfExperts(spec)
    layer.build((None, None, options.width))
    weights = [variable.value for variable in layer.trainable_variables]
    for tokens in options.tokens:
        x = np.random.default_rng(0).normal(size=(1, tokens, options.width)).astype("float32")
        ways = {}
        for way in (together, one_by_one):
            loss = lambda weights, x, way=way: jnp.square(way(layer, weights, x)).sum()  # noqa: E731
            ways[way] = jax.jit(jax.value_and_grad(loss, (0, 1)))
        found = [way(weights, x)[0] for way in ways.values()]
        np.testing.assert_allclose(*found, rtol=1e-4)
        spent = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, function in ways.items():
                spent[way].append(seconds(function, weights, x))
        mine, other = (statistics.median(each) for each in spent.values())
        print(
            f"experts {options.experts} of which {options.top_k}, {tokens} tokens: together "
            f"{mine * 1e3:.1f} ms, one by one {other * 1e3:.1f} ms, {other / mine:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
