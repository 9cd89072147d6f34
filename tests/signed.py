"""Signed URLs of Google Cloud Storage, looked at as Google looks at them."""

import hashlib
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding


def verify(url, method, public_key, now):
    """What Google checks of a V4 signed URL that carries no header but the host; raises when it would answer 403."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, strict_parsing=True))
    signature = bytes.fromhex(query.pop("X-Goog-Signature"))
    signed_at = datetime.strptime(query["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if not signed_at <= now < signed_at + timedelta(seconds=int(query["X-Goog-Expires"])):
        raise PermissionError("expired")
    if query["X-Goog-SignedHeaders"] != "host":
        raise PermissionError("a plain client sends no other header")
    sorted_query = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
    canonical = f"{method}\n{parts.path}\n{sorted_query}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    scope = query["X-Goog-Credential"].partition("/")[2]
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"{query['X-Goog-Algorithm']}\n{query['X-Goog-Date']}\n{scope}\n{digest}"
    public_key.verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())


def soon(seconds=5):
    return datetime.now(UTC) + timedelta(seconds=seconds)
