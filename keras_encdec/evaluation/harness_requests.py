"""What a benchmark asks of a model, in tokens and numbers instead of lm-eval's texts and dicts.

Knows which options of generation there are. Leaves tokens to the models, order and what was
answered before to `keras_encdec.evaluation.harness`. No lm-eval, no model.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras_hub

from keras_encdec import check
from keras_encdec.generation import BeamSearch

# Other names for max_gen_toks among the tasks of lm-eval, the first that is given counts
# (`normalize_gen_kwargs` in lm_eval/models/utils.py).
_MOST = "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"
_OTHERS = "until", "do_sample", "temperature", "top_k", "top_p", "num_beams"


class Request(NamedTuple):
    """One question.

    Args:
        source: what an encoder reads; nothing where there is none.
        given: what the decoder begins with, its start token included.
        target: whose likelihood is asked for; nothing where a text is.
    """

    source: tuple[int, ...]
    given: tuple[int, ...]
    target: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Writing:
    """How a text is to be written.

    Args:
        until: strings before the first of which it ends.
        most: tokens at most.
        temperature: 0 for greedy search.
        top_k: the likeliest tokens that are drawn from, or None.
        top_p: their share of the probability, or None.
        num_beams: of `keras_encdec.generation.BeamSearch`, if above 1.
    """

    until: tuple[str, ...] = ()
    most: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1

    @classmethod
    def asked(cls, options: Mapping[str, Any], most: int) -> "Writing":
        """Of a task's `generation_kwargs`.

        Nothing is drawn unless `do_sample` says so or, where it is not given, a temperature
        above 0, as with lm-eval's own models.

        Args:
            options: by name.
            most: tokens at most, where they do not say.

        Raises:
            TypeError: if there is no such option.
            ValueError: if one has no such value.
        """
        check.keywords("an option of generation_kwargs", options, (*_MOST, *_OTHERS))
        most = next((options[name] for name in _MOST if options.get(name) is not None), most)
        temperature = options.get("temperature")
        temperature = check.real(
            "temperature", 1.0 if temperature is None else temperature, least=0
        )
        drawn = options.get("do_sample")
        if drawn is None:
            drawn = options.get("temperature") is not None and temperature > 0
        drawn = check.flag("do_sample", drawn) and temperature > 0
        found: dict[str, Any] = {"until": _until(options.get("until"))}
        found["most"] = check.whole("max_gen_toks", most)
        beams = options.get("num_beams")
        found["num_beams"] = 1 if beams is None else check.whole("num_beams", beams)
        if drawn and found["num_beams"] > 1:
            raise ValueError(f"Expected do_sample False with num_beams={beams}. Received: True.")
        if drawn:
            found |= {"temperature": temperature, **_limits(options)}
        return cls(**found)

    @property
    def draws(self) -> bool:
        """Whether it is left to chance."""
        return self.temperature > 0

    @property
    def sampling(self) -> "Writing":
        """What of it decides the sampler."""
        return dataclasses.replace(self, until=(), most=1)

    def sampler(self) -> keras_hub.samplers.Sampler:
        """A new one."""
        if self.num_beams > 1:
            return BeamSearch(self.num_beams)
        if not self.draws:
            return keras_hub.samplers.GreedySampler()
        how = {"temperature": self.temperature, "seed": 0}
        if self.top_p is not None:
            return keras_hub.samplers.TopPSampler(p=self.top_p, k=self.top_k, **how)
        if self.top_k is not None:
            return keras_hub.samplers.TopKSampler(k=self.top_k, **how)
        return keras_hub.samplers.RandomSampler(**how)


def _limits(options: Mapping[str, Any]) -> dict[str, Any]:
    """`top_k` and `top_p`; 0 and 1, which limit nothing, as None."""
    found: dict[str, Any] = {}
    if options.get("top_k") is not None:
        found["top_k"] = check.whole("top_k", options["top_k"], least=0) or None
    if options.get("top_p") is not None:
        share = check.real("top_p", options["top_p"], above=0, most=1)
        found["top_p"] = share if share < 1 else None
    return found


def _until(value: Any) -> tuple[str, ...]:
    """Stop strings; an empty one ends nothing."""
    several = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(several, (list, tuple)) or not all(isinstance(s, str) for s in several):
        raise ValueError(f"Expected until as a text or several. Received: {value!r}.")
    return tuple(dict.fromkeys(stop for stop in several if stop))


def key_of(identity: str, request: Request, *more: Any) -> str:
    """What an answer is known by: the model's identity, the question and what else decides it."""
    asked = json.dumps([identity, *request, *more], default=dataclasses.astuple)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]
