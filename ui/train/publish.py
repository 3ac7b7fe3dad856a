"""Publishing a finished adapter to the Hugging Face Hub, from the page."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from errors import PeftArenaError
from jobs.board import JobBoard
from jobs.job import Job
from jobs.publishing import Order, Progress, Publications, full_name
from ui import widgets
from ui.context import Context
from ui.login import build_login, login_possible, token_of
from ui.visitors import Visitor

TICK_SECONDS = 1.0
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_ABOUT = (
    "<p>Puts the adapter, its card and its scores on huggingface.co, reads them back and compares the answers token by "
    "token. Your rows are not sent.</p>"
)
_HELP = "With write access. Used for this once, kept nowhere."
_WHERE = (
    '<p>A token is made at <a href="https://huggingface.co/settings/tokens" target="_blank" rel="noopener noreferrer">'
    "huggingface.co/settings/tokens</a>.</p>"
)


@dataclass(frozen=True)
class _Form:
    place: gr.Accordion
    repo: gr.Textbox
    private: gr.Checkbox
    token: gr.Textbox
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    timer: gr.Timer

    @property
    def running(self) -> list[Any]:
        """What changes while something is published."""
        return [self.start, self.stop, self.status, self.timer]


def build_publish(context: Context, chosen: gr.State) -> None:
    """Draws the form inside the current Blocks and wires it. `chosen` holds the id of the shown job, '' for none.

    It fits a finished job; whoever draws it shows and hides the place around it.
    """
    publisher = Publisher(context)
    form = _draw()

    def start(
        id: str, repo: str, private: bool, token: str, request: gr.Request, login: gr.OAuthToken | None = None
    ) -> list[Any]:
        try:
            publisher.start(context.visitors.of(request), id, repo, private, token_of(login, token))
        except PeftArenaError as fault:
            # The token goes from the page whatever comes of it.
            return ["", *_running(None, sentence=str(fault))]
        return ["", *_running(publisher.progress(id))]

    def stop(id: str, request: gr.Request) -> list[Any]:
        try:
            publisher.stop(context.visitors.of(request), id)
        except PeftArenaError as fault:
            return _running(publisher.progress(id), sentence=str(fault))
        return _running(publisher.progress(id))

    def show(id: str) -> list[Any]:
        return [publisher.suggested(id), *_running(publisher.progress(id))]

    form.start.click(
        start, [chosen, form.repo, form.private, form.token], [form.token, *form.running], api_visibility="private"
    )
    form.stop.click(stop, chosen, form.running, **_QUIET)
    form.timer.tick(lambda id: _running(publisher.progress(id)), chosen, form.running, **_QUIET)
    # What a closed fold holds is not in the page, so nothing reaches it before it is opened.
    gr.on([chosen.change, form.place.expand], show, chosen, [form.repo, *form.running], **_QUIET)


class Publisher:
    """What the events of the form do, with the rights checked on the server."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._board = JobBoard(context.home)
        self._known = Publications(context.home / "jobs")

    def start(self, visitor: Visitor, id: str, repo: str, private: bool, token: str | None) -> None:
        """Begins to publish the job's adapter; PeftArenaError in one sentence where that may or can not be."""
        job = self._allowed(visitor, id)
        folder = self._board.adapter_folder(id)
        if folder is None:
            raise PeftArenaError(f"'{job.adapter}' has no adapter yet: wait until its job has ended.")
        if token is None and login_possible():
            raise PeftArenaError("Log in with Hugging Face first: the button is beside this one.")
        if token is None and not visitor.owner:
            raise PeftArenaError(
                "Publishing needs a token of your own: make one with write access at huggingface.co/settings/tokens."
            )
        serving = job.serving
        order = Order(
            folder=folder,
            repo_id=full_name(repo or job.adapter, token),
            private=private,
            base=str(job.config.get("model_name_or_path") or serving.base),
            device=serving.device,
            trust_remote_code=serving.trust_remote_code,
            token=token,
        )
        self._known.start(id, order)

    def stop(self, visitor: Visitor, id: str) -> None:
        """Stops what `start` began."""
        self._allowed(visitor, id)
        running = self._known.of(id)
        if running is not None:
            running.stop()

    def progress(self, id: str) -> Progress | None:
        """How far it is, or what is remembered of the last time; None where nothing was published."""
        running = self._known.of(id) if id else None
        if running is not None:
            return running.progress()
        note = self._known.note(id) if self._job(id) else None
        return Progress("done", f"Published as {note.repo_id}.", (), note.url) if note else None

    def suggested(self, id: str) -> str:
        """A name for the repository."""
        job = self._job(id)
        return job.adapter if job else ""

    def _job(self, id: str) -> Job | None:
        try:
            return self._board.get(id) if id else None
        except PeftArenaError:
            return None

    def _allowed(self, visitor: Visitor, id: str) -> Job:
        refused = self._context.visitors.may_train(visitor)
        if refused:
            raise PeftArenaError(refused)
        if not id:
            raise PeftArenaError("Choose a finished job first.")
        job = self._board.get(id)
        if job.owner != visitor.id and not visitor.owner:
            raise PeftArenaError("This job is another person's: only they, or the owner of this app, may publish it.")
        return job


def _draw() -> _Form:
    with gr.Accordion("Publish on the Hugging Face Hub", open=False, elem_id="train-publish") as place:
        about = _ABOUT if login_possible() else _ABOUT + _WHERE
        gr.HTML(about, apply_default_css=False, js_on_load=None, elem_classes="quiet")
        with gr.Row(elem_id="train-publish-fields"):
            repo = gr.Textbox(
                label="Repository",
                info="A name, or user/name; it is made where it does not exist.",
                placeholder="lora-mydata",
                min_width=260,
                max_length=200,
                elem_id="train-publish-repo",
            )
            token = gr.Textbox(
                label="Your token of the Hub",
                info=_HELP,
                type="password",
                min_width=260,
                placeholder="empty: the login of this machine",
                visible=not login_possible(),
                html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
                elem_id="train-publish-token",
            )
        private = gr.Checkbox(
            True,
            label="Private",
            info="A new repository is seen by you alone; you can open it on its page later.",
            elem_id="train-publish-private",
        )
        with gr.Row(elem_id="train-publish-actions"):
            build_login("train-publish-login")
            start = gr.Button("Publish", variant="primary", size="md", scale=0, elem_id="train-publish-start")
            stop = gr.Button("Stop", visible=False, size="md", scale=0, elem_id="train-publish-stop")
        status = widgets.live("", elem_id="train-publish-status")
    return _Form(place, repo, private, token, start, stop, status, gr.Timer(TICK_SECONDS, active=False))


def _running(progress: Progress | None, sentence: str = "") -> list[Any]:
    """Updates for `_Form.running`."""
    under_way = progress is not None and progress.state == "running"
    return [
        gr.Button(interactive=not under_way),
        gr.Button(visible=under_way),
        status_html(progress, sentence),
        gr.Timer(active=under_way),
    ]


def status_html(progress: Progress | None, sentence: str = "") -> str:
    """What the page says of a publication; everything in it is escaped."""
    parts = [f'<p class="sentence">{escape(sentence)}</p>'] if sentence else []
    if progress is not None:
        kind = ' class="sentence"' if progress.state == "failed" else ""
        link = _link(progress.url)
        parts.append(f"<p{kind}>{escape(progress.message)}{link}</p>")
        # While it runs the line above changes every second, and a fold would close each time.
        if progress.lines and progress.state != "running":
            lines = escape("\n".join(progress.lines))
            parts.append(f'<details><summary>Log</summary><pre class="log" tabindex="0">{lines}</pre></details>')
    return "".join(parts)


def _link(url: str) -> str:
    """A link to the page on the Hub; nothing for an address that is none."""
    if not url.startswith(("https://", "http://")):
        return ""
    return f' <a href="{escape(url)}" target="_blank" rel="noopener noreferrer">Open its page</a>'
