"""What a checkpoint is of: the model that it fits, and the run that made it.

Knows what must be the same for a state to be put into a model, and for a run to go on in the
middle of an epoch. Leaves the state itself to `keras_encdec.training.checkpoint`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import keras

from keras_encdec import check
from keras_encdec.spec import spec_from_json
from keras_encdec.warn import warn

Facts = dict[str, Any]  # JSON types by name


def variables_of(model: Any) -> dict[str, list]:
    """All that changes in training, by kind."""
    found = {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    anchor = getattr(model, "anchor_variables", [])  # of a loss that stays near to some weights
    return found | ({"anchor": anchor} if anchor else {})


def model_facts(model: Any) -> Facts:
    """What must be the same for a checkpoint to be this model's."""
    named = {id(v) for v in model.weights}  # others are numbered by what a process has built
    about: Facts = {"pair": dataclasses.asdict(model.backbone.spec)}
    about["compiled with"] = type(model.optimizer).__name__
    for kind, some in variables_of(model).items():
        about[kind] = [
            [v.path if id(v) in named else "", list(v.shape), str(v.dtype)] for v in some
        ]
    if model.averaging is not None:
        about["averaged weights"] = [list(value.shape) for value in model.averaging.values]
    return about


def run_facts(model: Any, batches: Mapping[str, Any]) -> Facts:
    """What a run follows from.

    Args:
        model: a compiled task.
        batches: what its batches follow from, `keras_encdec.data.facts.made_of`.
    """
    facts = {
        "batches": dict(batches),
        "policy": model.backbone.dtype_policy.name,
        "learning_rate": model.compiled_rate,
        "average": model.averaging and model.averaging.facts(),
        **model.compiled_facts(),
    }
    return json.loads(json.dumps(facts, default=str))


def check_same(saved: Facts, ours: Facts, folder: str) -> None:
    """Refuses a checkpoint of another model.

    Raises:
        ValueError: naming what differs.
    """
    saved, ours = {**saved, "pair": _as_read(saved.get("pair"))}, json.loads(json.dumps(ours))
    for key, expected in ours.items():
        if saved.get(key) != expected:
            raise ValueError(
                f"Expected a checkpoint of this model, compiled as it is. Received: {folder}, "
                f"where {key} differs: {_difference(saved.get(key), expected)}. Build and compile "
                "the model as in the run, or use another folder."
            )


def check_goes_on(saved: Facts, ours: Facts, batch: int, folder: str) -> None:
    """Says what differs between a run and the call that goes on with it, in a line each.

    Args:
        saved: `run_facts` of the run.
        ours: those of the call.
        batch: batches that are behind in the epoch that goes on.
        folder: of the checkpoint, for the message.

    Raises:
        ValueError: in the middle of an epoch, if its batches would be others.
    """
    before, now = saved.get("batches", {}), ours["batches"]
    others = [name for name in now if before.get(name) != now[name]]
    said = [f"{name} ({_difference(before.get(name), now[name])})" for name in others]
    if said and batch:
        raise ValueError(
            f"Expected the run in {folder} to go on as it was made, in the middle of an epoch. "
            f"Received: another {', another '.join(said)}. Give fit what it had, or use another "
            "folder."
        )
    for name in ours:
        if name != "batches" and saved.get(name) != ours[name]:
            said.append(f"{name} ({_difference(saved.get(name), ours[name])})")
    for change in said:
        warn(f"The run in {folder} goes on with another {change}.")


def learning_rate(optimizer: keras.optimizers.Optimizer) -> Any:
    """A number, or the config of a schedule."""
    return getattr(optimizer, "inner_optimizer", optimizer).get_config()["learning_rate"]


def _as_read(pair: Any) -> Any:
    """The fields of a spec with those that the version which wrote them did not know."""
    try:
        return json.loads(json.dumps(dataclasses.asdict(spec_from_json(pair))))
    except (KeyError, TypeError, ValueError):  # of no spec that this version knows
        return pair


def _difference(saved: Any, ours: Any) -> str:
    path, there, here = check.difference(saved, ours)
    if isinstance(there, list) and isinstance(here, list) and len(there) != len(here):
        there, here = len(there), len(here)
    return f"{path}{', ' if path else ''}{there!r} there, {here!r} here"
