"""Arms of the claims, trained and measured; each is done once, and kept on disk.

Knows which learning rate of an arm counts, what is measured of it, and where that is kept. Leaves
models to `keras_encdec.evaluation.claims_models`, data to `keras_encdec.evaluation.claims_data`,
tasks of encoders to `keras_encdec.evaluation.superglue`.
"""

import dataclasses
import functools
import gc
import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_encdec import formats
from keras_encdec.evaluation import claims_costs, claims_data
from keras_encdec.evaluation.claims_arms import ARMS, Scale
from keras_encdec.evaluation.claims_models import loaded, made
from keras_encdec.evaluation.stand_in import write_stand_in
from keras_encdec.evaluation.superglue import superglue
from keras_encdec.files import atomic_file, digest_of, read_json, write_json
from keras_encdec.progress import say
from keras_encdec.sharing.load import adapt
from keras_encdec.sharing.merge import merge

_FORMAT, _DATA, _COSTS = "claims run", "claims data", "claims costs"
_TASK_TOKENS = 96  # of a row
_PARTS = 4  # of adaptation, between which losses are taken


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found of an arm with one seed.

    Args:
        rate: of adaptation, the best of the scale's; 0 where nothing is adapted.
        losses: nats a token of windows' second halves, on files held out: before adaptation and
            after each quarter of it, or one number where there is none.
        tune_rate: of fine-tuning, likewise the best.
        tuned: nats a token of summaries after it, on files held out.
    """

    rate: float
    losses: tuple[float, ...]
    tune_rate: float
    tuned: float


class Bench:
    """Trains and measures arms in a folder; what it holds already is not done again.

    Args:
        scale: `Scale`.
        folder: for results and models.
        seed: that learning rates are chosen with, on files that nothing is reported of.
    """

    def __init__(self, scale: Scale, folder: Path, seed: int):
        self.scale, self._folder, self._seed = scale, folder, seed
        self._rates: dict[str, float] = {}
        (folder / "runs").mkdir(parents=True, exist_ok=True)

    def measured(self, name: str, seed: int) -> Measured:
        """An arm with a seed of order, dropout and fresh weights."""
        rate = self._rate(name)
        losses = tuple(self._adapted(name, seed, rate)["test"])
        by_rate = {r: self._tuned(name, self._seed, r)["val"] for r in self.scale.tune_rates}
        best = min(by_rate, key=lambda r: by_rate[r])
        return Measured(rate, losses, best, self._tuned(name, seed, best)["test"])

    def model(self, name: str, seed: int) -> Path:
        """The folder of an adapted model."""
        rate = self._rate(name)
        self._adapted(name, seed, rate)
        return self._place(name, seed, rate)

    def costs(self) -> dict[str, dict[str, list[float]]]:
        """What `keras_encdec.evaluation.claims_costs` finds, or found."""

        def make() -> dict[str, Any]:
            return {"costs": claims_costs.costs(self.scale, self.data)}

        return self._of_scale("costs", _COSTS, make)["costs"]

    def _of_scale(self, name: str, what: str, make: Callable[[], dict]) -> dict[str, Any]:
        """What holds for all arms of the scale: read, or made and written."""
        path = self._folder / f"{name}-{digest_of(dataclasses.asdict(self.scale))}.json"
        if not path.exists():
            data = {**formats.mark(what), **make()}
            with atomic_file(path) as part:
                write_json(part, data)
        known = read_json(path)
        formats.check_known(what, known, path)
        return known

    @functools.cached_property
    def data(self) -> claims_data.Data:
        """Read when the first arm is trained; what all runs of the folder have seen."""
        source = adapt(self.scale.small, dtype=self.scale.dtype)
        data = claims_data.read(self.scale, source.preprocessor.tokenizer)
        known = self._of_scale("data", _DATA, lambda: {"digest": data.digest})
        if known["digest"] != data.digest:
            raise ValueError(
                f"Expected the docstrings that the runs in {self._folder} have seen. Received: "
                "others, as installed packages have changed. Give another folder."
            )
        return data

    def _rate(self, name: str) -> float:
        """The rate that leaves the lowest loss; models of the others are deleted."""
        if not ARMS[name].budget or ARMS[name].of:
            return 0.0
        if name not in self._rates:
            rates = self.scale.rates
            by_rate = {rate: self._adapted(name, self._seed, rate)["val"] for rate in rates}
            best = min(by_rate, key=lambda rate: by_rate[rate])
            for rate in set(rates) - {best}:
                shutil.rmtree(self._place(name, self._seed, rate), ignore_errors=True)
            self._rates[name] = best
        return self._rates[name]

    def _place(self, name: str, seed: int, rate: float) -> Path:
        return self._folder / "models" / f"{name}-{seed}-{rate:g}"

    def _adapted(self, name: str, seed: int, rate: float) -> dict[str, Any]:
        """Losses on windows of both splits; the model is saved."""
        arm = ARMS[name]
        parts = [self._adapted(other, seed, self._rate(other)) for other in arm.of]
        about = {"arm": dataclasses.asdict(arm), "rate": rate, "of": [part["id"] for part in parts]}
        return self._once("adapt", name, seed, about, lambda: self._adapt(name, seed, rate))

    def _adapt(self, name: str, seed: int, rate: float) -> dict[str, Any]:
        arm, place, half = ARMS[name], self._place(name, seed, rate), self.scale.half
        shutil.rmtree(place, ignore_errors=True)
        if arm.of:
            merge([self.model(other, seed) for other in arm.of], place)
            trainee = loaded(arm, self.scale, place)
        else:
            trainee = made(arm, self.scale, seed + arm.chance)
        steps = 0 if arm.of else round(arm.budget * self.scale.steps)
        trainee.begin(max(1, steps), rate or 1.0)
        test, val = (split.halves() for split in (self.data.test, self.data.val))
        losses = [trainee.loss(test, (half, half))]
        for part in _parts(steps):
            trainee.adapt(self.data, arm, part, steps, seed + arm.chance)
            losses.append(trainee.loss(test, (half, half)))
        if not arm.of:
            trainee.save(place)
        return {"test": losses, "val": trainee.loss(val, (half, half))}

    def _tuned(self, name: str, seed: int, rate: float) -> dict[str, Any]:
        """Losses on summaries of both splits after fine-tuning."""
        adapted = self._adapted(name, seed, self._rate(name))["id"]
        about = {"adapted": adapted, "rate": rate}
        return self._once("tune", name, seed, about, lambda: self._tune(name, seed, rate))

    def _tune(self, name: str, seed: int, rate: float) -> dict[str, Any]:
        trainee = loaded(ARMS[name], self.scale, self.model(name, seed))
        trainee.begin(self.scale.tune_steps, rate)
        data = self.data
        trainee.tune(data.train.summaries, data.lengths, seed)
        return {
            split: trainee.loss(getattr(data, split).summaries, data.lengths)
            for split in ("test", "val")
        }

    def encoder(self, name: str, seed: int) -> float:
        """The mean score on the stand-in tasks, whose heads have the same seed."""
        adapted = self._adapted(name, seed, rate := self._rate(name))["id"]
        about = {"adapted": adapted, "rate": rate}
        return self._once("encoder", name, seed, about, lambda: self._encode(name, seed))["val"]

    def _encode(self, name: str, seed: int) -> dict[str, Any]:
        data, scale, arm = self._folder / "tasks", self.scale, ARMS[name]
        if not data.exists():
            write_stand_in(data, scale.task_size)
        preset, options = str(self.model(name, seed)), {"dtype": scale.dtype}
        if arm.kind == "source" and not arm.budget:
            preset, options = scale.small, {**options, "encoder_attention": "causal"}
        results = superglue(
            {name: (preset, options)},
            data,
            grid={"learning_rate": list(scale.task_rates), "batch_size": [16], "dropout": [0.1]},
            seeds=(seed,),
            epochs=scale.task_epochs,
            output=self._folder / "encoders" / f"{name}-{seed}",
            sequence_length=_TASK_TOKENS,
        )
        (score,) = results.means(name, results.plan.metric)
        return {"val": score}

    def _once(
        self, what: str, name: str, seed: int, about: dict[str, Any], run: Callable[[], dict]
    ) -> dict[str, Any]:
        """What a run finds, or found: its file's name changes with all that decides it."""
        said = {"what": what, "seed": seed, "scale": dataclasses.asdict(self.scale), **about}
        digest = digest_of(said)
        path = self._folder / "runs" / f"{what}-{name}-{seed}-{digest}.json"
        if path.exists():
            data = read_json(path)
            formats.check_known(_FORMAT, data, path)
            return data
        begin = time.monotonic()
        found = run()
        seconds = round(time.monotonic() - begin, 1)
        keras.utils.clear_session()
        gc.collect()
        data = {**formats.mark(_FORMAT), **said, "id": digest, "seconds": seconds, **found}
        with atomic_file(path) as part:
            part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        say(f"{what} {name}, seed {seed}, rate {about['rate']:g}: {found['val']:.3f}, {seconds} s")
        return data


def _parts(steps: int) -> list[range]:
    """Steps in quarters."""
    ends = [round(steps * number / _PARTS) for number in range(_PARTS + 1)]
    return [range(*pair) for pair in itertools.pairwise(ends) if pair[1] > pair[0]]
