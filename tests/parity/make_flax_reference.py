"""Makes flax_grouped.npz and flax_fused.npz: tiny random T5Gemma models with their outputs.

The numbers come from the flax implementation (gemma.research.t5gemma) in float32; the files hold
the parameters, the inputs, all activations, the logits and the configuration as JSON. Run with
`python make_flax_reference.py` where `pip install gemma==3.3.0` (jax and flax on CPU) was done.
"""

import dataclasses
import enum
import json
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
from gemma.gm import math as gemma_math
from gemma.research.t5gemma import modules, t5gemma

HERE = Path(__file__).parent
VOCAB = 96
SOURCE_LENGTHS = (24, 17, 9)
TARGET_LENGTHS = (20, 13, 5)
START_ID = 2
NORM = modules.QueryPreAttentionNormalisation
TYPES = (modules.AttentionType.LOCAL_SLIDING, modules.AttentionType.GLOBAL) * 2
SHARED = {
    "num_layers": 4,
    "num_embed": VOCAB,
    "final_logit_softcap": 3.0,
    "attention_types": TYPES,
    "use_post_attn_norm": True,
    "use_post_ffw_norm": True,
}
ENCODER = dict(
    SHARED,
    embed_dim=48,
    hidden_dim=80,
    head_dim=16,
    attn_logits_soft_cap=5.0,
    sliding_window_size=8,
    bidirectional=True,
)
DECODER = dict(
    SHARED,
    embed_dim=40,
    hidden_dim=72,
    head_dim=12,
    attn_logits_soft_cap=4.0,
    sliding_window_size=6,
    enable_cross_attention=True,
    kv_embed_dim=48,
)


def grouped_config():
    """Fewer key-value heads than query heads; the decoder scales queries the 27B way."""
    by_embed_dim = NORM.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS
    return t5gemma.T5GemmaConfig(
        modules.TransformerConfig(**ENCODER, num_heads=4, num_kv_heads=2),
        modules.TransformerConfig(
            **DECODER, num_heads=6, num_kv_heads=2, query_pre_attn_norm=by_embed_dim
        ),
    )


def fused_config():
    """As many key-value heads as query heads (fused qkv); transposed gating in the encoder."""
    return t5gemma.T5GemmaConfig(
        modules.TransformerConfig(
            **ENCODER, num_heads=3, num_kv_heads=3, transpose_gating_einsum=True
        ),
        modules.TransformerConfig(**DECODER, num_heads=4, num_kv_heads=4),
    )


def make_tokens(rng, lengths, start_id=None):
    """Random ids in 3..95, right-padded with 0."""
    tokens = rng.integers(3, VOCAB, (len(lengths), max(lengths)), dtype=np.int32)
    if start_id is not None:
        tokens[:, 0] = start_id
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return tokens * valid


def draw_parameter(rng, path, shape, transposed):
    """A parameter in steps of 1/512 (exact in float32, and the file compresses better)."""
    if path.endswith("scale"):
        std = 0.3
    elif path.endswith("input_embedding"):
        std = 0.4
    elif "attn_vec_einsum" in path:
        std = 1.5 * (shape[0] * shape[1]) ** -0.5
    elif path.endswith("gating_einsum"):
        std = 1.5 * shape[2 if transposed else 1] ** -0.5
    elif path.endswith("linear"):
        std = 1.5 * shape[0] ** -0.5
    else:  # q, kv and qkv kernels end in (features, head_dim)
        std = 1.8 * shape[-2] ** -0.5
    return (np.round(rng.normal(0.0, std, shape) * 512) / 512).astype(np.float32)


def make_parameters(rng, config, inputs):
    """All parameters, flat, by flax path joined with '/'."""
    model = config.make(dtype=jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))["params"]
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    transposed = {
        "encoder": config.encoder_config.transpose_gating_einsum,
        "decoder": config.decoder_config.transpose_gating_einsum,
    }
    return {
        path: draw_parameter(rng, path, flat[path].shape, transposed[path.split("/")[0]])
        for path in sorted(flat)
    }


def run(config, parameters, inputs, **options):
    variables = {"params": flax.traverse_util.unflatten_dict(parameters, sep="/")}
    return config.make(dtype=jnp.float32).apply(variables, **inputs, **options)


def config_json(config):
    """Both configurations as JSON; enumerations by name."""

    def plain(value):
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value.name if isinstance(value, enum.Enum) else value

    def fields(part):
        return {key: plain(value) for key, value in dataclasses.asdict(part).items()}

    parts = {"encoder": fields(config.encoder_config), "decoder": fields(config.decoder_config)}
    return json.dumps(parts, sort_keys=True)


def with_part(config, part, **changes):
    """The configuration with fields of 'encoder' or 'decoder' changed."""
    name = f"{part}_config"
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **changes)}
    )


def attention_logits(part, attn, positions, cross):
    """Attention logits before the cap, from the captured projections of one attention."""
    values = {name: entry["__call__"][0] for name, entry in attn.items()}
    if "qkv_einsum" in values:
        query, key, _ = values["qkv_einsum"]
    else:
        query, key = values["q_einsum"], values["kv_einsum"][0]
    if not cross:
        query, key = (
            gemma_math.apply_rope(x, positions, base_frequency=10_000, scale_factor=1.0)
            for x in (query, key)
        )
    key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
    return jnp.einsum("BTNH,BSNH->BNTS", query * part.query_pre_attn_scalar(), key)


def report_caps(config, parameters, inputs):
    """Prints the share of capped attention and final logits above 0.9 of the cap."""
    output, state = run(
        config,
        parameters,
        inputs,
        capture_intermediates=lambda module, _: isinstance(module, modules.Einsum),
    )
    sides = {"encoder": inputs["input_tokens"], "decoder": inputs["target_tokens"]}
    for side, tokens in sides.items():
        part = getattr(config, f"{side}_config")
        positions = t5gemma.build_positions_from_mask(tokens != 0)
        for name in ("attn", "cross_attn"):
            layers = [state["intermediates"][side][f"layer_{i}"].get(name) for i in range(4)]
            for i, attn in enumerate(layer for layer in layers if layer):
                logits = attention_logits(part, attn, positions, name == "cross_attn")[0]
                share = np.mean(np.tanh(np.abs(logits) / part.attn_logits_soft_cap) > 0.9)
                print(f"  {side} layer {i} {name}: {share:.1%} of logits near the cap")
    cap = config.decoder_config.final_logit_softcap
    print(f"  final logits near the cap: {np.mean(np.abs(output.logits) > 0.9 * cap):.1%}")


def variants(config):
    """Configurations with one feature changed, to see that each has an effect."""
    changed = {}
    for part in ("encoder", "decoder"):
        changed |= {
            f"{part}: no window": with_part(config, part, sliding_window_size=10_000),
            f"{part}: window one larger": with_part(
                config, part, sliding_window_size=9 if part == "encoder" else 7
            ),
            f"{part}: no attention cap": with_part(config, part, attn_logits_soft_cap=None),
            f"{part}: other rope base": with_part(
                config, part, local_base_frequency=100, global_base_frequency=100
            ),
            f"{part}: all layers local": with_part(config, part, attention_types=TYPES[:1] * 4),
        }
    changed["encoder: causal window"] = with_part(config, "encoder", bidirectional=False)
    changed["decoder: scale by embed_dim // num_heads"] = with_part(
        config, "decoder", query_pre_attn_norm=NORM.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS
    )
    changed["decoder: scale by head_dim"] = with_part(
        config, "decoder", query_pre_attn_norm=NORM.BY_ONE_OVER_SQRT_HEAD_DIM
    )
    changed["decoder: no final cap"] = with_part(config, "decoder", final_logit_softcap=None)
    return changed


def report_effects(config, parameters, inputs):
    """Prints how far logits at valid target positions move when one feature is changed."""
    reference = run(config, parameters, inputs).logits
    valid = inputs["target_tokens"] != 0

    def show(name, logits):
        change = np.abs(logits - reference)[valid]
        print(f"  {name}: mean change {change.mean():.3f}, largest {change.max():.3f}")

    for name, other in variants(config).items():
        show(name, run(other, parameters, inputs).logits)
    # Right-padded targets cannot matter to earlier positions under the causal mask: 0 is right.
    for name, tokens in inputs.items():
        filled = dict(inputs, **{name: np.where(tokens == 0, 7, tokens)})
        show(f"{name}: padding made valid", run(config, parameters, filled).logits)


def save_case(name, config, seed):
    """Draws, runs and saves one case, with a report on what bites."""
    rng = np.random.default_rng(seed)
    inputs = {
        "input_tokens": make_tokens(rng, SOURCE_LENGTHS),
        "target_tokens": make_tokens(rng, TARGET_LENGTHS, START_ID),
    }
    parameters = make_parameters(rng, config, inputs)
    output = run(config, parameters, inputs)
    arrays = {f"param/{path}": value for path, value in parameters.items()}
    arrays |= inputs | {"logits": output.logits, "config": np.array(config_json(config))}
    for i, value in enumerate(output.encoder_activations):
        arrays[f"encoder_activation_{i}"] = value
    for i, value in enumerate(output.activations):
        arrays[f"decoder_activation_{i}"] = value
    np.savez_compressed(HERE / f"flax_{name}.npz", **arrays)
    print(f"{name}: {(HERE / f'flax_{name}.npz').stat().st_size} bytes")
    for key, value in arrays.items():
        print(f"  {key} {np.shape(value)} {np.asarray(value).dtype}")
    report_caps(config, parameters, inputs)
    report_effects(config, parameters, inputs)


def main():
    save_case("grouped", grouped_config(), seed=1)
    save_case("fused", fused_config(), seed=2)


if __name__ == "__main__":
    main()
