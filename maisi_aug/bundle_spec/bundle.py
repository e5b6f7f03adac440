"""Bundles: networks as data, weights as safetensors, and what a user must know about them. Needs no torch.

A bundle is a folder with ``bundle.yaml`` and the weight files that it names with their SHA-256.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import platformdirs

from maisi_aug.bundle_spec.decoding import latent_factor
from maisi_aug.bundle_spec.grid_limits import spell_nearest, spell_shortfalls
from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.bundle_spec.schema import (
    MASK_ROLES,
    PROOF_SECTION,
    BaseSpec,
    BundleSpec,
    MaskGenerationSpec,
    SlotSpec,
    WeightFile,
    dump_bundle,
    without_masks,
    without_proofs,
)
from maisi_aug.errors import BundleError, GridError, RecipeError, did_you_mean
from maisi_aug.system.models import explain_problems, read_yaml
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.hu import HuRange, bundle_hu_ranges, expected_contrast_sign
from maisi_aug.vocabulary.labels import MAISI, SlotBinding, Vocabulary
from maisi_aug.vocabulary.modalities import is_mr
from maisi_aug.vocabulary.sizes import SizeDistribution
from maisi_aug.volumes.grid import Grid, spell_grid

__all__ = ["Bundle", "BundleSpec", "MaskGenerationSpec", "SlotSpec", "WeightFile", "load_bundle"]

BUNDLE_FILE = "bundle.yaml"
RUN_FOLDER = "bundle"
"""Subfolder in which training and fine-tuning write the bundle; the folder of a run can be given as a bundle.
"""
HOME_VARIABLE = "MAISI_AUG_HOME"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "bundles"
_LOG = logging.getLogger(__name__)
SCHEDULER_STEPS = 1000
"""``num_train_timesteps`` of MONAI's schedulers where a definition names none."""
IMAGE_ROLES = ("autoencoder", "diffusion_unet")
"""Networks that make images; every bundle has them."""
NETWORK_ROLES = (*IMAGE_ROLES, "controlnet")
"""Networks that draw images of label maps."""


@dataclass(frozen=True)
class Bundle:
    """A bundle of network weights: its checked ``bundle.yaml``, and its folder."""

    spec: BundleSpec
    path: Path

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return self.spec.name

    @property
    def is_fetched(self) -> bool:
        """Whether its weights are on this machine; False for the outline of a downloadable bundle."""
        return bool(self.spec.weights) or self.spec.base is not None

    @property
    def advice(self) -> str:
        """Advice to users of this bundle; may be empty."""
        return self.spec.advice

    @property
    def advice_without_map(self) -> str:
        """Advice to users who generate without label maps; empty if such images are as good as others."""
        return self.spec.advice_without_map

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        return self.spec.licence

    @property
    def default_steps(self) -> int:
        """Number of sampling steps if the user requests none."""
        return self.spec.num_inference_steps

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """MAISI's vocabulary with this bundle's names bound to their slots."""
        return bind_slots(self.spec.slots)

    @cached_property
    def grid(self) -> Grid:
        """The bundle's default grid, centred on the world origin."""
        return Grid.from_spacing(self.spec.grid.shape, self.spec.grid.spacing_mm)

    @property
    def grid_factor(self) -> int:
        """Number of which every side of a grid must be a multiple: downsampling of the VAE times that of the U-Net."""
        return grid_factor(self.definition("autoencoder"), self.definition("diffusion_unet"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ``bundle.yaml``, which names the hash of every weight file.

        Mask networks and proven numbers of steps are not included, so that adding them later does not invalidate
        existing cohorts. Empty for the outline of one that has not been fetched.
        """
        if not self.is_fetched:
            return ""
        path = self.path / BUNDLE_FILE
        if self.spec.mask_generation is None:
            return hashlib.sha256(without_proofs(path.read_bytes())).hexdigest()
        content = without_masks(read_yaml(path, f"Bundle {self.name}", BundleError))
        content.pop(PROOF_SECTION, None)
        return hashlib.sha256(dump_bundle(content).encode("utf-8")).hexdigest()

    @cached_property
    def base(self) -> Bundle | None:
        """The bundle that this one was fine-tuned from; None if it contains all of its weights.

        Raises:
            BundleError: The base bundle was not found, or has changed since.
        """
        return None if self.spec.base is None else find_base(self.spec.base, self.path, subject=f"Bundle '{self.name}'")

    @cached_property
    def distributions(self) -> dict[str, SizeDistribution]:
        """Label name -> size distribution that percentiles refer to, for labels that the bundle was taught."""
        sizes = self.spec.sizes.items()
        return {name: SizeDistribution(name, measured.quantiles_ml, measured.source) for name, measured in sizes}

    @cached_property
    def hu_ranges(self) -> tuple[HuRange, ...]:
        """Ranges for the median HU of labels: published ones, and those measured on training data of taught labels."""
        own = [
            HuRange(name, (self.vocabulary.id_of(name),), bounds.low_hu, bounds.high_hu)
            for name, bounds in self.spec.hu_ranges.items()
        ]
        return (*bundle_hu_ranges(self.name if self.spec.base is None else self.spec.base.name), *own)

    def contrast_sign_of(self, label_id: int) -> int:
        """Sign of a lesion's contrast to its host organ: 1 if brighter, -1 if darker, 0 if either."""
        name = self.vocabulary.name_of(label_id)
        own = self.spec.hu_ranges.get(name)
        if own is not None:
            return own.contrast_sign
        return 0 if self.is_mr else expected_contrast_sign(name)

    def find_mask_bank(self) -> tuple[str, str] | None:
        """Return where the bundle's own label maps are, which are used unless the user names others.

        Returns:
            Path of their list, and the meaning of their ids: the name of a numbering, or a file. None for a bundle
            without label maps, which uses phantoms.

        Raises:
            BundleError: The list that the bundle names is missing.
        """
        bank = self.spec.mask_bank
        if bank is None:
            return None
        place = self.path / bank.list
        if not place.exists():
            raise BundleError(
                f"Bundle '{self.name}': the list of its label maps is missing at {place}. Get the whole folder "
                "again, or name label maps with --mask-bank."
            )
        labels = self.path / bank.labels
        return str(place.resolve()), str(labels.resolve()) if labels.is_file() else bank.labels

    @property
    def has_controlnet(self) -> bool:
        """Whether the bundle can draw images of label maps."""
        return "controlnet" in self.spec.networks

    @property
    def image_roles(self) -> tuple[str, ...]:
        """Roles of the networks that make images, such as ``autoencoder``."""
        return NETWORK_ROLES if self.has_controlnet else IMAGE_ROLES

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the networks that the bundle must have."""
        return self.image_roles if self.spec.mask_generation is None else (*self.image_roles, *MASK_ROLES)

    @property
    def is_mr(self) -> bool:
        """Whether the bundle draws MR images, whose intensities are not HU."""
        return is_mr(self.spec.modalities[0])

    @property
    def completes_maps(self) -> bool:
        """Whether label maps are completed by procedural anatomy before the networks see them."""
        return self.spec.unlabelled == "complete"

    def require_controlnet(self) -> None:
        """Raise unless the bundle can draw images of label maps.

        Raises:
            BundleError: It has no ControlNet.
        """
        if self.has_controlnet:
            return
        reason = "NVIDIA has not published one for MR" if self.is_mr else "it only draws images without label maps"
        raise BundleError(
            f"Bundle '{self.name}': has no ControlNet, which images of label maps need ({reason}). Use --mask-source "
            "none without --labels, or a bundle with a ControlNet such as rflow-ct."
        )

    def choose_modality(self, modality: str | None) -> str:
        """Return the modality to condition on: the requested one, or the bundle's first if None.

        Raises:
            RecipeError: MR is requested from a CT bundle, or CT from an MR bundle.
        """
        chosen = modality or self.spec.modalities[0]
        if is_mr(chosen) != self.is_mr:
            remedy = "an MR bundle such as rflow-mr" if is_mr(chosen) else "a CT bundle such as rflow-ct"
            raise RecipeError(
                f"modality: bundle '{self.name}' draws {', '.join(self.spec.modalities)}, found '{chosen}'. Use "
                f"{remedy}."
            )
        return chosen

    def warn_of_modality(self, modality: str) -> tuple[str, ...]:
        """Return a warning if the networks were not trained on a modality; empty otherwise."""
        if modality in self.spec.modalities:
            return ()
        return (
            f"modality: bundle '{self.name}' was trained with {', '.join(self.spec.modalities)}, not with "
            f"'{modality}'. Images may be poor.",
        )

    def choose_guidance(self, guidance_scale: float | None, *, has_map: bool) -> float:
        """Return the guidance scale: the requested one, or the bundle's default if None.

        Args:
            guidance_scale: Requested strength of classifier-free guidance; None for the default.
            has_map: Whether the image is drawn from a label map.

        Raises:
            RecipeError: Guidance is requested without a label map, and the networks are not conditioned on modality.
        """
        if has_map:
            return guidance_scale or 0.0
        chosen = self.spec.guidance_scale if guidance_scale is None else guidance_scale
        if chosen > 0 and not self.is_told_modality:
            raise RecipeError(
                f"guidance_scale: must be 0 without a label map, because bundle '{self.name}' is not conditioned on "
                f"modality, found {chosen:g}. Leave it out."
            )
        return chosen

    def choose_steps(self, num_inference_steps: int | None, *, takes_fewer: bool = True) -> int:
        """Return the number of sampling steps: the requested one, or the bundle's default if None.

        Args:
            num_inference_steps: Requested number of steps.
            takes_fewer: Whether the sampler may take fewer steps than the scheduler of a DDPM bundle was trained with.

        Raises:
            RecipeError: More steps are requested than the scheduler was trained with; or fewer, although
                ``takes_fewer`` is False or the U-Net does not predict noise, as a sampler of fewer steps requires.
        """
        limit = self.spec.scheduler.get("num_train_timesteps", SCHEDULER_STEPS)
        chosen = num_inference_steps or self.default_steps
        if chosen > limit:
            raise RecipeError(
                f"num_inference_steps: at most {limit} (bundle '{self.name}' was trained with that many time steps), "
                f"found {chosen}. Choose fewer with --steps."
            )
        predicts = self.spec.scheduler.get("prediction_type", "epsilon")
        if self.leaves_steps_out(chosen) and predicts != "epsilon":
            raise RecipeError(
                f"num_inference_steps: must be {limit}, because fewer steps need a U-Net that predicts noise, and "
                f"that of bundle '{self.name}' predicts {predicts}; found {chosen}. Leave --steps out."
            )
        if self.leaves_steps_out(chosen) and not takes_fewer:
            raise RecipeError(
                f"num_inference_steps: must be {limit}, because DDPM uses every time step that bundle '{self.name}' "
                f"was trained with, found {chosen}. Leave --steps out."
            )
        return chosen

    def leaves_steps_out(self, num_inference_steps: int) -> bool:
        """Whether a DDPM bundle is to use fewer steps than it was trained with, which takes another sampler."""
        return self.is_ddpm and num_inference_steps < self.spec.scheduler.get("num_train_timesteps", SCHEDULER_STEPS)

    def warn_of_steps(self, num_inference_steps: int) -> tuple[str, ...]:
        """Return a warning if a DDPM bundle is to sample with fewer steps than it was trained with; empty otherwise."""
        if not self.leaves_steps_out(num_inference_steps):
            return ()
        return (
            f"num_inference_steps: bundle '{self.name}' is a DDPM one of {self.default_steps} steps, found "
            f"{num_inference_steps}. Images are drawn with DPM-Solver++ and differ from those of DDPM.",
        )

    @property
    def is_ddpm(self) -> bool:
        """Whether the diffusion U-Net predicts noise (DDPM); otherwise it predicts the velocity of a rectified flow."""
        return bool(self.spec.scheduler.get("class") == "DDPMScheduler")

    @property
    def is_told_modality(self) -> bool:
        """Whether the networks are conditioned on the modality of an image."""
        return self.definition("diffusion_unet").get("num_class_embeds") is not None

    @property
    def is_told_regions(self) -> bool:
        """Whether the networks are conditioned on the body regions that an image shows."""
        return bool(self.definition("diffusion_unet").get("include_top_region_index_input", False))

    def require_told(self, *, modality: str, body_region: Sequence[str] | None) -> None:
        """Raise if a modality or body region is requested that the networks are not conditioned on.

        Args:
            modality: Requested modality.
            body_region: Requested uppermost and lowest region; None without a request.

        Raises:
            RecipeError: The networks are not conditioned on the modality or the body region.
        """
        told = self.spec.modalities[0]
        if modality != told and not self.is_told_modality:
            raise RecipeError(
                f"modality: bundle '{self.name}' is not conditioned on modality, so that only '{told}' can be used, "
                f"found '{modality}'. Leave it out, or use a bundle with modality codes such as rflow-ct."
            )
        if body_region is not None and not self.is_told_regions:
            raise RecipeError(
                f"body_region: bundle '{self.name}' is not conditioned on body region, found "
                f"{' to '.join(body_region)}. Leave --body-region out; with such bundles it only filters mask banks "
                "that list the regions of their maps."
            )

    def check_grid(
        self,
        grid: Grid,
        *,
        shows_head_alone: bool = False,
        allow_unseen: bool = False,
        remedy: str = "; or add --allow-unseen-grid, if the weights were trained on such grids",
        shape_follows: bool = False,
    ) -> tuple[str, ...]:
        """Check a grid against the bundle's limits; without limits, any grid with divisible sides is accepted.

        Args:
            grid: Grid of the images to be made.
            shows_head_alone: Whether the images show nothing but the head, which needs less field of view.
            allow_unseen: Only warn of grids that would be refused, for weights trained on more grids than the bundle
                states.
            remedy: Alternative to using the nearest grid; empty for commands that take no unseen grid.
            shape_follows: Whether the number of voxels follows from field of view and spacing.

        Returns:
            Warning with the nearest suitable grid; empty if there is none.

        Raises:
            GridError: A side is not a multiple of :attr:`grid_factor`, or the networks cannot work with the grid.
        """
        limits = self.spec.grid_limits
        if limits is None:
            grid.require_multiple_of(self.grid_factor, subject=f"Shape for bundle '{self.name}'")
            return ()
        nearest = spell_nearest(
            grid, limits, self.grid_factor, shows_head_alone=shows_head_alone, shape_follows=shape_follows
        )
        if any(side % self.grid_factor for side in grid.shape):
            raise GridError(
                f"Shape for bundle '{self.name}': expected sides that are multiples of {self.grid_factor}, found "
                f"{spell_grid(grid.shape, grid.spacing_mm)}. Use {nearest}."
            )
        lacking = spell_shortfalls(grid, limits, f"Grid for bundle '{self.name}'", shows_head_alone=shows_head_alone)
        if lacking is None:
            return ()
        found, is_refused = lacking
        if is_refused and not allow_unseen:
            raise GridError(f"{found}. Use {nearest}{remedy}.")
        return (f"{found}. The networks were not trained on such grids, and images may be poor: try {nearest}.",)

    def definition(self, role: str) -> dict[str, Any]:
        """Return the definition of a network: its class and hyper-parameters, as in ``bundle.yaml``.

        Args:
            role: Role of the network, such as ``controlnet``.

        Raises:
            BundleError: The bundle has no such network.
        """
        if role not in self.spec.networks:
            raise BundleError(
                f"Bundle '{self.name}': has no definition networks.{role}; it has "
                f"{', '.join(self.spec.networks) or 'none'}. Fetch the bundle again."
            )
        return self.spec.networks[role]

    def owner_of(self, role: str) -> Bundle:
        """Return the bundle whose folder holds the weights of a network: this one, its base, or the base's base.

        Args:
            role: Role of the network, such as ``controlnet``.

        Raises:
            BundleError: None of them names any, or the base cannot be used.
        """
        if role in self.spec.weights:
            return self
        if self.base is None:
            raise BundleError(
                f"Bundle '{self.name}': has no weights for {role}; it has {', '.join(self.spec.weights) or 'none'}. "
                "Fetch the bundle again."
            )
        return self.base.owner_of(role)

    def weight_path(self, role: str) -> Path:
        """Return the path of a network's weight file.

        Args:
            role: Role of the network, such as ``controlnet``.

        Raises:
            BundleError: The bundle names no such file, or the file is missing or lies outside of its bundle's folder.
        """
        owner = self.owner_of(role)
        return owner.path_of(owner.spec.weights[role])

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """Every weight file that ``bundle.yaml`` names, without those of a base bundle."""
        masks = self.spec.mask_generation
        return (*self.spec.weights.values(), *([masks.size_conditions] if masks else []))

    def path_of(self, named: WeightFile) -> Path:
        """Return the path of a file named in ``bundle.yaml``.

        Raises:
            BundleError: The file is missing or lies outside of the folder.
        """
        path = (self.path / named.file).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise BundleError(
                f"Bundle '{self.name}': weight files must be inside the bundle's folder, found {path}. Get the "
                "bundle from a source you trust."
            )
        if not path.is_file():
            raise BundleError(
                f"Bundle '{self.name}': weight file {path} is missing. Install or fetch the bundle again."
            )
        return path

    def require_intact(self, roles: Sequence[str] | None = None) -> None:
        """Compare weight files with the SHA-256 that ``bundle.yaml`` records.

        Args:
            roles: Roles of the networks to check; None for all files, including those of the base.

        Raises:
            BundleError: A file is missing or differs; the message names it.
        """
        chosen = self.roles if roles is None else roles
        owners = {role: self.owner_of(role) for role in chosen}
        paths = {owner.spec.weights[role]: owner.weight_path(role) for role, owner in owners.items()}
        if roles is None:
            paths |= {named: self.path_of(named) for named in self.files}
        for named, path in paths.items():
            found = sha256_of(path)
            if found != named.sha256:
                raise BundleError(
                    f"Bundle '{self.name}': {named.file} should have SHA-256 {named.sha256[:12]}..., found "
                    f"{found[:12]}.... Fetch the bundle again."
                )


def grid_factor(autoencoder: Mapping[str, Any], unet: Mapping[str, Any]) -> int:
    """Return the number of which every side of a grid must be a multiple: the VAE's downsampling times the U-Net's.

    Args:
        autoencoder: Definition of the VAE.
        unet: Definition of the diffusion U-Net.
    """
    return latent_factor(autoencoder) * int(2 ** (len(unet["num_channels"]) - 1))


def bind_slots(slots: Mapping[str, SlotSpec]) -> Vocabulary:
    """Return MAISI's vocabulary with the given label names bound to placeholder slots.

    Args:
        slots: Label name -> slot.
    """
    bindings = {
        name: SlotBinding(id=slot.id, hosts=slot.hosts, is_organ=slot.kind == "organ") for name, slot in slots.items()
    }
    return MAISI.with_slots(bindings) if bindings else MAISI


def embedded_bundles() -> tuple[str, ...]:
    """Return the names of the bundles that come with the package."""
    return tuple(
        sorted(_bundle_name(path.name) for path in EMBEDDED_FOLDER.iterdir() if (path / BUNDLE_FILE).is_file())
    )


def _bundle_name(folder_name: str) -> str:
    return folder_name.replace("_", "-")


def pulled_bundles_folder() -> Path:
    """Return the folder of downloaded bundles: ``MAISI_AUG_HOME``, or the user's data folder."""
    home = os.environ.get(HOME_VARIABLE)
    base = Path(home).expanduser() if home else platformdirs.user_data_path("maisi-aug", appauthor=False)
    return base.absolute() / "bundles"


def pulled_bundles() -> tuple[str, ...]:
    """Return the names of downloaded bundles; ``owner/name`` for shared ones."""
    # The names of folders that are not complete begin with a dot.
    home = pulled_bundles_folder()
    found = (path for depth in ("[!.]*", "[!.]*/[!.]*") for path in home.glob(f"{depth}/{BUNDLE_FILE}"))
    return tuple(sorted(path.parent.relative_to(home).as_posix() for path in found))


def reference_of(bundle: Bundle) -> str:
    """Return the value of ``--bundle`` that selects an embedded or downloaded bundle: its name, or ``owner/name``."""
    home = pulled_bundles_folder()
    return bundle.path.relative_to(home).as_posix() if bundle.path.is_relative_to(home) else bundle.name


def list_bundles() -> list[Bundle]:
    """Return the bundles of the package, then the downloaded ones; damaged ones are left out and logged."""
    found = (_find_whole_bundle(name) for name in dict.fromkeys((*embedded_bundles(), *pulled_bundles())))
    return [bundle for bundle in found if bundle is not None]


def _find_whole_bundle(name: str) -> Bundle | None:
    """The bundle, if it can be read and its weight files are there; one that is damaged must not hide the others."""
    try:
        bundle = load_bundle(name)
        for named in bundle.files:
            bundle.path_of(named)
        for role in bundle.roles:
            bundle.weight_path(role)
    except BundleError as error:
        sentence = " ".join(str(error).split())
        # Logged and not warned of: the command line silences warnings, since most are those of libraries.
        _LOG.error("%s The list omits '%s' until it is fetched or installed again.", sentence, name)
        return None
    return bundle


def load_bundle(name_or_path: str | Path) -> Bundle:
    """Read and validate a bundle; its weights are read later, by the networks.

    Args:
        name_or_path: Name of an embedded or downloaded bundle, or a folder with ``bundle.yaml``, directly or in its
            sub-folder ``bundle``, as training runs have it.

    Raises:
        BundleError: The name is unknown or not downloaded yet, the folder has no ``bundle.yaml``, or this is invalid.
    """
    text = str(name_or_path)
    if text in embedded_bundles():
        return _read_bundle(EMBEDDED_FOLDER / text.replace("-", "_"))
    if text in pulled_bundles():
        return _read_bundle(pulled_bundles_folder() / text)
    for folder in (Path(name_or_path), Path(name_or_path) / RUN_FOLDER):
        if (folder / BUNDLE_FILE).is_file():
            return _read_bundle(folder)
    if text in known_bundles():
        raise BundleError(
            f"Bundle '{text}': its weights have not been downloaded to this machine yet. Run: "
            f"{known_bundles()[text].pull_command}"
        )
    names = sorted({*embedded_bundles(), *pulled_bundles()})
    raise BundleError(
        f"Bundle '{text}': expected {' or '.join(names) or 'the name of a bundle'} or a folder with {BUNDLE_FILE}, "
        f"found neither.{did_you_mean(text, [*names, *known_bundles()])}"
    )


def load_outline(name_or_path: str | Path) -> Bundle:
    """Read a bundle as :func:`load_bundle` does; for one not downloaded yet, return what is known without weights.

    That is enough to plan a cohort or to prepare data: the grid, its limits, the labels and the sampler.

    Raises:
        BundleError: As for :func:`load_bundle`, except for a bundle that can be downloaded.
    """
    text = str(name_or_path)
    try:
        return load_bundle(name_or_path)
    except BundleError:
        if text not in known_bundles():
            raise
    content = {**known_bundles()[text].header, "scale_factor": 1.0, "weights": {}}
    return Bundle(BundleSpec.model_validate(content), pulled_bundles_folder() / text)


def find_base(spec: BaseSpec, folder: Path, *, subject: str) -> Bundle:
    """Return the base of a fine-tuned bundle, found by name or by its recorded paths.

    Args:
        spec: Entry about the base in the fine-tuned bundle.
        folder: Folder of the fine-tuned bundle.
        subject: Name of the fine-tuned bundle in messages.

    Raises:
        BundleError: The base was not found, or has changed.
    """
    at_hand = (*embedded_bundles(), *pulled_bundles())
    places: list[str | Path] = [spec.name] if spec.name in at_hand else []
    places += [folder / path for path in spec.paths if (folder / path / BUNDLE_FILE).is_file()]
    found = [load_bundle(place) for place in places]
    # A shared base is found under its owner's name.
    found += [load_bundle(name) for name in at_hand if name.endswith(f"/{spec.name}")]
    for bundle in found:
        if bundle.fingerprint == spec.fingerprint:
            return bundle
    if found:
        raise BundleError(
            f"{subject}: its base '{spec.name}' has changed since this bundle was made: fingerprint "
            f"{spec.fingerprint[:12]}... then, {found[0].fingerprint[:12]}... now in {found[0].path}. Restore the "
            "earlier base, or fine-tune again from the new one."
        )
    looked = ", ".join(str(folder / path) for path in spec.paths) or "the bundles at hand"
    raise BundleError(
        f"{subject}: its base '{spec.name}' was not found by name or in {looked}. Put it back there, or use a bundle "
        "made with --self-contained."
    )


def _read_bundle(folder: Path) -> Bundle:
    content = read_yaml(folder / BUNDLE_FILE, f"Bundle {folder}", BundleError)
    with explain_problems(BundleSpec, f"Bundle {folder}: {BUNDLE_FILE} does not validate", BundleError, one_line=True):
        return Bundle(BundleSpec.model_validate(content), folder)
