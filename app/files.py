"""The signed URLs of `file://` storage, served by the web tier. With `gs://` clients talk to the bucket itself."""

import re
import time
from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, request, send_file
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, ClientDisconnected, Forbidden, NotFound, RequestEntityTooLarge

from app.storage import LocalStorage, Permit

CHUNK = 1 << 20

# What of a refused upload is read all the same.
PATIENCE_BYTES = 32 << 20


def files(storage: LocalStorage) -> Blueprint:
    """`GET` and `PUT /files/{token}/{name}`; the token alone says what is allowed."""
    blueprint = Blueprint("files", __name__, url_prefix="/files")

    @blueprint.get("/<token>/<name>")
    def download(token: str, name: str) -> Response:
        permit = _permitted(storage, token, name, "GET")
        if storage.size(permit.name) is None:
            raise NotFound("There is no such picture.")
        # RFC 9110 14.2: a range of another unit, or one that is none, is not heeded; nor are several at once.
        heeded = bool(re.fullmatch("(bytes=[0-9]*-[0-9]*)?", request.headers.get("Range", "")))
        kind = "image/png" if permit.name.endswith(".png") else "application/octet-stream"
        path = storage.path(permit.name).absolute()
        return send_file(path, mimetype=kind, download_name=name, max_age=0, conditional=heeded)

    @blueprint.put("/<token>/<name>")
    def upload(token: str, name: str) -> Response:
        permit = _permitted(storage, token, name, "PUT")
        if "Content-Range" in request.headers:
            # RFC 9110 9.3.4: a part would be taken for the whole.
            raise BadRequest("A picture is uploaded as a whole, without Content-Range.")
        if (request.content_length or 0) > permit.max_bytes:
            raise RequestEntityTooLarge(f"At most {permit.max_bytes} bytes.")
        storage.write(permit.name, lambda target: _copy(target, permit.max_bytes))
        return Response(status=200)

    @blueprint.after_request
    def take_the_rest(response: Response) -> Response:
        """Who is refused while still sending would see a broken connection instead of the reason."""
        request.max_content_length = PATIENCE_BYTES
        with suppress(RequestEntityTooLarge, ClientDisconnected, ParseException):
            while request.stream.read(CHUNK):
                pass
        return response

    return blueprint


def _permitted(storage: LocalStorage, token: str, name: str, method: str) -> Permit:
    permit = storage.permit(token, time.time())
    # A name that the signature does not cover would be what a browser saves the file as.
    if permit is None or permit.method != method or permit.name.rpartition("/")[2] != name:
        raise Forbidden("This URL is not signed for that, or its time is over.")
    return permit


def _copy(target: Any, max_bytes: int) -> None:
    """Write the request's body in pieces, and stop at the limit though its length was not told."""
    # The app's own limit is for JSON. One more byte than allowed, so that it is us who see that.
    request.max_content_length = max_bytes + 1
    total = 0
    while piece := request.stream.read(CHUNK):
        total += len(piece)
        if total > max_bytes:
            raise RequestEntityTooLarge(f"At most {max_bytes} bytes.")
        target.write(piece)
    if total < (request.content_length or 0):
        raise BadRequest("The body ended before its length was reached.")
