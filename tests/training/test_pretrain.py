"""The recipe, at sizes of a minute: what it writes loads, and a second call has nothing left to train."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from diffusers import AutoencoderKL

from kdcdiff import cli
from kdcdiff.data import garden, sources
from kdcdiff.data.attributes import ATTRIBUTES
from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import encode_set
from kdcdiff.errors import UserError
from kdcdiff.models import shipped
from kdcdiff.models.attribute_reader import load_reader
from kdcdiff.models.classifier import Classifier, load_classifier
from kdcdiff.models.pipeline import load_clip, load_pipeline, new_autoencoder, new_unet
from kdcdiff.training import components
from kdcdiff.training.components import fine_tune, perceptual_distance, train_classifier
from kdcdiff.training.protocols import RECIPES

TINY = {
    "images_per_class": 6, "extractor_images_per_class": 4, "clip_steps": 2, "clip_batch": 8, "perceptual_net_steps": 2,
    "autoencoder_steps": 2, "autoencoder_batch": 4, "unet_steps": 2, "unet_batch": 4, "classifier_steps": 2,
    "classifier_batch": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrain")
    words = [w for name, value in TINY.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    assert cli.main(["pretrain", "--work", str(root / "work"), "--out", str(root / "assets" / "flora"), *words]) == 0
    return root


def test_what_it_writes_can_ship(made, monkeypatch):
    monkeypatch.setattr(shipped, "ASSETS", made / "assets")
    pipeline, judge, (clip, _) = load_pipeline("flora"), load_classifier(), load_clip()
    assert pipeline("a daisy", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    assert judge(torch.zeros(1, 3, 64, 64)).shape == (1, 20) and clip.config.projection_dim == 64
    assert pipeline.vae.config.scaling_factor != 0.18215
    assert not [f for f in (made / "assets").rglob("*.json") if "_name_or_path" in f.read_text()]
    words = json.loads((made / "assets" / "flora" / "provenance.json").read_text())
    assert words["recipe"] == json.loads(json.dumps(words["recipe"])) and words["recipe"]["unet_steps"] == 2


def test_the_gardens_recipe_makes_a_plain_pipeline_of_other_sizes_and_a_reader(tmp_path):
    tiny = TINY | {"pairs_per_class": 1, "extractor_pairs_per_class": 1, "decoder_steps": 2, "reader_steps": 2,
                   "perceptual_net_steps": 0, "images_per_class": 2, "extractor_images_per_class": 2}  # fmt: skip
    words = [w for name, value in tiny.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "assets")]
    assert cli.main(["pretrain", "--recipe", "garden", *places, *words]) == 0
    pipeline = load_pipeline(tmp_path / "assets" / "pipeline")
    assert (pipeline.unet.config.sample_size, pipeline.vae_scale_factor) == (16, 4)
    plain = new_unet(0, RECIPES["garden"].unet_widths, 16)
    assert set(pipeline.unet.state_dict()) == set(plain.state_dict())  # nothing of the training's means is left in it
    assert load_classifier(tmp_path / "assets" / "classifier").classes == tuple(garden.SPECIES)
    assert load_reader(tmp_path / "assets" / "attributes").attributes == ATTRIBUTES["garden"]
    written = json.loads((tmp_path / "assets" / "provenance.json").read_text())["recipe"]
    assert (written["dataset"], written["pass_on"], written["inner_steps"]) == ("garden", True, 1500)
    logs = {path.stem for path in (tmp_path / "assets" / "log").iterdir()}
    assert logs == {"text", "autoencoder", "unet", "decoder", "classifier", "attributes", "clip"}


def test_what_ships_is_the_recipes_and_pairs_are_the_gardens():
    words = json.loads((shipped.ASSETS / "garden" / "provenance.json").read_text())["recipe"]
    assert words == json.loads(json.dumps(asdict(RECIPES["garden"])))
    words = json.loads((shipped.ASSETS / "flora" / "provenance.json").read_text())["recipe"]
    words["perceptual_net_steps"] = words.pop("eye_steps")  # its name at that time
    assert {name: getattr(RECIPES["flora"], name) for name in words} == words
    with pytest.raises(UserError, match="pairs_per_class=3: must be 0: a picture of flora has one subject"):
        replace(RECIPES["flora"], pairs_per_class=3)


def test_a_decoder_trained_alone_leaves_the_latents():
    """One step of each kind on an autoencoder of two levels: what moves is what is said to."""
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    settings = {"steps": 1, "batch": 2, "lr": 1e-2, "seed": 0, "folder": None, "describe": ""}
    vae = new_autoencoder(0, (8, 8))
    coding = [vae.encoder.conv_in.weight, vae.quant_conv.weight, vae.decoder.conv_out.weight]
    before = [weight.detach().clone() for weight in coding]
    components.train_autoencoder(vae, images, None, decoder_only=True, **settings)
    assert [torch.equal(a, b) for a, b in zip(coding, before, strict=True)] == [True, True, False]
    components.train_autoencoder(vae, images, None, **settings)
    assert not torch.equal(coding[0], before[0])


def test_perceptual_distance_is_zero_for_the_same_and_grows_with_blur(made):
    net = Classifier(("a", "b"))
    pictures = sources.load_flora("train", ("daisy",), 4, progress=False).images.float() / 127.5 - 1
    blurred = torch.nn.functional.avg_pool2d(pictures, 5, 1, 2)
    assert perceptual_distance(net, pictures, pictures) == 0
    assert (
        perceptual_distance(net, blurred, pictures) > perceptual_distance(net, (blurred + pictures) / 2, pictures) > 0
    )


def test_the_same_seed_gives_the_same_judge():
    images = sources.load_flora("train", ("daisy", "rose"), 6, progress=False)
    one, two = (train_classifier(images, 3, 4, 7, None, "") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = train_classifier(images, 3, 4, 8, None, "")
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize(("side", "stages"), [(32, 2), (96, 3)])
def test_sizes_are_those_of_the_pictures_and_of_the_autoencoder(side, stages, monkeypatch):
    """Pictures of another side than the shipped stack's, an autoencoder that down-samples by 2 or by 4."""
    seen = []

    def one_step(model, loss, batch, **settings):
        data = batch(0, torch.Generator().manual_seed(0))
        seen.append({name: tuple(value.shape) for name, value in data.items()} | {"loss": loss(model, data, None)[0]})

    monkeypatch.setattr(components, "fit", one_step)
    images = ImageSet(torch.randint(0, 256, (6, 3, side, side), dtype=torch.uint8), torch.arange(6) % 2, ("", "") * 3,
                      ("a", "b"))  # fmt: skip
    net = train_classifier(images, 1, 4, 0, None, "")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * stages, "up_block_types": ("UpDecoderBlock2D",) * stages}
    vae = AutoencoderKL(**blocks, block_out_channels=(8,) * stages, norm_num_groups=4, latent_channels=5)
    components.train_autoencoder(vae, images.images, net, steps=1, batch=4, lr=1e-3, seed=0, folder=None)
    latent = side // 2 ** (stages - 1)
    assert seen[0]["pixels"] == seen[1]["pixels"] == (4, 3, side, side)
    assert seen[1]["noise"] == (4, 5, latent, latent) and all(row["loss"].isfinite() for row in seen)


def test_fine_tuning_fits_a_pipeline_to_other_pictures(made, tmp_path):
    pipeline = load_pipeline(made / "assets" / "flora" / "pipeline").to(torch.float32)
    images = sources.load_flora("test", ("daisy", "rose"), 8, progress=False)
    before = {name: p.clone() for name, p in pipeline.text_encoder.named_parameters()}
    weights = [pipeline.vae.decoder.conv_in.weight.clone(), pipeline.unet.conv_in.weight.clone()]
    steps = {"perceptual_net_steps": 2, "autoencoder_steps": 2, "unet_steps": 2}
    fine_tune(pipeline, images, **steps, batch=4, seed=0, folder=tmp_path)
    assert not torch.equal(pipeline.vae.decoder.conv_in.weight, weights[0])
    assert not torch.equal(pipeline.unet.conv_in.weight, weights[1])
    assert all(torch.equal(before[name], p) for name, p in pipeline.text_encoder.named_parameters())


def test_the_innermost_stages_learn_in_the_first_steps_and_rest_in_the_others(made, monkeypatch):
    pipeline = load_pipeline(made / "assets" / "flora" / "pipeline").to(torch.float32)
    unet = pipeline.unet
    latents = encode_set(pipeline, sources.load_flora("train", ("daisy",), 4, progress=False))
    watched = [unet.down_blocks[3], unet.mid_block, unet.up_blocks[0], unet.down_blocks[2], unet.up_blocks[1]]
    seen, make = [], components.denoising_batch

    def noted(*args):
        seen.append([torch.cat([p.detach().flatten().clone() for p in stage.parameters()]) for stage in watched])
        return make(*args)

    monkeypatch.setattr(components, "denoising_batch", noted)
    settings = {"batch": 2, "lr": 1e-3, "dropout": 0.0, "ema": 0.0, "seed": 0, "folder": None, "describe": ""}
    components.train_unet(pipeline, latents, steps=4, inner_steps=2, **settings)
    moves = [[not torch.equal(a, b) for a, b in zip(*both, strict=True)] for both in zip(seen, seen[1:], strict=False)]
    assert moves == [[True] * 5, [True] * 5, [False] * 3 + [True] * 2]
    assert all(p.requires_grad for p in unet.parameters()), "whoever trains it next trains all of it"
    del seen[:]
    components.train_unet(pipeline, latents, steps=3, **settings)
    assert not torch.equal(seen[1][1], seen[2][1]), "and by default they learn to the end"
