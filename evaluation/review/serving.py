"""Runs the server of the page on this machine's own address until Ctrl-C, with what it needs put together."""

from __future__ import annotations

import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from maisi_aug.errors import EvaluationError, MissingExtraError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from maisi_aug.cohort.resolve import CohortRun
    from maisi_aug.evaluation.review.cases import CaseSource
    from maisi_aug.evaluation.review.desk import Desk
    from maisi_aug.evaluation.review.reader_test import ReaderTest
    from maisi_aug.evaluation.review.volumes import FolderFiles

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Options of the viewer: what it shows, and how.

    Attributes:
        path: Cohort, or another folder with CTs or label maps.
        beside: Folder to compare with, which also provides the real images of the blinded test.
        predictions: Folder of predicted label maps ``CASE.nii.gz``.
        reviewer: Name of the reviewer.
        is_blind: Whether to hold the blinded test.
        num_images: Number of images of the blinded test.
        seed: Seed of the blinded test.
        port: Port to listen on; 0 for any free port.
        plan: Cohort whose planned label maps are shown, instead of a folder.
        report: Report about the cohort, written by ``maisi-aug report``.
    """

    path: Path | None = None
    beside: Path | None = None
    predictions: Path | None = None
    reviewer: str = ""
    is_blind: bool = False
    num_images: int = 40
    seed: int = 0
    port: int = 0
    plan: CohortRun | None = None
    report: Path | None = None


def require_view() -> None:
    """Raise unless the packages of the extra ``view`` are installed.

    Raises:
        MissingExtraError: The message names the extra.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"view: needs the packages of the extra 'view' ({error.name} is missing). Install them with: pip install "
            "'maisi-aug[view]'."
        ) from error


@contextmanager
def open_server(options: ViewOptions) -> Iterator[tuple[str, uvicorn.Server, socket.socket, str]]:
    """Context with a viewer's server that is built but not started.

    Yields:
        Address of the page, the server, its socket, and a note to the user, which may be empty.

    Raises:
        MissingExtraError: The extra ``view`` is not installed.
        EvaluationError: The port is in use, or there is nothing to look at.
        MaisiAugError: The folder cannot be read.
    """
    require_view()
    import uvicorn

    with TemporaryDirectory(prefix="maisi-aug-view-") as scratch, ExitStack() as stack:
        token = secrets.token_urlsafe(24)
        app, note = _build_app(options, Path(scratch), token, stack)
        bound = _bind(options.port)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        address = f"http://{HOST}:{bound.getsockname()[1]}/{token}/"
        try:
            yield address, uvicorn.Server(config), bound, note
        finally:
            bound.close()


def _build_app(options: ViewOptions, scratch: Path, token: str, stack: ExitStack) -> tuple[Starlette, str]:
    """Return the application that serves the page, and a note to the user, which may be empty.

    Raises:
        MaisiAugError: There is nothing to look at, or the folder cannot be read.
    """
    from maisi_aug.evaluation.review.cases import Partners, Predictions
    from maisi_aug.evaluation.review.desk import Desk
    from maisi_aug.evaluation.review.server import build_app, read_report
    from maisi_aug.evaluation.review.volumes import FolderFiles

    partners, source = Partners(options.beside), _open_source(options, scratch, stack)
    files = FolderFiles(source.path, scratch)
    beside_files = None if partners.source is None else FolderFiles(partners.source.path, scratch / "beside")
    predictions = None if options.predictions is None else Predictions(options.predictions)
    predicted_files = None if predictions is None else FolderFiles(predictions.path, scratch / "predicted")
    may_decide = options.plan is None
    desk = Desk(source, files, partners, reviewer=options.reviewer, may_decide=may_decide, predictions=predictions)
    if not options.is_blind:
        desk.refresh()
        if options.report is not None:
            read_report(options.report)
        app = build_app(desk, token, beside_files=beside_files, predicted_files=predicted_files, report=options.report)
        return app, ""
    test = _build_test(options, desk, beside_files)
    return build_app(desk, token, test=test), test.find_giveaway()


def _open_source(options: ViewOptions, scratch: Path, stack: ExitStack) -> CaseSource:
    """The cases of the folder or, drawn until the stack is closed, of the plan."""
    from maisi_aug.evaluation.review.cases import open_cases
    from maisi_aug.evaluation.review.planned import PlannedCases

    if options.plan is not None:
        planned = PlannedCases(options.plan, scratch)
        stack.enter_context(planned.draw_meanwhile())
        return planned
    assert options.path is not None
    return open_cases(options.path)


def _build_test(options: ViewOptions, desk: Desk, beside_files: FolderFiles | None) -> ReaderTest:
    """The blinded test of a reader.

    Raises:
        EvaluationError: There are no real images.
    """
    from maisi_aug.evaluation.review.reader_test import ReaderTest

    if beside_files is None:
        raise EvaluationError("Reader test: needs real images to mix with. Give their folder with --beside.")
    shown = [case for case in desk.list_accepted() if "image" in case.files]
    return ReaderTest(
        desk.source.path,
        (shown, desk.files),
        (desk.partners.cases, beside_files),
        reviewer=options.reviewer,
        num_images=options.num_images,
        seed=options.seed,
    )


def _bind(port: int) -> socket.socket:
    """A socket on this machine's own address, which other machines cannot reach.

    Raises:
        EvaluationError: The port is in use.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen(128)  # who is given the address may ask before the server runs
    except OSError as error:
        bound.close()
        raise EvaluationError(f"--port: port {port} is in use. Choose another or leave the option out.") from error
    return bound


def serve(options: ViewOptions, *, tell: Callable[[str], None], opens_browser: bool) -> None:
    """Serve the viewer until Ctrl-C.

    Args:
        options: What the viewer shows.
        tell: Called with the address, then with notes to the user.
        opens_browser: Whether to open the address in a browser.

    Raises:
        MaisiAugError: The folder has no cases, or cannot be served.
    """
    with open_server(options) as (address, server, bound, note):
        tell(address)
        if note:
            tell(f"Note: {note}")
        if opens_browser:
            threading.Timer(0.3, webbrowser.open, [address]).start()
        try:
            server.run(sockets=[bound])
        except KeyboardInterrupt:
            return


@contextmanager
def serve_in_background(options: ViewOptions) -> Iterator[str]:
    """Context in which the viewer is served from a thread.

    Yields:
        Address of the page.

    Raises:
        MaisiAugError: The folder has no cases, or cannot be served.
    """
    with open_server(options) as (address, server, bound, _):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join(5)
