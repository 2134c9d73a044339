"""The latent replay buffer: exact balance, reproducible samples, and files that are whole or refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcdiff.errors import UserError
from kdcdiff.replay import POLICIES, LatentReplayBuffer


def latents(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def filled(capacity: int, sizes: list[int], policy: str = "reservoir", seed: int = 0) -> LatentReplayBuffer:
    buffer = LatentReplayBuffer(capacity, policy=policy, seed=seed)
    for k, n in enumerate(sizes):
        buffer.add_class(f"class {k}", latents(n, k), [f"{k}-{i}" for i in range(n)])
    return buffer


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, extra=st.integers(0, 60), policy=st.sampled_from(sorted(POLICIES)))
def test_the_capacity_holds_and_classes_share_it_equally(sizes, extra, policy):
    capacity = len(sizes) + extra
    buffer = LatentReplayBuffer(capacity, policy=policy)
    for k, n in enumerate(sizes):
        buffer.add_class(f"class {k}", latents(n, k), [""] * n)
        quotas = [capacity // (k + 1) + (j < capacity % (k + 1)) for j in range(k + 1)]
        assert list(buffer.counts.values()) <= quotas
        assert len(buffer) == sum(buffer.counts.values()) <= capacity
        full = [count for count, size in zip(buffer.counts.values(), sizes, strict=False) if size >= capacity]
        assert not full or max(full) - min(full) <= 1


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, policy=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 9), n=st.integers(1, 20))
def test_buffers_of_one_history_are_bit_identical_and_captions_stay_with_their_latents(sizes, policy, seed, n):
    one, two = (filled(16, sizes, policy, seed) for _ in range(2))
    a, b = one.sample(n, step=3), two.sample(n, step=3)
    assert torch.equal(a.latents, b.latents) and a.captions == b.captions
    for latent, caption in zip(a.latents, a.captions, strict=True):
        k, i = map(int, caption.split("-"))
        assert torch.equal(latent, latents(sizes[k], k)[i].half())


def test_what_a_class_keeps_when_another_arrives_is_a_subset_of_what_it_had():
    buffer = filled(12, [20])
    before = {tuple(x.flatten().tolist()) for x in buffer.sample(400).latents}
    buffer.add_class("late", latents(20, 9), ["late"] * 20)
    rows = buffer.sample(400)
    kept = {tuple(x.flatten().tolist()) for x, c in zip(*rows, strict=True) if c != "late"}
    assert len(before) == 12 and len(kept) == 6 and kept < before


def test_samples_are_uniform_over_the_rows():
    buffer = filled(10, [30, 30])
    captions = [c for step in range(40) for c in buffer.sample(100, step=step).captions]
    counts = torch.tensor([captions.count(c) for c in set(captions)], dtype=torch.float64)
    assert len(counts) == 10
    chi2 = ((counts - 400) ** 2 / 400).sum().item()
    assert chi2 < 30  # nine degrees of freedom: 1 in 2,000 by chance, and the seed is fixed


def test_the_policies_keep_what_they_say():
    rows = latents(30, 1)
    ring = LatentReplayBuffer(4, policy="ring")
    ring.add_class("a", rows, [str(i) for i in range(30)])
    assert set(ring.sample(200).captions) == {"26", "27", "28", "29"}
    kept = {}
    for policy in ("herding", "reservoir"):
        buffer = LatentReplayBuffer(6, policy=policy)
        buffer.add_class("a", rows, [str(i) for i in range(30)])
        chosen = rows[[int(c) for c in set(buffer.sample(400).captions)]]
        kept[policy] = (chosen.mean(0) - rows.mean(0)).norm()
    assert kept["herding"] < 0.5 * kept["reservoir"]


def test_other_seeds_keep_other_rows():
    chosen = [set(filled(8, [40], seed=seed).sample(300).captions) for seed in (0, 1)]
    assert chosen[0] != chosen[1]


def test_bytes_are_those_of_half_precision_latents():
    assert filled(10, [20, 20]).nbytes == 10 * 2 * 3 * 3 * 2


@settings(max_examples=10, deadline=None)
@given(sizes=SIZES, policy=st.sampled_from(sorted(POLICIES)))
def test_a_saved_buffer_goes_on_as_if_it_had_never_left(tmp_path_factory, sizes, policy):
    folder = tmp_path_factory.mktemp("buffer")
    here = filled(16, sizes, policy, seed=5)
    here.save(folder)
    back = LatentReplayBuffer.load(folder)
    assert (back.capacity, back.policy, back.seed, back.counts) == (16, policy, 5, here.counts)
    for buffer in (here, back):
        buffer.add_class("next", latents(20, 77), ["next"] * 20)
    a, b = here.sample(9, step=1), back.sample(9, step=1)
    assert torch.equal(a.latents, b.latents) and a.captions == b.captions


def test_a_damaged_or_missing_file_is_refused(tmp_path):
    filled(8, [10]).save(tmp_path)
    data = (tmp_path / "latents.safetensors").read_bytes()
    (tmp_path / "latents.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="does not match its checksum"):
        LatentReplayBuffer.load(tmp_path)
    (tmp_path / "latents.safetensors").write_bytes(data)
    assert len(LatentReplayBuffer.load(tmp_path)) == 8
    (tmp_path / "buffer.json").write_text(json.dumps({})[:1])
    with pytest.raises(UserError, match="cannot be read"):
        LatentReplayBuffer.load(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        LatentReplayBuffer.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: LatentReplayBuffer(0), "capacity=0: must be a whole number, at least 1"),
        (lambda: LatentReplayBuffer(2.5), "capacity=2.5: must be a whole number"),
        (
            lambda: LatentReplayBuffer(4, policy="lifo"),
            "policy='lifo': must be one of reservoir, ring, herding",
        ),
        (lambda: LatentReplayBuffer(4).sample(1), "buffer=0: is empty"),
        (lambda: filled(4, [2]).sample(0), "n=0: must be at least 1"),
        (lambda: filled(1, [2, 2]), "capacity=1: cannot hold 2 classes"),
        (
            lambda: filled(4, [2]).add_class("class 0", latents(2), ["", ""]),
            "class='class 0': is in the buffer already",
        ),
        (
            lambda: filled(4, [2]).add_class("b", latents(2)[:, :1], ["", ""]),
            r"latents=\(1, 3, 3\): must be \(2, 3, 3\)",
        ),
        (
            lambda: filled(4, [2]).add_class("b", latents(2), [""]),
            "captions=1: must be as many as the latents, 2",
        ),
        (lambda: filled(4, [2]).add_class("b", latents(0), []), "must be .n, C, h, w. with at least one row"),
        (lambda: filled(4, [2]).add_class("b", latents(2) / 0, ["", ""]), "latents='b': must be finite"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(spoil, message):
    with pytest.raises(UserError, match=message):
        spoil()
