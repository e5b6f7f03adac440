"""A bundle on a device: from a label map, or from none, to a CT image in HU, or from none to an MR image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.decoding import ComputeType, DecodeSettings, DecodingConfig, PrecisionName, latent_factor
from maisi_aug.bundle_spec.proven_steps import require_solver
from maisi_aug.bundle_spec.solvers import PLAIN_SOLVER, SolverName
from maisi_aug.errors import BundleError, RecipeError
from maisi_aug.lesions.editing import remove_lesions
from maisi_aug.networks.acceleration import Compiler, compile_networks, explain_compilation, require_compiler
from maisi_aug.networks.building import (
    ALL_FAST_PATHS,
    FastPaths,
    Networks,
    choose_precision,
    compute_in,
    store_in,
    takes_regions,
)
from maisi_aug.networks.conditioning import (
    HU_MINIMUM,
    HU_PER_UNIT,
    hu_to_unit,
    to_label_bits,
    to_modality_tensor,
    to_region_tensors,
    to_spacing_tensor,
    to_surroundings,
    unit_to_hu,
    unit_to_mr,
)
from maisi_aug.networks.decoder import Decoder
from maisi_aug.networks.devices import explain_missing
from maisi_aug.networks.encoder import Encoder
from maisi_aug.networks.pointwise import use_label_table
from maisi_aug.networks.sampling import Conditions, KnownLatent, sample_latent
from maisi_aug.networks.weights import load_networks
from maisi_aug.phantom.condition import complete_map
from maisi_aug.system.progress import Report
from maisi_aug.system.seeds import derive_seed
from maisi_aug.vocabulary.regions import USUAL_REGIONS, Regions, find_body_regions
from maisi_aug.volumes.grid import Grid

CPU_SPLITS = 16
"""Parts in which a CPU decodes in float32 by default: faster than the whole, in less than half of its memory."""


def resolve_device(text: str) -> str:
    """Return the device to use: the best one available for ``auto``, otherwise the given one after a check.

    Raises:
        BundleError: torch does not know the device or cannot use it.
    """
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = explain_missing(text, error)
        raise BundleError(f"Device '{text}': torch cannot use it: {reason} Use --device cpu or auto.") from error
    return text


def choose_image_precision(
    wanted: PrecisionName, bundle: Bundle, device: str, compiler: Compiler = "none"
) -> ComputeType:
    """Return the floating-point type in which a bundle's image networks compute on a device.

    Args:
        wanted: Requested precision, or ``auto``.
        bundle: Bundle of the networks.
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
        compiler: Compiler of the networks.

    Raises:
        RecipeError: The device does not support the type, or TensorRT, which needs float16, is combined with another.
    """
    if compiler == "trt":
        if wanted not in ("auto", "float16"):
            raise RecipeError(
                "precision: --compile trt builds engines in float16, so that only float16 or auto can be used, found "
                f"'{wanted}'. Leave one of the two out."
            )
        return "float16"
    return choose_precision(wanted, device, bears_half=bundle.spec.mixed_precision)


@dataclass(frozen=True)
class Pipeline:
    """Image networks of a bundle on a device, loaded once and used for many cases.

    Attributes:
        bundle: Bundle of the networks.
        networks: Networks, already on their device.
        fast_paths: Optimisations that are used.
        compiler: Compiler for the networks.
        precision: Precision of the networks.
    """

    bundle: Bundle
    networks: Networks
    fast_paths: FastPaths = ALL_FAST_PATHS
    compiler: Compiler = "none"
    precision: ComputeType = "float32"

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        device: str = "auto",
        *,
        fast_paths: FastPaths = ALL_FAST_PATHS,
        compiler: Compiler = "none",
        precision: PrecisionName = "auto",
    ) -> Pipeline:
        """Load the image networks of a bundle onto a device.

        Args:
            bundle: The bundle.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
            fast_paths: Optimisations to use.
            compiler: Compiler for the networks; they are compiled when the first image is drawn.
            precision: Precision of the networks; ``auto`` is float16 on CUDA devices if the bundle tolerates it,
                otherwise float32.

        Raises:
            RecipeError: The device does not support the precision.
            BundleError: The device cannot be used, weights are missing, altered or do not match, or the compiler does
                not support the device.
            MissingExtraError: The compiler is not installed.
        """
        device = resolve_device(device)
        require_compiler(compiler, device)
        chosen = choose_image_precision(precision, bundle, device, compiler)
        networks = load_networks(
            bundle, device=device, plain_layers=fast_paths.plain_layers, cpu_layers=fast_paths.cpu_layers
        )
        # Recomputing activations in a backward pass that there is not; torch would import its compiler for it.
        networks.controlnet.use_checkpointing = False  # type: ignore[assignment]
        if fast_paths.plain_layers and fast_paths.cpu_layers and device.startswith("cpu"):
            use_label_table(networks.controlnet)
        pipeline = cls(bundle, networks, fast_paths, compiler, chosen)
        for network in (networks.autoencoder, networks.diffusion_unet, networks.controlnet):
            store_in(pipeline._autocast_type, network)
        compile_networks(networks, compiler, fingerprint=bundle.fingerprint)
        return pipeline

    @cached_property
    def decoder(self) -> Decoder:
        """Decoder of latents to images, which remembers the settings that exceeded the memory."""
        definition, is_plain = self.bundle.definition("autoencoder"), self.fast_paths.plain_layers
        return Decoder(
            self.networks.autoencoder,
            definition,
            self.networks.scale_factor,
            self.bundle.spec.decode_window,
            default_splits=self._usual_splits if is_plain else int(definition.get("num_splits", 1)),
            may_split=is_plain and self.compiler != "trt",
            clips=not self.bundle.is_mr,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """Encoder of images to latents; remembers what exceeded the memory."""
        return Encoder(self.networks.autoencoder)

    def synthesize_image(
        self,
        label_map: NDArray[np.uint8] | None,
        grid: Grid,
        *,
        seed: int,
        tissue: NDArray[np.uint8] | None = None,
        num_inference_steps: int | None = None,
        solver: SolverName = PLAIN_SOLVER,
        guidance_scale: float | None = None,
        modality: str | None = None,
        regions: Regions | None = None,
        decoding: DecodingConfig | None = None,
        report: Report | None = None,
        report_decoding: Callable[[DecodeSettings], None] | None = None,
    ) -> NDArray[np.int16]:
        """Draw the image of a label map, or one of whatever the diffusion U-Net draws by itself.

        Args:
            label_map: ``(I, J, K)`` vocabulary ids with the body envelope (200); not modified. None draws without one:
                the ControlNet stays out.
            grid: Grid of the label map and the image; every side a multiple of the bundle's factor.
            seed: The same seed gives the same image on the same type of device.
            tissue: ``(I, J, K)`` tissue ids under label 200, as procedural anatomies know them, for bundles that
                complete label maps; None completes the anatomy.
            num_inference_steps: None for the bundle's default.
            solver: Solver of a rectified flow.
            guidance_scale: 0 for none; 1-5 enforces the label map's tumours, or without one the modality, at twice the
                cost. None is 0 with a label map, and the bundle's default without.
            modality: A name of ``MODALITY_CODES``; None for the bundle's first.
            regions: Uppermost and lowest body region, for networks that are conditioned on it; None reads them off the
                label map, and without one says thorax to abdomen.
            decoding: Windows and splits; those of the bundle when not given, and less at once where memory is short.
            report: Called with (steps done, steps in all).
            report_decoding: Called with how the image was decoded.

        Returns:
            ``(I, J, K)`` int16: of CT HU, -1000 where the label map is 0 and as decoded without one; of MR intensities
            from 0, with 1000 for what the networks know as 1.

        Raises:
            GridError: For sides that the networks cannot take.
            RecipeError: For more steps than the scheduler was trained with, for a solver of flows with DDPM, for a
                modality or regions that the networks are not conditioned on, and for guidance without a label map if
                they are not conditioned on modality.
            BundleError: When a label map is given and the bundle has no ControlNet, the networks cannot be compiled, or
                they leave the range of the type that they compute in.
            MemoryShortageError: When not even the smallest windows can be decoded in the memory that there is.
        """
        num_inference_steps = self.bundle.choose_steps(num_inference_steps)
        require_solver(self.bundle, solver)
        modality = self.bundle.choose_modality(modality)
        self.bundle.require_told(modality=modality, body_region=regions)
        guidance_scale = self.bundle.choose_guidance(guidance_scale, has_map=label_map is not None)
        if label_map is not None:
            self.bundle.require_controlnet()
        grid.require_multiple_of(self.bundle.grid_factor, subject=f"Grid for bundle '{self.bundle.name}'")
        if takes_regions(self.networks.diffusion_unet):
            regions = regions or (USUAL_REGIONS if label_map is None else find_body_regions(label_map))
        shown, healthy = self._show_map(label_map, grid, seed, modality, tissue, with_healthy=guidance_scale > 0)
        with compute_in(self._autocast_type, self.networks.device), explain_compilation(self.compiler):
            latent = sample_latent(
                self.networks,
                self._conditions(shown, grid, modality, regions),
                self._draw_noise(grid, seed),
                num_inference_steps=num_inference_steps,
                solver=solver,
                guidance_scale=guidance_scale,
                unconditional=self._conditions(healthy, grid, "unknown", regions) if guidance_scale > 0 else None,
                embed_once=self.fast_paths.embed_once,
                generator=torch.Generator(self.networks.device).manual_seed(derive_seed(seed, "sampling noise")),
                report=report,
            )
            image, used = self.decoder.decode(latent, decoding)
        if not bool(image.isfinite().all()):
            raise BundleError(
                f"Bundle '{self.bundle.name}': the image has values that {self.precision} cannot represent. Use "
                "--precision float32."
            )
        if report_decoding is not None:
            report_decoding(used)
        drawn = image[0, 0].float().cpu().numpy()
        return unit_to_mr(drawn) if self.bundle.is_mr else unit_to_hu(drawn, shown)

    def redraw_images(
        self,
        image_hu: NDArray[np.float32],
        label_maps: Sequence[NDArray[np.uint8]],
        hidden: NDArray[np.bool_],
        grid: Grid,
        *,
        seed: int,
        num_inference_steps: int | None = None,
        solver: SolverName = PLAIN_SOLVER,
        num_resamplings: int = 1,
        puts_back: bool = True,
    ) -> NDArray[np.float32]:
        """Redraw a part of a real image from its surroundings, once for each of several label maps.

        All start from the same noise and differ only by their label maps.

        Args:
            image_hu: ``(I, J, K)`` HU; what is hidden of it does not matter.
            label_maps: ``(I, J, K)`` ids each; 0 where there is no image.
            hidden: ``(I, J, K)`` voxels to draw.
            grid: Grid of all of them; every side a multiple of the bundle's factor.
            seed: The same seed gives the same images on the same type of device.
            num_inference_steps: None for the bundle's default.
            solver: Solver of a rectified flow; others than ``euler`` take every step once.
            num_resamplings: Number of times that each step is taken, see ``KnownLatent``.
            puts_back: Whether the latents of what is not hidden are put back at every step; without, only a ControlNet
                that takes surroundings knows of them.

        Returns:
            ``(B, I, J, K)`` HU as decoded, known parts included: the autoencoder's rendering of them.

        Raises:
            GridError: For sides that the networks cannot take.
            RecipeError: For more steps than the scheduler was trained with, or with DDPM for fewer or another solver.
        """
        grid.require_multiple_of(self.bundle.grid_factor, subject=f"Crop for bundle '{self.bundle.name}'")
        device = self.networks.device
        num_steps = self.bundle.choose_steps(num_inference_steps, takes_fewer=False)
        require_solver(self.bundle, solver)
        image = hu_to_unit(torch.from_numpy(np.ascontiguousarray(image_hu)).to(device))[None]
        # What adds noise on its way draws each alone, so that it is the same noise for all.
        adds_noise = num_resamplings > 1 or not isinstance(self.networks.scheduler, RFlowScheduler)
        num_together = 1 if adds_noise else len(label_maps)
        drawn = []
        for start in range(0, len(label_maps), num_together):
            maps = np.stack(label_maps[start : start + num_together])
            is_known = torch.from_numpy(~hidden & (maps > 0)).to(device)
            noise = self._draw_noise(grid, seed).expand(len(maps), -1, -1, -1, -1)
            with compute_in(self._autocast_type, device), explain_compilation(self.compiler):
                latent = sample_latent(
                    self.networks,
                    replace(self._conditions_of(maps, grid), surroundings=to_surroundings(image, is_known)),
                    noise,
                    num_inference_steps=num_steps,
                    solver=solver,
                    embed_once=self.fast_paths.embed_once,
                    generator=torch.Generator(device).manual_seed(derive_seed(seed, "sampling noise")),
                    known=self._encode_known(image, is_known, noise, num_resamplings) if puts_back else None,
                )
                drawn.append(self.decoder.decode(latent)[0][:, 0].float().cpu().numpy())
        scaled = np.clip(np.concatenate(drawn), 0.0, 1.0)
        return np.asarray(scaled * HU_PER_UNIT + HU_MINIMUM, dtype=np.float32)

    def _conditions_of(self, label_maps: NDArray[np.uint8], grid: Grid) -> Conditions:
        """Conditions of several label maps ``(B, I, J, K)`` of one grid."""
        device, number = self.networks.device, len(label_maps)
        regions = None
        if takes_regions(self.networks.diffusion_unet):
            regions = to_region_tensors([find_body_regions(label_map) for label_map in label_maps], device=device)
        return Conditions(
            to_label_bits(torch.from_numpy(label_maps).to(device)),
            to_modality_tensor(["ct"] * number, device=device),
            to_spacing_tensor([grid.spacing_mm] * number, device=device),
            regions,
        )

    @torch.inference_mode()
    def _encode_known(self, image: Tensor, is_known: Tensor, noise: Tensor, num_resamplings: int) -> KnownLatent:
        """The latent of an image, known where all voxels below a latent voxel are."""
        latent = self.encoder.encode(image[:, None]).float()
        factors = [side // small for side, small in zip(is_known.shape[1:], noise.shape[2:], strict=True)]
        hidden = functional.max_pool3d((~is_known)[:, None].float(), factors)  # of which MPS has no adaptive one
        return KnownLatent((latent * self.networks.scale_factor).expand_as(noise), hidden == 0, num_resamplings)

    @property
    def num_threads(self) -> int | None:
        """Number of CPU threads, which affects the order of summation; None on other devices."""
        return torch.get_num_threads() if self.networks.device.startswith("cpu") else None

    @property
    def _usual_splits(self) -> int:
        """Parts that a processor's cache makes faster than the whole; networks compiled for it take the whole."""
        is_plain_cpu = self.networks.device.startswith("cpu") and self.precision == "float32"
        return CPU_SPLITS if is_plain_cpu and self.compiler == "none" else 1

    @property
    def _autocast_type(self) -> ComputeType:
        return "float32" if self.compiler == "trt" else self.precision  # engines are in float16 by themselves

    def _conditions(
        self, label_map: NDArray[np.uint8] | None, grid: Grid, modality: str, regions: Regions | None
    ) -> Conditions:
        device = self.networks.device
        label_bits = None
        if label_map is not None:
            label_bits = to_label_bits(torch.from_numpy(np.ascontiguousarray(label_map)).to(device)[None])
        return Conditions(
            label_bits,
            to_modality_tensor([modality], device=device),
            to_spacing_tensor([grid.spacing_mm], device=device),
            to_region_tensors([regions], device=device) if regions is not None else None,
        )

    def _show_map(
        self,
        label_map: NDArray[np.uint8] | None,
        grid: Grid,
        seed: int,
        modality: str,
        tissue: NDArray[np.uint8] | None,
        *,
        with_healthy: bool,
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
        """What the networks are shown of a label map, and the same without lesions, from which guidance leads away."""
        if label_map is None:
            return None, None
        completed = complete_map(label_map, grid=grid, seed=seed, tissue=tissue) if self.bundle.completes_maps else None
        healthy = None
        if with_healthy:
            whole = label_map if completed is None else completed.label_map
            healthy = remove_lesions(whole, self.bundle.vocabulary, spacing_mm=grid.spacing_mm, with_cysts=True)
        if completed is None:
            return label_map, healthy
        return completed.to_condition(modality), None if healthy is None else completed.to_condition(modality, healthy)

    def _draw_noise(self, grid: Grid, seed: int) -> Tensor:
        definition = self.bundle.definition("autoencoder")
        factor = latent_factor(definition)
        shape = (1, int(definition["latent_channels"]), *(side // factor for side in grid.shape))
        # Drawn on the CPU, so that the same seed means the same noise on every device.
        generator = torch.Generator().manual_seed(derive_seed(seed, "latent noise"))
        return torch.randn(shape, generator=generator).to(self.networks.device)
