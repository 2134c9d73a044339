"""CLIP score, LPIPS in its four readings, and PSNR: parity with the libraries, cases known by hand."""

import math
from dataclasses import dataclass

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.multimodal import clip_score as torchmetrics_clip_score

from kdcdiff.errors import UserError
from kdcdiff.metrics import extractors, similarity
from kdcdiff.models.pipeline import tokenize

from .conftest import draw

# --- CLIP ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Strings that pass for a tensor on their way through torchmetrics."""

    texts: tuple

    def to(self, device):
        return self


class Bridge(torch.nn.Module):
    """A `Clip` as torchmetrics takes its model; it expects tensors where transformers 5 wraps."""

    def __init__(self, clip):
        super().__init__()
        self.clip, self.config = clip, None

    def get_image_features(self, images):
        return self.clip.images(images)

    def get_text_features(self, texts, mask):
        return self.clip.texts(texts.texts)


def processor(images=(), text=(), **_):
    if len(images):
        return {"pixel_values": torch.stack(list(images))}
    return {"input_ids": Texts(tuple(text)), "attention_mask": Texts(tuple(text))}


def test_clip_score_agrees_with_torchmetrics_through_a_bridge(clip, sets):
    images, prompts = sets[0][:6], ["a photo of a rose", "a blue tulip"] * 3
    ours = similarity.clip_score(images, prompts, clip, scale="torchmetrics")
    theirs = torchmetrics_clip_score(list(images), prompts, lambda: (Bridge(clip), processor))
    assert ours.value == pytest.approx(float(theirs), rel=1e-4)
    assert ours.extractor == "tiny CLIP" and ours.n == 6


def test_clip_images_are_what_transformers_prepares(clip):
    from PIL import Image
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image = draw(1, 9)[:, :, :48, :]  # 48 x 64: resized to 64 x 85, then cropped
    theirs = processor(Image.fromarray(image[0].permute(1, 2, 0).numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        wanted = clip.model.visual_projection(clip.model.vision_model(pixel_values=theirs).pooler_output)
    assert float(F.cosine_similarity(clip.images(image), wanted)) > 0.9999


def test_clip_text_is_what_the_pipeline_trains_on(clip):
    ids = tokenize(clip.tokenizer, ["a blue tulip"])
    with torch.no_grad():
        wanted = clip.model.text_projection(clip.model.text_model(input_ids=ids).pooler_output)
    assert torch.allclose(clip.texts(["a blue tulip"]), wanted, atol=1e-6)


def test_the_three_clip_scales(clip, sets):
    images, prompts = sets[0][:8], ["a blue tulip"] * 8
    cosine = similarity.clip_cosines(images, prompts, clip)
    assert similarity.clip_score(images, prompts, clip).value == pytest.approx(float(cosine.mean()))
    assert similarity.clip_score(images, prompts, clip, scale="torchmetrics").value == pytest.approx(
        100 * float(cosine.mean()), rel=1e-6
    )
    assert similarity.clip_score(images, prompts, clip, scale="clipscore").value == pytest.approx(
        2.5 * float(cosine.clamp(min=0).mean()), rel=1e-6, abs=1e-9
    )


# --- perceptual distances ------------------------------------------------------------------------------------


def test_the_in_domain_distance_by_hand(classifier, sets):
    ours = extractors.perceptual(classifier)
    a, b = sets[0][:2], sets[1][:2]
    total = torch.zeros(2)
    x, y = (s.float() / 127.5 - 1 for s in (a, b))
    with torch.no_grad():
        for layer in classifier.body:
            if isinstance(layer, torch.nn.MaxPool2d):
                total += ((x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)) ** 2).sum(1).mean((1, 2))
            x, y = layer(x), layer(y)
    assert torch.allclose(ours(a, b), total, rtol=1e-4)
    assert ours(a, a).abs().max() == 0 and "unlearned" in ours.name


class Stages(torch.nn.Module):
    """A sequential trunk's activations before each of its poolings."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        out = []
        for layer in self.body:
            if isinstance(layer, torch.nn.MaxPool2d):
                out.append(x)
            x = layer(x)
        return out


class Unlearned(lpips.LPIPS):
    """lpips' own arithmetic in its "baseline" form, without weights learnt from human judgement, over another trunk."""

    def __init__(self, trunk):
        torch.nn.Module.__init__(self)
        self.net, self.L = trunk, sum(isinstance(layer, torch.nn.MaxPool2d) for layer in trunk.body)
        self.lpips, self.spatial, self.version = False, False, "0.1"
        self.scaling_layer = torch.nn.Identity()


def test_the_in_domain_distance_is_what_lpips_computes_over_the_same_stages(classifier, sets):
    a, b = sets[0][:5], sets[1][:5]
    with torch.no_grad():
        theirs = Unlearned(Stages(classifier.body))(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten()
    assert torch.allclose(extractors.perceptual(classifier)(a, b), theirs, rtol=1e-6)


def test_the_four_readings_of_lpips(classifier, features, sets):
    network = extractors.perceptual(classifier)
    a, b = sets[0][:30], sets[1][:30]
    assert similarity.lpips_paired(a, a, network).value == 0
    assert similarity.lpips_cross(a, a, network, pairs=50).value > 0  # pairs are random, not each image with itself
    assert similarity.lpips_diversity(a[:1].expand(9, -1, -1, -1), network, pairs=20).value == 0
    assert similarity.lpips_diversity(a, network, pairs=50).value > 0
    copies = torch.cat([a[4:7], b[:1]])
    nearest, which = similarity.lpips_nearest(copies, a, network, features)
    assert which[:3].tolist() == [4, 5, 6]
    apart, _ = similarity.lpips_nearest(b[:4], a, network, features)
    assert nearest.value < apart.value
    exact, _ = similarity.lpips_nearest(b[:4], a, network, features, candidates=30)
    by_hand = [float(network(b[i : i + 1].expand(30, -1, -1, -1), a).min()) for i in range(4)]
    assert exact.value == pytest.approx(np.mean(by_hand), rel=1e-5) and exact.value <= apart.value + 1e-6


# --- pixels, and bad input -----------------------------------------------------------------------------------


def test_psnr_by_hand_and_what_it_refuses():
    reference = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    images = reference + torch.tensor([5, 10, 20], dtype=torch.uint8)[:, None, None, None]
    by_hand = [20 * math.log10(255 / d) for d in (5, 10, 20)]
    found = similarity.psnr(images, reference)
    assert found.value == pytest.approx(sum(by_hand) / 3, rel=1e-5) and found.n == 3 and found.unit == "dB"
    with pytest.raises(UserError, match="must be finite"):
        similarity.psnr(reference, reference)
    with pytest.raises(UserError, match="images=.3, 3, 8, 8.: must be .2, 3, 8, 8."):
        similarity.psnr(images, reference[:2])


@pytest.mark.parametrize(
    "call,line",
    [
        (
            lambda a, c, p: similarity.clip_score(a[:4], ["a rose"] * 3, c),
            "prompts=3: fewer than the images, at least 4",
        ),
        (lambda a, c, p: similarity.clip_score(a[:4], ["a rose"] * 5, c), "prompts=5: more than the 4 images"),
        (
            lambda a, c, p: similarity.clip_score(a[:4], ["a rose"] * 4, c, scale="percent"),
            "scale='percent': must be one of",
        ),
        (lambda a, c, p: similarity.lpips_paired(a[:3], a[:2], p), "real=2"),
        (lambda a, c, p: p(a[:3], a[:3, :, :32]), "images=(3, 3, 32, 64): must have the shape of their partners"),
    ],
)
def test_bad_input_is_one_clear_line(sets, clip, classifier, call, line):
    with pytest.raises(UserError) as error:
        call(sets[0], clip, extractors.perceptual(classifier))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
