"""`kdcdiff personalize`: a subject's few pictures end in a pipeline for plain diffusers, also after a kill."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from kdcdiff import cli
from kdcdiff.cli import personalize as command
from kdcdiff.metrics import extractors, fidelity
from kdcdiff.models.classifier import load_classifier

from ..pipelines import make


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "mine"
    make("sd-1", ["a photo of a flower"]).save_pretrained(folder)
    return folder


@pytest.fixture
def words(pipeline, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, colour in enumerate(("red", "orange", "yellow", "pink")):
        Image.new("RGB", (40 + i, 33), colour).save(pictures / f"{i}.png")
    return [
        "personalize", "--pipeline", str(pipeline), "--subject", str(pictures), "--noun", "flower", "--out",
        str(tmp_path / "new"), "--steps", "2", "--prior-images", "2", "--images", "2", "--sampler-steps", "1",
        "--guidance", "1", "--device", "cpu",
    ]  # fmt: skip


class Killed(BaseException):
    """As a signal would end it."""


def test_a_killed_command_goes_on_and_ends_in_a_pipeline_for_plain_diffusers(
    words, pipeline, tmp_path, monkeypatch, capsys
):
    def kill(*own, **named):
        raise Killed

    monkeypatch.setattr("kdcdiff.training.personalize.learn_subject", kill)
    with pytest.raises(Killed):
        cli.main(words)
    monkeypatch.undo()
    drawn, draw = [], command._draw
    monkeypatch.setattr(command, "_draw", lambda args, pipe, prompts, seed: drawn.append(prompts[0]) or draw(
        args, pipe, prompts, seed))  # fmt: skip
    assert cli.main([*words, "--steps", "3"]) == 2 and "steps=2, not 3" in capsys.readouterr().err
    assert cli.main(words) == 0 and drawn == ["a photo of a sks flower"] * 2, "the prior is not drawn again"

    own, plain = (StableDiffusionPipeline.from_pretrained(folder) for folder in (tmp_path / "new", pipeline))
    assert own("a photo of a sks flower", num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)
    assert not torch.equal(own.unet.conv_in.weight, plain.unet.conv_in.weight)
    assert torch.equal(own.vae.decoder.conv_in.weight, plain.vae.decoder.conv_in.weight)
    card, said = (tmp_path / "new" / "README.md").read_text(), capsys.readouterr().out
    parameters = sum(p.numel() for p in own.unet.parameters())
    assert f"| parameters learnt | {parameters} |" in card and "seconds of training" in card
    for measure in ("subject fidelity", "prompt fidelity"):
        assert f"{measure}, before: " in said and f"| {measure}, after | " in card


def test_an_adapter_is_written_beside_the_whole_pipeline(words, tmp_path):
    pytest.importorskip("peft", reason="an extra of the library: pip install kdcdiff[lora]")
    assert cli.main([*words, "--lora", "2"]) == 0
    card = (tmp_path / "new" / "README.md").read_text()
    with safe_open(tmp_path / "new" / "lora" / "pytorch_lora_weights.safetensors", "pt") as f:
        numbers = sum(f.get_tensor(name).numel() for name in f.keys())  # noqa: SIM118 - no mapping
    assert f"| parameters learnt | {numbers} |" in card
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "new").unet.config.cross_attention_dim == 16


def test_an_adapter_needs_peft_and_says_so(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert cli.main([*words, "--lora", "2"]) == 2
    assert "lora=2: needs peft: pip install kdcdiff[lora]" in capsys.readouterr().err
    assert not (tmp_path / "new.work").exists()


def test_fidelity_to_oneself_is_one_and_to_the_opposite_less():
    extractor = extractors.features(load_classifier())
    pictures = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    same = fidelity.subject_fidelity(pictures[:1].repeat(3, 1, 1, 1), pictures[:1], extractor)
    assert same.value == pytest.approx(1, abs=1e-5) and same.n == 3 and same.extractor == "flora classifier"
    assert fidelity.subject_fidelity(255 - pictures, pictures, extractor).value < 1
