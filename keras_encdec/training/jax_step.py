"""One optimizer step on JAX: of a whole batch or in parts, and on some of the weights.

Knows gradient accumulation, loss scaling, optimizers whose variables cover more than is
trained now, and what the compiler is told. Leaves the loss to the model.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_encdec import layout
from keras_encdec.spec import Tensor

# Work in the order that needs least memory. XLA's default on CPU, by what could run side by
# side, makes gradients long before they are used, and undoes remat (LOG.md).
_ON_CPU = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

State = tuple[list[Tensor], ...]


def train_step(model: Any, state: State, data: Any) -> tuple[dict[str, Tensor], State]:
    """`keras.Model.train_step` of JAX: state and batch to logs and the next state."""
    trainable, non_trainable, optimizer, metrics = state
    batch = keras.utils.unpack_x_y_sample_weight(data)
    parts = model._gradient_accumulation_steps
    gradients = _gradients if parts == 1 else _gradients_in_parts
    grads, non_trainable, metrics = gradients(model, state, batch)
    trainable, optimizer, rate, norm = _apply(model, grads, trainable, optimizer)
    with keras.StatelessScope(_mapping(model.metrics_variables, metrics)):
        logs = model.step_logs(rate, norm)
    return logs, (trainable, non_trainable, optimizer, metrics)


def repeated(model: Any, state: State, data: Any, count: int) -> tuple[dict[str, Tensor], State]:
    """`count` steps on one batch, compiled once: the last one's logs and the next state."""

    def body(state: State, _: None) -> tuple[State, dict[str, Tensor]]:
        logs, state = train_step(model, state, data)
        return state, logs

    state, logs = jax.lax.scan(body, tuple(map(list, state)), None, length=count)
    return jax.tree.map(lambda each: each[-1], logs), state


def applied(model: Any, state: State, function: Callable[[], Any]) -> Any:
    """What a function of the model gives in a state; variables stay as they are."""
    trainable, non_trainable, *_ = state
    mapping = _mapping(model.trainable_variables, trainable)
    mapping += _mapping(model.non_trainable_variables, non_trainable)
    with keras.StatelessScope(mapping):
        return function()


def test_step(model: Any, state: State, data: Any) -> tuple[dict[str, Tensor], State]:
    """`keras.Model.test_step` of JAX."""
    trainable, non_trainable, metrics = state
    batch = keras.utils.unpack_x_y_sample_weight(data)
    _, (non_trainable, metrics) = _loss(
        trainable, model, (non_trainable, [], metrics), batch, training=False
    )
    with keras.StatelessScope(_mapping(model.metrics_variables, metrics)):
        logs = model.get_metrics_result()
    return logs, (trainable, non_trainable, metrics)


def _mapping(variables: list, values: list[Tensor]) -> list[tuple]:
    return list(zip(variables, values, strict=True))


def _loss(
    trainable: list[Tensor],
    model: Any,
    state: State,
    batch: tuple,
    total: Tensor | None = None,
    training: bool = True,
) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
    """The loss as the optimizer scales it, and the variables that the forward pass changed."""
    non_trainable, optimizer, metrics = state
    mapping = [
        *_mapping(model.trainable_variables, trainable),
        *_mapping(model.non_trainable_variables, non_trainable),
        *_mapping(model.metrics_variables, metrics),
    ]
    if training:
        mapping += _mapping(model.optimizer.variables, optimizer)
    with keras.StatelessScope(mapping, collect_losses=True) as scope:
        loss = model.batch_loss(*batch, training=training, total_weight=total)
        if training:
            model.update_expert_loads()
            loss = model.optimizer.scale_loss(loss)
    changed = [
        [scope.get_current_value(variable) for variable in variables]
        for variables in (model.non_trainable_variables, model.metrics_variables)
    ]
    return loss, (changed[0], changed[1])


def _gradients(
    model: Any, state: State, batch: tuple, total: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients, and the variables that the forward pass changed."""
    trainable, *others = state
    grads, (non_trainable, metrics) = jax.grad(_loss, has_aux=True)(
        trainable, model, tuple(others), batch, total
    )
    return grads, non_trainable, metrics


def _gradients_in_parts(
    model: Any, state: State, batch: tuple
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """As `_gradients`, a part of the rows at a time; each token counts as in the whole batch."""
    trainable, non_trainable, optimizer, metrics = state
    x, y, weight = batch
    count = model._gradient_accumulation_steps
    labels = y["labels"] if isinstance(y, dict) else y
    weight = jnp.ones(labels.shape, "float32") if weight is None else weight
    total = jnp.maximum(jnp.sum(weight.astype("float32")), 1e-20)
    parts = jax.tree.map(lambda v: _split(v, count), (x, y, weight))

    def body(carry: tuple, part: tuple) -> tuple:
        grads, non_trainable, metrics = carry
        state = trainable, non_trainable, optimizer, metrics
        some, non_trainable, metrics = _gradients(model, state, part, total)
        grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, some)
        return (grads, non_trainable, metrics), None

    zeros = [jnp.zeros(v.shape, "float32") for v in trainable]
    start = (zeros, non_trainable, metrics)
    (grads, non_trainable, metrics), _ = jax.lax.scan(body, start, parts)
    grads = [g.astype(v.dtype) for g, v in zip(grads, trainable, strict=True)]
    return grads, non_trainable, metrics


def _split(x: Tensor, count: int) -> Tensor:
    """(B, ...) to (count, B / count, ...); every part has rows of every device."""
    if x.shape[0] % count:
        raise ValueError(
            f"Expected a batch that {count} gradient_accumulation_steps divide. "
            f"Received: {x.shape[0]} rows."
        )
    return jnp.moveaxis(jnp.reshape(x, (x.shape[0] // count, count, *x.shape[1:])), 1, 0)


def _apply(
    model: Any, grads: list[Tensor], trainable: list[Tensor], values: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """One step of the optimizer on what trains now, which may be some of what it knows.

    Returns:
        Weights and optimizer variables after it, the learning rate, and the norm of the
        gradients before they are clipped.
    """
    known = model.optimizer
    scaled = isinstance(known, keras.optimizers.LossScaleOptimizer)
    optimizer = known.inner_optimizer if scaled else known
    variables = [*model.trainable_variables, *known.variables]
    mapping = _mapping(variables, [*trainable, *values])
    with keras.StatelessScope(mapping) as scope:
        scale = known.dynamic_scale.value if scaled else None
        if scale is not None:
            grads = [g / scale.astype(g.dtype) for g in grads]
        grads, norm = _measured(grads)
        rate = jnp.asarray(optimizer.learning_rate, "float32")
        with _clipping(optimizer, grads, norm) as clipped:
            optimizer.apply(clipped, model.trainable_variables)
    after = [scope.get_current_value(v) for v in variables]
    if scaled:
        # A step whose gradients overflow in float16 is left out, and the scale halved.
        finite = jnp.isfinite(norm)
        after = [jnp.where(finite, new, old) for new, (_, old) in zip(after, mapping, strict=True)]
        after = _rescaled(known, variables, after, finite)
    return after[: len(trainable)], after[len(trainable) :], rate, norm


def _rescaled(known: Any, variables: list, after: list[Tensor], finite: Tensor) -> list[Tensor]:
    """The values with the next loss scale: doubled after enough steps, halved after an overflow.

    As `keras.optimizers.LossScaleOptimizer` has it, whose own step takes all weights or none.
    """
    place = {id(variable): i for i, variable in enumerate(variables)}
    steps, scale = (place[id(v)] for v in (known.step_counter, known.dynamic_scale))
    grows = after[steps] == known.dynamic_growth_steps - 1
    factor = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5)
    count = jnp.where(jnp.logical_and(finite, ~grows), after[steps] + 1, 0)
    after = list(after)
    after[scale] = after[scale] * factor.astype(after[scale].dtype)
    after[steps] = count.astype(after[steps].dtype)
    return after


def _measured(grads: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Gradients and their global norm.

    On CPU each goes on to the optimizer once its squares are summed, for which it needs them:
    plus the smaller of the sum and 0. Else XLA writes down squares that Adam asks for too, or
    keeps a gradient for its norm to the end, and each is as large as the gradient.
    """
    squares = [jnp.sum(jnp.square(g)) for g in grads]
    if _on_cpu():
        grads = [g + jnp.minimum(s, 0) for g, s in zip(grads, squares, strict=True)]
    return grads, jnp.sqrt(jnp.sum(jnp.stack([s.astype("float32") for s in squares])))


@contextlib.contextmanager
def _clipping(optimizer: Any, grads: list[Tensor], norm: Tensor) -> Iterator[list[Tensor]]:
    """What `optimizer.apply` is given: clipped where it would clip by this norm, taken anew.

    The formula is Keras' own. In bfloat16 its norm is another one, rounded, and stays.
    """
    limit = optimizer.global_clipnorm
    before = optimizer.clipnorm, optimizer.loss_scale_factor
    once = not any((*before, optimizer.gradient_accumulation_steps))
    if not limit or not once or any(g.dtype != "float32" for g in grads):
        yield grads
        return
    scale = limit * jnp.minimum(1 / norm, 1 / limit) + (norm - norm)  # NaN where it is infinite
    optimizer.global_clipnorm = None
    try:
        yield [g * scale for g in grads]
    finally:
        optimizer.global_clipnorm = limit


def compiler_options() -> dict[str, Any]:
    """What XLA is told of a training step on the devices that there are.

    Nothing where the user's XLA_FLAGS say something of the kind, or XLA knows no such option.
    """
    if not _on_cpu() or "scheduler" in os.environ.get("XLA_FLAGS", ""):
        return {}
    return _known(tuple(_ON_CPU.items()))


def _on_cpu() -> bool:
    return layout.platform() == "cpu"


@functools.cache
def _known(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(options)
