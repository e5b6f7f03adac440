"""Ids of the MAISI vocabulary that the phantoms paint, and the tissues that hide under id 200.

The ids are facts of the published label dictionary. They stand here as named constants because the geometry code names
organs one by one, while the vocabulary proper serves look-ups by text.
"""

from __future__ import annotations

from typing import Final

BACKGROUND: Final = 0
LIVER: Final = 1
SPLEEN: Final = 3
PANCREAS: Final = 4
RIGHT_KIDNEY: Final = 5
AORTA: Final = 6
INFERIOR_VENA_CAVA: Final = 7
RIGHT_ADRENAL: Final = 8
LEFT_ADRENAL: Final = 9
GALLBLADDER: Final = 10
ESOPHAGUS: Final = 11
STOMACH: Final = 12
DUODENUM: Final = 13
LEFT_KIDNEY: Final = 14
BLADDER: Final = 15
PORTAL_AND_SPLENIC_VEIN: Final = 17
SMALL_BOWEL: Final = 19
BRAIN: Final = 22
LUNG_TUMOR: Final = 23
PANCREATIC_TUMOR: Final = 24
HEPATIC_VESSEL: Final = 25
HEPATIC_TUMOR: Final = 26
COLON_TUMOR: Final = 27
LEFT_UPPER_LOBE: Final = 28
LEFT_LOWER_LOBE: Final = 29
RIGHT_UPPER_LOBE: Final = 30
RIGHT_MIDDLE_LOBE: Final = 31
RIGHT_LOWER_LOBE: Final = 32
VERTEBRA_L5: Final = 33
VERTEBRA_T12: Final = 38
VERTEBRA_C7: Final = 50
VERTEBRA_C6: Final = 51
TRACHEA: Final = 57
LEFT_ILIAC_ARTERY: Final = 58
RIGHT_ILIAC_ARTERY: Final = 59
LEFT_ILIAC_VEIN: Final = 60
RIGHT_ILIAC_VEIN: Final = 61
COLON: Final = 62
LEFT_RIB_1: Final = 63
RIGHT_RIB_1: Final = 75
RIGHT_RIB_12: Final = 86
LEFT_HUMERUS: Final = 87
RIGHT_HUMERUS: Final = 88
LEFT_SCAPULA: Final = 89
RIGHT_SCAPULA: Final = 90
LEFT_CLAVICULA: Final = 91
RIGHT_CLAVICULA: Final = 92
LEFT_FEMUR: Final = 93
RIGHT_FEMUR: Final = 94
LEFT_HIP: Final = 95
RIGHT_HIP: Final = 96
SACRUM: Final = 97
LEFT_GLUTEUS_MAXIMUS: Final = 98
RIGHT_GLUTEUS_MAXIMUS: Final = 99
LEFT_GLUTEUS_MEDIUS: Final = 100
RIGHT_GLUTEUS_MEDIUS: Final = 101
LEFT_GLUTEUS_MINIMUS: Final = 102
RIGHT_GLUTEUS_MINIMUS: Final = 103
LEFT_AUTOCHTHON: Final = 104
RIGHT_AUTOCHTHON: Final = 105
LEFT_ILIOPSOAS: Final = 106
RIGHT_ILIOPSOAS: Final = 107
LEFT_ATRIAL_APPENDAGE: Final = 108
BRACHIOCEPHALIC_TRUNK: Final = 109
LEFT_BRACHIOCEPHALIC_VEIN: Final = 110
RIGHT_BRACHIOCEPHALIC_VEIN: Final = 111
LEFT_COMMON_CAROTID: Final = 112
RIGHT_COMMON_CAROTID: Final = 113
COSTAL_CARTILAGE: Final = 114
HEART: Final = 115
LEFT_KIDNEY_CYST: Final = 116
RIGHT_KIDNEY_CYST: Final = 117
PROSTATE: Final = 118
PULMONARY_VEIN: Final = 119
SKULL: Final = 120
SPINAL_CORD: Final = 121
STERNUM: Final = 122
LEFT_SUBCLAVIAN_ARTERY: Final = 123
RIGHT_SUBCLAVIAN_ARTERY: Final = 124
SUPERIOR_VENA_CAVA: Final = 125
THYROID: Final = 126
VERTEBRA_S1: Final = 127
BONE_LESION: Final = 128
KIDNEY_TUMOR: Final = 129  # placeholder slot "dummy6", bound to the kidney tumour by the embedded bundle
AIRWAY: Final = 132
BODY: Final = 200

LUNG_LOBES: Final = (LEFT_UPPER_LOBE, LEFT_LOWER_LOBE, RIGHT_UPPER_LOBE, RIGHT_MIDDLE_LOBE, RIGHT_LOWER_LOBE)
KIDNEYS: Final = (RIGHT_KIDNEY, LEFT_KIDNEY)
VERTEBRAE: Final = (*range(VERTEBRA_L5, VERTEBRA_C6 + 1), VERTEBRA_S1)
LEFT_RIBS: Final = tuple(range(LEFT_RIB_1, RIGHT_RIB_1))
RIGHT_RIBS: Final = tuple(range(RIGHT_RIB_1, RIGHT_RIB_12 + 1))
RIBS: Final = (*LEFT_RIBS, *RIGHT_RIBS)
BONES: Final = (
    *range(VERTEBRA_L5, VERTEBRA_C6 + 6),
    *RIBS,
    *range(LEFT_HUMERUS, SACRUM + 1),
    SKULL,
    STERNUM,
    VERTEBRA_S1,
)
MUSCLES: Final = tuple(range(LEFT_GLUTEUS_MAXIMUS, RIGHT_ILIOPSOAS + 1))
TUMORS: Final = (LUNG_TUMOR, PANCREATIC_TUMOR, HEPATIC_TUMOR, COLON_TUMOR, BONE_LESION, KIDNEY_TUMOR)
TUMOR_HOSTS: Final[dict[int, tuple[int, ...]]] = {
    HEPATIC_TUMOR: (LIVER,),
    LUNG_TUMOR: LUNG_LOBES,
    PANCREATIC_TUMOR: (PANCREAS,),
    COLON_TUMOR: (COLON,),
    BONE_LESION: (*VERTEBRAE, *RIBS, LEFT_HIP, RIGHT_HIP, SACRUM, STERNUM),
    KIDNEY_TUMOR: KIDNEYS,
}

# Tissues under id 200 (and nowhere else): what the renderer fills the unlabelled body with.
TISSUE_FAT: Final = 0  # visceral, retroperitoneal and mediastinal fat
TISSUE_SUBCUTANEOUS: Final = 1
TISSUE_MUSCLE: Final = 2
TISSUE_SOFT: Final = 3  # uterus, lymphoid and glandular tissue, collapsed bowel, walls of unlabelled tubes
TISSUE_DISC: Final = 4
TISSUE_VESSEL: Final = 5  # unlabelled vessels of the mesentery, mediastinum and groin
TISSUE_SKIN: Final = 6
TISSUE_FASCIA: Final = 12  # thin fat between muscles
TISSUES: Final = (
    TISSUE_FAT, TISSUE_SUBCUTANEOUS, TISSUE_MUSCLE, TISSUE_SOFT, TISSUE_DISC, TISSUE_VESSEL, TISSUE_SKIN, TISSUE_FASCIA,
)  # fmt: skip

# Ids of detail maps (see ``detail``): structure that label maps do not show, under ids that the vocabulary leaves free.
DETAIL_TISSUE: Final = 240  # plus the tissue: what is under id 200
KIDNEY_MEDULLA: Final = 133
LEFT_BLOOD_POOL: Final = 134  # of the heart
RIGHT_BLOOD_POOL: Final = 135
VISCERAL_FAT: Final = DETAIL_TISSUE + TISSUE_FAT
SUBCUTANEOUS_FAT: Final = DETAIL_TISSUE + TISSUE_SUBCUTANEOUS
UNLABELLED_MUSCLE: Final = DETAIL_TISSUE + TISSUE_MUSCLE
SOFT_TISSUE: Final = DETAIL_TISSUE + TISSUE_SOFT
DISC: Final = DETAIL_TISSUE + TISSUE_DISC
UNLABELLED_VESSEL: Final = DETAIL_TISSUE + TISSUE_VESSEL
SKIN: Final = DETAIL_TISSUE + TISSUE_SKIN
CORTICAL_BONE: Final = 247
GUT_GAS: Final = 248
GUT_FLUID: Final = 249  # fluid and food
STOOL: Final = 250
ORAL_CONTRAST: Final = 251
FASCIA: Final = DETAIL_TISSUE + TISSUE_FASCIA
LUNG_VESSEL: Final = 253
LUNG_LINE: Final = 254  # what is thinner than a voxel: fissures, walls of bronchi, small vessels
# Texture that is coarse enough to be anatomy.
THIN_CORTEX: Final = 232  # of spine, ribs and sternum
THICK_CORTEX: Final = 233  # of femur and humerus
STOOL_GAS: Final = 234  # bubbles smaller than a voxel
DENSE_STOOL: Final = 235
FAT_STRAND: Final = 236  # vessels and septa in visceral fat, thinner than a voxel
MUSCLE_STREAK: Final = 237  # fat between bundles of a muscle, thinner than a voxel
TEXTURE_IDS: Final = (THIN_CORTEX, THICK_CORTEX, STOOL_GAS, DENSE_STOOL, FAT_STRAND, MUSCLE_STREAK)
CORTICES: Final = (CORTICAL_BONE, THIN_CORTEX, THICK_CORTEX)
DETAIL_IDS: Final = (
    *(KIDNEY_MEDULLA, LEFT_BLOOD_POOL, RIGHT_BLOOD_POOL),
    *TEXTURE_IDS,
    *range(DETAIL_TISSUE, LUNG_LINE + 1),
)


def vertebra_name_to_id(name: str) -> int:
    """Return the id of a vertebra from its textbook name, ``"L5"`` up to ``"C1"``.

    Raises:
        KeyError: The name is not a vertebra.
    """
    return _VERTEBRA_IDS[name]


_VERTEBRA_IDS: Final = {
    "S1": VERTEBRA_S1,
    **{f"L{number}": VERTEBRA_L5 + 5 - number for number in range(1, 6)},
    **{f"T{number}": VERTEBRA_T12 + 12 - number for number in range(1, 13)},
    **{f"C{number}": VERTEBRA_C7 + 7 - number for number in range(1, 8)},
}
