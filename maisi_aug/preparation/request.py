"""What prepare is asked for, on the command line and in Python. Nothing heavy is imported."""

from __future__ import annotations

from typing import Literal

OrganLabels = Literal["auto", "totalsegmentator-v2", "totalsegmentator-v3", "totalsegmentator-v1", "maisi"]
"""What the ids of organ label maps mean; ``auto`` reads it beside the files, or off the names of masks."""
