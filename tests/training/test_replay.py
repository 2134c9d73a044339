"""The latent replay buffer: exact balance, reproducible samples, and files that are whole or refused."""

import gc
import json
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kdcdiff.data.origin import Origin
from kdcdiff.errors import UserError
from kdcdiff.training.codecs import CODECS
from kdcdiff.training.replay import POLICIES, LatentReplayBuffer

BALANCED = sorted(name for name, policy in POLICIES.items() if policy.balanced)


def latents(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def filled(capacity: int, sizes: list[int], policy: str = "reservoir", seed: int = 0) -> LatentReplayBuffer:
    buffer = LatentReplayBuffer(capacity, policy=policy, seed=seed)
    for k, n in enumerate(sizes):
        buffer.add_class(f"class {k}", latents(n, k), [f"{k}-{i}" for i in range(n)])
    return buffer


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, extra=st.integers(0, 60), policy=st.sampled_from(BALANCED))
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
        assert torch.equal(latent, latents(sizes[k], k)[i].half().float())


def test_what_a_class_keeps_when_another_arrives_is_a_subset_of_what_it_had():
    buffer = filled(12, [20])
    before = {tuple(x.flatten().tolist()) for x in buffer.sample(400).latents}
    buffer.add_class("late", latents(20, 9), ["late"] * 20)
    rows = buffer.sample(400)
    kept = {tuple(x.flatten().tolist()) for x, c in zip(rows.latents, rows.captions, strict=True) if c != "late"}
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
    for kind in ("rows", "index"):
        file = next(tmp_path.glob(f"{kind}-*.safetensors"))
        data = file.read_bytes()
        for spoilt in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1]):
            file.write_bytes(spoilt)
            with pytest.raises(UserError, match=f"{file.name} does not match its checksum"):
                LatentReplayBuffer.load(tmp_path)
        file.write_bytes(data)
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
            "policy='lifo': must be one of reservoir, ring, herding, uniform",
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


def test_uniform_shares_by_what_was_seen_and_balanced_policies_do_not():
    for policy, low, high in (("uniform", 60, 100), ("reservoir", 50, 50)):
        counts = filled(100, [900, 100], policy).counts
        assert low <= counts["class 0"] <= high and sum(counts.values()) == 100


def test_a_class_can_be_held_to_a_quota_of_its_own():
    buffer = LatentReplayBuffer(100, per_class=7)
    for k in range(3):
        buffer.add_class(str(k), latents(40, k), [""] * 40)
    assert list(buffer.counts.values()) == [7, 7, 7]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_codecs_keep_what_they_promise(seed, scale, shift):
    x = (scale * torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) + shift).float()
    for name in ("fp16", "uint8"):
        rows = CODECS[name].encode(x)
        assert rows.dtype == torch.uint8 and rows.shape == (5, CODECS[name].size((3, 4, 4)))
        error = (CODECS[name].decode(rows, (3, 4, 4)) - x).abs()
        span = x.amax((2, 3), keepdim=True) - x.amin((2, 3), keepdim=True)
        allowed = span / 255 * 0.51 + 1e-5 * x.abs() if name == "uint8" else x.abs() * 2**-11 + 1e-7
        assert bool((error <= allowed).all())


def test_pixels_come_back_as_they_were():
    pictures = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    buffer = LatentReplayBuffer(6, "ring", codec="raw")
    buffer.add_class("a", pictures, [str(i) for i in range(6)])
    row = buffer.sample(20)
    assert all(torch.equal(x, pictures[int(c)]) for x, c in zip(row.latents, row.captions, strict=True))
    assert buffer.nbytes == 6 * 3 * 8 * 8


@pytest.mark.parametrize("side", [8, 64])
def test_a_jpeg_fits_its_row_and_shows_the_same_picture(side):
    """Smooth pictures come back nearly as they were; noise, which does not compress, comes back coarse but whole."""
    jpeg, ramp = CODECS["jpeg"], torch.linspace(0, 255, side)
    smooth = ramp.expand(3, side, side)
    noise = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(0))
    pictures = torch.stack([smooth, noise]).to(torch.uint8)
    rows = jpeg.encode(pictures)
    assert rows.shape == (2, jpeg.size((3, side, side))) == (2, 512 + 3 * side**2 // 16)
    back = jpeg.decode(rows, (3, side, side))
    assert back.dtype == torch.uint8 and back.shape == pictures.shape
    assert (back[0].float() - pictures[0].float()).abs().mean() < 2
    assert torch.equal(jpeg.decode(rows, (3, side, side)), back)


def test_a_row_that_is_no_picture_of_its_size_is_refused_before_it_is_decoded():
    jpeg = CODECS["jpeg"]
    rows = jpeg.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"row=\(16, 16\): must be a picture of \(8, 8\)"):
        jpeg.decode(rows, (3, 8, 8))
    with pytest.raises(UserError, match="cannot be read as JPEG"):
        jpeg.decode(torch.zeros_like(rows), (3, 16, 16))


@settings(max_examples=15, deadline=None)
@given(sizes=SIZES, policy=st.sampled_from(sorted(POLICIES)), codec=st.sampled_from(["fp16", "uint8"]))
def test_on_disk_it_is_the_same_buffer(tmp_path_factory, sizes, policy, codec):
    folder = tmp_path_factory.mktemp("disk")
    buffers = [LatentReplayBuffer(16, policy, 3, codec=codec, disk=disk) for disk in (None, folder / "rows")]
    for buffer in buffers:
        for k, n in enumerate(sizes):
            buffer.add_class(str(k), latents(n, k), [f"{k}-{i}" for i in range(n)])
    buffers[1].save(folder / "saved")
    buffers.append(LatentReplayBuffer.load(folder / "saved"))
    buffers.append(LatentReplayBuffer.load(folder / "saved", disk=folder / "again"))
    samples = [buffer.sample(7, step=2) for buffer in buffers]
    assert all(torch.equal(samples[0].latents, other.latents) for other in samples)
    assert all(samples[0].captions == other.captions for other in samples)
    assert load_file(folder / "rows")["rows"].shape[0] == 16, "the scratch file is a safetensors file"


def test_embeddings_are_kept_once_for_each_caption_and_leave_with_it(tmp_path):
    buffer = LatentReplayBuffer(8)
    words = {text: torch.full((2, 3), float(i)) for i, text in enumerate(("red", "blue"))}
    buffer.add_class("a", latents(20), ["red", "blue"] * 10, words)
    got = buffer.sample(30)
    assert all(torch.equal(p, words[c]) for p, c in zip(got.prompts, got.captions, strict=True))
    buffer.save(tmp_path)
    again = LatentReplayBuffer.load(tmp_path).sample(30)
    assert torch.equal(again.prompts, got.prompts)
    index = load_file(next(tmp_path.glob("index-*")))
    assert sum(name.startswith("prompt.") for name in index) == 2
    for k in range(7):  # each class now has one row: one of the two captions is gone
        buffer.add_class(str(k), latents(3, k), ["green"] * 3, {"green": torch.zeros(2, 3)})
    buffer.save(tmp_path)
    index = load_file(next(tmp_path.glob("index-*")))
    assert sum(name.startswith("prompt.") for name in index) == 2 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": Origin("vae b", 0.5)}, "autoencoder='vae b': must be vae a, as that of the buffer's latents"),
        ({"origin": Origin("vae a", 0.7)}, "scaling factor=0.7: must be 0.5"),
        ({"origin": None}, "autoencoder=None: must be vae a"),
        ({"dtype": torch.float16}, "latents='torch.float16': must be torch.float32"),
    ],
)
def test_latents_of_another_kind_are_refused_by_name(change, message):
    buffer = LatentReplayBuffer(4)
    buffer.add_class("a", latents(4), [""] * 4, origin=Origin("vae a", 0.5))
    settings_ = {"origin": Origin("vae a", 0.5), "dtype": torch.float32} | change
    with pytest.raises(UserError, match=message):
        buffer.add_class("b", latents(4).to(settings_["dtype"]), [""] * 4, origin=settings_["origin"])
    assert buffer.counts == {"a": 4}


PROGRAM = """
import sys, torch
from kdcdiff.training.replay import LatentReplayBuffer
buffer, k = LatentReplayBuffer(64, seed=1), 0
while True:
    buffer.add_class(str(k), torch.full((40, 2, 8, 8), float(k)), [str(k)] * 40)
    buffer.save(sys.argv[1])
    k += 1
    if k == 1:
        print("saved", flush=True)
    if k == 60:
        buffer, k = LatentReplayBuffer(64, seed=1), 0
"""


def test_a_kill_while_saving_leaves_the_old_buffer_or_the_new_one(tmp_path):
    for delay in (0.0, 0.03, 0.11, 0.2):
        running = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert running.stdout.readline() == "saved\n"
        time.sleep(delay)
        running.kill()
        running.wait()
        buffer = LatentReplayBuffer.load(tmp_path)
        got = buffer.sample(50)
        assert len(buffer) > 0 and all(
            float(x[0, 0, 0]) == float(c) for x, c in zip(got.latents, got.captions, strict=True)
        )


def test_a_buffer_on_disk_holds_a_few_numbers_per_latent_and_nothing_else(tmp_path):
    def live() -> int:
        gc.collect()
        storages = {
            t.untyped_storage() for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.device.type == "cpu"
        }
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    latents, before = torch.zeros(1, 4, 2, 2).half(), live()
    buffer = LatentReplayBuffer(20_000, "ring", disk=tmp_path / "rows")
    for k in range(40):
        buffer.add_class(str(k), latents.expand(500, -1, -1, -1), [f"a {k}"] * 500)
    assert len(buffer) == 20_000
    assert live() - before <= 40 * len(buffer), "place, key and caption, and the list of all places"


def test_reading_the_module_does_not_import_diffusers():
    """Whose libraries weigh more than most memories."""
    code = "import sys, kdcdiff.training.replay; print('diffusers' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
