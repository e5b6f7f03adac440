"""The addresses that a page asks: its own files, the list of cases, volumes in ranges, decisions.

Every address begins with a secret that only the user who started the server knows. Requests that come from another
page, or by another name than this machine's own, are refused, so that no web page that is open in the same browser can
read or decide anything. Nothing is loaded from anywhere else.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maisi_aug.cohort.review import MAX_LETTERS
from maisi_aug.errors import CohortError, EvaluationError, MaisiAugError
from maisi_aug.evaluation.review.cases import ShownCase
from maisi_aug.evaluation.review.desk import Desk
from maisi_aug.evaluation.review.reader_test import Kind, ReaderTest
from maisi_aug.evaluation.review.volumes import FolderFiles
from maisi_aug.system.whole_files import is_disk_full

PAGE: Final = Path(__file__).resolve().parent / "page"
OWN_NAMES: Final = ("127.0.0.1", "localhost")
MAX_BODY_BYTES: Final = 20_000
POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; script-src 'self' "
    "'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class DecisionBody:
    """JSON body of a request with a reviewer's decision."""

    key: Annotated[str, Field(max_length=200)]
    choice: Literal["accept", "reject"]
    reason: Annotated[str, Field(max_length=MAX_LETTERS)] = ""


@dataclass(frozen=True, slots=True)
class ReadingBody:
    """JSON body of a request with an answer in the blinded test."""

    number: Annotated[int, Field(ge=0, lt=100_000)]
    answer: Kind
    confidence: Annotated[int, Field(ge=1, le=5)]
    seconds: Annotated[float, Field(ge=0, lt=86_400, allow_inf_nan=False)]


Body = TypeVar("Body")

_DECISION: TypeAdapter[DecisionBody] = TypeAdapter(DecisionBody)
_READING: TypeAdapter[ReadingBody] = TypeAdapter(ReadingBody)


class OwnPagesOnly:
    """ASGI middleware that refuses requests for another host name than this machine's, or from another site's page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand the request on and add the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        is_opened = request.headers.get("sec-fetch-mode") == "navigate" and request.method == "GET"
        is_own = urlsplit(f"//{host}").hostname in OWN_NAMES
        is_from_here = origin in (None, f"http://{host}") and (site in ("same-origin", "none") or is_opened)
        if not is_own or not is_from_here:
            await PlainTextResponse("Refused: this server only answers its own page.", 403)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class RequireToken:
    """ASGI middleware that refuses addresses that do not begin with the secret token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is addressed rightly."""
        if scope["type"] == "http":
            first = scope["path"].lstrip("/").partition("/")[0]
            if not hmac.compare_digest(first.encode(), self._token.encode()):
                text = "Refused: use the address that maisi-aug view printed, with its token."
                await PlainTextResponse(text, 403, headers=HEADERS)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def build_app(
    desk: Desk,
    token: str,
    *,
    beside_files: FolderFiles | None = None,
    predicted_files: FolderFiles | None = None,
    test: ReaderTest | None = None,
    report: Path | None = None,
) -> Starlette:
    """Build the web application of the viewer.

    Args:
        desk: Cases and decisions.
        token: Secret with which every address begins.
        beside_files: Access to the files of the reference; None without one.
        predicted_files: Access to predictions; None without any.
        test: Blinded test, in which cases are shown by number only; None for the normal viewer.
        report: Report about the cases, shown with links from its pictures; None without one.
    """
    pages = _Pages(desk, beside_files, predicted_files, test, report)
    routes = [Route("/", pages.index), Route("/page/{name}", pages.own_file)]
    if test is None:
        routes += [
            Route("/api/state", pages.state),
            Route("/api/case/{key}", pages.case),
            Route("/api/decide", pages.decide, methods=["POST"]),
            Route("/api/undo", pages.undo, methods=["POST"]),
            Route("/report", pages.report),
            Route("/thumb/{key}", pages.thumb),
            Route("/file/{key}/{name}", pages.volume),
            Route("/beside/{key}/{name}", pages.volume_beside),
            Route("/predicted/{key}/{name}", pages.volume_predicted),
        ]
    else:
        routes += [
            Route("/api/test", pages.test_state),
            Route("/api/test/answer", pages.answer, methods=["POST"]),
            Route("/test/{number:int}/{name}", pages.test_volume),
        ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[Middleware(OwnPagesOnly), Middleware(RequireToken, token=token)],
        exception_handlers={MaisiAugError: _explain},
    )


async def _explain(request: Request, error: Exception) -> Response:
    """An error as a sentence that the page shows."""
    cause = error.__cause__
    is_full = is_disk_full(cause)
    status = 507 if is_full else 500 if isinstance(error, CohortError) else 404
    return JSONResponse({"error": str(error)}, status)


class _Pages:
    """One method for every address."""

    def __init__(
        self,
        desk: Desk,
        beside_files: FolderFiles | None,
        predicted_files: FolderFiles | None,
        test: ReaderTest | None,
        report: Path | None,
    ) -> None:
        self._desk, self._beside_files, self._predicted_files = desk, beside_files, predicted_files
        self._test, self._report = test, report

    async def index(self, request: Request) -> Response:
        name = "index.html" if self._test is None else "reader_test.html"
        return FileResponse(PAGE / name, headers={"Cache-Control": "no-store"})

    async def own_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in {path.name for path in PAGE.iterdir()}:
            raise EvaluationError(f"{name[:80]!r}: the page has no such file.")
        return FileResponse(PAGE / name, headers={"Cache-Control": "max-age=3600"})

    async def state(self, request: Request) -> Response:
        since = request.query_params.get("since", "0")
        document = await run_in_threadpool(
            self._desk.state_since, int(since) if since.isascii() and since.isdigit() else 0
        )
        has_report = self._report is not None
        return JSONResponse({**document, "hasReport": has_report}, headers={"Cache-Control": "no-store"})

    async def report(self, request: Request) -> Response:
        if self._report is None:
            raise EvaluationError("Report: no report is open. Name one with --report.")
        from maisi_aug.evaluation.report.page import link_cases

        html = await run_in_threadpool(read_report, self._report)
        return HTMLResponse(link_cases(html), headers={"Cache-Control": "no-store"})

    async def case(self, request: Request) -> Response:
        document = await run_in_threadpool(self._desk.describe, request.path_params["key"])
        return JSONResponse(document, headers={"Cache-Control": "no-store"})

    async def thumb(self, request: Request) -> Response:
        case = self._desk.require(request.path_params["key"])
        try:
            content = await run_in_threadpool(self._desk.files.thumb, case)
        except MaisiAugError:  # the case itself says what is wrong with its files
            return Response(status_code=204)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    async def volume(self, request: Request) -> Response:
        return await _send_volume(self._desk.files, self._desk.require(request.path_params["key"]), request)

    async def volume_beside(self, request: Request) -> Response:
        case = self._desk.require_beside(request.path_params["key"])
        assert self._beside_files is not None
        return await _send_volume(self._beside_files, case, request)

    async def volume_predicted(self, request: Request) -> Response:
        case = self._desk.require_prediction(request.path_params["key"])
        assert self._predicted_files is not None
        return await _send_volume(self._predicted_files, case, request)

    async def decide(self, request: Request) -> Response:
        body = await _read_body(request, _DECISION)
        document = await run_in_threadpool(self._desk.decide, body.key, body.choice, body.reason)
        return JSONResponse(document)

    async def undo(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._desk.undo))

    async def test_state(self, request: Request) -> Response:
        assert self._test is not None
        return JSONResponse(await run_in_threadpool(self._test.to_state), headers={"Cache-Control": "no-store"})

    async def answer(self, request: Request) -> Response:
        assert self._test is not None
        body = await _read_body(request, _READING)
        document = await run_in_threadpool(self._test.answer, body.number, body.answer, body.confidence, body.seconds)
        return JSONResponse(document)

    async def test_volume(self, request: Request) -> Response:
        assert self._test is not None
        files, case = self._test.find(request.path_params["number"])
        return await _send_volume(files, case, request)


def read_report(path: Path) -> str:
    """Read an HTML report that ``maisi-aug report`` wrote.

    Raises:
        EvaluationError: The file is missing or not a report.
    """
    try:
        html = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read as a report of maisi-aug ({error}).") from error
    if not html.startswith("<!doctype html>"):
        raise EvaluationError(f"{path}: is not a report of maisi-aug.")
    return html


async def _send_volume(files: FolderFiles, case: ShownCase, request: Request) -> Response:
    """A volume, or the range of it that is requested; never more of it in memory than a piece.

    Raises:
        EvaluationError: The case has no such volume.
    """
    role = request.path_params["name"].partition(".")[0]
    if role not in case.files or role == "preview":
        raise EvaluationError(f"{case.case.case_id}: has no such volume.")
    path = await run_in_threadpool(files.volume, case, role)
    return FileResponse(path, media_type="application/octet-stream", headers={"Cache-Control": "private, max-age=3600"})


async def _read_body(request: Request, form: TypeAdapter[Body]) -> Body:
    """What a page sends.

    Raises:
        EvaluationError: It is of another form.
    """
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise EvaluationError(f"Request: larger than {MAX_BODY_BYTES} bytes.")
    try:
        return form.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise EvaluationError(f"Request: not a decision ({place}: {first['msg']}).") from error
