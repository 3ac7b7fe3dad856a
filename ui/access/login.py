"""Login with the Hub on a Space, and the token of a visitor.

Outside a Space Gradio would replace the login with the machine's own account, so the button exists on Spaces only.
"""

from __future__ import annotations

import os

import gradio as gr

# Environment variables that a Space with `hf_oauth: true` sets and Gradio's login routes need.
_REQUIRED_VARIABLES = ("SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


def is_login_available() -> bool:
    """Return whether visitors can log in with the Hub here."""
    # Gradio recognises a Space by this variable, and mocks the login elsewhere.
    return os.environ.get("SYSTEM") == "spaces" and all(os.environ.get(name) for name in _REQUIRED_VARIABLES)


def build_login(elem_id: str = "login") -> gr.LoginButton | None:
    """Add the login button to the current Blocks and return it; None where the login is not available."""
    if not is_login_available():
        return None
    return gr.LoginButton(
        "Log in with Hugging Face", logout_value="Log out ({})", size="sm", variant="secondary", elem_id=elem_id
    )


def resolve_token(login: gr.OAuthToken | None, typed: str | None = "") -> str | None:
    """Return the Hub token of the login, else the typed one; None without either."""
    if login is not None:
        return str(login.token)
    return (typed or "").strip() or None
