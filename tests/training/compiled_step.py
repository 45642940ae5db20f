"""What XLA says that a training step needs on each device, by its own account."""

import jax
import keras
import keras_hub
import numpy as np
from keras.src.backend.jax.trainer import _distribute_data

from keras_encdec.models import EncDecBackbone, EncDecSeq2SeqLM
from keras_encdec.training import Distillation, FusedCrossEntropy


def needed(spec, *sizes, **options):
    """Bytes of what goes into a step that is `compiled` and of what it works with.

    As in `fit`, what comes out takes the place of what went in.
    """
    memory = compiled(spec, *sizes, **options).memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def compiled(
    spec,
    batch_size,
    source_length,
    target_length,
    teacher=None,
    chunk_tokens=512,
    attention="plain",
    **options,
):
    """A training step under the active distribution, compiled."""
    lm = EncDecSeq2SeqLM(EncDecBackbone.of(spec))
    asked = teacher and Distillation(causal_lm(teacher), start_token=2)
    loss = FusedCrossEntropy(chunk_tokens=chunk_tokens)
    lm.compile(loss=loss, attention=attention, distillation=asked, **options)
    x = {
        f"{side}_{name}": np.ones((batch_size, length), "int32")
        for side, length in (("encoder", source_length), ("decoder", target_length))
        for name in ("token_ids", "padding_mask")
    }
    data = (x, x["decoder_token_ids"], x["decoder_padding_mask"] * 1.0)
    several = keras.distribution.distribution() is not None
    data = _distribute_data(data) if several else data
    lm._symbolic_build(data_batch=data)
    lm.optimizer.build(lm.trainable_variables)
    state = lm._get_jax_state(True, True, True, True)
    shardings = {"out_shardings": (None, lm._get_state_sharding_spec())} if several else {}
    train = jax.jit(lm.train_step, donate_argnums=0, **shardings)
    return train.lower(state, data).compile()


def causal_lm(spec):
    """A decoder-only model of KerasHub, Gemma 2's kind."""
    attention = spec.attention
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=spec.vocabulary_size,
        num_layers=spec.num_layers,
        num_query_heads=attention.num_heads,
        num_key_value_heads=attention.num_kv_heads,
        hidden_dim=spec.width,
        intermediate_dim=2 * spec.feedforward_dim,
        head_dim=attention.head_dim,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        attention_logit_soft_cap=attention.logit_soft_cap,
        final_logit_soft_cap=spec.final_logit_soft_cap,
    )
    return keras_hub.models.GemmaCausalLM(backbone)
