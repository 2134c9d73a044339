"""What class-by-class training takes, one method at a time."""

import pytest

from kdcdiff.experiments import continual
from kdcdiff.training import continual as training


def test_every_method_is_timed_on_the_same_second_class(opened, monkeypatch):
    run = opened(continual_classes=2, continual_steps=2, latency_rounds=2)
    learn, seen = training.learn, []

    def listen(unet, latents, order, scheduler, method, **settings):
        seen.append((method, tuple(order), settings["base"], settings["seed"]))
        return learn(unet, latents, order, scheduler, method, **settings)

    monkeypatch.setattr(training, "learn", listen)
    seconds = continual.seconds(run)
    second = [name for name, kind in training.METHODS.items() if not kind.joint]
    assert list(seconds) == second and all(len(own) == 2 and min(own) > 0 for own in seconds.values())
    first, new = continual.class_order(run, 0)
    warm, *timed = seen
    assert warm[0] == "naive" and timed == [(name, (new,), [first], run.seed) for name in second] * 2, "in turn"
    assert continual.seconds(run) == seconds and len(seen) == 1 + 2 * len(second), "and once"


def test_what_is_compared_order_by_order_keeps_its_orders(opened):
    run = opened(continual_classes=2, continual_steps=2, continual_seeds=2, capacity=2)
    runs = continual.of_the_teacher(run)
    found = {method: continual.measured(repetitions) for method, repetitions in runs.items()}
    gain = found["latent-replay"]["retention"] - found["naive"]["retention"]
    pairs = zip(runs["latent-replay"], runs["naive"], strict=True)
    assert gain.replicates == pytest.approx([one.retention - other.retention for one, other in pairs]) and gain.n == 2
