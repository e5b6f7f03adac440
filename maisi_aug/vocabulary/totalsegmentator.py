"""TotalSegmentator's class tables and what each class is for MAISI, both ways.

v1 has 104 classes, task ``total`` of v2 117, and so has ``total_v3``, here called v3, with a sixth lumbar vertebra in
 place of the first sacral one; next to them stand the tasks that find lesions, cysts, vessels and the body
(``map_to_binary.py`` of TotalSegmentator 2.18, whose ``lung_vessels`` tells airways, their wall, arteries and veins
apart; versions before 2.13 had the two classes that are ``lung_vessels_LEGACY`` now).
Several v1 classes share one MAISI label (the heart's chambers and wall are ``heart``), and some have none: the face,
the pulmonary artery and L6 become ``body``, the label of every body voxel without an organ.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

from maisi_aug.errors import VocabularyError
from maisi_aug.vocabulary.labels import BODY_ID

TotalSegmentatorVersion = Literal["v1", "v2", "v3"]
TotalSegmentatorTask = Literal[
    "liver_lesions", "liver_vessels", "lung_nodules", "lung_vessels", "lung_vessels_LEGACY", "kidney_cysts", "body"
]

_LUNG_LOBES = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)
_VERTEBRAE = tuple(
    f"vertebrae_{level}{number}" for level, count in (("L", 5), ("T", 12), ("C", 7)) for number in range(count, 0, -1)
)
_RIBS = tuple(f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13))
_ILIAC_VESSELS = ("iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right")
_LIMB_GIRDLES = tuple(f"{bone}_{side}" for bone in ("humerus", "scapula", "clavicula") for side in ("left", "right"))
_FEMURS_AND_HIPS = ("femur_left", "femur_right", "hip_left", "hip_right")
_MUSCLES = tuple(
    f"{muscle}_{side}"
    for muscle in ("gluteus_maximus", "gluteus_medius", "gluteus_minimus", "autochthon", "iliopsoas")
    for side in ("left", "right")
)

# In the order of their ids, which count from 1.
_NAMES: dict[TotalSegmentatorVersion, tuple[str, ...]] = {
    "v1": (
        *("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "aorta", "inferior_vena_cava"),
        *("portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left"),
        *_LUNG_LOBES,
        *_VERTEBRAE,
        *("esophagus", "trachea", "heart_myocardium", "heart_atrium_left", "heart_ventricle_left"),
        *("heart_atrium_right", "heart_ventricle_right", "pulmonary_artery", "brain"),
        *_ILIAC_VESSELS,
        *("small_bowel", "duodenum", "colon"),
        *_RIBS,
        *_LIMB_GIRDLES,
        *_FEMURS_AND_HIPS,
        *("sacrum", "face"),
        *_MUSCLES,
        "urinary_bladder",
    ),
    "v2": (
        *("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas"),
        *("adrenal_gland_right", "adrenal_gland_left"),
        *_LUNG_LOBES,
        *("esophagus", "trachea", "thyroid_gland", "small_bowel", "duodenum", "colon", "urinary_bladder", "prostate"),
        *("kidney_cyst_left", "kidney_cyst_right", "sacrum", "vertebrae_S1"),
        *_VERTEBRAE,
        *("heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk"),
        *("subclavian_artery_right", "subclavian_artery_left"),
        *("common_carotid_artery_right", "common_carotid_artery_left"),
        *("brachiocephalic_vein_left", "brachiocephalic_vein_right", "atrial_appendage_left", "superior_vena_cava"),
        *("inferior_vena_cava", "portal_vein_and_splenic_vein"),
        *_ILIAC_VESSELS,
        *_LIMB_GIRDLES,
        *_FEMURS_AND_HIPS,
        "spinal_cord",
        *_MUSCLES,
        *("brain", "skull"),
        *_RIBS,
        *("sternum", "costal_cartilages"),
    ),
}

_NAMES["v3"] = tuple("vertebrae_L6" if name == "vertebrae_S1" else name for name in _NAMES["v2"])

_HEART_ID = 115
_MAISI_IDS: dict[str, int] = {
    "liver": 1,
    "spleen": 3,
    "pancreas": 4,
    "kidney_right": 5,
    "aorta": 6,
    "inferior_vena_cava": 7,
    "adrenal_gland_right": 8,
    "adrenal_gland_left": 9,
    "gallbladder": 10,
    "esophagus": 11,
    "stomach": 12,
    "duodenum": 13,
    "kidney_left": 14,
    "urinary_bladder": 15,
    "portal_vein_and_splenic_vein": 17,
    "small_bowel": 19,
    "brain": 22,
    **{name: 28 + place for place, name in enumerate(_LUNG_LOBES)},
    **{name: 33 + place for place, name in enumerate(_VERTEBRAE)},
    "trachea": 57,
    **{name: 58 + place for place, name in enumerate(_ILIAC_VESSELS)},
    "colon": 62,
    **{name: 63 + place for place, name in enumerate(_RIBS)},
    **{name: 87 + place for place, name in enumerate(_LIMB_GIRDLES)},
    **{name: 93 + place for place, name in enumerate(_FEMURS_AND_HIPS)},
    "sacrum": 97,
    **{name: 98 + place for place, name in enumerate(_MUSCLES)},
    "atrial_appendage_left": 108,
    "brachiocephalic_trunk": 109,
    "brachiocephalic_vein_left": 110,
    "brachiocephalic_vein_right": 111,
    "common_carotid_artery_left": 112,
    "common_carotid_artery_right": 113,
    "costal_cartilages": 114,
    "heart": _HEART_ID,
    "heart_myocardium": _HEART_ID,
    "heart_atrium_left": _HEART_ID,
    "heart_ventricle_left": _HEART_ID,
    "heart_atrium_right": _HEART_ID,
    "heart_ventricle_right": _HEART_ID,
    "kidney_cyst_left": 116,
    "kidney_cyst_right": 117,
    "prostate": 118,
    "pulmonary_vein": 119,
    "skull": 120,
    "spinal_cord": 121,
    "sternum": 122,
    "subclavian_artery_left": 123,
    "subclavian_artery_right": 124,
    "superior_vena_cava": 125,
    "thyroid_gland": 126,
    "vertebrae_S1": 127,
    "face": BODY_ID,
    "pulmonary_artery": BODY_ID,
    "vertebrae_L6": BODY_ID,
}


_TASKS: dict[TotalSegmentatorTask, tuple[str, ...]] = {
    "liver_lesions": ("liver_lesions",),
    "liver_vessels": ("liver_vessels", "liver_tumor"),
    "lung_nodules": ("lung", "lung_nodules"),
    "lung_vessels": ("lung_airways", "lung_airways_wall", "lung_arteries", "lung_veins"),
    "lung_vessels_LEGACY": ("lung_vessels", "lung_trachea_bronchia"),
    "kidney_cysts": ("kidney_cyst_left", "kidney_cyst_right"),
    "body": ("body_trunc", "body_extremities"),
}
_TASK_IDS: dict[str, int] = {
    "liver_lesions": 26,
    "liver_tumor": 26,
    "liver_vessels": 25,
    "lung_nodules": 23,
    "lung_airways": 132,
    "lung_trachea_bronchia": 132,
    "lung": BODY_ID,  # all lobes in one, which MAISI has no label for
    "lung_airways_wall": BODY_ID,
    "lung_arteries": BODY_ID,
    "lung_veins": BODY_ID,
    "lung_vessels": BODY_ID,
    "body_trunc": BODY_ID,
    "body_extremities": BODY_ID,
}


def totalsegmentator_names(version: TotalSegmentatorVersion) -> dict[int, str]:
    """Return id -> class name of TotalSegmentator's main task, without the background.

    Args:
        version: ``v1``, ``v2`` or ``v3``.

    Raises:
        VocabularyError: The version is unknown.
    """
    if version not in get_args(TotalSegmentatorVersion):
        raise VocabularyError(
            f"TotalSegmentator version: expected 'v1', 'v2' or 'v3', found '{version}'. Choose one of them."
        )
    return dict(enumerate(_NAMES[version], start=1))


def totalsegmentator_mapping(version: TotalSegmentatorVersion) -> dict[int, int]:
    """Return TotalSegmentator's id -> MAISI's id, for every class of its main task and the background.

    Args:
        version: ``v1``, ``v2`` or ``v3``.

    Raises:
        VocabularyError: The version is unknown.
    """
    return {0: 0, **{class_id: _MAISI_IDS[name] for class_id, name in totalsegmentator_names(version).items()}}


def totalsegmentator_task_names(task: TotalSegmentatorTask) -> dict[int, str]:
    """Return id -> class name of one of TotalSegmentator's further tasks, without the background.

    Args:
        task: Name of the task, as TotalSegmentator's option ``--task`` takes it.

    Raises:
        VocabularyError: The task is unknown.
    """
    if task not in _TASKS:
        raise VocabularyError(
            f"TotalSegmentator task: expected one of {', '.join(_TASKS)}, found '{task}'. Choose one of them."
        )
    return dict(enumerate(_TASKS[task], start=1))


def totalsegmentator_task_mapping(task: TotalSegmentatorTask) -> dict[int, int]:
    """Return a further task's id -> MAISI's id, with 0 -> 0, and body for classes that MAISI lacks.

    Args:
        task: Name of the task, as TotalSegmentator's option ``--task`` takes it.

    Raises:
        VocabularyError: The task is unknown.
    """
    names = totalsegmentator_task_names(task)
    return {0: 0, **{class_id: (_TASK_IDS | _MAISI_IDS)[name] for class_id, name in names.items()}}


def to_totalsegmentator(version: TotalSegmentatorVersion) -> dict[int, int]:
    """Return MAISI's id -> TotalSegmentator's id, for labels that are exactly one of its classes, and the background.

    In v1 the heart is divided into five classes, which MAISI's label map does not distinguish, so that it has no id
    there.

    Args:
        version: ``v1``, ``v2`` or ``v3``.

    Raises:
        VocabularyError: The version is unknown.
    """
    mapping = totalsegmentator_mapping(version)
    counts = Counter(mapping.values())
    return {
        label_id: class_id for class_id, label_id in mapping.items() if counts[label_id] == 1 and label_id != BODY_ID
    }


def totalsegmentator_class(label_id: int) -> tuple[str, str] | None:
    """Return the TotalSegmentator v2 task and class that find a label of MAISI; None if no task does.

    Args:
        label_id: Id of the label; a placeholder slot has no class.
    """
    total = to_totalsegmentator("v2")
    if label_id and label_id in total:
        return "total", totalsegmentator_names("v2")[total[label_id]]
    for task, names in _TASKS.items():
        for name in names:
            if label_id != BODY_ID and _TASK_IDS.get(name) == label_id:
                return task, name
    return None
