"""Published networks from a folder: their checksums, their own libraries' results, and nothing unpickled."""

import hashlib
import json
import shutil

import lpips
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from kdcdiff.errors import UserError
from kdcdiff.metrics import similarity
from kdcdiff.metrics.published import published

from .conftest import draw


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    """LPIPS with random weights, in a folder as the published one would lie."""
    torch.manual_seed(3)
    network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    for name, parameter in network.named_parameters():
        if name.startswith("lin"):
            parameter.data.abs_()
    return network.eval(), published_folder(
        tmp_path_factory.mktemp("alex"), "lpips-alex.safetensors", network.state_dict()
    )


def published_folder(folder, file, state):
    save_file({name: value.clone().contiguous() for name, value in state.items()}, folder / file)
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(json.dumps({file: digest}))
    return folder


def test_lpips_is_the_lpips_package_s_with_its_input_range(alex, sets):
    network, folder = alex
    ours = published("lpips-alex", folder)
    a, b = sets[0][:3], sets[1][:3]
    with torch.no_grad():
        theirs = network(a.float() / 255, b.float() / 255, normalize=True).flatten()
    assert torch.allclose(ours(a, b), theirs, rtol=1e-5) and theirs.min() > 0
    assert similarity.lpips_paired(a, b, ours).value == pytest.approx(float(theirs.mean()), rel=1e-5)


def test_published_weights_are_checked(alex, tmp_path):
    file = "lpips-alex.safetensors"
    folder = shutil.copytree(alex[1], tmp_path / "a")
    (folder / "checksums.json").write_text(json.dumps({file: "0" * 64}))
    with pytest.raises(UserError, match="has the sha256 [0-9a-f]{12}..., not 000000000000"):
        published("lpips-alex", folder)
    (folder / "checksums.json").unlink()
    with pytest.raises(UserError, match="needs checksums.json with the sha256 of lpips-alex.safetensors"):
        published("lpips-alex", folder)
    with pytest.raises(UserError, match="must be a folder that holds lpips-alex.safetensors"):
        published("lpips-alex", tmp_path)
    (tmp_path / "b").mkdir()
    other = published_folder(tmp_path / "b", file, {"lin0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="do not hold lpips-alex"):
        published("lpips-alex", other)


def test_a_published_clip_loads_from_a_folder(clip, tmp_path, sets):
    clip.model.save_pretrained(tmp_path)
    clip.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size=64, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(tmp_path)
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "checksums.json").write_text(json.dumps({"model.safetensors": digest}))
    loaded = published("clip-vit-b-32", tmp_path)
    assert loaded.name == "clip-vit-b-32"
    assert torch.equal(loaded.images(sets[0][:2]), clip.images(sets[0][:2]))
    assert torch.allclose(loaded.texts(["a blue tulip"]), clip.texts(["a blue tulip"]), atol=1e-5)


def test_inception_loads_through_torch_fidelity_without_unpickling(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Bare(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *own, **more):
            return None

    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    torch.manual_seed(0)
    network = Bare("inception-v3-compat", ["2048", "logits_unbiased"], verbose=False).eval()
    monkeypatch.undo()
    folder = published_folder(tmp_path, "inception.safetensors", network.state_dict())
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    ours = published("inception", folder)
    assert ours.name == "inception" and ours(draw(1, 5)).shape == (1, 2048)
    image = draw(1, 4)
    with torch.no_grad():
        rows, logits = network(image)
    assert torch.allclose(ours(image), rows, atol=1e-5)
    assert torch.allclose(ours.logits(rows), logits, atol=1e-5)


def test_an_unknown_name_and_one_that_is_not_on_the_hub():
    with pytest.raises(UserError, match="^extractor='vgg': must be one of inception"):
        published("vgg")
    with pytest.raises(UserError, match="^extractor='inception': give a folder that holds inception.safetensors"):
        published("inception")
