"""Cross-attention maps: images stay, maps are the attention that the layers really use, coverage is what it says."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from kdcdiff.errors import UserError
from kdcdiff.sampling import attention
from kdcdiff.sampling import generate as sampling

from ..conftest import tiny_pipeline

PROMPTS = ["a photo of a red rose", "a photo of a blue tulip", "a photo of a monarch butterfly"]
WORDS = ["rose", "tulip", "monarch butterfly"]


@pytest.fixture(scope="module")
def pipeline():
    pipe = tiny_pipeline(PROMPTS)
    for name, parameter in pipe.unet.named_parameters():
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter.data *= 20  # so that attention is far from even
    return pipe


SETTINGS = {"seed": 1, "steps": 3, "progress": False}


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_recording_changes_no_bit_and_leaves_nothing_behind(pipeline, guidance):
    processors = dict(pipeline.unet.attn_processors)
    plain = sampling.generate(pipeline, PROMPTS, guidance=guidance, batch_size=2, **SETTINGS)
    seen = attention.generate(pipeline, PROMPTS, WORDS, guidance=guidance, batch_size=2, **SETTINGS)
    assert torch.equal(plain, seen.images)
    assert pipeline.unet.attn_processors == processors
    assert seen.maps.shape == (3, 1, 16, 16) and seen.maps.min() >= 0 and seen.maps.max() <= 1
    assert seen.maps[:, 0].flatten(1).std(1).min() > 1e-4


class Spy(AttnProcessor):
    """An independent witness: diffusers' explicit processor, with its probabilities kept."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        original = attn.get_attention_scores

        def keep(*own):
            scores = original(*own)
            if encoder_hidden_states is not None:
                self.kept.append(scores.clone())
            return scores

        attn.get_attention_scores = keep
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        finally:
            del attn.get_attention_scores


def test_maps_are_the_probabilities_that_the_layers_use(pipeline):
    unet, tokenizer = pipeline.unet, pipeline.tokenizer
    x, context = torch.randn(2, 4, 4, 4), torch.randn(2, 32, 16)
    weights = torch.zeros(2, 1, 32)
    weights[0, 0, 5], weights[1, 0, 2] = 1, 1
    recorder = attention.Recorder(weights)
    with torch.no_grad(), attention.recording(unet, recorder):
        unet(x, 500, context)
    own, kept = dict(unet.attn_processors), []
    unet.set_attn_processor(Spy(kept))
    with torch.no_grad():
        unet(x, 500, context)
    unet.set_attn_processor(own)
    sums = list(recorder.sums.values())
    assert len(sums) == len(kept) == 4  # one down, two up, one in the middle
    assert tokenizer.model_max_length == 32
    for ours, theirs in zip(sums, kept, strict=True):
        witness = theirs.unflatten(0, (2, -1)).mean(1)  # (2, Q, 32)
        assert torch.allclose(ours[0, 0].flatten(), witness[0, :, 5], atol=1e-6)
        assert torch.allclose(ours[1, 0].flatten(), witness[1, :, 2], atol=1e-6)


def test_a_guided_batch_reads_its_conditioned_half(pipeline):
    x, context = torch.randn(1, 4, 4, 4), torch.randn(1, 32, 16)
    weights = torch.zeros(1, 1, 32)
    weights[0, 0, 3] = 1
    alone, guided = attention.Recorder(weights), attention.Recorder(weights)
    with torch.no_grad():
        with attention.recording(pipeline.unet, alone):
            pipeline.unet(x, 500, context)
        with attention.recording(pipeline.unet, guided):
            pipeline.unet(torch.cat([x, x]), 500, torch.cat([torch.randn(1, 32, 16), context]))
    assert torch.allclose(alone.maps((8, 8)), guided.maps((8, 8)), atol=1e-5)


def test_maps_average_over_calls_and_layers():
    recorder = attention.Recorder(torch.tensor([[[1.0, 0.0]]]))  # one word, the first of two tokens
    for value in (0.2, 0.4):
        recorder.add("fine", torch.full((1, 3, 4, 2), value))  # (N, heads, Q, L)
    recorder.add("coarse", torch.full((1, 3, 1, 2), 0.9))
    assert torch.allclose(recorder.maps((4, 4)), torch.full((1, 1, 4, 4), (0.3 + 0.9) / 2))


def test_several_words_at_once_are_each_alone(pipeline):
    both = attention.generate(pipeline, PROMPTS[:1], [("red", "rose")], **SETTINGS).maps
    assert both.shape == (1, 2, 16, 16)
    for k, word in enumerate(("red", "rose")):
        alone = attention.generate(pipeline, PROMPTS[:1], [word], **SETTINGS).maps[:, 0]
        assert torch.allclose(both[:, k], alone, atol=1e-7)


def test_tokens_of_a_word_are_found_by_spelling(pipeline):
    places = attention.token_places(pipeline.tokenizer, "a photo of a red rose", "red rose")
    ids = pipeline.tokenizer("a photo of a red rose").input_ids
    assert pipeline.tokenizer.decode([ids[i] for i in places]).strip() == "red rose"
    assert attention.token_places(pipeline.tokenizer, "a rose, a rose", "rose")[0] < 4  # the first time


def test_maps_of_given_images(pipeline):
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    maps = attention.of_images(pipeline, images, PROMPTS, WORDS, seed=0)
    assert maps.shape == (3, 1, 16, 16)
    assert torch.allclose(maps, attention.of_images(pipeline, images, PROMPTS, WORDS, seed=0, batch_size=2), atol=1e-5)
    assert not torch.allclose(maps, attention.of_images(pipeline, images, PROMPTS, WORDS, seed=1), atol=1e-5)


def test_coverage_by_hand():
    mask = torch.tensor([[[1, 1], [0, 0]]]).bool()
    cases = {
        1.0: [[0.9, 0.8], [0.1, 0.2]],
        0.0: [[0.1, 0.2], [0.8, 0.9]],
        0.5: [[0.3, 0.3], [0.3, 0.3]],
        0.75: [[0.9, 0.2], [0.1, 0.3]],
    }
    for wanted, values in cases.items():
        assert attention.coverage(torch.tensor([values]), mask).tolist() == [wanted]
        scaled = attention.coverage(torch.tensor([values]) * 7, mask.to(torch.uint8) * 255)
        assert scaled.tolist() == [wanted]


def test_coverage_agrees_with_torchmetrics():
    from torchmetrics.functional.classification import binary_auroc

    maps, masks = torch.rand(4, 12, 12).mul(8).round(), torch.rand(4, 12, 12) > 0.6  # with ties
    ours = attention.coverage(maps, masks)
    for own, map_, mask in zip(ours, maps, masks, strict=True):
        assert float(own) == pytest.approx(float(binary_auroc(map_.flatten() / 8, mask.flatten().long())), abs=1e-6)


def test_pictures_of_maps():
    maps = torch.tensor([[[0.0, 0.5], [0.25, 1.0]]]) * 3 + 1
    assert attention.grayscale(maps).tolist() == [[[0, 128], [64, 255]]]
    images = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    assert torch.equal(attention.overlay(images, maps, strength=0), images)
    painted = attention.overlay(images, maps, strength=1, colours="gray")
    assert (painted[0, 0].int() - attention.grayscale(maps)[0].int()).abs().max() <= 1


@pytest.mark.parametrize(
    "call,line",
    [
        (
            lambda p: attention.generate(p, PROMPTS, ["rose"], **SETTINGS),
            "words=1: must be one entry for each of the 3 prompts",
        ),
        (
            lambda p: attention.generate(p, PROMPTS, ["iris", *WORDS[1:]], **SETTINGS),
            "word='iris': must occur in the prompt",
        ),
        (lambda p: attention.generate(p, PROMPTS, ["rose", ("blue", "tulip"), "a"], **SETTINGS), "words="),
        (lambda p: attention.generate(p, PROMPTS, WORDS, **(SETTINGS | {"steps": 0})), "steps=0"),
        (
            lambda p: attention.of_images(p, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), PROMPTS, WORDS, seed=0),
            "prompts=3",
        ),
        (
            lambda p: attention.coverage(torch.rand(1, 4, 4), torch.zeros(1, 4, 4).bool()),
            "masks=0: this image's mask",
        ),
        (lambda p: attention.coverage(torch.rand(1, 4, 4), torch.zeros(1, 8, 8).bool()), "masks=(1, 8, 8)"),
        (lambda p: attention.overlay(torch.zeros(1, 3, 2, 2), torch.rand(1, 2, 2), strength=2), "strength=2"),
    ],
)
def test_bad_input_is_one_clear_line(pipeline, call, line):
    with pytest.raises(UserError) as error:
        call(pipeline)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert not any(type(p).__name__ == "_Beside" for p in pipeline.unet.attn_processors.values())
