"""What a bundle knows of the labels it was taught: sizes for percentiles, and what they look like in CT. No torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.schema import SizeSpec
from maisi_aug.errors import BundleError
from maisi_aug.system.whole_files import write_json_whole
from maisi_aug.vocabulary.hu import HuRange, bundle_hu_ranges, expected_contrast_sign
from maisi_aug.vocabulary.sizes import SizeDistribution, measure_distribution


def bundle_distributions(bundle: Bundle) -> dict[str, SizeDistribution]:
    """Label name -> the sizes that its percentiles refer to, of the labels that the bundle was taught."""
    return {name: SizeDistribution(name, sizes.quantiles_ml, sizes.source) for name, sizes in bundle.spec.sizes.items()}


def measure_sizes(volumes_ml: Sequence[Sequence[float]], name: str, source: str) -> SizeSpec:
    """Sizes of a label for a bundle.

    Args:
        volumes_ml: For every patient the volumes of the label's lesions, or of the organ.
        name: Of the label.
        source: Where they were measured.

    Raises:
        RequestError: When no patient has any.
    """
    measured = measure_distribution(volumes_ml, name, source)
    return SizeSpec(quantiles_ml=measured.quantiles_ml, source=measured.source)


def hu_ranges_of(bundle: Bundle) -> tuple[HuRange, ...]:
    """Bounds for the medians of labels: the published ones, and those measured of what the bundle was taught."""
    own = [
        HuRange(name, (bundle.vocabulary.id_of(name),), bounds.low_hu, bounds.high_hu)
        for name, bounds in bundle.spec.hu_ranges.items()
    ]
    networks = bundle.name if bundle.spec.base is None else bundle.spec.base.name
    return (*bundle_hu_ranges(networks), *own)


def contrast_sign_of(label_id: int, bundle: Bundle) -> int:
    """Whether a lesion is brighter (1) or darker (-1) than its host, or either (0)."""
    name = bundle.vocabulary.name_of(label_id)
    return bundle.spec.hu_ranges[name].contrast_sign if name in bundle.spec.hu_ranges else expected_contrast_sign(name)


def default_bank(bundle: Bundle) -> tuple[str, str] | None:
    """The list of label maps that a bundle draws from by default, and what their ids mean; None for the phantoms.

    Raises:
        BundleError: When the bundle names a list that is not there.
    """
    bank = bundle.spec.mask_bank
    if bank is None:
        return None
    place = bundle.path / bank.list
    if not place.exists():
        raise BundleError(
            f"Bundle '{bundle.name}': expected the list of its label maps at {place}, found none. Get the whole folder "
            "again, or name label maps with --mask-bank."
        )
    labels = bundle.path / bank.labels
    return str(place.resolve()), str(labels.resolve()) if Path(labels).is_file() else bank.labels


def copy_bank(bundle: Bundle, folder: Path) -> None:
    """Put the list of a bundle's label maps, and the maps that lie in its folder, into the folder of a copy.

    Maps elsewhere are listed by their absolute paths, for the copy may lie anywhere.

    Args:
        bundle: With or without such a list.
        folder: Of the copy.
    """
    bank = bundle.spec.mask_bank
    if bank is None:
        return
    document = json.loads((bundle.path / bank.list).read_text(encoding="utf-8"))
    home = bundle.path.resolve()
    for row in document["training"]:
        source = (home / row["label"]).resolve()
        if source.is_relative_to(home):
            target = folder / source.relative_to(home)  # not as it is spelled: '..' would lead out of the copy
            row["label"] = source.relative_to(home).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            row["label"] = source.as_posix()
    if (bundle.path / bank.labels).is_file():
        shutil.copyfile(bundle.path / bank.labels, folder / bank.labels)
    write_json_whole(folder / bank.list, document)
