"""The first steps of a student, made again, are those that its training passed through."""

import torch
from safetensors.torch import load_file
from torch import nn

from kdcdiff.experiments.first_steps import first_steps, first_steps_artifact
from kdcdiff.experiments.run import open_run
from kdcdiff.training.loop import fit


def test_the_steps_made_again_lead_to_the_very_student(tmp_path):
    run = open_run("smoke", "flora", 0, tmp_path, distill_steps=2, distill_batch=2, sampler_steps=2)
    teacher, watched = first_steps(run)
    assert list(watched) == [0, 1, 2] and teacher.shape == watched[0].shape == (len(run.source.base), 3, 64, 64)
    assert not torch.equal(watched[0], watched[1]), "it learns"
    folder = first_steps_artifact(run).path
    made_again, trained = (load_file(folder / f"{name}.safetensors")["images"] for name in ("2", "end"))
    assert torch.equal(made_again, trained)


def test_a_warm_up_does_not_know_how_many_steps_are_to_come():
    def after_warmup(steps: int) -> torch.Tensor:
        model, seen = nn.Linear(3, 1), []
        with torch.no_grad():
            model.weight.fill_(0.5), model.bias.zero_()
        fit(
            model, lambda net, data, _: (net(data).square().mean(), {}), lambda _, g: torch.randn(4, 3, generator=g),
            steps=steps, lr=0.1, warmup=4, describe="", watch_every=4,
            watch=lambda _: seen.append(model.weight.detach().clone()),
        )  # fmt: skip
        return seen[0]

    assert torch.equal(after_warmup(4), after_warmup(12))
