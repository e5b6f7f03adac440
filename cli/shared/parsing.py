"""Words of the command line that typer does not know: grids, lists of words, sizes and size labels."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, overload

import typer

from maisi_aug.cli.shared.label_map import tell_old_spelling
from maisi_aug.system.content import spells_number


@overload
def parse_shape(text: str) -> tuple[int, int, int]: ...
@overload
def parse_shape(text: None) -> None: ...


def parse_shape(text: str | None) -> tuple[int, int, int] | None:
    """``128x96x80`` or ``128,96,80``, or one side for all three, as voxels along I, J, K.

    Raises:
        typer.BadParameter: When it is anything else.
    """
    parts = _split(text, "--shape", "128x96x80")
    if parts is None:
        return None
    if not all(spells_number(part) and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--shape: expected three sides in voxels such as 128x96x80, found '{text}'.")
    i, j, k = map(int, parts)
    return i, j, k


@overload
def parse_spacing(text: str) -> tuple[float, float, float]: ...
@overload
def parse_spacing(text: None) -> None: ...


def parse_spacing(text: str | None) -> tuple[float, float, float] | None:
    """``3.2`` or ``1.5x1.5x3``, in millimetres along I, J, K.

    Raises:
        typer.BadParameter: When it is anything else.
    """
    parts = _split(text, "--spacing", "1.5x1.5x3")
    if parts is None:
        return None
    try:
        i, j, k = map(float, parts)
    except ValueError:
        raise typer.BadParameter(f"--spacing: expected millimetres such as 1.5x1.5x3, found '{text}'.") from None
    if not all(0 < side < 100 for side in (i, j, k)):
        raise typer.BadParameter(f"--spacing: expected millimetres between 0 and 100, found '{text}'.")
    return i, j, k


def parse_decode_window(text: str | None) -> tuple[int, int, int] | str | None:
    """``whole``, or ``48x48x64`` as latent voxels along I, J, K; which sides are allowed is the recipe's to say.

    Raises:
        typer.BadParameter: When it is anything else.
    """
    if text is None or text.strip().lower() == "whole":
        return text and "whole"
    parts = _split(text, "--decode-window", "48x48x64, or 'whole'")
    assert parts is not None
    if not all(spells_number(part) for part in parts):
        raise typer.BadParameter(
            f"--decode-window: expected 'whole' or latent voxels such as 48x48x64, found '{text}'."
        )
    i, j, k = map(int, parts)
    return i, j, k


def parse_num_splits(text: str | None) -> int | None:
    """A whole number; which ones are allowed is the recipe's to say.

    Raises:
        typer.BadParameter: When it is anything else.
    """
    if text is not None and not spells_number(text.strip()):
        raise typer.BadParameter(f"--num-splits: expected 1, 2, 4, 8 or 16, found '{text}'.")
    return None if text is None else int(text)


def _split(text: str | None, option: str, example: str) -> list[str] | None:
    if text is None:
        return None
    parts = text.lower().replace(",", "x").replace(" ", "").removesuffix("mm").split("x")
    parts = parts * 3 if len(parts) == 1 else parts
    if len(parts) != 3:
        raise typer.BadParameter(f"{option}: expected one or three numbers such as {example}, found '{text}'.")
    return parts


def parse_words(text: str | None) -> list[str] | None:
    """``thorax,abdomen`` as its words, in lower case."""
    return None if text is None else [word.strip().lower() for word in text.split(",")]


def parse_size_labels(texts: Sequence[str]) -> int | dict[str, int] | None:
    """``2``; ``NAME=2`` once per lesion is an earlier spelling of ``--map 2=NAME``, and told.

    Raises:
        typer.BadParameter: When it is anything else.
    """
    if not texts:
        return None
    if len(texts) == 1 and spells_number(texts[0].strip()):
        return int(texts[0])
    pairs = [text.rpartition("=") for text in texts]
    if not all(name.strip() and spells_number(number.strip()) for name, _, number in pairs):
        raise typer.BadParameter(
            f"--size-label: expected an id such as 2, or --map '2=hepatic tumor' once per lesion, found "
            f"'{' '.join(texts)}'."
        )
    for text, (name, _, number) in zip(texts, pairs, strict=True):
        tell_old_spelling(f"--size-label '{text}'", f"--map '{number.strip()}={name.strip()}'")
    return {name.strip(): int(number) for name, _, number in pairs}


def parse_organ_sizes(texts: Sequence[str]) -> dict[str, float] | None:
    """``liver:0.5`` once per organ.

    Raises:
        typer.BadParameter: When it is anything else, or an organ is named twice.
    """
    sizes: dict[str, float] = {}
    for text in texts:
        name, _, number = (part.strip() for part in text.rpartition(":"))
        try:
            size = float(number)
        except ValueError:
            size = float("nan")
        if not name or not isfinite(size):
            raise typer.BadParameter(f"--size-of: expected an organ and its size such as 'liver:0.5', found '{text}'.")
        if name in sizes:
            raise typer.BadParameter(f"--size-of: expected each organ once, found '{name}' twice.")
        sizes[name] = size
    return sizes or None


def parse_gates(texts: Sequence[str]) -> dict[str, Any]:
    """``{"gates.FIELD": value}`` from ``NAME=on|off|NUMBER``, such as ``organ-hu=off`` and ``minimum-cnr=0.5``."""
    from maisi_aug.cohort.recipe import GateConfig
    from maisi_aug.errors import did_you_mean

    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        field = name.replace("-", "_").lower()
        known = [known_name.replace("_", "-") for known_name in GateConfig.model_fields]
        if field not in GateConfig.model_fields:
            hint = did_you_mean(name, known) or f" The names are {', '.join(known)}."
            raise typer.BadParameter(f"--gate {text}: expected NAME=off or NAME=NUMBER, found no gate '{name}'.{hint}")
        if isinstance(GateConfig.model_fields[field].default, bool):
            if value.lower() not in ("on", "off"):
                raise typer.BadParameter(f"--gate {text}: expected on or off, found '{value}'.")
            found[f"gates.{field}"] = value.lower() == "on"
            continue
        try:
            found[f"gates.{field}"] = float(value)
        except ValueError:
            raise typer.BadParameter(f"--gate {text}: expected a number, found '{value}'.") from None
    return found
