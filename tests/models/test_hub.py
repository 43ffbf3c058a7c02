"""Tests of fetching checkpoints from the hub, against the stand-in `fakehub` with an empty cache."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakehub import FakeHub
from random_checkpoints import (
    clip_config,
    naflex_config,
    save_clip_tokenizer,
    save_preprocessor,
    save_random_checkpoint,
    save_siglip_tokenizer,
    save_tiny_clip,
    save_tiny_siglip,
    split_into_shards,
)
from random_open_clip import open_clip_config, save_open_clip_checkpoint

from bliss_jax.models import hub as hub_module
from bliss_jax.models import load_model
from bliss_jax.models.hub import CONVERSION_AUTHOR, CONVERSION_TITLE, explain, fetch

NAME = "owner/model"
COMMIT, PULL = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Returns a hub with an empty cache, in this process."""
    from huggingface_hub import constants, utils

    reset = getattr(utils, "close_session", None) or utils._http.reset_sessions
    with FakeHub(tmp_path / "hub") as server:
        for name in (
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HF_HUB_DISABLE_XET",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "http_proxy",
            "https_proxy",
            "ALL_PROXY",
        ):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(hub_module.time, "sleep", lambda seconds: None)
        reset()
        yield server
        reset()


@pytest.fixture
def repository(hub):
    """Returns the folder of a repository with a tiny CLIP, and other files that are not needed."""
    folder = hub.root / NAME
    folder.mkdir(parents=True)
    save_tiny_clip(folder)
    (folder / "README.md").write_text("read me")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


def settings(folder, **fields):
    (folder / ".hub.json").write_text(json.dumps(fields))


def downloaded(hub):
    """Returns the names of the downloaded files, and forgets the log."""
    got = [
        Path(path).name
        for method, path, status, *_ in hub.log
        if method == "GET" and status in (200, 206) and not path.startswith("/api/models/")
    ]
    hub.log.clear()
    return got


# --- What is fetched -----------------------------------------------------------------------------


def test_a_repository_is_downloaded_once(hub, repository):
    model = load_model(NAME)
    assert model.revision == fetch(NAME).name
    names = downloaded(hub)
    assert sorted(names) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    assert names[0] == "config.json"
    assert names[-1] == "model.safetensors"
    assert load_model(NAME).weights_hash == model.weights_hash
    assert downloaded(hub) == []


def test_a_cached_commit_causes_no_request(hub, repository):
    settings(repository, commit=COMMIT)
    directory = fetch(NAME, COMMIT)
    assert directory.name == COMMIT
    hub.log.clear()
    assert fetch(NAME, COMMIT) == directory
    assert hub.log == []


def test_files_that_another_program_left_out_are_fetched(hub, repository):
    """`CLIPVisionModel.from_pretrained` leaves only the configuration and the weights."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url)
    for name in ("config.json", "model.safetensors"):
        api.hf_hub_download(NAME, name)
    downloaded(hub)
    load_model(NAME)
    names = downloaded(hub)
    assert "preprocessor_config.json" in names
    assert "model.safetensors" not in names


def test_shards_are_fetched_by_the_names_in_the_index(hub, repository):
    shards = split_into_shards(repository, stem="part")
    load_model(NAME)
    assert {file.name for file in shards} < set(downloaded(hub))


def test_a_tag_a_branch_and_a_commit_are_fetched(hub, repository):
    settings(repository, commit=COMMIT, revisions={"v1": ""})
    assert fetch(NAME, COMMIT) == fetch(NAME, "main") == fetch(NAME)
    assert fetch(NAME, "v1").name != COMMIT
    with pytest.raises(ValueError, match=r"at revision 'v2': the repository has no such commit"):
        fetch(NAME, "v2")


FAMILIES = ["clip", "metaclip_2", "siglip", "siglip2", "open_clip"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_from_an_empty_cache(hub, family):
    """The parity tests of each family compare its embeddings with PyTorch."""
    folder = hub.root / NAME
    folder.mkdir(parents=True)
    if family == "clip":
        save_tiny_clip(folder)
    elif family == "siglip":
        save_tiny_siglip(folder)
    elif family == "open_clip":
        save_open_clip_checkpoint(folder, open_clip_config(text={"vocab_size": 54}))
        save_clip_tokenizer(folder)
    else:
        naflex = family == "siglip2"
        text = {"vocab_size": 64, "eos_token_id": 1}
        config = naflex_config() if naflex else clip_config(model_type=family, text=text)
        save_random_checkpoint(folder, config)
        save_siglip_tokenizer(folder, ["a cat", "a dog", "the photo"] * 9, 24)
        fields = {"patch_size": 8, "max_num_patches": 20} if naflex else {}
        (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    fetched, local = load_model(NAME), load_model(folder)
    assert fetched.config == local.config
    assert fetched.weights_hash == local.weights_hash
    np.testing.assert_array_equal(fetched.tokenize(["a cat"]), local.tokenize(["a cat"]))


def test_a_tokenizer_in_another_repository_is_fetched(hub):
    save_open_clip_checkpoint(
        hub.root / NAME,
        open_clip_config(text={"vocab_size": 54, "hf_tokenizer_name": "owner/words"}),
    )
    words = hub.root / "owner/words"
    words.mkdir()
    save_clip_tokenizer(words)
    (words / "model.safetensors").write_bytes(b"not needed")
    assert load_model(NAME).tokenize(["ab"])[0, :4].tolist() == [52, 0, 27, 53]
    assert downloaded(hub).count("model.safetensors") == 0


# --- Refusals before the download ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flava", "altclip", "bert"])
@pytest.mark.parametrize("pickled", [True, False])
def test_other_architectures_are_refused_before_their_weights_are_fetched(
    hub, repository, kind, pickled
):
    (repository / "config.json").write_text(json.dumps({"model_type": kind}))
    if pickled:
        (repository / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"model type '{kind}'.* is not supported") as error:
        load_model(NAME)
    assert "save_pretrained" not in str(error.value)
    assert downloaded(hub) == ["config.json"]


def test_a_repository_without_a_configuration_is_refused(hub):
    (hub.root / NAME).mkdir(parents=True)
    (hub.root / NAME / "model.gguf").write_bytes(b"1")
    with pytest.raises(
        ValueError, match=r"neither config.json nor .*its files are \['model.gguf'\]"
    ):
        load_model(NAME)


@pytest.mark.parametrize("name", ["bliss-jax/untrainde", "bliss-jax/large"])
def test_built_in_names_cause_no_request(hub, name):
    with pytest.raises(ValueError, match="is not a model that is built into this library"):
        load_model(name)
    assert hub.log == []


@pytest.mark.parametrize("name", ["a/b/c", "not a name", "a/b..c", "a/../b"])
def test_impossible_names_cause_no_request(hub, name):
    with pytest.raises(ValueError, match="neither a directory nor the name of a repository"):
        load_model(name)
    assert hub.log == []


# --- Pickles and their conversions ---------------------------------------------------------------


def convert(repository, **pull):
    """Moves the safetensors file of a repository to a pull request."""
    copy = repository / "converted"
    copy.mkdir()
    for file in repository.iterdir():
        if file.is_file():
            shutil.copy(file, copy / file.name)
    (copy / "pytorch_model.bin").unlink()
    (repository / "model.safetensors").unlink()
    fields = {"num": 3, "title": CONVERSION_TITLE, "author": CONVERSION_AUTHOR, "status": "open"}
    revisions = {"refs/pr/3": "converted", PULL: "converted"}
    settings(repository, commit=COMMIT, revisions=revisions, pulls=[fields | pull])


def test_the_conversion_bots_pull_request_is_read(hub, repository):
    convert(repository)
    model = load_model(NAME)
    assert model.weights_hash == load_model(repository / "converted").weights_hash
    assert "pytorch_model.bin" not in downloaded(hub)


@pytest.mark.parametrize(
    "pull",
    [{"author": "somebody"}, {"title": "Add weights"}, {"status": "closed"}],
    ids=str,
)
def test_other_pull_requests_are_not_read(hub, repository, pull):
    convert(repository, **pull)
    with pytest.raises(ValueError, match="holds its weights only as a pickle"):
        load_model(NAME)
    assert not [path for _, path, *_ in hub.log if "refs" in path]
    assert not [method for method, *_ in hub.log if method == "POST"]


def test_a_pull_request_on_top_of_another_commit_is_not_read(hub, repository, monkeypatch):
    convert(repository)
    monkeypatch.setattr(hub_module._Repository, "conversion_of", lambda *_: None)
    with pytest.raises(ValueError, match="only as a pickle"):
        load_model(NAME)


def test_a_pinned_conversion_needs_no_search(hub, repository):
    convert(repository)
    load_model(NAME, revision=PULL)
    assert not [path for _, path, *_ in hub.log if "discussions" in path]


def test_pickles_are_never_opened(hub, repository):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (repository / "model.safetensors").unlink()
    (repository / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="never loaded"):
        load_model(NAME)
    assert "pytorch_model.bin" not in downloaded(hub)


# --- Faults --------------------------------------------------------------------------------------

REQUESTS = [
    "^GET /api/models/owner/model",
    "^HEAD /owner/model/resolve/[^/]+/config.json",
    "^GET /api/resolve-cache/.*/vocab.json",
    "^HEAD .*/model.safetensors",
    "^GET /cdn/.*/model.safetensors",
]


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("fault", [{"status": 503}, {"reset": True}], ids=str)
def test_one_fault_in_the_middle_is_repaired(hub, repository, request_, fault):
    hub.fault(request_, times=1, **fault)
    load_model(NAME)


def test_a_closed_connection_in_the_weights_is_repaired(hub, repository):
    hub.fault("^GET /cdn/", times=1, cut=1000)
    load_model(NAME)


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("fault", [{"status": 503}, {"reset": True}], ids=str)
def test_lasting_faults_are_errors_with_advice(hub, repository, request_, fault, caplog, capfd):
    hub.fault(request_, times=1000, **fault)
    expected = "hub answered with HTTP 503" if "status" in fault else "connection to the hub failed"
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=expected) as error:
        load_model(NAME)
    assert "revision None" not in str(error.value)
    assert "Traceback" not in str(error.value)
    assert "Retrying" not in caplog.text + "".join(capfd.readouterr())


def test_an_unreachable_hub_is_an_error_with_advice(hub, repository, monkeypatch, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"connection to the hub failed .*HF_ENDPOINT") as error:
        load_model(NAME)
    assert str(error.value).startswith("cannot get 'owner/model': ")
    assert caplog.text == ""


def test_a_complete_cache_replaces_an_unreachable_hub(hub, repository, monkeypatch):
    first = load_model(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_model(NAME).revision == first.revision


def test_offline_mode_is_named(hub, repository, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE=1 forbids downloads"):
        load_model(NAME)
    assert hub.log == []


def test_a_complete_cache_suffices_offline(hub, repository, monkeypatch):
    from huggingface_hub import constants

    settings(repository, commit=COMMIT)
    directory = fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    for revision in (None, "main", COMMIT):
        assert fetch(NAME, revision) == directory
    assert hub.log == []
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="the local cache does not hold all of its files"):
        fetch(NAME)


def test_a_stale_token_is_named(hub, repository, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    with pytest.raises(ValueError, match=r"refused the access token .*unset HF_TOKEN"):
        load_model(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    load_model(NAME)


def test_restricted_and_absent_repositories_are_named(hub, repository):
    with pytest.raises(ValueError, match=r"'owner/absent': the hub has no such public repository"):
        load_model("owner/absent")
    settings(repository, private=True)
    with pytest.raises(ValueError, match="no such public repository"):
        load_model(NAME)
    settings(repository, gated=True)
    with pytest.raises(ValueError, match="access to this repository is restricted"):
        load_model(NAME)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "Data processing error: CAS service error : Reqwest Error: cas-server.xethub.hf.co"
        ),
        type("XetDownloadError", (Exception,), {})("no route to host"),
    ],
)
def test_an_unreachable_content_store_is_named(error, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "Set HF_HUB_DISABLE_XET=1" in explain(error, NAME, None)


def test_a_damaged_file_is_fetched_again_after_its_deletion(hub, repository):
    model = load_model(NAME)
    file = fetch(NAME) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.resolve().write_bytes(content)
    with pytest.raises(ValueError, match=f"Delete {file.resolve()} and load") as error:
        load_model(NAME)
    Path(str(error.value).split("Delete ")[1].split(" and load")[0]).unlink()
    assert load_model(NAME).weights_hash == model.weights_hash


# --- Whole processes -----------------------------------------------------------------------------


def run(hub, tmp_path, code, **environment):
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE")
    }
    variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=variables)  # noqa: S603


@pytest.mark.slow
def test_a_new_process_with_an_empty_cache_prints_nothing(hub, repository, tmp_path):
    code = f"import bliss_jax as bj; bj.load_model({NAME!r}).encode_texts(['a'])"
    done = run(hub, tmp_path, code, HF_HUB_DISABLE_PROGRESS_BARS="1")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "PyTorch" not in done.stderr
    done = run(hub, tmp_path, code, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parity
@pytest.mark.torch
def test_the_advice_for_pickles_ends_in_a_directory_that_loads(hub, repository, tmp_path):
    """The commands of the message are run as they are, with the directory's name."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(repository / "model.safetensors")
    expected = load_model(repository).weights_hash
    (repository / "model.safetensors").unlink()
    torch.save(tensors, repository / "pytorch_model.bin")
    save_preprocessor(repository, 32, image_processor_type="CLIPImageProcessor")
    with pytest.raises(ValueError, match="only as a pickle") as error:
        load_model(NAME)
    commands = str(error.value).split("`")[1::2]
    assert len(commands) == 2
    target = tmp_path / "converted"
    lines = ["from transformers import AutoModel, AutoProcessor", *commands]
    done = run(hub, tmp_path, "\n".join(lines).replace("DIRECTORY", str(target)))
    assert done.returncode == 0, done.stderr
    found = load_model(target)
    assert found.weights_hash == expected
    assert found.tokenize(["ab"])[0, :4].tolist() == [52, 0, 27, 53]
