"""What a run takes that another would not: weights left whole, and the nearest runs that fit.

Knows which options spare memory and what they change. Leaves the numbers to
`keras_encdec.training.estimate`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from keras_encdec.layout import Weight
from keras_encdec.layout.axes import axis_sizes, undivided
from keras_encdec.training.held import bytes_of
from keras_encdec.training.loss import CHUNK_TOKENS
from keras_encdec.training.planned import PlannedRun

Change = Mapping[str, Any]  # arguments of `estimate`
_RANK = 8  # of LoRA, as in the examples
_MOST_DEVICES = 64  # times those that were asked about


@dataclasses.dataclass(frozen=True)
class Whole:
    """Weights of one kind that a mesh does not cut along an axis.

    Args:
        side: `"encoder"` or `"decoder"`.
        layers: `"key/value"`, say.
        size: of the dimension that the axis would cut.
        unit: what the dimension counts.
        axis: `"batch"` or `"model"`.
        devices: along the axis.
        held: bytes on each device.
    """

    side: str
    layers: str
    size: int
    unit: str
    axis: str
    devices: int
    held: int

    def __str__(self) -> str:
        return f"{self.side} {self.layers}: {self.size} {self.unit} on {self.devices} devices"


@dataclasses.dataclass(frozen=True)
class Alternative:
    """A run that fits.

    Args:
        change: the arguments of `estimate` that are other ones.
        total: bytes on each device.
    """

    change: Change
    total: int

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.change.items())


def left_whole(run: PlannedRun, weights: Iterable[Weight]) -> tuple[Whole, ...]:
    """What the run's mesh does not cut, by side, size and axis."""
    if run.mesh is None:
        return ()
    held = {w.path: bytes_of([w]) for w in weights}
    kinds: dict[tuple[str, int, str, str], list[str]] = {}
    for path, size, axis in undivided(run.mesh, run.pair):
        kinds.setdefault((path.partition("/")[0], size, axis, _unit(path, axis)), []).append(path)
    return tuple(
        Whole(
            side,
            "/".join(dict.fromkeys(path.split("/")[-2] for path in paths)),
            size,
            unit,
            axis,
            axis_sizes(run.mesh)[axis],
            sum(held[path] for path in paths),
        )
        for (side, size, axis, unit), paths in kinds.items()
    )


def _unit(path: str, axis: str) -> str:
    """What the dimension of a weight counts that an axis cuts."""
    if axis == "batch":
        return "wide"
    units = {"embedding": "tokens", "feedforward": "hidden units"}
    return next((unit for layer, unit in units.items() if f"/{layer}/" in path), "heads")


def nearest(
    run: PlannedRun, limit: float, total: Callable[[PlannedRun], int]
) -> tuple[Alternative, ...]:
    """Runs like this one that fit, those that change least first, more devices last.

    One change at a time, of each kind the smallest that fits. If none does, all together
    that change no number; if these do not, the best of them with one of the others.

    Args:
        run: one that does not fit.
        limit: bytes of a device.
        total: bytes of a run on each device.

    Returns:
        The runs, none if nothing that was tried fits.
    """

    def fitting(already: Change, *kinds: Iterable[Change]) -> list[Alternative]:
        """Of each kind of change the first that fits."""
        found = []
        for kind in kinds:
            changes = ({**already, **change} for change in kind)
            tried = (Alternative(c, total(dataclasses.replace(run, **c))) for c in changes)
            found += [next((a for a in tried if a.total <= limit), None)]
        return [a for a in found if a is not None]

    more = fitting({}, _more_devices(run))
    found = fitting({}, _meshes(run), *_same_numbers(run), *_other_numbers(run))
    found = found or fitting({}, _together(run))
    if not found:
        best = min(_together(run), key=lambda c: total(dataclasses.replace(run, **c)))
        there = dataclasses.replace(run, **best)
        found = fitting(best, *_other_numbers(there))
        more = more or fitting(best, _more_devices(there))
    return (*found, *more)


def _meshes(run: PlannedRun) -> list[Change]:
    """Other shapes of as many devices, those like the run's first."""
    batch, model = _shape(run)
    shapes = [(n, batch * model // n) for n in range(1, batch * model + 1)]
    shapes = [(b, m) for b, m in shapes if b * m == batch * model and _divides(run, b)]
    shapes.sort(key=lambda shape: max(shape[0] / batch, batch / shape[0]))
    return [{"mesh": shape} for shape in shapes if shape != (batch, model)]


def _same_numbers(run: PlannedRun) -> Iterator[list[Change]]:
    """What costs time at most."""
    if run.attention == "plain":
        yield [{"attention": "fused"}]
    if run.chunk_tokens is None:
        yield [{"chunk_tokens": CHUNK_TOKENS}]
    if not run.remat:
        yield [{"remat": True}]
    batch, parts = _shape(run)[0], run.gradient_accumulation_steps
    rows = run.batch_size // parts
    yield [
        {"gradient_accumulation_steps": parts * n}
        for n in range(2, rows + 1)
        if rows % n == 0 and rows // n % batch == 0
    ]


def _together(run: PlannedRun) -> Iterator[Change]:
    """All that costs time at most, on each shape of the mesh, in ever more parts."""
    for mesh in ({}, *_meshes(run)):
        *spare, parts = _same_numbers(dataclasses.replace(run, **mesh))
        change = {**mesh, **{k: v for kind in spare for k, v in kind[0].items()}}
        yield from ({**change, **part} for part in ({}, *parts))


def _other_numbers(run: PlannedRun) -> Iterator[list[Change]]:
    """What trains something else, or otherwise."""
    if run.dtype == "float32":
        yield [{"dtype": "mixed_bfloat16"}]
    step, size = _shape(run)[0] * run.gradient_accumulation_steps, run.batch_size
    halves = [size // 2**i for i in range(1, size.bit_length()) if size % 2**i == 0]
    yield [{"batch_size": n} for n in halves if n % step == 0]
    if run.lora_rank is None and run.quantization is None:
        yield [{"lora_rank": _RANK}, {"lora_rank": _RANK, "quantization": "int8"}]


def _more_devices(run: PlannedRun) -> list[Change]:
    batch, model = _shape(run)
    times = [2**i for i in range(1, _MOST_DEVICES.bit_length())]
    shapes = [shape for n in times for shape in ((batch * n, model), (batch, model * n))]
    return [{"mesh": shape} for shape in shapes if _divides(run, shape[0])]


def _shape(run: PlannedRun) -> tuple[int, int]:
    """Devices along `batch` and `model`."""
    if run.mesh is None:
        return 1, 1
    sizes = axis_sizes(run.mesh)
    return sizes["batch"], sizes["model"]


def _divides(run: PlannedRun, batch: int) -> bool:
    """Whether that many devices share the rows of a part evenly."""
    return run.batch_size // run.gradient_accumulation_steps % batch == 0
