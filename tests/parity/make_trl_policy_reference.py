"""Makes tests/parity/trl_policies.npz: losses of drawn answers, with gradients, by trl's functions.

`_compute_loss` of trl's trainers is called unbound, on log-probabilities of tokens. Advantages are
made inside a method of trl that also generates; here they follow its lines (`nanstd` is its own).
In an environment of its own:

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/parity/make_trl_policy_reference.py
"""

from pathlib import Path

import numpy as np
import torch
from make_trl_reference import leaf, trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanstd

PROMPTS, SAMPLES, LONGEST = 3, 4, 7
KL, LOW, HIGH = 0.3, 0.2, 0.28


def drawn():
    """Tokens of B * G answers, and log-probabilities of them now, before and by a reference."""
    rng = np.random.default_rng(0)
    rows = PROMPTS * SAMPLES
    there = np.arange(LONGEST) < rng.integers(1, LONGEST + 1, (rows, 1))
    now = np.where(there, -rng.gamma(1.5, 1.0, (rows, LONGEST)), 0.0)
    old = np.where(there, now + rng.normal(0, 0.25, now.shape), 0.0)
    reference = old.sum(-1) + rng.normal(0, 2, rows)
    return there, now, old, reference, rng.normal(size=rows)


def advantages(kind, old, reference, rewards):
    rewards = torch.tensor(rewards - KL * (old.sum(-1) - reference)).reshape(PROMPTS, SAMPLES)
    if kind == "rloo":
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / (SAMPLES - 1)
        return (rewards - others).reshape(-1)
    found = rewards - rewards.mean(dim=1, keepdim=True)
    if kind == "std":
        found = found / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    return found.reshape(-1)


def loss_of(cls, kind, on_policy=False, **attributes):
    there, now, old, reference, rewards = drawn()
    old = now if on_policy else old
    said, mask = leaf(now), torch.tensor(there).long()
    nothing = torch.zeros(len(now), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": advantages(kind, old, reference, rewards),
        "old_per_token_logps": torch.tensor(old),
        "old_logps": torch.tensor(old.sum(-1)),
    }
    stub = trainer(
        _get_per_token_logps_and_entropies=lambda *a, **k: (said, 0 * said, None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        epsilon_low=LOW,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        **attributes,
    )
    stub.args.delta = None
    stub.accelerator.reduce = lambda x, reduction: x
    loss = cls._compute_loss(stub, None, inputs)
    loss.backward()
    return loss.item(), said.grad.numpy()


def main():
    there, now, old, reference, rewards = drawn()
    shape = PROMPTS, SAMPLES
    found = {
        "there": there.reshape(*shape, -1),
        "log_probs": now.reshape(*shape, -1),
        "old": old.reshape(*shape, -1),
        "reference": reference.reshape(shape),
        "rewards": rewards.reshape(shape),
    }
    cases = {
        "RLOO": (RLOOTrainer, "rloo", True, {"epsilon_high": LOW}),
        "tokens": (GRPOTrainer, "std", False, {"loss_type": "bnpo", "epsilon_high": LOW}),
        "length": (
            GRPOTrainer,
            "none",
            False,
            {"loss_type": "dr_grpo", "epsilon_high": HIGH, "max_completion_length": 9},
        ),
    }
    for name, (cls, kind, on_policy, attributes) in cases.items():
        loss, gradient = loss_of(cls, kind, on_policy, **attributes)
        found |= {f"{name}_loss": loss, f"{name}_gradient": gradient.reshape(*shape, -1)}
    np.savez(Path(__file__).with_name("trl_policies.npz"), **found)


if __name__ == "__main__":
    main()
