"""The pool of lesions that are drawn into the real cases of a training while they are loaded.

``InsertLesiond`` of ``integrations.monai`` and ``InsertLesion`` of ``integrations.torchio`` take from one. Both work on
whole CTs in HU, so they come after loading and before whatever is random or changes intensities. What is drawn is
shown several times and then drawn anew: to show one that is there costs a copy of the image.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maisi_aug.cohort.grammar import SizeRange, parse_requests
from maisi_aug.errors import LesionError, MaisiAugWarning, RequestError, UnfitCtError
from maisi_aug.insertion.config import draw_texture
from maisi_aug.insertion.insert import Host, LabelledHost, LesionRequest, LungHost, insert_lesion
from maisi_aug.insertion.painting import Painter, ProceduralPainter, Texture
from maisi_aug.insertion.request import Attachment
from maisi_aug.vocabulary.hu import expected_contrast_sign
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, LUNG_LOBE_IDS
from maisi_aug.volumes.components import is_any_of
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.orientation import turn_volume

NUM_HELD_CTS: Final = 64
"""Number of CTs whose hosts and lesions are cached; the least recently used one is dropped."""
NUM_TRIES: Final = 4
"""Number of lesions to draw until one passes the gates; if none does, the CT is returned unchanged."""


class WholeCt(NamedTuple):
    """A CT in HU and its label map, ``(I, J, K)`` in RAS+."""

    image_hu: NDArray[Any]
    label_map: NDArray[Any]
    grid: Grid


class DrawnLesion(NamedTuple):
    """A lesion drawn into a CT: its box, and the voxels in the box before and after."""

    box: tuple[slice, ...]
    before: NDArray[Any]
    after: NDArray[Any]
    lesion: NDArray[np.bool_]


@dataclass
class _HeldCt:
    """What is remembered of a CT: where lesions may grow, and those that were drawn with the uses that are left."""

    host: Host | None
    lesions: list[tuple[DrawnLesion, int]] = field(default_factory=list)


class LesionPool:
    """Draws lesions into training CTs, and shows each lesion several times.

    The lesions depend only on the generator: the same sequence of CTs and random numbers gives the same lesions.
    """

    def __init__(
        self,
        lesion: str,
        *,
        number: int = 1,
        host_numbers: Sequence[int] = (),
        reuse: int = 8,
        per_ct: int = 4,
        texture: Texture | None = None,
        place: Attachment | None = None,
        painter: Painter | None = None,
    ) -> None:
        """Create the pool.

        Args:
            lesion: One lesion with its sizes, as in ``maisi-aug insert --labels``, such as ``"lung nodule:6-20mm"``.
            number: Value that lesions have in the label maps of the training; new lesions keep clear of those that are
                there.
            host_numbers: Values that the organs in which lesions may grow have in the label maps; without them, the
                lung is found by HU for its lesions.
            reuse: Number of times that a lesion is used before it is replaced.
            per_ct: Lesions that are kept for every CT; one of them is shown at a time.
            texture: Texture of nodules; by default as frequent as in patients.
            place: Whether lesions touch the surface of their host; left to chance when not given.
            painter: Draws; the procedural one, or what ``open_bundle_painter`` gives.

        Raises:
            RequestError: It is not a single lesion with a size, or nothing tells where its host is.
            VocabularyError: There is no such label.
        """
        (request,) = parse_requests([lesion], vocabulary=FULL_VOCABULARY)
        part, size = request.lesions[0], request.lesions[0].size
        if len(request.lesions) > 1 or part.count > 1 or size is None:
            raise RequestError(f"'{lesion}': expected one lesion with a size, such as 'lung nodule:6-20mm'.")
        self._is_lung = LUNG_LOBE_IDS.issuperset(FULL_VOCABULARY.hosts_of(part.label_id))
        if not self._is_lung and not host_numbers:
            raise RequestError(f"'{lesion}': needs host_numbers, the numbers of its host organs in the label maps.")
        self._label_id, self._name, self._size = part.label_id, part.label_name, size
        self.number, self.host_numbers = number, tuple(host_numbers)
        self.reuse, self.per_ct = max(1, reuse), max(1, per_ct)
        self.texture, self.place = texture, place
        self.painter: Painter = painter or ProceduralPainter()
        self._held: OrderedDict[Hashable, _HeldCt] = OrderedDict()

    @property
    def size(self) -> SizeRange:
        """Range of volumes of the drawn lesions."""
        return self._size

    def insert(
        self,
        image_hu: NDArray[Any],
        label_map: NDArray[Any],
        affine: NDArray[np.float64],
        *,
        name: Hashable,
        rng: np.random.Generator,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Insert one lesion into a CT and its label map: one that the pool holds for this CT, or a new one.

        Args:
            image_hu: ``(I, J, K)`` image in HU, with any axis directions; not modified.
            label_map: ``(I, J, K)`` integer label numbers of the training, on the image's grid; not modified.
            affine: ``(4, 4)`` matrix from voxel indices to RAS+ mm.
            name: Key under which lesions are held: the same for every call with this CT, different for different CTs.
            rng: Generator of all random draws, which it advances.

        Returns:
            Copies of image and label map, in that order and of the same shapes and dtypes, with the lesion; voxels of
            the lesion have the pool's ``number``. Both are as given if the CT has no room for a lesion; if it has no
            host organ at all, a ``MaisiAugWarning`` says so.
        """
        grid = Grid(image_hu.shape, np.asarray(affine, dtype=np.float64))
        image_hu, label_map = image_hu.copy(), label_map.copy()
        image, turned = turn_volume(image_hu, grid, "RAS")  # views: what is written into them is in the copies
        labels, _ = turn_volume(label_map, grid, "RAS")
        drawn = self.take(
            name,
            lambda: WholeCt(image, labels, turned),
            rng,
            still_fits=lambda one: np.array_equal(image[one.box], one.before),  # else something has changed the CT
        )
        if drawn is not None:
            image[drawn.box] = drawn.after
            labels[drawn.box][drawn.lesion] = self.number
        return image_hu, label_map

    def take(
        self,
        name: Hashable,
        load: Callable[[], WholeCt],
        rng: np.random.Generator,
        *,
        still_fits: Callable[[DrawnLesion], bool] = lambda drawn: True,
    ) -> DrawnLesion | None:
        """Return an existing lesion for a CT, or draw a new one while there are too few.

        Args:
            name: Key that identifies the CT.
            load: Function that reads the CT, called when it is new and for every new lesion.
            rng: Generator of all random draws.
            still_fits: Function that returns whether an earlier lesion still fits the CT.

        Returns:
            The lesion; None if the CT has no room for one.
        """
        held = self._held.get(name) or self._hold(name, load())
        self._held.move_to_end(name)
        if held.host is None:
            return None
        if len(held.lesions) >= self.per_ct:
            drawn, uses = held.lesions.pop(int(rng.integers(len(held.lesions))))
            if still_fits(drawn):
                if uses > 1:
                    held.lesions.append((drawn, uses - 1))
                return drawn
        new = self._draw(held.host, load(), rng)
        if new is not None and self.reuse > 1:
            held.lesions.append((new, self.reuse - 1))
        return new

    def _hold(self, name: Hashable, ct: WholeCt) -> _HeldCt:
        try:
            host: Host | None = self._find_host(ct)
        except UnfitCtError as error:
            warnings.warn(f"{name}: no lesion is inserted. {error}", MaisiAugWarning, stacklevel=2)
            host = None
        self._held[name] = _HeldCt(host)
        while len(self._held) > NUM_HELD_CTS:
            self._held.popitem(last=False)
        return self._held[name]

    def _find_host(self, ct: WholeCt) -> Host:
        if self.host_numbers:
            return LabelledHost.of(ct.label_map.astype(np.uint8), self.host_numbers, ct.grid.spacing_mm)
        return LungHost.of(ct.image_hu, ct.grid.spacing_mm)

    def _draw(self, host: Host, ct: WholeCt, rng: np.random.Generator) -> DrawnLesion | None:
        occupied = is_any_of(ct.label_map.astype(np.uint8), (self.number,))
        image, spacing_mm = ct.image_hu, ct.grid.spacing_mm
        for _ in range(NUM_TRIES):
            seed = int(rng.integers(2**62))
            texture: Texture = (self.texture or draw_texture(seed)) if self._is_lung else "soft"
            sign = 1 if texture != "soft" else expected_contrast_sign(self._name)
            request = LesionRequest(self._label_id, self._size.at(float(rng.random())), texture, self.place, sign)
            try:
                made = insert_lesion(image, spacing_mm, host, request, self.painter, occupied=occupied, seed=seed)
            except LesionError:
                continue
            if not made.reason:
                return DrawnLesion(made.box, image[made.box].copy(), made.image, made.lesion)
        return None
