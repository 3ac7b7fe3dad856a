"""The rule of each route of the pages: who may use it, and which web pages may ask for it.

A path without a rule is answered with 404, so a route that a new version of Gradio brings is closed until it is listed
here; a test compares the table with the running app.
"""

from __future__ import annotations

from enum import IntEnum

from starlette.routing import compile_path

from serve.api.app import PATHS as API_PATHS


class Rule(IntEnum):
    """What a route requires. Where several routes match a path, the highest value counts."""

    ASSET = 1  # a file of the program itself: nothing
    PAGE = 2  # a page that a link of another site may open
    OPEN = 3  # no login, but no page of another site
    API = 4  # checks its own keys, hosts and origins (serve/api/app.py)
    MEMBER = 5  # a login, where there are logins
    OFF = 6  # answered by nobody


_LISTS = {
    Rule.ASSET: """
        /svelte/{path:path} /static/{path:path} /assets/{path:path} /favicon.ico /theme.css /gradio_api/theme.css
        /robots.txt /manifest.json /pwa_icon /pwa_icon/{size}
    """,
    # The Hub sends a person back to the callback by a link.
    Rule.PAGE: "/ /login/callback",
    Rule.OPEN: """
        /login /login/huggingface /logout /gradio_api/user /gradio_api/login_check /gradio_api/app_id
        /gradio_api/startup-events
    """,
    Rule.API: " ".join(API_PATHS),
    Rule.MEMBER: """
        /config /gradio_api/info /gradio_api/file={path_or_url:path} /gradio_api/heartbeat/{session_hash}
        /gradio_api/queue/join /gradio_api/queue/data /gradio_api/cancel /gradio_api/reset /gradio_api/run/{api_name}
        /gradio_api/api/{api_name} /gradio_api/call/{api_name} /gradio_api/call/v2/{api_name}
        /gradio_api/call/{api_name}/{event_id} /gradio_api/call/v2/{api_name}/{event_id} /gradio_api/component_server
        /gradio_api/upload /gradio_api/upload_progress
    """,
    # Parts of Gradio that the pages do not use: sharing, monitoring, recording, an editor of the program's code.
    Rule.OFF: """
        /monitoring /monitoring/summary /monitoring/{key} /gradio_api/openapi.json /gradio_api/deep_link
        /gradio_api/token /gradio_api/dev/reload /gradio_api/runs /gradio_api/proxy={url_path:path}
        /gradio_api/custom_component/{id}/{environment}/{type}/{file_name} /gradio_api/file/{path:path}
        /gradio_api/queue/status /gradio_api/stream/{event_id} /gradio_api/stream/{event_id}/close
        /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8
        /gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}
        /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file /gradio_api/process_recording
        /gradio_api/vibe-edit /gradio_api/undo-vibe-edit /gradio_api/vibe-code /gradio_api/vibe-starter-queries
    """,
}
RULES: dict[str, Rule] = {path: rule for rule, paths in _LISTS.items() for path in paths.split()}
_PATTERNS = [(compile_path(path)[0], path, rule) for path, rule in RULES.items()]


def find_rule(path: str) -> tuple[str, Rule, dict[str, str]]:
    """Return the route of a path, its rule and the parameters in the path; ('', Rule.OFF, {}) for an unknown one."""
    path = path.rstrip("/") or "/"
    found = [(rule, route, match.groupdict()) for pattern, route, rule in _PATTERNS if (match := pattern.match(path))]
    rule, route, parameters = max(found, key=lambda entry: entry[0], default=(Rule.OFF, "", {}))
    return route, rule, parameters
