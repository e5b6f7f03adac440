"""Procedural chest-abdomen-pelvis CTs with exact label maps: training data, mask bank and test fixture.

``build_label_map`` makes a tumour-free anatomy, ``render_hu`` an image that obeys a label map, ``build_phantom`` both
with lesions planted between the two. Arrays have axes ``I J K`` along R, A, S; everything is deterministic in the seed.

``completion.complete_anatomy`` fits the same body to a user's label map, and ``condition.condition_map`` makes of both
the ids that networks see: "From label map to image" in CONTRIBUTING shows the way, module by module.

The modules:

* tools: ``ids``, ``noise``, ``frame`` (where a grid lies in the body), ``shapes`` (solids and the canvas that they are
  painted on), ``trees`` (branching vessels), ``erosion``, ``distances``;
* the body: ``habitus``, ``envelope``, ``skeleton``, ``girdles``, ``vessels``, ``chest``, ``muscles``, ``pelvis``,
  ``bowel`` and ``abdomen``, painted in turn by ``anatomy``;
* its detail, as ids: ``detail`` with ``lungs`` and ``lumen``;
* its image: ``intensity``, ``textures``, ``tumors`` and ``scanner``, put together by ``rendering``; ``build`` makes
  whole phantoms;
* users' maps: ``landmarks``, ``fitting`` and ``patient`` for ``completion``, ``phases`` for ``condition``.
"""

from __future__ import annotations

from maisi_aug.phantom.anatomy import REGIONS, AnatomyMap, Region, build_label_map
from maisi_aug.phantom.build import Phantom, build_phantom, region_for
from maisi_aug.phantom.detail import draw_detail
from maisi_aug.phantom.intensity import PHASES, Phase
from maisi_aug.phantom.rendering import render_hu

__all__ = [
    "PHASES",
    "REGIONS",
    "AnatomyMap",
    "Phantom",
    "Phase",
    "Region",
    "build_label_map",
    "build_phantom",
    "draw_detail",
    "region_for",
    "render_hu",
]
