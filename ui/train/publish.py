"""Form that publishes a finished adapter on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from markupsafe import Markup

from errors import PromptOrTuneError
from jobs.api import JobService
from jobs.job import Job
from jobs.publish import PublishProgress, PublishRequest, PublishService, full_repo_id
from train.hub_access import find_token
from ui import components
from ui.access.guard import guard
from ui.access.logins import build_login, is_login_available, resolve_token
from ui.access.policy import Visitor
from ui.components import render
from ui.context import Context

POLL_SECONDS = 1.0
_EVENT_OPTIONS = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_ABOUT_HTML = (
    "<p>Puts the adapter, its card and its scores on huggingface.co, reads them back and compares the answers token by "
    "token. Your rows are not sent.</p>"
)
_CREDENTIALS_NOTE = "With write access. Used for this once, stored nowhere."
_CREDENTIALS_HELP_HTML = (
    '<p>A token is made at <a href="https://huggingface.co/settings/tokens" target="_blank" rel="noopener noreferrer">'
    "huggingface.co/settings/tokens</a>.</p>"
)


@dataclass(frozen=True)
class _PublishForm:
    accordion: gr.Accordion
    repo: gr.Textbox
    private: gr.Checkbox
    token: gr.Textbox
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    timer: gr.Timer

    @property
    def progress_outputs(self) -> list[Any]:
        """The components that change while an adapter is published."""
        return [self.start, self.stop, self.status, self.timer]


def build_publish(context: Context, selected_job: gr.State) -> None:
    """Build the form in the current Blocks and wire its events. `selected_job` has the job's id, '' for none.

    The form is for finished jobs; the caller shows and hides the column around it.
    """
    publisher = Publisher(context)
    form = _build_form()

    def start(
        id: str, repo: str, private: bool, token: str, request: gr.Request, login: gr.OAuthToken | None = None
    ) -> list[Any]:
        try:
            publisher.start(context.visitors.identify(request), id, repo, private, resolve_token(login, token))
        except PromptOrTuneError as error:
            # The token is removed from the page in every case.
            return ["", *_progress_updates(None, error=str(error))]
        return ["", *_progress_updates(publisher.progress(id))]

    def stop(id: str, request: gr.Request) -> list[Any]:
        try:
            publisher.stop(context.visitors.identify(request), id)
        except PromptOrTuneError as error:
            return _progress_updates(publisher.progress(id), error=str(error))
        return _progress_updates(publisher.progress(id))

    def show(id: str, request: gr.Request) -> list[Any]:
        seen = id if publisher.may_see(context.visitors.identify(request), id) else ""
        return [publisher.suggest_repo_name(seen), *_progress_updates(publisher.progress(seen))]

    def tick(id: str, request: gr.Request) -> list[Any]:
        return show(id, request)[1:]

    def refuse(reason: str, _: Sequence[Any]) -> list[Any]:
        return _progress_updates(None, error=reason)

    visitors = context.visitors
    form.start.click(
        # The token is removed from the page in every case.
        guard(visitors, "publish", start, lambda reason, values: ["", *refuse(reason, values)]),
        [selected_job, form.repo, form.private, form.token],
        [form.token, *form.progress_outputs],
        api_visibility="private",
    )
    form.stop.click(guard(visitors, "publish", stop, refuse), selected_job, form.progress_outputs, **_EVENT_OPTIONS)
    form.timer.tick(guard(visitors, "view pages", tick), selected_job, form.progress_outputs, **_EVENT_OPTIONS)
    # Gradio renders an accordion's content when it is opened: earlier updates would be lost.
    gr.on(
        [selected_job.change, form.accordion.expand],
        guard(visitors, "view pages", show),
        selected_job,
        [form.repo, *form.progress_outputs],
        **_EVENT_OPTIONS,
    )


class Publisher:
    """Publishes the adapters of jobs after checking on the server that the visitor may."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._job_service = JobService(context.home)
        self._publications = PublishService(context.home / "jobs")

    def start(self, visitor: Visitor, job_id: str, repo: str, private: bool, token: str | None) -> None:
        """Start publishing the job's adapter. Raises PromptOrTuneError if the visitor may not or it cannot be done."""
        job = self._require_allowed_job(visitor, job_id)
        folder = self._job_service.adapter_folder(job_id)
        if folder is None:
            raise PromptOrTuneError(f"'{job.adapter}' has no adapter yet: wait until its job has ended.")
        if token is None and is_login_available():
            raise PromptOrTuneError("Log in with Hugging Face first: the button is beside this one.")
        if token is None and not self._context.visitors.policy.may(visitor, "use the machine's Hub token"):
            raise PromptOrTuneError(
                "Publishing needs a token of your own: make one with write access at huggingface.co/settings/tokens."
            )
        if token is not None:
            find_token(repo or job.adapter, token)  # raises for characters that no token has
        serving = job.serving
        request = PublishRequest(
            folder=folder,
            repo_id=full_repo_id(repo or job.adapter, token),
            private=private,
            base=str(job.config.get("model_name_or_path") or serving.base),
            device=serving.device,
            trust_remote_code=serving.trust_remote_code,
            token=token,
        )
        self._publications.start(job_id, request)

    def stop(self, visitor: Visitor, job_id: str) -> None:
        """Stop a publication. Raises PromptOrTuneError if the visitor may not."""
        self._require_allowed_job(visitor, job_id)
        running = self._publications.get(job_id)
        if running is not None:
            running.stop()

    def progress(self, job_id: str) -> PublishProgress | None:
        """Return the progress of a publication, or the record of the last one; None if there is neither."""
        running = self._publications.get(job_id) if job_id else None
        if running is not None:
            return running.progress()
        record = self._publications.record(job_id) if self._find_job(job_id) else None
        return PublishProgress("done", f"Published as {record.repo_id}.", (), record.url) if record else None

    def suggest_repo_name(self, job_id: str) -> str:
        """Return a name for the repository; '' for an unknown job."""
        job = self._find_job(job_id)
        return job.adapter if job else ""

    def may_see(self, visitor: Visitor, job_id: str) -> bool:
        """Return whether the visitor may see the job and how it is published; False for an unknown job."""
        job = self._find_job(job_id)
        return job is not None and self._context.visitors.policy.may(visitor, "see a job", owner=job.owner)

    def _find_job(self, job_id: str) -> Job | None:
        try:
            return self._job_service.get_job(job_id) if job_id else None
        except PromptOrTuneError:
            return None

    def _require_allowed_job(self, visitor: Visitor, job_id: str) -> Job:
        policy = self._context.visitors.policy
        policy.check(visitor, "publish")
        if not job_id:
            raise PromptOrTuneError("Choose a finished job first.")
        job = self._job_service.get_job(job_id)
        policy.check(visitor, "publish", owner=job.owner)
        return job


def _build_form() -> _PublishForm:
    with gr.Accordion("Publish on the Hugging Face Hub", open=False, elem_id="train-publish") as accordion:
        about = _ABOUT_HTML if is_login_available() else _ABOUT_HTML + _CREDENTIALS_HELP_HTML
        gr.HTML(about, apply_default_css=False, js_on_load=None, elem_classes="muted")
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
                info=_CREDENTIALS_NOTE,
                type="password",
                min_width=260,
                placeholder="empty: the login of this machine",
                visible=not is_login_available(),
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
        status = components.live_region("", elem_id="train-publish-status")
    return _PublishForm(accordion, repo, private, token, start, stop, status, gr.Timer(POLL_SECONDS, active=False))


def _progress_updates(progress: PublishProgress | None, error: str = "") -> list[Any]:
    """Return updates for `_PublishForm.progress_outputs`."""
    is_running = progress is not None and progress.state == "running"
    return [
        gr.Button(interactive=not is_running),
        gr.Button(visible=is_running),
        status_html(progress, error),
        gr.Timer(active=is_running),
    ]


def status_html(progress: PublishProgress | None, error: str = "") -> Markup:
    """Return error, status, link and log of a publication."""
    return render("train/publish_status.html.jinja", progress=progress, error=error)
