"""One optimizer step on JAX: Keras' own, in parts of the batch, and on some of the weights.

Knows gradient accumulation, and optimizers whose variables cover more than is trained
now. Leaves the loss to the model.
"""

import jax
import jax.numpy as jnp
import keras
from keras.src.trainers.data_adapters.data_adapter_utils import unpack_x_y_sample_weight


def train_step(model, state, data):
    """`keras.Model.train_step` of JAX: state and batch to logs and the next state."""
    trainable, non_trainable, optimizer, metrics = state
    x, y, weight = unpack_x_y_sample_weight(data)
    parts = model._gradient_accumulation_steps
    gradients = _gradients if parts == 1 else _gradients_in_parts
    loss, y_pred, grads, non_trainable, metrics = gradients(model, state, x, y, weight)
    trainable, optimizer = _apply(model, grads, trainable, optimizer)
    logs, metrics = model._update_metrics_variables(metrics, loss, x, y, y_pred, weight)
    return logs, (trainable, non_trainable, optimizer, metrics)


def _gradients(model, state, x, y, weight):
    """Loss, output, gradients, and the variables that the forward pass changed."""
    trainable, non_trainable, optimizer, metrics = state
    function = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)
    (_, aux), grads = function(
        trainable,
        non_trainable,
        metrics,
        x,
        y,
        weight,
        training=True,
        optimizer_variables=optimizer,
    )
    loss, y_pred, non_trainable, metrics = aux
    return loss, y_pred, grads, non_trainable, metrics


def _gradients_in_parts(model, state, x, y, weight):
    """As `_gradients`, a part of the rows at a time; each token counts as in the whole batch."""
    trainable, non_trainable, optimizer, metrics = state
    count = model._gradient_accumulation_steps
    labels = y["labels"] if isinstance(y, dict) else y
    weight = jnp.ones(labels.shape, "float32") if weight is None else weight
    total = jnp.maximum(jnp.sum(weight.astype("float32")), 1e-20)
    parts = jax.tree.map(lambda v: _split(v, count), (x, y, weight))

    def body(carry, part):
        loss, grads, non_trainable, metrics = carry
        model._total_weight = total
        try:
            state = trainable, non_trainable, optimizer, metrics
            more, _, some, non_trainable, metrics = _gradients(model, state, *part)
        finally:
            model._total_weight = None
        grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, some)
        return (loss + more, grads, non_trainable, metrics), None

    zeros = [jnp.zeros(v.shape, "float32") for v in trainable]
    start = (jnp.zeros((), "float32"), zeros, non_trainable, metrics)
    (loss, grads, non_trainable, metrics), _ = jax.lax.scan(body, start, parts)
    grads = [g.astype(v.dtype) for g, v in zip(grads, trainable, strict=True)]
    return loss, None, grads, non_trainable, metrics


def _split(x, count):
    """(B, ...) to (count, B / count, ...); every part has rows of every device."""
    if x.shape[0] % count:
        raise ValueError(
            f"Expected a batch that {count} gradient_accumulation_steps divide. "
            f"Received: {x.shape[0]} rows."
        )
    return jnp.moveaxis(jnp.reshape(x, (x.shape[0] // count, count, *x.shape[1:])), 1, 0)


def _apply(model, grads, trainable, optimizer):
    """One step of the optimizer on what trains now, which may be some of what it knows."""
    known = model.optimizer
    variables = [*model.trainable_variables, *known.variables]
    mapping = list(zip(variables, [*trainable, *optimizer], strict=True))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        known.apply(grads, model.trainable_variables)
    values = [scope.get_current_value(v) for v in variables]
    return values[: len(trainable)], values[len(trainable) :]
