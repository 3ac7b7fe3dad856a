"""Headers of the responses of the pages: what browsers may do with them, and the attributes of cookies."""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]
_SPACE_FRAMES = "'self' https://huggingface.co https://*.huggingface.co"
# Gradio's page has inline scripts, and components that are made from text.
_POLICY = "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors {frames}"
_SCRIPTS = "; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; connect-src 'self' data: blob:"
_FILE_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
_SAFE_ATTRIBUTES = ("path", "max-age", "expires")


def protected_headers(headers: Iterable[tuple[bytes, bytes]], *, space: bool, https: bool, file: bool) -> Headers:
    """Return the headers of a response with safe cookies, without CORS, and with those that protect the page added.

    `space`: shown in a frame of the Hub. `https`: the browser certainly uses TLS. `file`: the response is a file of a
    visitor, which is saved, never shown.
    """
    changed: Headers = []
    for name, value in headers:
        if name == b"set-cookie" and not space:
            changed.append((name, _safe_cookie(value, https)))
        elif file and name == b"content-disposition" and value.startswith(b"inline"):
            changed.append((name, b"attachment" + value.removeprefix(b"inline")))
        elif name.startswith(b"access-control-"):
            continue  # Gradio allows every origin
        else:
            changed.append((name, value))
    policy = _POLICY.format(frames=_SPACE_FRAMES if space else "'self'") + ("" if space else _SCRIPTS)
    added = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "content-security-policy": _FILE_POLICY if file else policy,
    }
    if not space:
        added |= {"x-frame-options": "SAMEORIGIN", "cross-origin-resource-policy": "same-origin"}
    names = {name.encode() for name in added}
    return [(name, value) for name, value in changed if name not in names] + encoded(added.items())


def encoded(headers: Iterable[tuple[str, str]]) -> Headers:
    """Return headers in the form of ASGI."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def visitor_cookie(name: str, value: str, max_age: int, *, space: bool, https: bool) -> str:
    """Return the Set-Cookie header of the visitor cookie.

    A Space is shown in a frame of another site: there browsers send only SameSite=None cookies, and only over HTTPS.
    """
    site = "None; Secure; Partitioned" if space and https else "Lax; Secure" if https else "Lax"
    return f"{name}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite={site}"


def _safe_cookie(header: bytes, https: bool) -> bytes:
    """Return a Set-Cookie header with SameSite=Lax and HttpOnly, and with Secure behind TLS alone.

    Gradio marks its login cookie SameSite=None, so that pages of other sites would send it.
    """
    cookie, *attributes = (part.strip() for part in header.decode("latin-1").split(";"))
    safe = [part for part in attributes if part.partition("=")[0].lower() in _SAFE_ATTRIBUTES]
    if not any(part.lower().startswith("path=") for part in safe):
        safe.append("Path=/")
    return "; ".join([cookie, *safe, "HttpOnly", "SameSite=Lax", *(["Secure"] if https else [])]).encode("latin-1")
