"""Rules between our weight names and someone else's, read in both directions.

A dialect is a table of rules. The same row imports (theirs -> ours) and, with its
layout reversed, exports (ours -> theirs). Knows no file format and no model.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch

import einops
import numpy as np

from keras_encdec.spec import Shape


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row: a weight of ours, a tensor of theirs, and how the axes move.

    Rules that name one tensor of theirs share it, one after another along an axis.

    Args:
        ours: our weight name; `{i}` stands for the layer.
        theirs: their tensor name, with the same `{i}`. With `{e}` it is one tensor for each
            index of their first axis: experts that lie apart.
        layout: einops pattern from their axes to ours; `"(n h) d -> d n h"`.
        axis: of theirs, along which rules of one tensor share it.
        takes_turns: whether each of these rules has every other index of the axis, or every third,
            and so on, and not a stretch of it.
    """

    ours: str
    theirs: str
    layout: str
    axis: int = 0
    takes_turns: bool = False


def renamed(rules: Iterable[Rule], names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules whose tensors are called otherwise.

    Args:
        rules: the rules.
        names: parts of their names, and what stands there instead, once in a name.
    """
    found = []
    for rule in rules:
        theirs = rule.theirs
        for part, other in names.items():
            theirs = theirs.replace(part, other, 1)
        found.append(dataclasses.replace(rule, theirs=theirs))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A rule applied to one weight: where it lies in their file, and in what shape.

    Args:
        names: of their tensor, or of several.
        shape: of each of them.
        our_shape: of the weight.
        layout: of the rule.
        is_cut: whether each holds one index of the first axis of `layout`.
        axis: along which weights of one tensor share it.
        first: index along it that is the weight's first.
        size: how many are the weight's.
        step: from each of them to the next.
    """

    names: tuple[str, ...]
    shape: Shape
    our_shape: Shape
    layout: str
    is_cut: bool
    axis: int
    first: int
    size: int
    step: int = 1

    @property
    def name(self) -> str:
        """Of the first."""
        return self.names[0]

    @property
    def part(self) -> tuple[slice, ...] | None:
        """Where it lies in a tensor of which other weights have the rest; None if it has all."""
        if self.is_cut or not self.shape or self.size == self.shape[self.axis]:
            return None
        end = self.first + self.size if self.step == 1 else None
        return (slice(None),) * self.axis + (slice(self.first, end, self.step),)

    def to_ours(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """The weight, of what `read` gives for each name: a tensor, or `part` of it."""
        array = np.stack(list(map(read, self.names))) if self.is_cut else read(self.name)
        if self.part and array.shape == self.shape:
            array = array[self.part]
        return einops.rearrange(array, self.layout, **_sizes(self.layout, self.our_shape))

    def to_theirs(self, array: np.ndarray) -> Sequence[np.ndarray]:
        """The weight's part of each of their tensors."""
        left, right = self.layout.split("->")
        array = einops.rearrange(array, f"{right} -> {left}")
        return list(array) if self.is_cut else [array]

    def joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """A whole tensor of theirs, of the parts of all weights that share it, in their order."""
        if self.step == 1:
            return np.concatenate(arrays, self.axis)
        return np.stack(arrays, self.axis + 1).reshape(self.shape)


def bind(rules: Iterable[Rule], weights: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Finds the one rule of each weight.

    Args:
        rules: the dialect.
        weights: our names and shapes, from a spec.

    Raises:
        KeyError: if a weight has no rule, or more than one.
    """
    compiled = [(_pattern(rule.ours), rule) for rule in rules]
    parts: dict[str, list[tuple[int, str, Rule, Shape]]] = defaultdict(list)
    for name, shape in weights.items():
        found = [
            (match, place)
            for place, (pattern, _) in enumerate(compiled)
            if (match := pattern.fullmatch(name))
        ]
        if len(found) != 1:
            raise KeyError(f"Expected one rule for weight {name!r}. Received: {len(found)}.")
        match, place = found[0]
        rule = compiled[place][1]
        theirs = rule.theirs.format(i=match.groupdict().get("i"), e="{e}")
        parts[theirs].append((place, name, rule, tuple(shape)))
    bound: dict[str, Tensor] = {}
    for theirs, members in parts.items():
        bound |= _shared(theirs, [member[1:] for member in sorted(members)])
    return {name: bound[name] for name in weights}


def _shared(theirs: str, members: Sequence[tuple[str, Rule, Shape]]) -> dict[str, Tensor]:
    """Weights, usually one, by their names, in the order in which they share one tensor."""
    shapes = [_their_shape(rule.layout, shape) for _, rule, shape in members]
    axis, is_cut = members[0][1].axis, "{e}" in theirs
    step = len(members) if members[0][1].takes_turns else 1
    sizes = [shape[axis] if shape else 1 for shape in shapes]
    whole = (*shapes[0][:axis], sum(sizes), *shapes[0][axis + 1 :]) if shapes[0] else ()
    names = [theirs.format(e=e) for e in range(whole[0])] if is_cut else [theirs]
    whole = whole[1:] if is_cut else whole
    firsts = [sum(sizes[:i]) if step == 1 else i for i in range(len(sizes))]
    return {
        name: Tensor(
            tuple(names), whole, shape, rule.layout, is_cut, axis, firsts[i], sizes[i], step
        )
        for i, (name, rule, shape) in enumerate(members)
    }


def by_tensor(bound: Mapping[str, Tensor]) -> dict[str, list[tuple[str, Tensor]]]:
    """The weights of each tensor of theirs, in the order in which they share it."""
    found: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in bound.items():
        found[tensor.name].append((name, tensor))
    return {
        theirs: sorted(parts, key=lambda part: part[1].first) for theirs, parts in found.items()
    }


def check(
    expected: Mapping[str, Tensor],
    received: Mapping[str, tuple[Shape, str]],
    dropped: Iterable[str] = (),
) -> None:
    """Compares the tensors a dialect needs with those that are there.

    Args:
        expected: from `bind`.
        received: their names, with shape and dtype name of each.
        dropped: patterns of names that may be there and are left out, declared by the dialect.

    Raises:
        ValueError: naming what is missing, extra, or of another shape or dtype.
    """
    wanted = {name: tensor.shape for tensor in expected.values() for name in tensor.names}
    problems = [f"{name} is missing" for name in wanted if name not in received]
    problems += [
        f"{name} is not part of this model"
        for name in received
        if name not in wanted and not any(fnmatch(name, pattern) for pattern in dropped)
    ]
    for name in wanted.keys() & received.keys():
        shape, dtype = received[name]
        if tuple(shape) != wanted[name]:
            problems.append(f"{name} has shape {tuple(shape)}, not {wanted[name]}")
        elif not dtype.startswith(("float", "bfloat")):
            problems.append(f"{name} has dtype {dtype}, not a float")
    if problems:
        listed = "; ".join(sorted(problems)[:5]) + ("; ..." if len(problems) > 5 else "")
        raise ValueError(
            f"Expected the {len(wanted)} tensors of the configuration. "
            f"Received: {len(problems)} problem(s): {listed}. "
            "The file and its config do not belong together, or the file is damaged."
        )


def _pattern(ours: str) -> re.Pattern:
    return re.compile(re.escape(ours).replace(re.escape("{i}"), r"(?P<i>\d+)"))


def _sizes(layout: str, our_shape: Shape) -> dict[str, int]:
    axes = layout.split("->")[1].split()
    return dict(zip(axes, our_shape, strict=True))


def _their_shape(layout: str, our_shape: Shape) -> Shape:
    sizes = {"1": 1, **_sizes(layout, our_shape)}
    groups = re.findall(r"\(([^)]*)\)|(\w+)", layout.split("->")[0])
    return tuple(math.prod(sizes[axis] for axis in (g or single).split()) for g, single in groups)
