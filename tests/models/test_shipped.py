"""A model that cannot be had is one line that says what to do; the hub's client and torch are made to fail for it."""

import json

import httpx2
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from kdcdiff import cli
from kdcdiff.cli import shrink
from kdcdiff.errors import UserError
from kdcdiff.models import shipped
from kdcdiff.models.pipeline import load_pipeline
from kdcdiff.models.unet_files import open_unet, read_resolution
from kdcdiff.process import on_full_gpu

from ..conftest import tiny_pipeline

NAME, COMMIT = "some-one/some-model", "a" * 40
HELD = {"model_index.json": "{}", "unet/config.json": "{}", "unet/diffusion_pytorch_model.safetensors": ""}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Lets a function answer instead of the hub; the cache is a folder of its own, and is returned."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def answer(request: httpx2.Request) -> httpx2.Response:
        return answers.pop()(request)

    answers: list = []

    def serve(how):
        answers[:] = [how] * 20
        set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))
        return tmp_path / f"models--{NAME.replace('/', '--')}"

    yield serve
    set_client_factory(default_client_factory)


def refused(code: str, status: int):
    return lambda request: httpx2.Response(status, headers={"X-Error-Code": code}, request=request)


def gated(request: httpx2.Request) -> httpx2.Response:
    """Tells everybody what there is, and gives it to nobody."""
    if "/tree/" in request.url.path:
        held = [{"type": "file", "path": name, "size": len(text), "oid": "0" * 40} for name, text in HELD.items()]
        return httpx2.Response(200, json=held, request=request)
    if "/api/" in request.url.path:
        return httpx2.Response(200, json={"id": NAME, "sha": COMMIT, "siblings": []}, request=request)
    return refused("GatedRepo", 403)(request)


def unplugged(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("no route to host", request=request)


FAILURES = {
    "gated": (gated, "is gated: accept its licence on its page of the hub, then `hf auth login`"),
    "missing": (refused("RepoNotFound", 404), "is not on the hub, or is private: look at its name again"),
    "disabled": (lambda r: httpx2.Response(
        403, headers={"X-Error-Message": "Access to this resource is disabled."}, request=r
    ), "was disabled on the hub; name another"),
    "no network": (unplugged, "is not on this machine, and the hub cannot be reached: `hf download some-one/some-mod"),
}  # fmt: skip


@pytest.mark.parametrize("read", [load_pipeline, open_unet, read_resolution])
@pytest.mark.parametrize("failure", FAILURES)
def test_what_the_hub_does_not_give_is_one_line(failure, read, hub):
    how, told = FAILURES[failure]
    hub(how)
    with pytest.raises(UserError) as error:
        read(NAME)
    assert str(error.value).startswith(f"pipeline={NAME!r}: {told}") and "\n" not in str(error.value)


def test_a_half_downloaded_model_is_one_line_where_there_is_no_network(hub):
    cache = hub(unplugged)
    snapshot = cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    for folder in ("refs", "trees"):
        (cache / folder).mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    files = {name: {"size": len(text), "blob_id": "0" * 40} for name, text in HELD.items()}
    (cache / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    with pytest.raises(UserError, match="is half downloaded, and the hub cannot be reached: `hf download some-one/so"):
        load_pipeline(NAME)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    tiny_pipeline(["a rose"]).save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    """A copy of the pipeline to break; its large files are the saved one's until they are written anew."""
    for file in (file for file in saved.rglob("*") if file.is_file()):
        copy = tmp_path / "pipeline" / file.relative_to(saved)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.hardlink_to(file)
    return tmp_path / "pipeline"


def test_a_whole_pipeline_is_not_torn(saved):
    assert shipped.torn(saved) == ""


def test_a_model_that_was_fetched_before_needs_no_network(hub, saved):
    cache = hub(unplugged)
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / COMMIT).symlink_to(saved)
    assert load_pipeline(NAME).unet.config.sample_size == 4


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("unet/config.json", "unet/config.json is missing"),
        ("vae/diffusion_pytorch_model.safetensors", "vae has no weights in safetensors"),
    ],
)
def test_a_file_that_was_not_copied_is_named(broken, file, told):
    (broken / file).unlink()
    with pytest.raises(UserError, match=f"cannot be loaded \\({told}: it is half downloaded or half copied; fetch it"):
        load_pipeline(broken)


def test_a_file_that_was_cut_short_is_named(broken):
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.unlink()
    for length in (len(whole) - 1, 100, 3, 0):
        file.write_bytes(whole[:length])
        assert shipped.torn(broken) == "unet/diffusion_pytorch_model.safetensors is cut short"
    with pytest.raises(UserError, match="cut short: it is half downloaded"):
        load_pipeline(broken)


def test_a_shard_that_did_not_come_is_named(broken):
    index = broken / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00002.safetensors"}}))
    assert shipped.torn(broken) == "unet/diffusion_pytorch_model-00002.safetensors is missing"


# --- a GPU without memory ------------------------------------------------------------------------------------


def fill(*own, **named):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def test_a_full_gpu_is_one_line_of_a_command(monkeypatch, capsys):
    monkeypatch.setattr(shrink, "run", fill)
    assert cli.main(["shrink", "flora", "--variant", "kdc-described"]) == 2
    said = capsys.readouterr().err
    told = "error: the GPU's memory is full (CUDA out of memory. Tried to allocate 2.00 GiB): smaller batches (--batch"
    assert said.startswith(told)
    assert said.count("\n") == 1 and "--device cpu" in said


def test_other_errors_of_torch_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), on_full_gpu():
        raise RuntimeError("shapes do not fit")
    with pytest.raises(UserError, match="GPU's memory is full"):
        on_full_gpu()(fill)()
