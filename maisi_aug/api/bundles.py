"""Functions behind ``maisi-aug bundles``, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle, reference_of
from maisi_aug.bundle_spec.proven_steps import hash_weights
from maisi_aug.errors import RequestError
from maisi_aug.system.progress import Say

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.known_bundles import KnownBundle
    from maisi_aug.networks.checkpoints.copies import Conversion
    from maisi_aug.networks.checkpoints.sharing import SharedFile

# Fields that give the width of a network, under MAISI's names.
WIDTH_KEYS = ("num_channels", "channels", "latent_channels", "num_res_blocks", "attention_levels", "num_head_channels")
DTYPES = ("float16", "bfloat16", "float32")

AcceptLicense = bool | Callable[[], bool]
"""Whether the licence of the weights is accepted, or a function that asks; it is called only where weights are about to
be written, once ``say`` has received the licence."""


class BundleRow(TypedDict):
    """One row of :func:`list_bundles`: a bundle that is installed or can be downloaded.

    Attributes:
        name: Name to pass as ``bundle=``.
        description: What the bundle generates.
        licence: Licence of the weights.
        grid: ``shape`` in voxels and ``spacing_mm`` along I, J, K.
        num_bytes: Size of the files; None for a bundle that is not installed.
        base: Name of the bundle that it was fine-tuned from; None for others.
        has_masks: Whether it includes the networks that generate label maps.
        path: Its folder; None for a bundle that is not installed.
        pull: Command that downloads it; None for an installed bundle.
        download_size: Size of the download, in words.
    """

    name: str
    description: str
    licence: str
    grid: Mapping[str, Any]
    num_bytes: int | None
    base: NotRequired[str]
    has_masks: bool
    path: str | None
    pull: str | None
    download_size: str | None


def list_bundles() -> list[BundleRow]:
    """List installed bundles, and bundles that can be downloaded; ``maisi-aug bundles list``.

    >>> import maisi_aug as ma
    >>> {row["name"]: row["pull"] for row in ma.list_bundles()}["rflow-ct"]
    'maisi-aug bundles pull rflow-ct'

    Returns:
        One dict per bundle, the installed ones first:

        - ``name``: name to pass as ``bundle``, such as ``"phantom-ct"``.
        - ``description``: what the bundle generates, a sentence.
        - ``licence``: licence of the weights, such as ``"Apache-2.0"``.
        - ``grid``: dict with ``shape`` (voxels) and ``spacing_mm`` along I, J, K that are used by default.
        - ``num_bytes``: size of the files; None for a bundle that is not installed.
        - ``base``: name of the bundle that it was fine-tuned from; absent for others.
        - ``has_masks``: whether it includes the networks that generate label maps, for ``mask_source="diffusion"``.
        - ``path``: its folder; None for a bundle that is not installed.
        - ``pull``: command that downloads it; None for an installed bundle.
        - ``download_size``: size of the download, such as ``"2.6 GB"``; None for an installed bundle.
    """
    from maisi_aug.bundle_spec.bundle import list_bundles as list_at_hand
    from maisi_aug.bundle_spec.known_bundles import known_bundles

    rows = [_summarise(bundle) for bundle in list_at_hand()]
    at_hand = {row["name"] for row in rows}
    return rows + [_announce(known) for name, known in known_bundles().items() if name not in at_hand]


def show_bundle(bundle: str | Path) -> dict[str, Any]:
    """Return networks, slots, sizes and provenance of a bundle as a JSON-able dict; ``maisi-aug bundles show``.

    >>> import maisi_aug as ma
    >>> sorted(ma.show_bundle("phantom-ct")["networks"])
    ['autoencoder', 'controlnet', 'diffusion_unet']

    Args:
        bundle: Name of an installed bundle, or its folder.

    Returns:
        The dict of :func:`list_bundles`, and among others ``networks`` (role -> class, widths, file and its
        hash), ``slots`` (labels that it was taught by fine-tuning), ``modalities``, ``num_inference_steps`` (default),
        ``proven_steps`` (of :func:`prove_steps`), ``sides_multiple_of`` (voxels; every side of an image is a multiple
        of it) and ``grid_limits`` (shapes in voxels and spacings in mm that it can draw).

    Raises:
        BundleError: The bundle was not found.
    """
    return _describe(load_bundle(bundle))


def pull_bundle(
    name: str,
    *,
    accept_license: AcceptLicense = False,
    with_masks: bool = False,
    with_mask_database: bool = False,
    revision: str | None = None,
    to: str | Path | None = None,
    say: Say | None = None,
) -> Bundle:
    """Download a bundle from the Hugging Face hub, check it and save it as safetensors; ``maisi-aug bundles pull``.

    Args:
        name: One of those that :func:`list_bundles` names, or the repository ``owner/name`` of a shared one.
        accept_license: Whether you have read and accept the licence of the weights, or a function without arguments
            that asks and returns the answer; ``say`` has received the licence by then. With the default nothing is
            written.
        with_masks: Whether to include the networks that generate label maps; only for NVIDIA's bundles.
        with_mask_database: Whether to download NVIDIA's 4,000 label maps, too, for ``mask_bank``; ``say`` is called
            with their folder. Their licence is that of the bundle, and is not asked for again.
        revision: Branch, tag or commit of a shared bundle; the newest when not given.
        to: Folder of the bundle, where it is then found by path; when not given ``bundles/NAME`` in
            ``$MAISI_AUG_HOME`` or else in the user's data folder, where it is found by name.
        say: Called with a sentence about each step; None for silence.

    Returns:
        The downloaded bundle; its folder is ``path``, its name ``name``.

    Raises:
        BundleError: The bundle is unknown, the licence is not accepted, the hub cannot be reached, or a file differs
            from what the hub states.
        RequestError: An argument has no meaning for the bundle.
    """
    from maisi_aug.bundle_spec.known_bundles import find_known_bundle
    from maisi_aug.networks.checkpoints.databases import pull_database
    from maisi_aug.networks.checkpoints.hub import pull_bundle as pull
    from maisi_aug.networks.checkpoints.sharing import is_repository, pull_shared

    accept, folder = _asks(accept_license), None if to is None else Path(to)
    if is_repository(name):
        if with_masks or with_mask_database:
            option = "--with-masks" if with_masks else "--with-mask-database"
            raise RequestError(f"{option} can only be used with a bundle of NVIDIA's.")
        return pull_shared(name, accept_licence=accept, revision=revision, folder=folder, report=say)
    if revision is not None:
        raise RequestError("--revision can only be used with a shared bundle, OWNER/NAME.")
    known = find_known_bundle(name)
    if with_mask_database:
        known.require_database()
    bundle = pull(known, accept_licence=accept, with_masks=with_masks, folder=folder, report=say)
    if with_mask_database:
        database = pull_database(known, accept_licence=lambda _: True, report=say)
        if say is not None:
            say(f"The label maps are in {database}.")
    return bundle


def import_bundle(
    source: str | Path,
    *,
    name: str | None = None,
    network: str | Path | None = None,
    modalities: Sequence[str] = (),
    accept_license: AcceptLicense = False,
    to: str | Path | None = None,
    say: Say | None = None,
) -> Bundle:
    """Make a bundle from a folder of NVIDIA's checkpoints (``.pt``); ``maisi-aug bundles import``.

    Args:
        source: Folder of NV-Generate-CTMR or of MONAI's bundle ``maisi_ct_generative``, which is not changed.
        name: ``rflow-ct``, ``ddpm-ct``, ``rflow-mr`` or ``rflow-mr-brain``, if it is not clear from the folder; with
            ``network`` the name of the new bundle.
        network: The ``config_network_*.json`` that defines networks of your own, of any width.
        modalities: Modalities that these were trained on, such as ``ct``, the default first; CT when empty.
        accept_license: Whether you have read and accept the licence of the weights, or a function without arguments
            that asks and returns the answer; not needed with ``network``.
        to: Folder of the bundle; when not given as for :func:`pull_bundle`.
        say: Called with a sentence about each step; None for silence.

    Returns:
        The new bundle, with weights as safetensors; its folder is ``path``, its name ``name``.

    Raises:
        BundleError: The licence is not accepted, or a checkpoint is missing, contains more than data or another
            network.
        RequestError: Modalities are given without a network file.
    """
    from maisi_aug.networks.checkpoints.folders import import_bundle as take_over
    from maisi_aug.networks.checkpoints.folders import import_networks

    folder = None if to is None else Path(to)
    if network is not None:
        return import_networks(Path(source), Path(network), name=name, modalities=modalities, folder=folder, report=say)
    if modalities:
        raise RequestError("--modality can only be used with --network.")
    return take_over(Path(source), accept_licence=_asks(accept_license), name=name, folder=folder, report=say)


def _asks(accept_license: AcceptLicense) -> Callable[[object], bool]:
    """Return the question as it is put of a bundle, whose licence ``say`` has received by then."""
    return lambda _: accept_license() if callable(accept_license) else accept_license


def push_bundle(
    bundle: str | Path,
    repository: str,
    *,
    private: bool = False,
    self_contained: bool = False,
    with_label_maps: bool = False,
    to: str | Path | None = None,
    dry_run: bool = False,
    say: Say | None = None,
) -> tuple[list[SharedFile], str | None]:
    """Share a bundle on the Hugging Face hub, or list what would be shared; ``maisi-aug bundles push``.

    >>> import maisi_aug as ma
    >>> files, address = ma.push_bundle("phantom-ct", "anna/phantom-ct", dry_run=True)
    >>> [file.name for file in files][:2]
    ['README.md', 'autoencoder.safetensors']

    Uploading needs a token that may write to the repository: log in once with ``hf auth login``, or set the environment
    variable ``HF_TOKEN``. A dry run needs neither token nor network.

    Args:
        bundle: Name of an installed bundle, or its folder.
        repository: ``owner/name`` on the hub; created if it does not exist.
        private: Whether a new repository can be read by its owner alone.
        self_contained: Whether to include the weights of the base that it was fine-tuned from.
        with_label_maps: Whether to include its label maps, which are those of the training patients.
        to: New folder in which to keep what is uploaded; None to keep nothing.
        dry_run: Upload nothing; the files are written if ``to`` is given.
        say: Called with a sentence about each step; None for silence.

    Returns:
        A tuple of the files, each with ``name`` (path in the repository), ``num_bytes`` and ``sha256``, and the
        address of the repository, which is None for a dry run.

    Raises:
        BundleError: A weight file differs from its hash, ``to`` is in use, there is no valid token, or the hub cannot
            be reached.
    """
    from maisi_aug.networks.checkpoints import sharing

    return sharing.push_bundle(
        bundle,
        repository,
        is_private=private,
        self_contained=self_contained,
        with_label_maps=with_label_maps,
        folder=None if to is None else Path(to),
        uploads=not dry_run,
        report=say,
    )


def export_bundle(bundle: str | Path, to: str | Path) -> Bundle:
    """Write a bundle as a MONAI bundle, which draws images of label maps without maisi-aug; ``bundles export``.

    >>> import maisi_aug as ma
    >>> ma.export_bundle("phantom-ct", "phantom-ct-monai").name
    'phantom-ct'

    Args:
        bundle: Name of an installed bundle, or its folder.
        to: New folder of the MONAI bundle; ``docs/README.md`` in it says how to run it.

    Returns:
        The bundle that was exported, not the folder ``to``.

    Raises:
        ExportError: The folder is in use, or MONAI cannot draw with the bundle.
        BundleError: The bundle is altered or has no ControlNet.
    """
    from maisi_aug.integrations.monai_bundle.export import export_monai_bundle

    loaded = load_bundle(bundle)
    export_monai_bundle(loaded, Path(to))
    return loaded


def convert_bundle(
    source: str | Path, to: str | Path, *, dtype: Literal["float16", "bfloat16", "float32"] | None = None
) -> Conversion:
    """Copy a bundle with weights in another dtype, or convert a checkpoint; ``maisi-aug bundles convert``.

    Args:
        source: A bundle by name or folder, or the checkpoint (``.pt``) of one network, which is written as safetensors.
        to: New folder of the bundle, or new ``.safetensors`` file.
        dtype: Dtype of the weights; when not given, float16 for a bundle, and unchanged for a checkpoint.

    Returns:
        ``path`` (the folder or file), ``dtype``, ``num_bytes_before``, ``num_bytes``, and of a checkpoint
        ``scale_factor`` (of latents) and ``left_out`` (entries that are not weights).

    Raises:
        BundleError: The source is damaged, the target exists, or weights exceed the range of the dtype.
        RequestError: The dtype is unknown.
    """
    from maisi_aug.networks.checkpoints import copies

    if dtype not in (None, *DTYPES):
        raise RequestError(f"dtype: expected one of {', '.join(DTYPES)}, found '{dtype}'.")
    if Path(source).is_file():
        return copies.convert_checkpoint(Path(source), Path(to), dtype=dtype)
    return copies.convert_bundle(source, Path(to), dtype=dtype or "float16")


def verify_bundle(bundle: str | Path) -> list[dict[str, Any]]:
    """Check the hash of every weight file, and its tensors against the network; ``maisi-aug bundles verify``.

    >>> import maisi_aug as ma
    >>> [row["role"] for row in ma.verify_bundle("phantom-ct")][:3]
    ['autoencoder', 'diffusion_unet', 'controlnet']

    Args:
        bundle: Name of an installed bundle, or its folder.

    Returns:
        A dict for each file with ``role``, ``file``, ``sha256``, ``class`` of the network, ``num_tensors``.

    Raises:
        BundleError: A file is missing, damaged or does not fit; the message names the first.
    """
    from maisi_aug.networks.weights import verify_bundle as verify

    return verify(load_bundle(bundle))


def _summarise(bundle: Bundle) -> BundleRow:
    """Return the row of an installed bundle."""
    row: BundleRow = {
        "name": reference_of(bundle),
        "description": bundle.spec.description,
        "licence": bundle.licence,
        "grid": bundle.spec.grid.model_dump(mode="json"),
        "num_bytes": sum(bundle.path_of(named).stat().st_size for named in bundle.files),
        "has_masks": bundle.spec.mask_generation is not None,
        "path": str(bundle.path),
        "pull": None,
        "download_size": None,
    }
    if bundle.spec.base:
        row["base"] = bundle.spec.base.name
    return row


def _announce(known: KnownBundle) -> BundleRow:
    """Return the row of a bundle that has to be downloaded first."""
    return {
        "name": known.name,
        "description": known.description,
        "licence": known.licence,
        "grid": known.header["grid"],
        "num_bytes": None,
        "has_masks": False,
        "path": None,
        "pull": known.pull_command,
        "download_size": known.download_size,
    }


def _describe(bundle: Bundle) -> dict[str, Any]:
    """Describe a bundle as JSON types."""
    name_of = bundle.vocabulary.name_of
    return {
        **_summarise(bundle),
        "advice": bundle.advice,
        "advice_without_map": bundle.advice_without_map,
        "sides_multiple_of": bundle.grid_factor,
        "grid_limits": None if bundle.spec.grid_limits is None else bundle.spec.grid_limits.model_dump(mode="json"),
        "num_inference_steps": bundle.default_steps,
        "proven_steps": [
            {**proof.model_dump(mode="json"), "is_valid": proof.weights == hash_weights(bundle)}
            for proof in bundle.spec.proven_steps
        ],
        "modalities": list(bundle.spec.modalities),
        "guidance_scale": bundle.spec.guidance_scale,
        "mixed_precision": bundle.spec.mixed_precision,
        "unlabelled": bundle.spec.unlabelled,
        "scheduler": str(bundle.spec.scheduler.get("class", "")),
        "slots": {
            name: {
                "id": slot.id,
                "kind": bundle.vocabulary.label(slot.id).kind,
                "hosts": [{"id": host, "name": name_of(host)} for host in slot.hosts],
                **_measured(bundle, name),
            }
            for name, slot in bundle.spec.slots.items()
        },
        "base_path": None if bundle.base is None else str(bundle.base.path),
        "mask_bank": bundle.spec.mask_bank and bundle.spec.mask_bank.model_dump(mode="json"),
        "networks": {
            role: {
                "class": str(definition.get("class", "")),
                **{key: definition[key] for key in WIDTH_KEYS if key in definition},
                **_weights(bundle, role),
            }
            for role, definition in bundle.spec.networks.items()
        },
        "mask_generation": bundle.spec.mask_generation and bundle.spec.mask_generation.model_dump(mode="json"),
        "provenance": bundle.spec.provenance,
    }


def _measured(bundle: Bundle, name: str) -> dict[str, Any]:
    """Return what was measured of a label that the bundle was fine-tuned on."""
    sizes, bounds = bundle.spec.sizes.get(name), bundle.spec.hu_ranges.get(name)
    return {
        **(
            {"median_ml": sizes.quantiles_ml[len(sizes.quantiles_ml) // 2], "measured_on": sizes.source}
            if sizes
            else {}
        ),
        **({"median_hu_range": [bounds.low_hu, bounds.high_hu]} if bounds else {}),
    }


def _weights(bundle: Bundle, role: str) -> dict[str, Any]:
    if role not in bundle.spec.weights and bundle.base is None:
        return {}
    owner, path = bundle.owner_of(role), bundle.weight_path(role)
    told = {"file": path.name, "num_bytes": path.stat().st_size, "sha256": owner.spec.weights[role].sha256}
    return told if owner is bundle else {**told, "bundle": owner.name}
