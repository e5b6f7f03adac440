"""`maisi-aug finetune-controlnet`: teach a ControlNet labels that it does not know."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import RUN, AsJson, MaxMinutes, NewRun, Tensorboard, TrainingDevice
from maisi_aug.cli.shared.streams import tell
from maisi_aug.system.printed_text import spell_count
from maisi_aug.training.finetune.settings import FinetuneRequest

if TYPE_CHECKING:
    from maisi_aug.training.finetune.run import FinetuneResult


def register(app: typer.Typer) -> None:
    """Add the command ``finetune-controlnet`` to the application."""
    app.command("finetune-controlnet")(with_options(finetune_controlnet))


def finetune_controlnet(
    request: FinetuneRequest,
    out: NewRun,
    max_minutes: MaxMinutes = None,
    device: TrainingDevice = "auto",
    tensorboard: Tensorboard = False,
    self_contained: Annotated[
        bool,
        typer.Option(
            "--self-contained",
            help="Copy the base's weights and the label maps into the bundle, so that it needs no other folder.",
            rich_help_panel=RUN,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Teach a ControlNet new labels from 10 to 200 labelled CTs; the result is a bundle for 'maisi-aug synthesize'.

    The U-Net stays frozen. Held-out patients decide which weights are kept, and show what was learnt in OUT/pictures.

    Example: maisi-aug finetune-controlnet --data prepared --label "left parotid" --base rflow-ct --out runs/parotid
    """
    from maisi_aug.api.displays import TrainingDisplay
    from maisi_aug.api.finetuning import finetune

    result = finetune(
        request,
        out,
        device=device,
        max_minutes=max_minutes,
        display=TrainingDisplay(),
        with_tensorboard=tensorboard,
        self_contained=self_contained,
    )
    if result is not None:
        _tell(result, as_json=as_json)


def _tell(result: FinetuneResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=1, ensure_ascii=False))
        return
    if not result.loop.is_complete:
        done = f"{result.loop.num_steps_done} of {spell_count(result.num_steps, 'step')}"
        tell(f"{done}; run the same command again to continue.")
    request = result.taught[0].name
    if result.loop.best_step is not None:
        typer.echo(f"Kept step {result.loop.best_step}, validation loss {result.loop.best_loss:.4f}.")
    typer.echo(result.bundle.path)
    words = ["--bundle", str(result.bundle.path), "--labels", f"{request}:0.5", "-n", "4", "--out", "cohort"]
    typer.echo(f"Try: maisi-aug synthesize {shlex.join(words)}")
