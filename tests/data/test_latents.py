"""The latents cache and the noised batches, on untrained networks: shapes, statistics and targets."""

import pytest
import torch
from diffusers import DDIMScheduler

from kdcdiff.data import latents, sources
from kdcdiff.errors import UserError
from kdcdiff.models.pipeline import (
    SCHEDULER,
    assemble,
    new_autoencoder,
    new_clip,
    new_unet,
    text_encoder_of,
    tokenize,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def pictures():
    return sources.load_flora("train", ("daisy", "rose"), 6, progress=False)


@pytest.fixture(scope="module")
def pipeline(pictures):
    tokenizer = train_tokenizer(pictures.captions)
    text = text_encoder_of(new_clip(tokenizer, 0))
    return assemble(new_autoencoder(0), new_unet(0), text, tokenizer)


@pytest.fixture(scope="module")
def cache(pipeline, pictures):
    return latents.encode_set(pipeline, pictures)


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def test_the_cache_holds_what_the_networks_say(cache, pipeline, pictures):
    posterior = pipeline.vae.encode(latents.to_signed(pictures.images)).latent_dist
    scale = pipeline.vae.config.scaling_factor
    assert torch.allclose(cache.mean, posterior.mean * scale, atol=1e-5)
    assert torch.allclose(cache.std, posterior.std * scale, atol=1e-5)
    assert cache.texts[0] == "" and len(cache.texts) == len(set(pictures.captions)) + 1
    own = pipeline.text_encoder(tokenize(pipeline.tokenizer, [pictures.captions[4]]))[0]
    assert torch.allclose(cache.prompts[cache.captions[4]], own[0], atol=1e-5)


def test_prompts_agree_with_the_pipelines_own(cache, pipeline, pictures):
    own, _ = pipeline.encode_prompt(pictures.captions[0], "cpu", 1, False)
    assert torch.allclose(
        latents.embed(pipeline.text_encoder, pipeline.tokenizer, [pictures.captions[0]]), own, atol=1e-5
    )


def test_samples_have_the_posteriors_mean_and_deviation(cache):
    rows = torch.full((4000,), 3)
    draws = cache.sample(rows, seeded())
    assert torch.allclose(draws.mean(0), cache.mean[3], atol=5 * cache.std[3].max().item() / 4000**0.5)
    assert (draws.std(0) / cache.std[3]).mean() == pytest.approx(1, abs=0.01)


def test_the_cache_survives_the_disk(cache, tmp_path):
    cache.save(tmp_path)
    back = latents.LatentSet.load(tmp_path)
    for name in ("mean", "std", "labels", "captions", "prompts"):
        assert torch.equal(getattr(back, name), getattr(cache, name))
    assert (back.texts, back.classes) == (cache.texts, cache.classes)


def test_rows_of_a_class(cache):
    part = cache.of_classes(["rose"])
    assert len(part) == 6 and set(part.labels.tolist()) == {1}
    assert torch.equal(part.mean, cache.mean[6:])
    with pytest.raises(UserError, match="class='tulip'"):
        cache.of_classes(["tulip"])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_from_the_target_and_the_noisy_latent_the_clean_one_follows(kind):
    scheduler = DDIMScheduler(**SCHEDULER | {"prediction_type": kind})
    clean = torch.randn(5, 8, 8, 8, generator=seeded(1))
    batch = latents.add_noise(clean, torch.zeros(5, 2, 4), scheduler, seeded(2))
    for i in range(5):
        a = scheduler.alphas_cumprod[batch.timestep[i]]
        x, y = batch.noisy[i], batch.target[i]
        back = {
            "epsilon": (x - (1 - a).sqrt() * y) / a.sqrt(),
            "v_prediction": a.sqrt() * x - (1 - a).sqrt() * y,
            "sample": y,
        }[kind]
        assert torch.allclose(back, clean[i], atol=2e-3)


def test_a_batch_is_a_function_of_its_generator_and_drops_captions(cache):
    scheduler = DDIMScheduler(**SCHEDULER)
    rows = torch.arange(12)
    one, two = (latents.denoising_batch(cache, rows, scheduler, seeded(5), dropout=0.5) for _ in range(2))
    assert torch.equal(one.noisy, two.noisy) and torch.equal(one.prompt, two.prompt)
    empty = [torch.equal(p, cache.prompts[0]) for p in one.prompt]
    assert 0 < sum(empty) < 12
    assert not any(
        torch.equal(p, cache.prompts[0])
        for p in latents.denoising_batch(cache, rows, scheduler, seeded(5), dropout=0.0).prompt
    )
    assert all(
        torch.equal(p, cache.prompts[0])
        for p in latents.denoising_batch(cache, rows, scheduler, seeded(5), dropout=1.0).prompt
    )


def test_even_time_steps_cover_the_schedule_in_every_batch():
    for seed in range(20):
        steps = latents.draw_timesteps(8, 1000, seeded(seed), even=True)
        assert sorted(steps.div(125, rounding_mode="floor").tolist()) == list(range(8))
    plain = latents.draw_timesteps(8, 1000, seeded(0))
    assert torch.equal(plain, latents.draw_rows(8, 1000, seeded(0)))


def test_decoding_gives_pictures(cache, pipeline):
    images = latents.decode(pipeline.vae, cache.mean[:3])
    assert images.shape == (3, 3, 64, 64) and images.dtype == torch.uint8
