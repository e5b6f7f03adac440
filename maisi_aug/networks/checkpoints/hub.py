"""Fetching bundles from the Hugging Face hub: licence, download, hashes, and conversion to our own layout.

The download is ``huggingface_hub``'s, with its cache, its resumption and its settings (``HF_HOME``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``, ``HF_TOKEN``). What it brings is trusted only once size and hash are those that the hub states: the
SHA-256 of a large file, and git's SHA-1 of a small one, such as JSON, that is kept in the repository itself.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.bundle import Bundle, pulled_bundles_folder
from maisi_aug.bundle_spec.known_bundles import KnownBundle
from maisi_aug.errors import BundleError, MaisiAugError
from maisi_aug.networks.checkpoints.importing import (
    AcceptLicence,
    find_intact,
    read_converted,
    require_accepted,
    require_free,
    write_known_bundle,
)
from maisi_aug.networks.checkpoints.mask_networks import add_mask_networks, write_mask_networks
from maisi_aug.system.progress import Say
from maisi_aug.system.whole_files import is_disk_full, sha256_of

DEFAULT_REVISION = "main"
MAX_TRIES = 5
"""Largest number of tries of a download that breaks off without an answer of the hub."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hub:
    """Address, token and cache of the Hugging Face hub; None leaves a value to the settings of ``huggingface_hub``."""

    endpoint: str | None = None
    cache_folder: Path | None = None


@dataclass(frozen=True)
class FetchedFile:
    """A downloaded file of a repository, whose hash agrees with the one that the hub states."""

    path: Path
    name: str
    repository: str
    revision: str
    sha256: str


@dataclass(frozen=True)
class _Statement:
    """What the hub says of a file; the size is unknown when the hub was not reached and the cache speaks for it.

    Attributes:
        revision: Commit of the repository.
        digest: SHA-256, or git's SHA-1 of a small file, in hexadecimal.
        num_bytes: Size.
    """

    revision: str
    digest: str
    num_bytes: int | None


def pull_bundle(
    known: KnownBundle,
    *,
    accept_licence: AcceptLicence,
    with_masks: bool = False,
    folder: Path | None = None,
    hub: Hub | None = None,
    report: Say | None = None,
) -> Bundle:
    """Download and convert a bundle, so that it is found by name; returns at once if it is there and intact.

    Mask networks that are already there are downloaded again with the other networks; if they are missing and
    requested, they are added.

    Args:
        known: Bundle to download.
        accept_licence: Function that asks the user, before any download, whether the licence is accepted.
        with_masks: Also download the mask networks.
        folder: Folder of the bundle; None for the user's data folder.
        hub: Hub to download from.
        report: Called with a sentence that describes the current step.

    Raises:
        BundleError: The licence is not accepted, the folder is used for something else, the hub cannot be reached or
            holds no such file, a file is not what the hub states, contains more than data, or holds another network.
            Nothing is left under the bundle's name then.
    """
    target = (folder or pulled_bundles_folder() / known.name).expanduser().resolve()
    present = find_intact(target, known.name, known.repository)
    if with_masks:
        known.require_masks()
    with_masks = with_masks or _had_masks(target, known)
    if present is not None and (present.spec.mask_generation is not None or not with_masks):
        return present
    say = report or (lambda _: None)
    masks = known.require_masks() if with_masks else None
    words = [*known.pull_command.split(), *(["--with-masks"] if with_masks else [])]
    command = shlex.join(words + (["--to", str(folder)] if folder else []))
    require_accepted(known, accept_licence, say, command=command)
    require_free(target, known.name, known.repository)
    files: dict[str, FetchedFile] = {}
    if present is None:
        say(f"Fetching {len(known.files)} files ({known.download_size}) from {' and '.join(known.all_repositories)}.")
        for repository in known.all_repositories:
            files |= fetch_files(repository, known.files_in(repository), hub or Hub())
    mask_files = _fetch(known, masks.files, masks.download_size, hub, say) if masks else {}
    say("Checking the networks and writing the bundle.")
    paths, mask_paths = ({role: file.path for role, file in found.items()} for found in (files, mask_files))
    about_masks = _describe(mask_files, known)
    if present is not None:
        bundle = add_mask_networks(known, present, mask_paths, provenance=about_masks)
    else:
        bundle = write_known_bundle(
            known,
            paths,
            target,
            provenance={"origin": known.repository, **_describe(files, known)},
            command=command,
            complete=partial(write_mask_networks, known, mask_paths, provenance=about_masks) if masks else None,
        )
    say("The downloaded files also remain in the cache of huggingface_hub.")
    return bundle


def _had_masks(folder: Path, known: KnownBundle) -> bool:
    """Whether an earlier pull, perhaps altered since, brought mask networks."""
    try:
        bundle = read_converted(folder, known.name, known.repository)
    except MaisiAugError:
        return False
    return bundle is not None and bundle.spec.mask_generation is not None


def _fetch(
    known: KnownBundle, names: Mapping[str, str], size: str, hub: Hub | None, say: Say
) -> dict[str, FetchedFile]:
    say(f"Fetching {len(names)} files ({size}) from {known.repository}.")
    return fetch_files(known.repository, names, hub or Hub())


def fetch_files(
    repository: str, names: Mapping[str, str], hub: Hub, *, revision: str = DEFAULT_REVISION
) -> dict[str, FetchedFile]:
    """Download files of one repository, all from the same revision, and compare them with what the hub states.

    Args:
        repository: ``owner/name``.
        names: Role -> path in the repository.
        hub: Hub to download from.
        revision: Branch or commit to download from.

    Returns:
        Role -> downloaded file.

    Raises:
        BundleError: A file cannot be downloaded or differs; the message names it and the reason.
    """
    fetched: dict[str, FetchedFile] = {}
    for role, name in names.items():
        stated = _ask_hub(repository, name, revision, hub)
        if stated is None:
            path, stated = _find_cached(repository, name, revision, hub)
        else:
            # By name for the first, so that the cache learns which revision the name stands for.
            path = _download(repository, name, revision, hub)
        sha256 = _require_as_stated(path, stated, subject=f"{repository}/{name}")
        revision = stated.revision
        fetched[role] = FetchedFile(path, name, repository, revision, sha256)
    return fetched


def _ask_hub(repository: str, name: str, revision: str, hub: Hub) -> _Statement | None:
    """Revision, hash and size of a file, or None when the hub cannot be reached."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        stated = get_hf_file_metadata(hf_hub_url(repository, name, revision=revision, endpoint=hub.endpoint))
    except HfHubHTTPError as error:
        if _status_of(error) >= 500:
            return None
        raise _explain(error, f"{repository}/{name}") from error
    except Exception:  # of whichever HTTP library huggingface_hub is built on, and its own offline mode
        return None
    if stated.commit_hash is None or stated.etag is None or not _is_digest(stated.etag):
        raise BundleError(
            f"{repository}/{name}: the hub did not state both revision and hash. Check HF_ENDPOINT, and any proxy "
            "in between."
        )
    return _Statement(stated.commit_hash, stated.etag, stated.size)


def _find_cached(repository: str, name: str, revision: str, hub: Hub) -> tuple[Path, _Statement]:
    """A file of an earlier download; its hash is the name that the cache gave it when the hub stated it."""
    from huggingface_hub import hf_hub_download

    subject = f"{repository}/{name}"
    try:
        path = Path(
            hf_hub_download(
                repository,
                name,
                revision=revision,
                cache_dir=hub.cache_folder,
                endpoint=hub.endpoint,
                local_files_only=True,
            )
        )
    except Exception as error:
        raise BundleError(
            f"{subject}: the Hugging Face hub cannot be reached, and the file is not in its cache. Check the "
            "connection, HF_ENDPOINT and HF_HUB_OFFLINE."
        ) from error
    commit, blob = path.parents[len(Path(name).parts) - 1].name, path.resolve().name
    if not _is_digest(blob):
        raise BundleError(f"{subject}: no hash is known to check the cached file against. Go online once.")
    return path, _Statement(commit, blob, None)


def _download(repository: str, name: str, revision: str, hub: Hub) -> Path:
    """Download a file, resuming an interrupted download; not every version of huggingface_hub resumes by itself."""
    from huggingface_hub import hf_hub_download

    for tries_left in reversed(range(MAX_TRIES)):
        try:
            return Path(
                hf_hub_download(repository, name, revision=revision, cache_dir=hub.cache_folder, endpoint=hub.endpoint)
            )
        except Exception as error:  # of whichever HTTP library huggingface_hub is built on
            if is_disk_full(error):
                raise
            if _status_of(error) or not tries_left:
                raise _explain(error, f"{repository}/{name}") from error
            _LOG.warning(
                "%s/%s: the download was interrupted (%s); continuing.", repository, name, type(error).__name__
            )
    raise AssertionError("the last try returns or raises")


def _status_of(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", None) or 0)


def _explain(error: Exception, subject: str) -> BundleError:
    status = _status_of(error)
    if status in (401, 403):
        advice = "Open its page, accept its terms, and set HF_TOKEN or run 'hf auth login'"
    elif status == 404:
        advice = "Check its name; a repository of NVIDIA's may have moved: look for a newer version of maisi-aug"
    elif status == 429:
        advice = "The hub limits requests: wait some minutes, or set HF_TOKEN, then run the same command again"
    else:
        advice = "Run the same command again: it continues where it was interrupted"
    reason = f"answer {status}" if status else (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = _ADDRESS.sub("an address", reason)
    return BundleError(f"{subject}: the hub did not send the file: {reason.rstrip('.')}. {advice}.")


_ADDRESS = re.compile(r"\w+://\S+")
"""Address of a proxy or of another hub, which may hold a password."""


def _is_digest(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", text) is not None


def _require_as_stated(path: Path, stated: _Statement, *, subject: str) -> str:
    """Compare a file with what the hub states; one that differs leaves the cache, so that nothing trusts it later.

    Returns:
        The SHA-256 of the file.
    """
    num_bytes, sha256 = path.stat().st_size, sha256_of(path)
    is_large = len(stated.digest) == len(sha256)
    found = sha256 if is_large else _git_sha1_of(path)
    if found == stated.digest and stated.num_bytes in (None, num_bytes):
        return sha256
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    size = "" if stated.num_bytes is None else f" and {stated.num_bytes} bytes"
    raise BundleError(
        f"{subject}: expected {'SHA-256' if is_large else 'SHA-1'} {stated.digest[:12]}...{size}, found "
        f"{found[:12]}... and {num_bytes} bytes; the file was removed from the cache. Run the same command again."
    )


def _git_sha1_of(path: Path) -> str:
    """The name that git gives to a file's content: SHA-1 over its size and its bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _describe(files: Mapping[str, FetchedFile], known: KnownBundle) -> dict[str, Any]:
    """Revision, names and hashes of files that were fetched together, as the bundle remembers them.

    Files of another repository than the bundle's own name it, and its revision.
    """
    own = [file for file in files.values() if file.repository == known.repository]
    described = {role: {"file": file.name, "sha256": file.sha256} for role, file in files.items()}
    for role, file in files.items():
        if file.repository != known.repository:
            described[role] |= {"repository": file.repository, "revision": file.revision}
    return {"revision": own[0].revision if own else None, "files": described}


def upload_folder(
    repository: str,
    folder: Path,
    *,
    is_private: bool,
    message: str,
    removes: list[str],
    known_by: str,
    hub: Hub | None = None,
) -> str:
    """Upload the files of a folder to a repository in one commit; the repository is created if it does not exist.

    Args:
        repository: ``owner/name``.
        folder: Folder to upload.
        is_private: Whether only its owner may read the repository.
        message: Commit message.
        removes: Patterns of files to delete from the repository unless the folder contains them.
        known_by: File that every upload contains; a repository without it, but with files to delete, is not
            overwritten.
        hub: Hub to upload to.

    Returns:
        The address of the repository.

    Raises:
        BundleError: The hub refuses or cannot be reached, the repository is public although a private one is wanted, or
            contains other work; nothing is uploaded then.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=(hub or Hub()).endpoint)
    try:
        address = api.create_repo(repository, private=is_private or None, exist_ok=True)
        info = api.model_info(repository)
        names = [file.rfilename for file in info.siblings or ()]
        others = [name for name in names if any(fnmatch(name, pattern) for pattern in removes)]
        if others and known_by not in names:
            raise BundleError(
                f"{repository}: holds other files than a bundle's ({', '.join(others[:3])}), and nothing was uploaded. "
                "Choose another name."
            )
        # The hub leaves the visibility of a repository that exists as it is.
        if is_private and not info.private:
            raise BundleError(
                f"{repository}: is already public; nothing was uploaded. Make it private in its settings, choose "
                "another name, or leave --private out."
            )
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, delete_patterns=removes or None
        )
    except BundleError:
        raise
    except Exception as error:  # of whichever HTTP library huggingface_hub is built on
        raise _explain_upload(error, repository) from error
    return str(address)


def _explain_upload(error: Exception, repository: str) -> BundleError:
    status = _status_of(error)
    if status in (401, 403):
        advice = "Set HF_TOKEN to a token that may write, or run 'hf auth login', and check the owner's name"
    elif status == 429:
        advice = "The hub limits requests: wait some minutes and run the same command again"
    else:
        advice = "Run the same command again: what has been uploaded is not sent twice"
    reason = f"answer {status}" if status else (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = _ADDRESS.sub("an address", reason).rstrip(".")
    return BundleError(f"{repository}: the hub did not take the bundle ({reason}). {advice}.")
