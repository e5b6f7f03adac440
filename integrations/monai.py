"""A finished cohort as a MONAI dataset, and lesions drawn into real cases while they are loaded.

from maisi_aug.integrations.monai import CohortDataset
dataset = CohortDataset("cohort", transform=my_dict_transforms)
load = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), InsertLesiond("lung nodule:6-20mm"), augment])
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from monai.config import KeysCollection
from monai.data import Dataset
from monai.transforms import MapTransform, Randomizable, apply_transform

from maisi_aug.errors import RequestError
from maisi_aug.integrations.insertion import LesionPool
from maisi_aug.integrations.reading.items import Item, open_pairs, to_monai_item

NAME_KEY: Final = "filename_or_obj"


class CohortDataset(Dataset):  # type: ignore[misc]  # MONAI has no types here
    """MONAI dataset of a finished cohort, one item per accepted case, read from disk whenever it is indexed.

    An item is a dict: ``image`` (float32, in HU) and ``label`` (uint8, numbers of the labels) are MetaTensors
    ``(1, I, J, K)`` in RAS+ with their affine, so that MONAI's ``LoadImaged`` and ``EnsureChannelFirstd`` must be left
    out of the transform; ``case_id``, ``request`` and ``seed`` identify the case. Reading an item raises
    ``ExportError`` if a file is missing or altered::

        dataset = CohortDataset("cohort", transform=RandFlipd(["image", "label"], prob=0.5))
        dataset[0]["image"].shape, dataset.numbering.to_dict()

    Args:
        folder: Folder that :func:`maisi_aug.synthesize` or :func:`maisi_aug.insert` wrote.
        transform: Function or MONAI transform of an item; the dataset returns its result. None returns items as they
            are.
        labels: Names or ids of the labels to keep, numbered 1, 2, ... in the order of their ids; those requested for
            the cohort when empty. All others become 0, the background.
        include_anatomy: Whether to keep every other label of the maps as well, except the body envelope.
        numbers: Label name -> number, such as a real dataset's, instead of ``labels`` and ``include_anatomy``; 0 for
            labels that become background.

    Raises:
        CohortError: The folder is not a cohort.
        ExportError: The cohort is unfinished, or no case contains one of the labels.
        RequestError: ``numbers`` has no entry for a label requested for the cohort, or an invalid number.
        VocabularyError: A label name is unknown.

    Attributes:
        numbering: Numbers of the labels; ``numbering.to_dict()`` returns label name -> number.
    """

    def __init__(
        self,
        folder: Path | str,
        transform: Callable[[Item], Any] | None = None,
        *,
        labels: Sequence[str] = (),
        include_anatomy: bool = False,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        self._pairs = open_pairs(folder, labels, include_anatomy=include_anatomy, numbers=numbers)
        self.numbering = self._pairs.numbering
        super().__init__([{"case_id": case.case_id} for case in self._pairs.cohort.cases], transform)

    def _transform(self, index: int) -> Any:
        item = to_monai_item(self._pairs.load(index))
        return item if self.transform is None else apply_transform(self.transform, item)


class InsertLesiond(MapTransform, Randomizable):  # type: ignore[misc]  # MONAI has no types here
    """MONAI dictionary transform that draws a lesion into a CT and its label map, with a probability.

    The items contain MetaTensors ``(1, I, J, K)``, the image in HU. CTs are identified by their file name, or by
    ``name_key`` for items without one.
    """

    def __init__(
        self,
        lesion: str,
        keys: KeysCollection = ("image", "label"),
        *,
        probability: float = 0.5,
        name_key: str | None = None,
        **pool: Any,
    ) -> None:
        """Create the transform.

        Args:
            lesion: One lesion with its sizes, such as ``"lung nodule:6-20mm"``.
            keys: Keys of the image and of the label map, in this order.
            probability: Probability in [0, 1] that an item gets a lesion.
            name_key: Key of the item's name, where it is not the image's ``filename_or_obj``.
            **pool: Keywords of :class:`LesionPool`, such as ``number`` (the value of lesions in the label maps) or
                ``host_numbers``.

        Raises:
            RequestError: The keys are not two, or the text is not a single lesion with a size.
            VocabularyError: There is no such label.
        """
        MapTransform.__init__(self, keys)
        if len(self.keys) != 2:
            raise RequestError(f"InsertLesiond: needs the keys of image and label map, found {self.keys}.")
        self.probability, self.name_key = probability, name_key
        self.pool = LesionPool(lesion, **pool)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of an item with one lesion more, or as it was.

        Args:
            data: Item with the keys of image (HU) and label map, MetaTensors ``(1, I, J, K)`` on one grid; its tensors
                are not modified. It is returned without a lesion by chance, or if the CT has no room for one.
        """
        item = dict(data)
        rng = np.random.default_rng(self.R.randint(2**31))
        if rng.random() >= self.probability:
            return item
        image, label = (item[key] for key in self.keys)
        name = item[self.name_key] if self.name_key is not None else str(image.meta.get(NAME_KEY, ""))
        made = self.pool.insert(
            image[0].numpy(), label[0].numpy(), image.affine.numpy(), name=(name, *image.shape), rng=rng
        )
        for key, old, new in zip(self.keys, (image, label), made, strict=True):
            changed = old.clone()
            changed[0] = changed.new_tensor(new)
            item[key] = changed
        return item
