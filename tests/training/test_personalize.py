"""DreamBooth: what a batch holds, what its loss weighs, and that an adapter learns alone and ends in plain weights."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from kdcdiff.data.latents import LatentSet
from kdcdiff.errors import UserError
from kdcdiff.models.pipeline import SCHEDULER
from kdcdiff.training import personalize

from .test_continual import tiny


def latents(value: float, n: int = 3) -> LatentSet:
    """`n` latents that are `value` throughout, under a caption whose embedding is, too."""
    mean, prompts = torch.full((n, 2, 4, 4), value), torch.full((2, 3, 8), value)
    return LatentSet(mean, torch.zeros_like(mean), torch.zeros(n), torch.ones(n).long(), prompts, ("", "a"), ("a",))


def learnt(folder, unet=None, prior_weight=1.0, steps=1, **own) -> tuple[UNet2DConditionModel, list[dict[str, float]]]:
    unet = tiny() if unet is None else unet
    given = {"steps": steps, "lr": 1e-3, "prior_weight": prior_weight, "folder": folder, "describe": ""} | own
    return unet, personalize.learn_subject(unet, latents(1.0), latents(-1.0), DDIMScheduler(**SCHEDULER), **given)


def test_captions_name_the_subject_and_its_class():
    subject = personalize.Subject("sks", "iris")
    assert (subject.caption, subject.prior) == ("a photo of a sks iris", "a photo of an iris")


def test_a_batch_alternates_subject_and_prior_and_the_loss_is_their_weighted_sum(tmp_path, monkeypatch):
    heard = []

    def forward(unet, noisy, timestep, prompt, return_dict):
        heard.append(prompt[:, 0, 0].tolist())
        return (noisy * unet.conv_in.weight.mean(),)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    _, log = learnt(tmp_path / "a", prior_weight=0.5, batch=2)
    assert heard == [[1.0, -1.0, 1.0, -1.0]]
    assert log[-1]["loss"] == pytest.approx(log[-1]["subject"] + 0.5 * log[-1]["prior"], rel=1e-5)
    assert log[-1]["subject"] != log[-1]["prior"]


def test_the_prior_holds_the_weights_and_nothing_to_learn_is_refused(tmp_path):
    (free, _), (held, _) = learnt(tmp_path / "a", prior_weight=0.0), learnt(tmp_path / "b")
    assert not torch.equal(free.conv_in.weight, held.conv_in.weight)
    with pytest.raises(UserError, match="prior=0: must be at least one picture"):
        personalize.learn_subject(tiny(), latents(1.0), latents(0.0, 0), DDIMScheduler(), steps=1, folder=tmp_path)


def test_an_adapter_learns_alone_and_ends_in_plain_weights(tmp_path):
    pytest.importorskip("peft", reason="an extra of the library: pip install kdcdiff[lora]")
    unet, plain = tiny(), tiny()
    names = set(plain.state_dict())
    personalize.add_lora(unet, 2, seed=0)
    learning = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert learning and all("lora" in name for name in learning)
    learnt(tmp_path, unet, steps=2, lr=1e-2)
    adapter = personalize.take_lora(unet)
    assert set(unet.state_dict()) == names and all("lora" in name for name in adapter)
    changed = {name for name, p in unet.state_dict().items() if not torch.equal(p, plain.state_dict()[name])}
    ends = {name.split(".")[-2] for name in changed}
    assert ends == {"to_q", "to_k", "to_v", "0"}, "the projections of attentions, and nothing else"
