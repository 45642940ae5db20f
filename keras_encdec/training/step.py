"""One optimizer step, on the backend that there is."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_encdec.private import told_to_jit
from keras_encdec.spec import Tensor


def train_step(model: Any, *args: Any) -> Any:
    """As `keras.Model.train_step` of the backend: on JAX `(state, data)`, else `data`."""
    if keras.backend.backend() == "jax":
        from keras_encdec.training import jax_step

        return jax_step.train_step(model, *args)
    x, y, weight = keras.utils.unpack_x_y_sample_weight(*args)
    if keras.backend.backend() == "torch":
        gradients = _torch_gradients(model, x, y, weight)
    else:
        gradients = _tensorflow_gradients(model, x, y, weight)
    norm = _norm(gradients)
    scale = getattr(model.optimizer, "dynamic_scale", None)
    if scale is not None and model.optimizer.built:
        norm = norm / ops.cast(scale, norm.dtype)
    _apply(model, gradients)
    return model.step_logs(model.optimizer.learning_rate, norm)


def repeated(model: Any, count: int, prepare: Callable[[Any, Any], Any], *args: Any) -> Any:
    """As `train_step`, `count` steps on one batch.

    Args:
        model: a compiled task.
        count: steps.
        prepare: makes labels, of inputs and labels, by the weights before the first step.
        *args: of `train_step`.
    """
    *_, data = args
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    if keras.backend.backend() == "jax":
        from keras_encdec.training import jax_step

        y = jax_step.applied(model, args[0], lambda: prepare(x, y))
        return jax_step.repeated(model, args[0], (x, y, weight), count)
    y = prepare(x, y)
    for _ in range(count):
        logs = train_step(model, (x, y, weight))
    return logs


def compiling() -> contextlib.AbstractContextManager[None]:
    """Open while Keras makes the function of a step: what the compiler is told of it."""
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    from keras_encdec.training import jax_step

    return told_to_jit(jax_step.compiler_options())


def test_step(model: Any, *args: Any) -> Any:
    """As `keras.Model.test_step` of the backend."""
    if keras.backend.backend() == "jax":
        from keras_encdec.training import jax_step

        return jax_step.test_step(model, *args)
    x, y, weight = keras.utils.unpack_x_y_sample_weight(*args)
    model.batch_loss(x, y, weight, training=False)
    return model.get_metrics_result()


def _tensorflow_gradients(model: Any, x: Any, y: Any, weight: Any) -> list[Tensor]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = model.optimizer.scale_loss(model.batch_loss(x, y, weight, training=True))
        model.update_expert_loads()
    gradients = tape.gradient(loss, model.trainable_weights)
    return [g if g is None else tf.convert_to_tensor(g) for g in gradients]


def _torch_gradients(model: Any, x: Any, y: Any, weight: Any) -> list[Tensor]:
    model.zero_grad()
    model.optimizer.scale_loss(model.batch_loss(x, y, weight, training=True)).backward()
    model.update_expert_loads()
    return [variable.value.grad for variable in model.trainable_weights]


def _apply(model: Any, gradients: list[Tensor]) -> None:
    weights = list(model.trainable_weights)
    if keras.backend.backend() != "torch":
        model.optimizer.apply(gradients, weights)
        return
    import torch

    with torch.no_grad():
        model.optimizer.apply(gradients, weights)


def _norm(gradients: list[Tensor]) -> Tensor:
    squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients if g is not None]
    return ops.sqrt(sum(squares))
