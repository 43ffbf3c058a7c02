"""Checkpoints on the Hugging Face Hub: which files are needed, and what a failure means.

A snapshot in the local cache that is complete causes no request if its revision is a commit. Otherwise one
request lists the repository's files, the small files that describe the model are downloaded if they are
missing, the architecture is checked, and the weights are downloaded last. Another program may have filled the
cache with a part of these files.

A repository that holds only a pickle is read from the pull request of the hub's conversion bot, if there is
one for the same commit. That is how transformers finds it as well. No conversion is started.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from bliss_jax import _require
from bliss_jax.models.layout import (
    CONFIG,
    OPEN_CLIP_CONFIG,
    Layout,
    PickleOnlyError,
    check_architecture,
    config_fields,
    find_layout,
    has_weights,
    shard_names,
)
from bliss_jax.models.quiet import quiet_hub

DESCRIPTIONS = (
    CONFIG,
    OPEN_CLIP_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""Files that describe a model, i.e. all that are needed except the weights."""
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
)
"""A tokenizer can be read from any one of these groups of files."""

CONVERSION_TITLE = "Adding `safetensors` variant of this model"
CONVERSION_AUTHOR = "SFconvertbot"
_TRIES = 3
_COMMIT = re.compile(r"[0-9a-f]{40}")
Result = TypeVar("Result")


def fetch(repository: str, revision: str | None = None) -> Path:
    """Downloads a checkpoint from the Hugging Face Hub, or finds it in the local cache.

    Args:
        repository: Its name on the hub, "owner/name".
        revision: A commit, tag or branch. None means the main branch.

    Returns:
        The directory of the snapshot. Its name is the commit.

    Raises:
        ValueError: The repository or revision does not exist or is not accessible, the network fails, the
            files are not in the cache while offline, the model is of an unsupported family, or its weights
            exist only as a pickle. The message says what to do.
    """
    _check_name(repository)
    with quiet_hub():
        cached = _cached(repository, revision)
        if cached is not None and is_complete(cached):
            if _COMMIT.fullmatch(cached.name) and cached.name == revision:
                return cached
            if _offline():
                return cached
        try:
            directory = _fetch(_Repository(repository, revision))
            _write_reference(repository, revision, directory.name)
            return directory
        except _NetworkError:
            # A complete snapshot of this branch serves without the network, as in huggingface_hub.
            if cached is not None and is_complete(cached):
                return cached
            raise


def fetch_tokenizer(repository: str) -> Path:
    """Downloads the files of a tokenizer, or finds them in the local cache.

    Raises:
        ValueError: As for `fetch`.
    """
    _check_name(repository)
    with quiet_hub():
        cached = _cached(repository, None)
        if cached is not None and has_tokenizer(cached):
            return cached
        remote = _Repository(repository, None)
        commit, names = remote.files()
        directory = remote.download(sorted(names & set(DESCRIPTIONS)), commit)
        if not has_tokenizer(directory):
            raise ValueError(f"{repository} holds no tokenizer, expected one of {TOKENIZER_FILES}")
        return directory


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds the files of a tokenizer."""
    return any(all((directory / file).is_file() for file in files) for files in TOKENIZER_FILES)


def is_complete(directory: Path) -> bool:
    """Whether a snapshot holds weights, configuration, preprocessing and tokenizer."""
    if not has_weights(directory):
        return False
    if (directory / OPEN_CLIP_CONFIG).is_file():
        return True  # its tokenizer may be in another repository
    processors = ("preprocessor_config.json", "processor_config.json")
    described = (directory / CONFIG).is_file() and any(
        (directory / name).is_file() for name in processors
    )
    return described and has_tokenizer(directory)


def weight_names(repository: str, names: Iterable[str], model_type: object = "clip") -> Layout:
    """Returns the layout of a repository with these files; see `find_layout`."""
    return find_layout(repository, names, model_type)


def _fetch(remote: "_Repository") -> Path:
    commit, names = remote.files()
    try:
        return _complete(remote, commit, names)
    except PickleOnlyError:
        conversion = remote.conversion_of(commit)
        if conversion is None:
            raise
        return _complete(remote, *remote.files(conversion))


def _complete(remote: "_Repository", commit: str, names: set[str]) -> Path:
    """Downloads the missing files of a commit: descriptions, then weights."""
    described = sorted(names & set(DESCRIPTIONS))
    if not {CONFIG, OPEN_CLIP_CONFIG} & names:
        raise ValueError(
            f"{remote.name} holds neither {CONFIG} nor {OPEN_CLIP_CONFIG}: not a checkpoint of "
            f"transformers or OpenCLIP{_files_hint(names)}"
        )
    # The configuration decides first whether anything else is worth a download.
    configs = [name for name in described if name in (CONFIG, OPEN_CLIP_CONFIG)]
    directory = remote.download(configs, commit)
    check_architecture(directory)
    model_type = config_fields(directory / CONFIG).get("model_type")
    layout = find_layout(remote.name, names, model_type)
    remote.download(described, commit)
    remote.download([layout.weights], commit)
    if layout.is_index:
        remote.download(shard_names(directory / layout.weights), commit)
    return directory


def _files_hint(names: set[str]) -> str:
    return f"; its files are {sorted(names)[:8]}" if names else "; it is empty"


class _NetworkError(ValueError):
    """The hub could not be reached or answered with a server error."""


class _Repository:
    """A repository on the hub."""

    def __init__(self, name: str, revision: str | None):
        _require("huggingface_hub", "encoders")
        from huggingface_hub import HfApi

        self.name, self.revision = name, revision
        # huggingface_hub reads HF_ENDPOINT when it is imported; a later change is respected here.
        self.api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)

    def files(self, revision: str | None = None) -> tuple[str, set[str]]:
        """Returns the commit of a revision and the names of its files."""
        info = self.call(self.api.model_info, self.name, revision=revision or self.revision)
        return str(info.sha), {sibling.rfilename for sibling in info.siblings or ()}

    def download(self, names: Iterable[str], commit: str) -> Path:
        """Downloads the named files that the cache lacks, and returns the snapshot's directory."""
        directory = _snapshot(self.name, commit)
        for name in names:
            if not (directory / name).is_file():
                file = self.call(self.api.hf_hub_download, self.name, name, revision=commit)
                directory = Path(file).parents[name.count("/")]
        return directory

    def conversion_of(self, commit: str) -> str | None:
        """Returns the commit of the conversion bot's open pull request on top of `commit`, if any."""
        for pull in self.call(lambda: list(self.api.get_repo_discussions(self.name))):
            if (
                pull.is_pull_request
                and pull.status == "open"
                and pull.title == CONVERSION_TITLE
                and pull.author == CONVERSION_AUTHOR
            ):
                reference = f"refs/pr/{pull.num}"
                commits = self.call(self.api.list_repo_commits, self.name, revision=reference)
                history = [found.commit_id for found in commits]
                if history[1:2] == [commit]:
                    return history[0]
        return None

    def call(self, function: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Calls a function of huggingface_hub; repeats it after a passing fault and explains errors."""
        if _offline():
            raise ValueError(_offline_message(_what(self.name, self.revision)))
        for attempt in range(1, _TRIES + 1):
            start = time.monotonic()
            try:
                return function(*args, **options)
            except Exception as error:
                passing = _is_passing(error)
                # A call that took long has been repeated by huggingface_hub itself.
                repeated = time.monotonic() - start > 5
                if not passing or repeated or attempt == _TRIES:
                    kind = _NetworkError if passing else ValueError
                    raise kind(explain(error, self.name, self.revision)) from error
            time.sleep(0.5 * attempt)
        raise AssertionError("unreachable")


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def _status(error: BaseException) -> int | None:
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    return None


def _is_transport(error: BaseException) -> bool:
    """Whether an error or one of its causes comes from an HTTP client or a socket."""
    clients = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"}
    return any(
        isinstance(cause, ConnectionError | TimeoutError)
        or type(cause).__module__.split(".")[0] in clients
        for cause in _causes(error)
    )


def _is_xet(error: BaseException) -> bool:
    return any(
        "xet" in type(cause).__module__.lower()
        or "xet" in type(cause).__name__.lower()
        or "xet" in str(cause).lower()
        or "cas-server" in str(cause).lower()
        for cause in _causes(error)
    )


def _is_passing(error: BaseException) -> bool:
    """Whether an error may go away by itself: a broken connection, a server error or a rate limit."""
    names = {type(cause).__name__ for cause in _causes(error)}
    if "OfflineModeIsEnabled" in names or "HFValidationError" in names:
        return False
    status = _status(error)
    if status is not None:
        return status >= 500 or status == 429
    return _is_transport(error) or _is_xet(error)


def explain(error: BaseException, repository: str, revision: str | None) -> str:
    """Returns a message that says what failed and what to do next."""
    what = _what(repository, revision)
    names, status = {type(cause).__name__ for cause in _causes(error)}, _status(error)
    detail = " ".join(str(error).split())[:300]
    if "OfflineModeIsEnabled" in names or _offline():
        return _offline_message(what)
    if "GatedRepoError" in names:
        return (
            f"{what}: access to this repository is restricted. Accept its terms on its page on the hub, and "
            "log in with `hf auth login` or set HF_TOKEN"
        )
    if "RevisionNotFoundError" in names:
        return f"{what}: the repository has no such commit, tag or branch"
    if "EntryNotFoundError" in names or "RemoteEntryNotFoundError" in names:
        return f"{what}: the repository lacks a file that is needed: {detail}"
    if status in (401, 403) and _token():
        return (
            f"{what}: the hub refused the access token of this machine (HTTP {status}). Public repositories "
            "need no token: unset HF_TOKEN, or remove a stored token with `hf auth logout`. For a private "
            "repository, log in again with `hf auth login`"
        )
    if "RepositoryNotFoundError" in names or status in (401, 403, 404):
        return (
            f"{what}: the hub has no such public repository. Check the name; for a private repository, log "
            "in with `hf auth login`"
        )
    if status is not None and (status >= 500 or status == 429):
        return (
            f"{what}: the hub answered with HTTP {status}. Try again later; complete files are kept"
        )
    if _is_xet(error):
        return (
            f"{what}: the hub's content store (Xet) could not be reached: {detail}. Set "
            "HF_HUB_DISABLE_XET=1 to download over plain HTTPS, and load the model again"
        )
    if _is_transport(error):
        return (
            f"{what}: the connection to the hub failed ({type(error).__name__}: {detail}). Check the "
            "network, proxy and HF_ENDPOINT, and load the model again; complete files are kept"
        )
    return f"{what}: {type(error).__name__}: {detail}"


def _what(repository: str, revision: str | None) -> str:
    at = f" at revision {revision!r}" if revision is not None else ""
    return f"cannot get {repository!r}{at}"


def _offline_message(what: str) -> str:
    return (
        f"{what}: the local cache does not hold all of its files, and HF_HUB_OFFLINE=1 forbids downloads. "
        "Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE) to download them"
    )


def _check_name(repository: str) -> None:
    if repository.startswith("bliss-jax/"):
        raise ValueError(f"{repository!r} is not a model that is built into this library")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository) or ".." in repository:
        raise ValueError(
            f"{repository!r} is neither a directory nor the name of a repository, 'owner/name'"
        )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _folder(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _snapshot(repository: str, commit: str) -> Path:
    return _folder(repository) / "snapshots" / commit


def _write_reference(repository: str, revision: str | None, commit: str) -> None:
    """Notes the commit of a branch in the cache, as huggingface_hub does, for later offline use."""
    name = revision or "main"
    if not _COMMIT.fullmatch(name):
        reference = _folder(repository) / "refs" / name
        with suppress(OSError):
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)


def _cached(repository: str, revision: str | None) -> Path | None:
    """Returns the snapshot of a revision in the local cache, which may be incomplete."""
    commit = revision or "main"
    if not _COMMIT.fullmatch(commit):
        reference = _folder(repository) / "refs" / commit
        if not reference.is_file():
            return None
        commit = reference.read_text().strip()
    directory = _snapshot(repository, commit)
    return directory if directory.is_dir() else None
