"""What a GPU makes of training and decoding: shares of its measured rates, and memory.

    python bench/gpu.py
    python bench/gpu.py --preset gemma2_tiny_mini --lengths 64 --layers 2   # anywhere, to try it

Random bfloat16 weights of a pair, by default Gemma 2 2B-2B, on JAX. Each figure is taken in a
process of its own and printed as one line of JSON; what fails is a line with its error, and the
rest goes on. Nothing begins after `--minutes`.

    attention  each of Tokamax's implementations in bfloat16, Gemma 2's heads and soft cap, 2 rows
             of LENGTH queries and keys: seconds of a value and its gradients, and their largest
             difference from the plain path's in float32, as a share of its largest number.
    train    a step of `fit` on rows of LENGTH + LENGTH tokens without padding, blocks computed
             again in the backward pass (remat), Adam with bfloat16 moments. By attention: plain,
             which makes (T, S) arrays; chunked, XLA code in linear memory; kernel, the first of
             Tokamax's that takes the shapes. `share` is of the rate of a large matrix product,
             by the floating-point operations of the model, those of remat not counted.
    decode   a token for each row after 512 that are read: seconds of a long output less those
             of a short one. `share` is of the bandwidth of a large copy, by the bytes of the
             decoder's weights and of keys and values. `first` is the time until the first token.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

PATHS = ("kernel", "chunked", "plain")
KERNELS = ("plain", "xla_chunked", "triton", "mosaic_gpu")
SOURCE, SHORT, LONG = 512, 32, 160  # tokens that are read, and written, in decoding
WARM_UP = 2


def pair(options):
    """The specs of both sides, with fewer layers where that was asked for."""
    import keras_encdec

    spec = keras_encdec.presets[options.preset].spec
    sides = (spec.encoder, spec.decoder)
    if options.layers:
        sides = [dataclasses.replace(s, windows=s.windows[: options.layers]) for s in sides]
    return sides


def model(options):
    import keras

    from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM

    keras.utils.set_random_seed(0)
    return EncDecSeq2SeqLM(EncDecBackbone(*pair(options), dtype="bfloat16"))


def rows(count, source, target, vocabulary):
    rng = np.random.default_rng(0)
    ids = {"encoder": (count, source), "decoder": (count, target)}
    inputs = {}
    for side, shape in ids.items():
        inputs[f"{side}_token_ids"] = rng.integers(3, vocabulary, shape).astype("int32")
        inputs[f"{side}_padding_mask"] = np.ones(shape, "int32")
    return inputs


def matrices(lm, side):
    """Numbers in the kernels of a side, its embedding left out."""
    stack = getattr(lm.backbone, side)
    sizes = [v.shape for v in stack.weights if len(v.shape) > 1 and "embedding" not in v.path]
    return sum(int(np.prod(shape)) for shape in sizes)


def operations(lm, length):
    """Floating-point operations of a step, by row: products of weights, logits and attention."""
    spec = lm.backbone.spec
    weights = matrices(lm, "encoder") + matrices(lm, "decoder")
    weights += spec.decoder.vocabulary_size * spec.decoder.width
    pairs = 0  # of queries and keys, by head and layer
    for side, sees in ((spec.encoder, 2), (spec.decoder, 1)):
        for window in side.windows:
            near = length if window is None else min(window, length)
            pairs += side.attention.num_heads * side.attention.head_dim * near * sees / 2
    attention = spec.decoder.attention
    pairs += spec.decoder.num_layers * attention.num_heads * attention.head_dim * length
    return 3 * length * (2 * weights + 4 * pairs)


def train(options):
    import jax
    import keras

    lm, ends, losses = model(options), [], []
    count = options.tokens // options.length

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs):
            losses.append(float(logs["loss"]))
            jax.block_until_ready(self.model._jax_state)
            ends.append(time.perf_counter())

    lm.compile(
        keras.optimizers.Adam(1e-4, beta_2=0.95),
        attention={"kernel": "fused", "chunked": "xla_chunked", "plain": "plain"}[options.path],
        remat=True,
    )
    steps = WARM_UP + options.steps
    data = rows(count, options.length, options.length, lm.backbone.spec.decoder.vocabulary_size)
    data = {name: np.tile(x, (steps, 1)) for name, x in data.items()}
    start = time.perf_counter()
    lm.fit(
        data,
        data["decoder_token_ids"],
        batch_size=count,
        verbose=0,
        shuffle=False,
        callbacks=[Clock()],
    )
    seconds = statistics.median(np.diff(ends[WARM_UP - 1 :]))
    return {
        "rows": count,
        "parameters": lm.backbone.count_params(),
        "first_step": ends[0] - start,
        "seconds": seconds,
        "tokens_per_second": 2 * count * options.length / seconds,
        "tflops": count * operations(lm, options.length) / seconds / 1e12,
        "peak_gb": peak(),
        "loss": losses[-1],
    }


def attention(options):
    """One implementation on each kind of mask."""
    return {name: on_mask(options, name) for name in ("full", "causal", "window")}


def on_mask(options, name):
    import jax
    import jax.numpy as jnp

    from keras_encdec.layers import attention as layer
    from keras_encdec.layers import tokamax

    spec, length = pair(options)[1].attention, options.length
    shapes = [(2, length, n, spec.head_dim) for n in (spec.num_heads, spec.num_kv_heads)]
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = map(jax.random.normal, keys, (shapes[0], shapes[1], shapes[1]))
    rules = {"scale": spec.head_dim**-0.5, "soft_cap": 50.0}
    visible = layer._never_empty(key_range(name, length))

    def gradients(attend):
        def loss(*qkv):
            output = attend(*qkv)
            return jnp.sum(jnp.sin(output.astype("float32"))), output

        return jax.jit(lambda *qkv: jax.grad(loss, (0, 1, 2), has_aux=True)(*qkv))

    def plain(*qkv):
        return layer.attend(*qkv, visible, **rules, path="plain")

    def kernel(*qkv):
        return tokamax.kernel(options.path, **rules)(*qkv, visible)

    with jax.default_matmul_precision("highest"):
        expected = jax.block_until_ready(gradients(plain)(query, key, value))
    run = gradients(plain if options.path == "plain" else kernel)
    half = [x.astype("bfloat16") for x in (query, key, value)]
    try:
        found = run(*half)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    errors = [
        float(jnp.max(jnp.abs(x - y.astype("float32"))) / jnp.max(jnp.abs(x)))
        for x, y in zip(*map(jax.tree.leaves, (expected, found)), strict=True)
    ]
    return {"seconds": timed(run, *half), "error": max(errors)}


def key_range(name, length):
    """Two rows, of which one holds two texts and padding."""
    import jax.numpy as jnp

    from keras_encdec.layers import masks

    mask = jnp.ones((2, length), "int32").at[1, : length // 2].set(2).at[1, -length // 8 :].set(0)
    if name == "full":
        return masks.cross_attention(mask, mask)
    return masks.self_attention(mask, causal=True, window=length // 4 if name == "window" else None)


def decode(options):
    lm = model(options)
    lm.compile(sampler="greedy")
    spec = lm.backbone.spec

    def seconds(new):
        inputs = rows(options.batch, SOURCE, 1 + new, spec.decoder.vocabulary_size)
        inputs["decoder_padding_mask"][:, 1:] = 0
        times = []
        for _ in range(4):
            start = time.perf_counter()
            lm.generate(inputs, stop_token_ids=None)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    first, short, long = (seconds(new) for new in (1, SHORT, LONG))
    token = (long - short) / (LONG - SHORT)
    attention = spec.decoder.attention
    cached = SOURCE + (SHORT + LONG) / 2
    size = 2 * matrices(lm, "decoder") + 2 * spec.decoder.vocabulary_size * spec.decoder.width
    kept = 2 * 2 * spec.decoder.num_layers * attention.num_kv_heads * attention.head_dim * cached
    return {
        "batch": options.batch,
        "first": first,
        "token": token,
        "tokens_per_second": options.batch / token,
        "gb_per_second": (size + options.batch * kept) / token / 1e9,
        "peak_gb": peak(),
    }


def device(options):
    """The rates that shares are of."""
    import jax
    import jax.numpy as jnp

    size = 8192 if jax.default_backend() != "cpu" else 1024
    keys = jax.random.split(jax.random.key(0))
    one, other = (jax.random.normal(key, (size, size), "bfloat16") for key in keys)
    product = timed(jax.jit(jnp.matmul), one, other)
    large = jnp.zeros((16 * size * size,), "bfloat16")
    copy = timed(jax.jit(lambda x: x + 1), large)
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "tflops": 2 * size**3 / product / 1e12,
        "gb_per_second": 2 * large.nbytes / copy / 1e9,
    }


def timed(function, *inputs):
    import jax

    jax.block_until_ready(function(*inputs))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready([function(*inputs) for _ in range(4)])
        times.append((time.perf_counter() - start) / 4)
    return statistics.median(times)


def peak():
    """GB that were in use on the device at once; None where it does not say."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 1e9 or None


FIGURES = {"device": device, "attention": attention, "train": train, "decode": decode}


def in_a_process(figure, **arguments):
    given = [f"--{name}={value}" for name, value in arguments.items()]
    command = [sys.executable, __file__, *sys.argv[1:], "--one", figure, *given]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line] or lines or [f"status {done.returncode}"]
    return {"failed": errors[-1][:300]}


def measure(options):
    rates = in_a_process("device")
    yield "device", rates
    planned = [
        ("train", {"length": length, "path": path}) for length in options.lengths for path in PATHS
    ]
    planned[1:1] = [("decode", {"batch": batch}) for batch in options.batches]
    longest = options.lengths[-1]
    planned += [("attention", {"length": longest, "path": path}) for path in KERNELS]
    start = time.monotonic()
    for figure, arguments in planned:
        if time.monotonic() - start > 60 * options.minutes:
            yield figure, {**arguments, "failed": "no time left"}
            continue
        found = in_a_process(figure, **arguments)
        for rate in ("tflops", "gb_per_second"):
            if rate in found and rate in rates:
                found["share"] = found[rate] / rates[rate]
        yield figure, {**arguments, **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gemma2_2b_2b")
    parser.add_argument("--layers", type=int, help="of each side; by default all")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--tokens", type=int, default=8192, help="of each side in a batch")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--one", choices=FIGURES, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(FIGURES[options.one](options)))
        return
    for figure, found in measure(options):
        print(json.dumps({"what": figure, **rounded(found)}), flush=True)


def rounded(found):
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    return float(f"{found:.4g}") if isinstance(found, float) else found


if __name__ == "__main__":
    main()
