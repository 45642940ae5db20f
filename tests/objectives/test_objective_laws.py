"""Laws of every objective: nothing lost, the exact counts, the right rates, the same bytes."""

import collections
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_encdec.objectives import MNTP, UL2, Mixture, PrefixLM, SpanCorruption, Stages
from keras_encdec.objectives.span_corruption import fill, side_lengths
from keras_encdec.objectives.ul2 import MIXTURES

DENOISERS = {d.name: d for denoisers, _ in MIXTURES.values() for d in denoisers}
MODES = {"R": (300, 301), "X": (302,), "S": (303, 304, 305)}
OBJECTIVES = DENOISERS | {
    "PrefixLM": PrefixLM(),
    "S(0.5)": PrefixLM("random"),
    "degenerate": SpanCorruption(1, 0.9),
    "capped": SpanCorruption(3, 0.5, overflow="cap"),
    "two sentinels": SpanCorruption(3, 0.15, sentinels=(500, 9)),
    "ul2": UL2(),
    "ul2r with modes": UL2("ul2r", mode_tokens=MODES),
    "t5gemma2": UL2("t5gemma2", overflow="cap"),
    "MNTP": MNTP(),
    "joint": Mixture([PrefixLM(), UL2()], [0.7, 0.3]),
}
# The first two appear in every stream of tokens; neither is a sentinel.
EDGE_TOKENS = (6, 106)


def window(length, seed=0):
    tokens = np.random.default_rng(seed).integers(1000, 256000, length).astype("int32")
    tokens[:2] = EDGE_TOKENS
    return tokens


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@settings(max_examples=300, deadline=None)
@given(length=st.integers(2, 16384), seed=st.integers(0, 2**64 - 1))
def test_input_and_target_reassemble_the_tokens(objective, length, seed):
    tokens = window(length, seed)
    example = objective(tokens, seed)
    np.testing.assert_array_equal(example.reassemble(), tokens)
    read, written = example.positions()
    both = np.concatenate([read, written])
    np.testing.assert_array_equal(np.sort(both[both >= 0]), np.arange(length))
    np.testing.assert_array_equal(tokens[written[written >= 0]], example.targets[written >= 0])
    assert example.inputs.dtype == example.targets.dtype == "int32"
    assert len(example.targets) > 0
    assert len(example.inputs) > 0


@pytest.mark.parametrize("name", [name for name in DENOISERS if name[0] != "S"])
@settings(max_examples=300, deadline=None)
@given(length=st.integers(2, 16384), seed=st.integers(0, 2**32))
def test_exactly_as_many_tokens_and_spans_are_hidden(name, length, seed):
    objective = DENOISERS[name]
    mask = objective.noise_mask(length, seed)
    spans = np.flatnonzero(mask & ~np.append(False, mask[:-1]))
    noise = min(max(int(np.round(length * objective.rate)), 1), length - 1)
    assert (len(mask), mask.sum()) == (length, noise)
    assert len(spans) == min(max(int(np.round(noise / objective.mean_span)), 1), length - noise)
    assert not mask[0]
    assert mask[-1]


# FACTS of the original's lengths: room for an input, denoiser -> window, hidden tokens, spans,
# input and target with their end tokens (random_spans_helper in t5/data/preprocessors.py).
LENGTHS = """
512 3 .15 568 85 28 512 114|512 8 .15 588 88 11 512 100|512 3 .5 766 383 128 512 512
512 8 .5 908 454 57 512 512|512 64 .15 600 90 1 512 92|512 64 .5 1006 503 8 512 512
4096 3 .15 4550 682 227 4096 910|4096 8 .15 4714 707 88 4096 796|4096 3 .5 6142 3071 1024 4096 4096
4096 8 .5 7280 3640 455 4096 4096|4096 64 .15 4805 721 11 4096 733
4096 64 .5 8064 4032 63 4096 4096|8192 3 .15 9101 1365 455 8192 1821
8192 8 .15 9428 1414 177 8192 1592|8192 3 .5 12286 6143 2048 8192 8192
8192 8 .5 14562 7281 910 8192 8192|8192 64 .15 9610 1442 23 8192 1466
8192 64 .5 16130 8065 126 8192 8192|8192 32 .15 9584 1438 45 8192 1484
16384 3 .15 18204 2731 910 16384 3642|16384 12 .5 30246 15123 1260 16384 16384
16384 32 .15 19168 2875 90 16384 2966|16384 32 .5 31774 15887 496 16384 16384
"""


@pytest.mark.parametrize("row", LENGTHS.replace("|", "\n").split("\n")[1:-1])
def test_windows_fill_the_input_exactly(row):
    room, span, rate, raw, noise, spans, inputs, targets = map(float, row.split())
    objective = SpanCorruption(span, rate)
    seeds = np.arange(3, dtype="uint64")
    assert objective.raw_lengths(int(room), int(room), seeds).tolist() == [raw] * 3
    assert objective.counts(int(raw)) == (noise, spans)
    assert side_lengths(int(raw), span, rate) == (inputs, targets)
    example = objective(window(int(raw)), 5)
    assert (len(example.inputs) + 1, len(example.targets) + 1) == (inputs, targets)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("room", [(512, 512), (512, 64), (40, 100), (16, 16)])
def test_every_example_fits_its_room(objective, room):
    seeds = np.arange(200, dtype="uint64")
    for seed, length in zip(seeds, objective.raw_lengths(*room, seeds), strict=True):
        example = objective(window(length), int(seed))
        assert len(example.inputs) <= room[0]
        assert len(example.targets) + example.ends <= room[1]


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_a_random_split_has_the_mean_of_its_rate(rate):
    length, count = 400, 2000
    objective = PrefixLM("random", rate)
    share = [len(objective(window(length), seed).targets) / length for seed in range(count)]
    low, high = (0, 2 * rate) if rate <= 0.5 else (2 * rate - 1, 1)
    error = (high - low) / np.sqrt(12 * count)
    assert abs(np.mean(share) - rate) < 4 * error + 1 / length
    assert low <= min(share) < low + 0.01
    assert high - 0.01 < max(share) <= high


@pytest.mark.parametrize("mixture", MIXTURES)
def test_denoisers_come_at_their_rates(mixture):
    count, tokens = 6000, window(100)
    seen = collections.Counter(UL2(mixture)(tokens, seed).denoiser for seed in range(count))
    denoisers, rates = MIXTURES[mixture]
    assert sum(seen.values()) == count
    for denoiser, rate in zip(denoisers, rates, strict=True):
        p = rate / sum(rates)
        assert abs(seen[denoiser.name] / count - p) < 4 * np.sqrt(p * (1 - p) / count)


def test_every_place_is_hidden_at_the_rate_that_chance_gives():
    """A composition into n parts is uniform: span lengths have the law of one."""
    objective = SpanCorruption(3, 0.5)
    tokens, spans = 24, 4  # 12 hidden tokens in 4 spans
    first = []
    for seed in range(20000):
        mask = objective.noise_mask(tokens, seed)
        first.append(np.flatnonzero(mask)[0])  # length of the first visible span
    from math import comb

    seen = np.bincount(first, minlength=10)
    for length in range(1, 10):
        p = comb(12 - length - 1, spans - 2) / comb(11, spans - 1)
        assert abs(seen[length] / 20000 - p) < 4 * np.sqrt(p * (1 - p) / 20000)


def test_hidden_and_visible_spans_are_drawn_apart():
    masks = np.array([SpanCorruption(3, 0.5).noise_mask(24, seed) for seed in range(4000)])
    first_visible = masks.argmax(axis=1)
    last_hidden = (~masks[:, ::-1]).argmax(axis=1)
    assert abs(np.corrcoef(first_visible, last_hidden)[0, 1]) < 4 / np.sqrt(4000)


def test_a_nested_draw_does_not_repeat_the_outer_one():
    joint = Mixture([UL2(), UL2()], [1, 1])
    seen = collections.Counter(joint(window(50), seed).denoiser for seed in range(3000))
    assert len(seen) == 7
    assert min(seen.values()) > 3000 / 7 - 4 * np.sqrt(3000 / 7)


DIGESTS = {
    "MNTP": "8013215b4d0d58607c1190b6089f84ab9e201a2961a93d45a84cdd1decc447fd",
    "": "cb1f4d9a69d7468711c4bf9b0e35435693fea2f92e8fca27f9e6455bd106a881",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_same_seed_gives_these_bytes(name):
    """Committed digests: another machine, NumPy or release must give the same."""
    digest = hashlib.sha256()
    others = {key: objective for key, objective in OBJECTIVES.items() if key not in DIGESTS}
    for length in (2, 3, 568, 9101):
        for seed in (0, 1, 2**63):
            for objective in [OBJECTIVES[name]] if name else others.values():
                example = objective(np.arange(1000, 1000 + length, dtype="int32"), seed)
                digest.update(example.inputs.tobytes() + example.targets.tobytes())
    assert digest.hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("rate", [0.15, 0.2, 0.8])
def test_mntp_hides_exact_counts_anywhere_but_first(rate):
    objective, length = MNTP(rate, random_rate=0.2, keep_rate=0.3, mask_token=4), 41
    tokens = np.arange(1000, 1000 + length, dtype="int32")
    hidden, shown = np.zeros(length), collections.Counter()
    for seed in range(2000):
        example = objective(tokens, seed)
        assert len(example.places) == round(rate * length)
        np.testing.assert_array_equal(example.targets, tokens[example.places])
        visible = np.delete(np.arange(length), example.places)
        np.testing.assert_array_equal(example.inputs[visible], tokens[visible])
        hidden[example.places] += 1
        read = example.inputs[example.places]
        shown["kept"] += np.sum(read == example.targets)
        shown["mask"] += np.sum(read == 4)
    assert hidden[0] == 0
    share = round(rate * length) / (length - 1)
    spread = np.sqrt(2000 * share * (1 - share))
    assert np.abs(hidden[1:] - 2000 * share).max() < 4.5 * spread
    total = hidden.sum()
    assert shown["kept"] / total == pytest.approx(0.3, abs=0.02)
    assert shown["mask"] / total == pytest.approx(0.5, abs=0.02)


def test_rates_of_any_type():
    tokens = window(60)
    for rates in ([3, 1], (0.75, 0.25), np.array([3, 1]), np.array([0.75, 0.25], "float32")):
        mixture = Mixture([PrefixLM(), UL2()], rates)
        assert mixture.rates[0] / mixture.rates[1] == 3
        assert UL2([PrefixLM(), SpanCorruption()], rates)(tokens, 1).denoiser


def test_a_seed_of_any_integer_type():
    tokens = window(100)
    expected = UL2()(tokens, 7).targets.tolist()
    for seed in (np.int64(7), np.uint64(7), np.int32(7)):
        assert UL2()(tokens, seed).targets.tolist() == expected
    UL2()(tokens, -1)


def test_sentinels_are_reused_in_order_and_nothing_else_is():
    objective = SpanCorruption(3, 0.15)
    example = objective(window(9101), 0)
    sentinels = example.inputs[np.isin(example.inputs, objective.ids)]
    assert len(sentinels) == 455
    np.testing.assert_array_equal(sentinels, 7 + np.arange(455) % 99)
    np.testing.assert_array_equal(
        example.targets[np.isin(example.targets, objective.ids)], sentinels
    )


def test_a_cap_keeps_the_hidden_tokens_and_makes_longer_spans():
    objective = SpanCorruption(3, 0.15, overflow="cap")
    assert objective.counts(9101) == (1365, 99)
    example = objective(window(9101), 0)
    assert len(example.targets) == 1365 + 99


@pytest.mark.parametrize("total", [1, 10, 999, 1000])
def test_stages_share_all_steps(total):
    assert Stages([UL2(), PrefixLM()], [0.9, 0.1]).steps(total)[0] == round(0.9 * total)
    assert sum(Stages([PrefixLM(), UL2(), PrefixLM()], [1, 1, 1]).steps(total)) == total


def test_a_window_shortens_where_the_target_has_little_room():
    assert fill(512, 512, 3, 0.5) == 766
    short = fill(512, 100, 3, 0.5)
    assert side_lengths(short, 3, 0.5)[1] <= 100 < side_lengths(short + 2, 3, 0.5)[1]


def test_mode_tokens_lead_the_input_and_leave_it_room():
    objective = UL2(mode_tokens=MODES)
    for seed in range(50):
        example = objective(window(100), seed)
        assert tuple(example.inputs[: example.mode]) == MODES[example.denoiser[0]]
    seeds = np.arange(50, dtype="uint64")
    lengths = objective.raw_lengths(512, 512, seeds)
    assert lengths.tolist() == UL2().raw_lengths(512 - 3, 512, seeds).tolist()
