"""Bundles that users share on the Hugging Face hub: the folder that is uploaded, and what is fetched of another's.

A shared bundle is its folder: ``bundle.yaml``, safetensors, a model card, the licence's notice. One that was fine-tuned
names its base by fingerprint instead of holding its weights.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, Bundle, load_bundle, pulled_bundles_folder
from maisi_aug.bundle_spec.schema import BundleSpec, MaskBankSpec, dump_bundle
from maisi_aug.errors import BundleError, MaisiAugError
from maisi_aug.networks.checkpoints.hub import DEFAULT_REVISION, FetchedFile, Hub, fetch_files, upload_folder
from maisi_aug.networks.checkpoints.importing import LICENCE_FILE, read_notice
from maisi_aug.system.content import ContentError, read_json
from maisi_aug.system.file_names import INNER_PATH
from maisi_aug.system.models import explain_problems, read_yaml
from maisi_aug.system.progress import Say
from maisi_aug.system.whole_files import sha256_of, write_json_whole, write_text_whole
from maisi_aug.system.whole_folder import open_whole_folder
from maisi_aug.volumes.image_files import load_label_map, save_label_map

AcceptLicence = Callable[[BundleSpec], bool]

CARD_FILE = "README.md"
MAPS_FOLDER = "label_maps"
ORIGIN_FILE = "origin.json"
"""In a folder that was pulled: repository and revision; a bundle without it was made here and is not replaced."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
STALE = ["*.safetensors", f"{MAPS_FOLDER}*", LICENCE_FILE]
"""Files of an earlier upload to delete, because what a bundle no longer contains must not stay readable."""
LICENCE_IDS: Mapping[str, str] = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "cc by 3.0": "cc-by-3.0",
    "cc by 4.0": "cc-by-4.0",
    "cc-by-3.0": "cc-by-3.0",
    "cc-by-4.0": "cc-by-4.0",
}
"""The hub's names of licences; every other one is ``other`` with its own name."""


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file of a shared bundle, as listed before or after an upload.

    Attributes:
        name: Path in the repository.
        num_bytes: Size in bytes.
        sha256: SHA-256 of its bytes.
    """

    name: str
    num_bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the file as a JSON-able dict."""
        return {"file": self.name, "num_bytes": self.num_bytes, "sha256": self.sha256}


def is_repository(text: str) -> bool:
    """Whether a text has the form of a repository name, ``owner/name``."""
    return REPOSITORY.fullmatch(text) is not None


def require_repository(text: str) -> None:
    """Raise unless a text has the form of a repository name, ``owner/name``.

    Raises:
        BundleError: The message names it.
    """
    if not is_repository(text):
        raise BundleError(f"{text}: not the name of a repository. Write OWNER/NAME, such as anna/kidney-ct.")


def push_bundle(
    name_or_folder: str | Path,
    repository: str,
    *,
    is_private: bool = False,
    self_contained: bool = False,
    with_label_maps: bool = False,
    folder: Path | None = None,
    uploads: bool = True,
    hub: Hub | None = None,
    report: Say | None = None,
) -> tuple[list[SharedFile], str | None]:
    """Upload a bundle to a repository of the Hugging Face hub.

    Args:
        name_or_folder: Name or folder of the bundle; its files are first compared with their hashes.
        repository: ``owner/name``; made if it is not there.
        is_private: Whether only its owner may read the repository.
        self_contained: Include the weights of a base, instead of naming it by its fingerprint.
        with_label_maps: Include the label maps that the bundle draws from, which are those of training patients.
        folder: New or empty folder in which to keep a copy of the upload; None keeps nothing.
        uploads: Whether to upload; otherwise only the folder is written.
        hub: Hub to upload to.
        report: Called with a sentence that describes the current step.

    Returns:
        The files, and the address of the repository; None where nothing was uploaded.

    Raises:
        BundleError: The repository name is invalid, the bundle is altered, the folder is not empty, or the hub refuses.
    """
    require_repository(repository)
    bundle, say = load_bundle(name_or_folder), report or (lambda _: None)
    bundle.require_intact()
    with tempfile.TemporaryDirectory(prefix="maisi-aug-") as scratch:
        target = folder or Path(scratch, "bundle")
        with open_whole_folder(target, require_replaceable=partial(_require_empty, target)) as unfinished:
            write_shared_folder(
                bundle,
                unfinished,
                repository,
                self_contained=self_contained,
                with_label_maps=with_label_maps,
                report=say,
            )
        files = list_files(target)
        if not uploads:
            return files, None
        say(f"Uploading {len(files)} files ({sum(file.num_bytes for file in files) / 1e6:.1f} MB) to {repository}.")
        if not is_private:
            say("The repository is public unless it is already private; use --private to create a private one.")
        message = f"{bundle.name}, written by maisi-aug"
        address = upload_folder(
            repository, target, is_private=is_private, message=message, removes=STALE, known_by=BUNDLE_FILE, hub=hub
        )
    return files, address


def list_files(folder: Path) -> list[SharedFile]:
    """List the files of a folder, ordered by name, with their SHA-256."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [SharedFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path)) for path in paths]


def write_shared_folder(
    bundle: Bundle,
    folder: Path,
    repository: str,
    *,
    self_contained: bool = False,
    with_label_maps: bool = False,
    report: Say | None = None,
) -> None:
    """Write the files of a bundle to be shared, without paths of this machine; patients' maps only on request.

    ``bundle.yaml``, and with it the fingerprint, stays unchanged if it contains nothing that must not be shared.

    Args:
        bundle: Bundle to share.
        folder: Empty folder.
        repository: Repository that it will be uploaded to, for the model card.
        self_contained: Include the weights of a base.
        with_label_maps: Include the label maps that the bundle draws from.
        report: Called with a sentence about what is left out.

    Raises:
        BundleError: A file is missing, or a base's base lies where others cannot fetch it.
    """
    content = read_yaml(bundle.path / BUNDLE_FILE, f"Bundle '{bundle.name}'", BundleError)
    before = dump_bundle(content)
    roles = list(bundle.spec.weights)
    if self_contained and content.pop("base", None):
        roles = list(bundle.roles)
        content["weights"] = {}
    for role in roles:
        owner = bundle.owner_of(role)
        named = owner.spec.weights[role]
        shutil.copyfile(bundle.weight_path(role), folder / f"{role}.safetensors")
        content["weights"][role] = {"file": f"{role}.safetensors", "sha256": named.sha256}
    if bundle.spec.mask_generation is not None:
        named = bundle.spec.mask_generation.size_conditions
        shutil.copyfile(bundle.path_of(named), folder / PurePosixPath(named.file).name)
        content["mask_generation"]["size_conditions"]["file"] = PurePosixPath(named.file).name
    if "base" in content:
        content["base"].pop("paths", None)
    if "provenance" in content:
        content["provenance"] = _without_places(content["provenance"])
    _share_maps(bundle, folder, content, with_label_maps=with_label_maps, say=report or (lambda _: None))
    text = dump_bundle(content)
    if text == before:
        shutil.copyfile(bundle.path / BUNDLE_FILE, folder / BUNDLE_FILE)
    else:
        write_text_whole(folder / BUNDLE_FILE, text)
    if (notice := read_notice(bundle)) is not None:
        write_text_whole(folder / LICENCE_FILE, notice)
    write_text_whole(folder / CARD_FILE, build_card(bundle, repository, is_whole="base" not in content))


def _share_maps(bundle: Bundle, folder: Path, content: dict[str, Any], *, with_label_maps: bool, say: Say) -> None:
    """Copy the label maps that a bundle draws from, numbered and without their headers, or leave them out."""
    bank = bundle.spec.mask_bank
    if bank is None:
        return
    if not with_label_maps:
        del content["mask_bank"]
        say(f"The label maps are left out ({bank.source}); --with-label-maps includes them.")
        return
    document = read_json(bundle.path / bank.list)
    rows = []
    for number, row in enumerate(document["training"], start=1):
        name = f"{MAPS_FOLDER}/{number:04d}.nii.gz"
        volume = load_label_map((bundle.path / row["label"]).resolve())
        save_label_map(folder / name, volume.array, volume.grid)
        rows.append({**row, "label": name})
    write_json_whole(folder / bank.list, {**document, "training": rows})
    if (bundle.path / bank.labels).is_file():
        shutil.copyfile(bundle.path / bank.labels, folder / bank.labels)


def _without_places(value: Any) -> Any:
    """The same with the last name in place of every absolute path: those of another machine say nothing."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def build_card(bundle: Bundle, repository: str, *, is_whole: bool) -> str:
    """Return the model card of a shared bundle: the hub's metadata, how to use it, and the bundle's own README.

    Args:
        bundle: Bundle that is shared.
        repository: ``owner/name``.
        is_whole: Whether it contains all of its weights, and needs no base.
    """
    own = bundle.path / CARD_FILE
    body = own.read_text(encoding="utf-8") if own.is_file() else f"# {bundle.name}\n\n{bundle.spec.description}\n"
    if body.startswith("---\n"):  # of an earlier upload
        body = body.partition("\n---\n")[2].lstrip("\n")
    lines = [
        f"\n## Get it\n\n```sh\nmaisi-aug bundles pull {repository}\n```\n",
        f"Then: `--bundle {repository}`. Licence of the weights, and of what they draw: {bundle.licence}.",
    ]
    if not is_whole and bundle.spec.base is not None:
        base = bundle.spec.base
        lines.append(f"It needs its base, {base.name} (fingerprint {base.fingerprint}), which is fetched separately.")
    lines.append("Images are synthetic: for research and for training networks, never for diagnosis.\n")
    front = yaml.safe_dump(_front_matter(bundle), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{body.rstrip()}\n" + "\n".join(lines)


def _front_matter(bundle: Bundle) -> dict[str, Any]:
    """What the hub reads of a card."""
    name, _, _ = bundle.licence.partition(";")
    known = LICENCE_IDS.get(name.strip().lower())
    licence: dict[str, str] = {"license": known or "other"}
    if known is None:
        stated = bundle.spec.provenance.get("licence") or (bundle.spec.provenance.get("base_provenance") or {}).get(
            "licence"
        )
        licence["license_name"] = re.sub(r"[^a-z0-9.]+", "-", name.strip().lower()).strip("-")
        if isinstance(stated, Mapping) and stated.get("url"):
            licence["license_link"] = str(stated["url"])
    origin = str((bundle.base or bundle).spec.provenance.get("origin", ""))
    tags = [
        "maisi",
        "controlnet",
        "image-generation",
        "medical",
        "mri" if bundle.is_mr else "ct",
        *sorted(bundle.spec.slots),
    ]
    return {
        **licence,
        "library_name": "maisi-aug",
        **({"base_model": origin} if is_repository(origin) else {}),
        "tags": tags,
    }


def pull_shared(
    repository: str,
    *,
    accept_licence: AcceptLicence,
    revision: str | None = None,
    folder: Path | None = None,
    hub: Hub | None = None,
    report: Say | None = None,
) -> Bundle:
    """Download a shared bundle; returns at once if an intact copy exists and the hub has no newer one.

    Only files that ``bundle.yaml`` names are downloaded: safetensors, JSON and label maps, never code. Every weight
    file is compared with the SHA-256 in ``bundle.yaml``, and that file with what the hub states.

    Args:
        repository: ``owner/name``, under which the bundle is found afterwards.
        accept_licence: Function that asks the user, before weights are downloaded, whether the licence is accepted.
        revision: Branch, tag or commit of the repository; None for the newest.
        folder: Folder of the bundle; None for the user's data folder.
        hub: Hub to download from.
        report: Called with a sentence that describes the current step.

    Raises:
        BundleError: The licence is not accepted, the folder is used for something else, the hub cannot be reached, or a
            file is not what it should be. Nothing is left under the bundle's name then.
    """
    require_repository(repository)
    target = (folder or pulled_bundles_folder() / repository).expanduser().resolve()
    say, place = report or (lambda _: None), hub or Hub()
    present, revision = _find_present(target, repository), revision or DEFAULT_REVISION
    try:
        header = fetch_files(repository, {BUNDLE_FILE: BUNDLE_FILE}, place, revision=revision)[BUNDLE_FILE]
    except BundleError as error:
        if present is None or revision != DEFAULT_REVISION:
            raise
        say(f"{error} The local copy is used.")
        return present
    if present is not None and sha256_of(present.path / BUNDLE_FILE) == header.sha256:
        return present
    spec = read_spec(header.path, repository)
    _require_replaceable(target, repository)
    say(f"{repository} is licensed under: {spec.licence}")
    if not accept_licence(spec):
        raise BundleError(
            f"{repository}: its licence was not accepted, {spec.licence}. Read it, then: maisi-aug bundles pull "
            f"{repository} --accept-license"
        )
    fetched = _fetch_named(repository, spec, header, place, say)
    with open_whole_folder(target, require_replaceable=partial(_require_replaceable, target, repository)) as unfinished:
        for name, file in fetched.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, unfinished / name)
        write_json_whole(unfinished / ORIGIN_FILE, {"repository": repository, "revision": header.revision})
        _require_whole(load_bundle(unfinished), repository)
    bundle = load_bundle(target)
    _tell_base(bundle, say)
    return bundle


def read_spec(path: Path, repository: str) -> BundleSpec:
    """Read the ``bundle.yaml`` of a shared bundle before anything else of it is downloaded.

    Args:
        path: The downloaded ``bundle.yaml``.
        repository: Name of the repository, ``owner/name``, for messages only.

    Returns:
        The validated content. All weights and size conditions that it names are relative paths inside the bundle's
        folder, and all weights are safetensors files.

    Raises:
        BundleError: It is not YAML, does not validate, or names a file elsewhere or weights of another format.
    """
    content = read_yaml(path, f"Bundle {repository}", BundleError)
    with explain_problems(BundleSpec, f"Bundle {repository}: {BUNDLE_FILE}", BundleError, one_line=True):
        spec = BundleSpec.model_validate(content)
    names = [named.file for named in spec.weights.values()]
    if any(not name.endswith(".safetensors") for name in names):
        raise BundleError(f"Bundle {repository}: not downloaded, because its weights are not safetensors files.")
    if spec.mask_generation is not None:
        names.append(spec.mask_generation.size_conditions.file)
    for name in names:
        _require_inner(name, repository)
    return spec


def _require_inner(name: object, repository: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(INNER_PATH, name):
        raise BundleError(
            f"Bundle {repository}: it names {name!r}, which is outside its folder; nothing is downloaded."
        )
    return name


def _fetch_named(repository: str, spec: BundleSpec, header: FetchedFile, hub: Hub, say: Say) -> dict[str, FetchedFile]:
    """All files that a shared bundle names, from the revision of its ``bundle.yaml``; the card and notice if there."""
    names = [named.file for named in spec.weights.values()]
    if spec.mask_generation is not None:
        names.append(spec.mask_generation.size_conditions.file)
    say(f"Fetching {len(names)} files from {repository}.")
    fetched = {BUNDLE_FILE: header}
    fetched |= fetch_files(repository, {name: name for name in names}, hub, revision=header.revision)
    if spec.mask_bank is not None:
        fetched |= _fetch_maps(repository, spec.mask_bank, header.revision, hub, say)
    for name in (CARD_FILE, LICENCE_FILE):
        try:
            fetched |= fetch_files(repository, {name: name}, hub, revision=header.revision)
        except BundleError:
            continue  # neither is needed
    return fetched


def _fetch_maps(repository: str, bank: MaskBankSpec, revision: str, hub: Hub, say: Say) -> dict[str, FetchedFile]:
    names = [bank.list, *([bank.labels] if bank.labels.endswith(".json") else [])]
    fetched = fetch_files(repository, {name: name for name in names}, hub, revision=revision)
    try:
        rows = [row["label"] for row in read_json(fetched[bank.list].path)["training"]]
    except (OSError, ContentError, KeyError, TypeError) as error:
        raise BundleError(f"Bundle {repository}: {bank.list} is not a list of label maps.") from error
    maps = [_require_inner(name, repository) for name in rows]
    say(f"Fetching {len(maps)} label maps.")
    return fetched | fetch_files(repository, {name: name for name in maps}, hub, revision=revision)


def _find_present(folder: Path, repository: str) -> Bundle | None:
    """The bundle of an earlier pull of a repository, if nothing has changed since."""
    if _read_origin(folder) != repository:
        return None
    try:
        bundle = load_bundle(folder)
        _require_whole(bundle, str(folder))
    except MaisiAugError:
        return None
    return bundle


def _read_origin(folder: Path) -> str | None:
    """The repository that a folder was pulled from; None for any other folder."""
    try:
        content = read_json(folder / ORIGIN_FILE)
    except (OSError, ContentError):
        return None
    origin = content.get("repository") if isinstance(content, dict) else None
    return origin if isinstance(origin, str) else None


def _require_whole(bundle: Bundle, subject: str) -> None:
    """Compare a bundle's own files with their hashes, and its tensors with the definitions of its networks."""
    from maisi_aug.networks.building import describe_tensors
    from maisi_aug.networks.weights import describe_weight_file, require_same_tensors

    for named in bundle.files:
        if (found := sha256_of(bundle.path_of(named))) != named.sha256:
            raise BundleError(
                f"{subject}: {named.file} should have SHA-256 {named.sha256[:12]}..., found {found[:12]}.... Its owner "
                "has to upload the bundle again."
            )
    for role in bundle.spec.weights:
        about = f"{subject}, {bundle.weight_path(role).name}"
        require_same_tensors(
            describe_tensors(bundle.definition(role)), describe_weight_file(bundle, role), subject=about
        )


def _require_empty(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BundleError(f"{folder}: already exists and is not empty. Choose a new folder with --to.")


def _require_replaceable(folder: Path, repository: str) -> None:
    """Raise unless a folder is new, empty, or holds nothing but what was pulled from the repository."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / BUNDLE_FILE).is_file():
        raise BundleError(
            f"{folder}: contains something other than a bundle. Choose another folder for {repository} with --to."
        )
    if (origin := _read_origin(folder)) != repository:
        raise BundleError(
            f"{folder}: holds a bundle of {origin or 'your own'} already, and {repository} does not replace it. Choose "
            "another folder with --to, or move it away."
        )
    try:
        spec = load_bundle(folder).spec
    except MaisiAugError as error:
        raise BundleError(f"{error} Move {folder} away, or choose another folder with --to.") from error
    own = {
        BUNDLE_FILE,
        LICENCE_FILE,
        CARD_FILE,
        ORIGIN_FILE,
        MAPS_FOLDER,
        *(named.file for named in spec.weights.values()),
    }
    own |= {spec.mask_generation.size_conditions.file} if spec.mask_generation is not None else set()
    own |= {spec.mask_bank.list, spec.mask_bank.labels} if spec.mask_bank is not None else set()
    foreign: Sequence[str] = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if foreign:
        raise BundleError(f"{folder}: holds {', '.join(foreign[:4])} as well. Move them away, or choose another --to.")


def _tell_base(bundle: Bundle, say: Say) -> None:
    """Say how to get the base, where it is not at hand."""
    try:
        for role in bundle.roles:
            bundle.owner_of(role)
    except BundleError as error:
        base = bundle.spec.base
        name = "" if base is None else f" Fetch it: maisi-aug bundles pull {base.name}"
        say(f"{error}{name}")
