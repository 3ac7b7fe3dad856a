"""Logging in with the Hub on a Space, and which token publishes. Elsewhere there is no button.

Outside a Space Gradio would stand in for the login with the machine's own account, so the button exists on Spaces only.
"""

from __future__ import annotations

import os

import gradio as gr

# What a Space with `hf_oauth: true` is given, and Gradio's routes need.
_REQUIRED_VARIABLES = ("SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


def is_login_available() -> bool:
    """Whether people can log in with the Hub here."""
    # Gradio takes itself to be on a Space by this variable, and else would mock the login.
    return os.environ.get("SYSTEM") == "spaces" and all(os.environ.get(name) for name in _REQUIRED_VARIABLES)


def build_login(elem_id: str = "login") -> gr.LoginButton | None:
    """Draws the button inside the current Blocks; None, and nothing, where nobody can log in."""
    if not is_login_available():
        return None
    return gr.LoginButton(
        "Log in with Hugging Face", logout_value="Log out ({})", size="sm", variant="secondary", elem_id=elem_id
    )


def resolve_token(login: gr.OAuthToken | None, typed: str | None = "") -> str | None:
    """The token that a person brings: the one of their login, else the one they typed; None where they bring none."""
    if login is not None:
        return str(login.token)
    return (typed or "").strip() or None
