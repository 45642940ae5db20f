"""Makes tests/parity/trl_losses.npz: values and gradients of losses by trl's own functions.

They are called unbound, on log-probabilities, in an environment of its own:

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/parity/make_trl_reference.py
"""

import collections
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

ROWS, LONGEST = 6, 9


def trainer(**attributes):
    """What stands in for `self`: everything that is not asked for does nothing."""
    stub = MagicMock()
    stub.accelerator.gather_for_metrics = stub.accelerator.gather = lambda x: x
    stub.accelerator.device = torch.device("cpu")
    stub._metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    stub.aux_loss_enabled = False
    stub._total_train_tokens, stub._tp_size = 0, 1
    for name, value in attributes.items():
        setattr(stub, name, value)
    return stub


class Model(torch.nn.Module):
    """Says log-probabilities that it was made with."""

    def __init__(self, log_probs):
        super().__init__()
        self.said = log_probs

    def forward(self, **_):
        nothing = dict.fromkeys(("entropy", "mean_logits"), 0 * self.said)
        return types.SimpleNamespace(log_probs=self.said, is_top1=self.said > 0, **nothing)


def answers():
    """(2, ROWS) lengths, and log-probabilities of tokens and of answers for a reference."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LONGEST, (2, ROWS))
    there = np.arange(LONGEST) < lengths[..., None]
    tokens = np.where(there, -rng.gamma(1.5, 1.0, (2, ROWS, LONGEST)), 0.0)
    reference = tokens.sum(-1) + rng.normal(0, 2, (2, ROWS))
    is_good = np.array([1, 0, 1, 1, 0, 0])
    return lengths, there, tokens, reference, is_good


def leaf(array):
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def dpo(loss_type, beta, smoothing):
    """Mean loss of a batch, and its gradient by each answer's log-probability."""
    _, there, tokens, reference, _ = answers()
    said = leaf(tokens.reshape(2 * ROWS, LONGEST))
    mask = torch.tensor(np.pad(there.reshape(2 * ROWS, LONGEST), ((0, 0), (1, 0)))).long()
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": mask,
        "completion_mask": mask,
        "ref_chosen_logps": torch.tensor(reference[0]),
        "ref_rejected_logps": torch.tensor(reference[1]),
    }
    stub = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
    )
    loss = DPOTrainer._compute_loss(stub, Model(said), inputs, False)
    loss.backward()
    return loss, said.grad.reshape(2, ROWS, LONGEST)[:, :, 0]  # the same for all tokens


def kto(beta, wanted, unwanted):
    _, there, tokens, reference, is_good = answers()
    said = leaf(tokens[0])
    mask = torch.tensor(np.pad(there[0], ((0, 0), (1, 0)))).long()
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": mask,
        "completion_mask": mask,
        "label": torch.tensor(is_good),
        "ref_logps": torch.tensor(reference[0]),
        "ref_KL_logps": torch.tensor(reference[1]),
    }
    others = torch.tensor(tokens[1].sum(-1))
    stub = trainer(
        _compute_kl_logps=lambda model, batch: others,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=beta,
        desirable_weight=wanted,
        undesirable_weight=unwanted,
    )
    loss = KTOTrainer._compute_loss(stub, Model(said), inputs, False)
    loss.backward()
    return loss, torch.stack([said.grad[:, 0], torch.zeros(ROWS, dtype=torch.float64)])


def by_means(function):
    """Of log-probabilities a token."""
    lengths, _, tokens, _, _ = answers()
    sums, counts = leaf(tokens.sum(-1)), torch.tensor(lengths)
    loss = function(*(sums / counts))
    loss.backward()
    return loss, sums.grad


def simpo(beta, gamma):
    stub = trainer(alpha=0.0, loss_type="simpo", simpo_gamma=gamma, beta=beta, label_smoothing=0.0)
    return by_means(lambda w, r: CPOTrainer.cpo_loss(stub, w, r)[0].mean())


def orpo(weight):
    """trl takes the likelihood of prompt and answer; the paper, as here, that of the answer."""
    stub = trainer(beta=weight)
    return by_means(lambda w, r: (-w - ORPOTrainer.odds_ratio_loss(stub, w, r)[0]).mean())


def reward(center, margin):
    rng = np.random.default_rng(1)
    rewards = leaf(rng.normal(size=(2, ROWS)))
    margins = {"margin": torch.tensor(rng.random(ROWS))} if margin else {}
    stub = trainer(args=types.SimpleNamespace(center_rewards_coefficient=center))

    def model(**_):
        return types.SimpleNamespace(logits=rewards.reshape(-1, 1))

    given = {"attention_mask": torch.ones(1), **margins}
    loss = RewardTrainer.compute_loss(stub, model, given)
    loss.backward()
    return loss, rewards.grad, rewards, margins.get("margin", torch.zeros(ROWS))


def main():
    lengths, _, tokens, reference, is_good = answers()
    found = {
        "lengths": lengths.T,
        "log_probs": tokens.sum(-1).T,
        "reference": reference.T,
        "is_good": is_good,
    }
    cases = {
        "DPO": dpo("sigmoid", 0.3, 0.0),
        "IPO": dpo("ipo", 0.2, 0.0),
        "KTO": kto(0.4, 1.5, 0.7),
        "ORPO": orpo(0.3),
        "SimPO": simpo(2.0, 0.8),
    }
    for name, (loss, gradient) in cases.items():
        found |= {f"{name}_loss": loss.item(), f"{name}_gradient": gradient.T.numpy()}
    for name, (center, margin) in {"plain": (0.01, False), "margin": (0.1, True)}.items():
        loss, gradient, rewards, margins = reward(center, margin)
        found |= {f"{name}_reward_loss": loss.item(), f"{name}_reward_gradient": gradient.T.numpy()}
        found |= {f"{name}_rewards": rewards.detach().T.numpy(), f"{name}_margin": margins.numpy()}
    np.savez(Path(__file__).with_name("trl_losses.npz"), **found)


if __name__ == "__main__":
    main()
