"""OpenID provider of the local Hub for logins on a Space; every login is for the account of `Hub.login`."""

from __future__ import annotations

import secrets
import time
from base64 import b64decode
from collections.abc import Callable
from functools import cache
from urllib.parse import parse_qs, parse_qsl, urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.hub.reading import Reply, reply_json
from tests.hub.state import Hub

CLIENT, SECRET = "standin-client", "standin-secret"


def read(hub: Hub, path: str, query: str) -> Reply | None:
    """Return the response to a GET to the provider; None for any other request."""
    if path == "/.well-known/openid-configuration":
        endpoints = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
        values = {name: f"{hub.url}/oauth/{endpoint}" for name, endpoint in endpoints.items()}
        return reply_json({"issuer": hub.url, "id_token_signing_alg_values_supported": ["RS256"], **values})
    if path == "/oauth/jwks":
        return reply_json({"keys": [_key().as_dict(private=False)]})
    if path != "/oauth/authorize":
        return None
    parameters = dict(parse_qsl(query))
    if parameters["client_id"] != CLIENT:
        return Reply(400, message="Unknown client")
    code = secrets.token_urlsafe(8)
    hub.codes[code] = parameters.get("nonce", "")
    back = urlencode({"code": code, "state": parameters["state"]})
    separator = "&" if "?" in parameters["redirect_uri"] else "?"
    return Reply(302, headers={"Location": f"{parameters['redirect_uri']}{separator}{back}"})


def write(hub: Hub, path: str, authorization: str, body: Callable[[], bytes]) -> Reply | None:
    """Exchange a code for a token; a code is valid once. Return None for any other request."""
    if path != "/oauth/token":
        return None
    code = parse_qs(body().decode())["code"][0]
    if b64decode(authorization.removeprefix("Basic ")).decode() != f"{CLIENT}:{SECRET}" or code not in hub.codes:
        return reply_json({"error": "invalid_grant"}, 400)
    name, now = hub.accounts[hub.login].name, int(time.time())
    claims = {
        "iss": hub.url, "sub": "0", "aud": CLIENT, "iat": now, "exp": now + 3600, "nonce": hub.codes.pop(code),
        "name": name, "preferred_username": name, "profile": f"{hub.url}/{name}", "picture": "",
    }  # fmt: skip
    proof = jwt.encode({"alg": "RS256", "kid": "standin"}, claims, _key())
    scope = "openid profile write-repos"
    return reply_json(
        {"access_token": hub.login, "token_type": "bearer", "expires_in": 3600, "scope": scope, "id_token": proof}
    )


@cache
def _key() -> RSAKey:
    """Return the provider's key, which is generated at the first login."""
    return RSAKey.generate_key(2048, {"kid": "standin", "use": "sig", "alg": "RS256"})
