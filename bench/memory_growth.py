"""Memory of a training step by length: plain and fused attention, each block rematerialised.

    KERAS_BACKEND=jax python bench/memory_growth.py

XLA's own account of the temporary memory of loss and gradient, for a narrow pair whose
attention is Gemma 2's in kind: grouped heads, a soft cap, every other layer windowed. The
loss is the sum of squares of the decoder's states, so that no logits are counted. Nothing
is run. Linear growth from 1024 to 8192 tokens on each side is 8; the target is 11. On a
CPU, XLA orders work for concurrency rather than memory; without that, less is needed:
XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false.
"""

import jax
from keras import ops

from keras_encdec.models import EncDecBackbone
from keras_encdec.spec import AttentionSpec, PairSpec, StackSpec

LENGTHS = (1024, 2048, 4096, 8192)


def pair() -> PairSpec:
    stack = StackSpec(
        vocabulary_size=256,
        width=128,
        feedforward_dim=256,
        attention=AttentionSpec(
            num_heads=4, num_kv_heads=2, head_dim=32, query_pre_attn_scalar=32, logit_soft_cap=50.0
        ),
        windows=(512, None),
    )
    return PairSpec(encoder=stack, decoder=stack)


def temporary_megabytes(backbone: EncDecBackbone, length: int) -> float:
    """Of one row with `length` tokens on each side."""

    def loss(trainable, other, inputs):
        outputs, other = backbone.stateless_call(trainable, other, inputs, training=True)
        return ops.sum(ops.square(outputs["decoder_sequence_output"])), other

    tokens = jax.ShapeDtypeStruct((1, length), "int32")
    values = [[v.value for v in backbone.trainable_variables], []]
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    compiled = step.lower(*values, dict.fromkeys(backbone.input, tokens)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def main() -> None:
    spec = pair()
    backbone = EncDecBackbone(spec.encoder, spec.decoder)
    backbone.remat = True
    print("tokens  " + "".join(f"{length:>10}" for length in LENGTHS) + "   8192/1024")
    ratios = {}
    for path in ("plain", "fused"):
        backbone.attention = path
        used = [temporary_megabytes(backbone, length) for length in LENGTHS]
        ratios[path] = used[-1] / used[0]
        print(f"{path:8}" + "".join(f"{x:>7.1f} MB" for x in used) + f"{ratios[path]:>12.1f}")
    print(f"memory_growth 8192/1024 fused {ratios['fused']:.1f} plain {ratios['plain']:.1f}")


if __name__ == "__main__":
    main()
