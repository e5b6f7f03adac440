"""Function behind ``maisi-aug migrate``, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maisi_aug.integrations.nvidia.migration import Migration


def migrate(
    configs: str | Path | Sequence[str | Path],
    *,
    version: str | None = None,
    random_seed: int | None = None,
    mask: str | Path | None = None,
    out: str | Path | None = None,
) -> Migration:
    """Translate configuration files of NVIDIA's scripts into commands, and say what differs; ``maisi-aug migrate``.

    >>> import json, pathlib
    >>> import maisi_aug as ma
    >>> config = {"num_output_samples": 2, "anatomy_list": ["liver"], "output_size": [512, 512, 128]}
    >>> _ = pathlib.Path("config_infer.json").write_text(json.dumps(config))
    >>> command = ma.migrate("config_infer.json", random_seed=1).commands[-1]
    >>> command[:4], command[-4:]
    (['maisi-aug', 'synthesize', '--bundle', 'rflow-ct'], ['--seed', '1', '--out', 'cohort'])

    Args:
        configs: Files of one run of NV-Generate-CTMR, in any order: ``config_infer*.json`` or ``config_maisi_*.json``,
            and ``environment*.json`` if it is at hand.
        version: Networks, such as ``rflow-ct`` (default: what the files name, or ``rflow-ct``).
        random_seed: Value of ``--seed`` in the commands (default: what the files name; else ``--seed`` is left out).
        mask: Label map to draw an image of, as for ``scripts.infer_image_from_mask``; None for generated cases.
        out: Value of ``--out`` in the commands (default: what the files name).

    Returns:
        ``commands``, each a list of words, in the order in which to run them; ``settings``, every key of the files with
        ``key``, ``value``, ``ours`` (its counterpart) and ``difference``; and ``notes`` on what differs anyway.
        ``to_script()`` gives lines for a shell. Nothing is run or written.

    Raises:
        MigrationError: A file is not NVIDIA's, there are several runs, or the scripts refuse a value.
    """
    from maisi_aug.integrations.nvidia import migration

    paths = [configs] if isinstance(configs, str | Path) else configs
    flags = migration.Flags(
        version=version,
        seed=random_seed,
        mask=None if mask is None else Path(mask),
        out=None if out is None else Path(out),
    )
    return migration.migrate([Path(path) for path in paths], flags)
