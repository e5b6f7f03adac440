"""``python -m maisi_aug``: the command line, for environments whose scripts are not on the path."""

from __future__ import annotations

from maisi_aug.cli.app import main

if __name__ == "__main__":
    main()
