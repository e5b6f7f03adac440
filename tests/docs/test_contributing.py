"""The page for contributors: a newcomer finds the files that it names."""

from __future__ import annotations

import re

from tests.docs.pages import REPOSITORY


def test_files_that_the_page_names_exist() -> None:
    page = (REPOSITORY / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w./-]+/[\w.-]+\.(?:py|md)\b", page))
    assert {"phantom/completion.py", "networks/pipeline.py", "maisi_aug/system/whole_files.py"} <= named
    found = {name for name in named for root in ("", "maisi_aug") if (REPOSITORY / root / name).is_file()}
    assert named - found == set()
