"""The models that the paper's claims are about: what each is made of, and how it is adapted.

Knows names and recipes (arXiv 2504.06225, sections 3 to 5), and what fits which machine. Leaves
training to `keras_encdec.evaluation.claims_runs`, and what is said of arms to
`keras_encdec.evaluation.claims_verdicts`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

PREFIX_LM, UL2 = "prefix_lm", "ul2"


@dataclasses.dataclass(frozen=True)
class Scale:
    """What stands for the paper's 2B and 9B, and how long it is trained.

    Args:
        small: a decoder-only model, in the place of Gemma 2 2B.
        large: another of its tokenizer, in the place of 9B.
        dtype: policy of all models.
        half: tokens of a window's input, and of its target.
        batch_size: rows of a step.
        steps: of adaptation; an arm may take a multiple.
        rates: learning rates of adaptation, each with a cosine to 0.
        warmup: steps of the cross-attention alone, the paper's K = 1,000.
        body: tokens of a text to be summarised, at most.
        tune_steps: of fine-tuning on summaries.
        tune_rates: its learning rates.
        windows: that losses are taken on.
        task_size: examples of each stand-in task.
        task_rates: learning rates on them.
        task_epochs: passes over them, at most.
        sentinels: of UL2, where the vocabulary keeps none free; none for the tokenizer's own.
    """

    small: str = "gemma2_mini_docs"
    large: str = "gemma2_tiny_docs"
    dtype: str = "float32"
    half: int = 64
    batch_size: int = 16
    steps: int = 300
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    warmup: int = 30
    body: int = 128
    tune_steps: int = 100
    tune_rates: tuple[float, ...] = (5e-4, 1e-3)
    windows: int = 256
    task_size: int = 128
    task_rates: tuple[float, ...] = (3e-4,)
    task_epochs: int = 3
    sentinels: tuple[int, ...] = ()


SCALES = {
    "embedded": Scale(),
    "smollm2": Scale(
        small="hf://HuggingFaceTB/SmolLM2-135M",
        large="hf://HuggingFaceTB/SmolLM2-360M",
        dtype="mixed_bfloat16",
        half=256,
        batch_size=32,
        steps=4000,
        rates=(5e-5, 1e-4, 2e-4),
        warmup=200,
        body=256,
        tune_steps=500,
        tune_rates=(2e-5, 5e-5),
        task_size=512,
        task_rates=(2e-5,),
        sentinels=tuple(range(3, 17)),  # control tokens of code and notebooks; no text has them
    ),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """How one model comes about.

    Args:
        kind: `"pair"`, a conversion; `"scratch"`, the same pair of drawn weights; `"source"`, the
            decoder-only model itself; `"average"`, of two other arms.
        is_large: whether encoder and decoder are the large model.
        stages: objectives, each with its share of the steps.
        budget: multiple of a scale's steps.
        warmup: multiple of its K, where cross-attention starts fresh.
        chance: added to the seed of what is drawn.
        options: of `keras_encdec.adapt`.
        of: names of the arms that are averaged.
    """

    kind: str = "pair"
    is_large: tuple[bool, bool] = (False, False)
    stages: tuple[tuple[str, float], ...] = ((PREFIX_LM, 1.0),)
    budget: float = 1.0
    warmup: float = 0.0
    chance: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of: tuple[str, ...] = ()


_LARGE, _UNBALANCED = (True, True), (True, False)
ARMS = {
    "source": Arm("source", budget=0),
    "source_longer": Arm("source"),
    "prefix_lm": Arm(),
    "prefix_lm_again": Arm(chance=1000),
    "prefix_lm_4x": Arm(budget=4),
    "scratch": Arm("scratch"),
    "scratch_4x": Arm("scratch", budget=4),
    "large_prefix_lm": Arm(is_large=_LARGE),
    "large_scratch": Arm("scratch", is_large=_LARGE),
    "ul2": Arm(stages=((UL2, 1.0),)),
    "prefix_then_ul2": Arm(stages=((PREFIX_LM, 0.9), (UL2, 0.1))),
    "ul2_then_prefix": Arm(stages=((UL2, 0.9), (PREFIX_LM, 0.1))),
    "average": Arm("average", of=("prefix_lm", "ul2")),
    "unbalanced": Arm(is_large=_UNBALANCED, warmup=1),
    "unbalanced_k0": Arm(is_large=_UNBALANCED),
    "unbalanced_k5": Arm(is_large=_UNBALANCED, warmup=5),
    "causal_encoder": Arm(options={"encoder_attention": "causal"}),
    "expanded_heads": Arm(options={"expand_gqa": True}),
}
