"""The attacks of the trial, by kind, against the command `python app.py` in each of its modes."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from adapters.archive import pack
from tests.security.command_app import Person, Running, running
from tests.security.test_policy import request
from tests.tasks.dataset_hub import DatasetHub, dataset_hub
from tests.ui.adapters.sample_home import SMALL, copy_adapter
from tests.ui.train import jobs_on_disk
from tests.ui.train.jobs_on_disk import WorkerlessJobService
from ui.access.guard import VisitorRegistry
from ui.access.logins import FREE_FAILURES

pytestmark = pytest.mark.slow

EVIL, SPACE_HOST = "https://evil.example", "ada-arena.hf.space"
TOKEN, PRIVATE, SECRET = "hf_OWNERSECRETTOKEN123456", "alice/private-payroll", "SECRET salary of employee"
COUNTED = "30 rows"
MODES: dict[str, tuple[str, ...]] = {
    "plain": ("--api",),
    "owner": ("--auth", "{logins}", "--owner", "alice", "--train", "owner", "--api", "--api-key-file", "{keys}"),
    "auth": ("--auth", "{logins}"),
    "nobody": ("--train", "nobody", "--max-upload", "10", "--rows-per-hour", "50"),
    "network": ("--host", "0.0.0.0", "--train", "everyone"),
    "space": ("--host", "127.0.0.1"),
}
SPACE = {"SPACE_ID": "ada/arena", "SPACE_AUTHOR_NAME": "ada", "SPACE_HOST": SPACE_HOST}
WITH_LOGINS = ("owner", "auth")
TRAINING = ("auth", "network")  # where others than the owner of the app have adapters and jobs


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatasetHub]:
    """A Hub with a private data set of the machine's owner."""
    folder = tmp_path_factory.mktemp("hub")
    rows = "".join(f"{SECRET} {number},x + {number}\n" for number in range(30))
    (folder / "train.csv").write_text(f"intent,code\n{rows}")
    with pytest.MonkeyPatch.context() as patch, dataset_hub(folder / "cache", patch) as standin:
        standin.repositories[PRIVATE] = folder
        standin.private[PRIVATE] = TOKEN
        yield standin


@pytest.fixture(scope="module")
def apps(hub: DatasetHub, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    """The app in all modes, on a machine whose owner is logged in to the Hub; they share the converted base."""
    (home / "bases").mkdir(exist_ok=True)
    environment = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    with ExitStack() as stack:
        started = {}
        for mode, arguments in MODES.items():
            folder = tmp_path_factory.mktemp(mode)
            (folder / "home").mkdir(mode=0o700)
            (folder / "home" / "bases").symlink_to(home / "bases")
            variables = environment | (SPACE if mode == "space" else {})
            started[mode] = stack.enter_context(running(folder, *arguments, environment=variables))
        for app in started.values():
            app.wait_until_ready()
        yield started


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(apps: dict[str, Running], mode: str) -> Running:
    return apps[mode]


def zipped(folder: Path, name: str) -> Path:
    return pack(copy_adapter(SMALL, folder / name), folder / f"{name}.zip")


def test_pages_of_other_sites_get_nothing(app: Running, mode: str) -> None:
    """Case 1. Before: every Origin was granted with credentials, for hosts other than three names of this machine."""
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    host = {"host": SPACE_HOST} if mode == "space" else {}
    body, http = {"fn_index": 0, "data": [], "session_hash": "x"}, app.person("bob").http
    for origin in (EVIL, "null", "http://localhost.evil.example", f"https://sibling.{SPACE_HOST}"):
        headers = {"origin": origin, **host}
        answers = [
            http.options("gradio_api/queue/join", headers={**headers, **preflight}),
            http.post("gradio_api/queue/join", json=body, headers=headers),
            http.post("gradio_api/upload", files={"files": ("a.csv", b"stolen")}, headers=headers),
            http.get("config", headers=headers),
            http.get("gradio_api/queue/data", params={"session_hash": "x"}, headers=headers),
            http.get("logout", headers={**headers, "sec-fetch-site": "cross-site"}),
        ]
        assert {answer.status_code for answer in answers} == {403}, origin
        assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_rebound_names_are_not_answered(app: Running) -> None:
    """Case 8."""
    with app.stranger(host="rebind.evil.example").http as http:
        assert {http.get(path).status_code for path in ("", "config", "gradio_api/info", "login")} == {421}


def test_paths_that_the_pages_do_not_use_are_closed(app: Running, mode: str) -> None:
    """Cases 1 and 13: nothing but the login page before a login, nothing of Gradio's further parts ever."""
    paths = ["openapi.json", "docs", "monitoring", "gradio_api/file=/etc/passwd", "gradio_api/proxy=http://127.0.0.1/"]
    with app.stranger().http as http:
        statuses = {http.get(path).status_code for path in paths}
        config = http.get("config")
    if mode in WITH_LOGINS:
        assert statuses == {401}
        assert (config.status_code, "components" in config.text) == (401, False)
    else:
        assert statuses <= {403, 404}
        assert config.status_code == 200


def test_headers_and_cookies(app: Running, mode: str) -> None:
    space = {"host": SPACE_HOST, "x-forwarded-proto": "https"} if mode == "space" else {}
    with app.stranger(**space).http as http:
        answer = http.get("")
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy, cookie = answer.headers["content-security-policy"], answer.headers["set-cookie"].lower()
    assert ("frame-ancestors 'self' https://huggingface.co" in policy) is (mode == "space")
    assert "httponly" in cookie
    if mode == "space":
        assert "samesite=none" in cookie
        assert "secure" in cookie
        assert "partitioned" in cookie
    else:
        assert "samesite=lax" in cookie


def look(person: Person) -> str:
    """Return what a person is told about the private data set, at most until its rows were counted."""
    return person.send("select_dataset", target="train-use-named", train_named=PRIVATE, stop_at=COUNTED)


# In the mode "plain" who reaches the app sits at the machine and owns its data.
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "plain"])
def test_private_data_of_the_machines_owner(app: Running, mode: str, hub: DatasetHub) -> None:
    """Case 2. Before: a stranger got the rows, and the request had the token of the machine."""
    if mode == "owner":
        assert COUNTED in look(app.person("alice"))
        assert f"Bearer {TOKEN}" in hub.tokens
    hub.tokens.clear()
    for person in (app.stranger(), app.person("bob")) if mode not in WITH_LOGINS else (app.person("bob"),):
        answer = look(person)
        assert COUNTED not in answer
        assert SECRET not in answer
    assert set(hub.tokens) <= {""}


@pytest.mark.parametrize("mode", TRAINING)
def test_adapter_of_another(app: Running, tmp_path: Path) -> None:
    """Cases 4 and 5. Before: bob deleted and downloaded it, with a login and with a cookie."""
    alice, bob = app.person("alice"), app.person("bob")
    file = alice.upload(zipped(tmp_path, "alices-private"))
    assert "is added" in alice.send("upload", file, "", target="adapters-zip")
    folder = app.home / "adapters" / "alices-private"
    for do in ("delete", "save", "unload"):
        assert "another person" in bob.send("act", target="adapters-list", data={"do": do, "name": "alices-private"}), (
            do
        )
        assert folder.is_dir()
    assert "is deleted" in alice.send("act", target="adapters-list", data={"do": "delete", "name": "alices-private"})
    assert not folder.exists()


@pytest.mark.parametrize("mode", TRAINING)
def test_job_of_another(app: Running) -> None:
    """Cases 5 and 13. Before: any cookie deleted it where there were no logins, and everybody read its log."""
    app.home.mkdir(mode=0o700, exist_ok=True)
    registry = VisitorRegistry()
    alice = registry.identify(request(username="alice") if app.logins else request(("alice" * 32)[:32]))
    service = WorkerlessJobService(app.home)
    job = jobs_on_disk.submit(service, "alices-run", data_name="salaries.csv", owner=alice.id)
    jobs_on_disk.complete(service, job.id)
    bob = app.person("bob")
    bob.send("choose", target="train-job-list", data={"id": job.id})
    for target in ("train-job-delete", "train-delete-job", "train-delete-both", "train-job-cancel", "train-job-again"):
        bob.send("click", target=target)
        assert service.get_job(job.id).state == "done", target
        assert service.adapter_folder(job.id) is not None, target
    seen = bob.send("show", target="train-poller", data={"job": job.id, "seen": {}, "log": True, "number": 1})
    assert "salaries.csv" not in seen
    assert "alices-run" not in seen


def test_costs_are_bounded_before_they_are_paid(app: Running, mode: str) -> None:
    """Cases 3, 6, 7 and 13: refused by size and number, in one sentence."""
    bob = app.person("bob")

    def compare(intent: Any, methods: Any, tests: Any = None) -> str:
        return bob.send("compare", intent, methods, None, tests)

    assert "20,000" in compare("x", ["zero-shot"], "a=1\n" * 20_000 + "assert a\n")
    assert "20,000" in compare("a " * 10_001, ["rag-8", "zero-shot"])
    assert "MB" in compare("a " * 1_000_000, ["zero-shot"])
    assert "asks for too many or no examples" in compare("x", ["rag-" + "9" * 150])
    assert "at most 8" in compare("x", [f"rag-{k}" for k in range(1, 10)])
    assert bob.http.post("gradio_api/queue/join", json={"data": ["x" * 2_000_000]}).status_code == 413
    wide = ",".join(f"c{number}" for number in range(1_000)) + "\n" + ",".join("x" * 1_000) + "\n"
    (app.folder / "wide.csv").write_text(wide)
    answer = bob.send("upload", bob.upload(app.folder / "wide.csv"), target="train-file")
    assert ("1,000 columns" if mode in ("plain", *TRAINING) else "train") in answer.casefold()


def test_uploads_are_counted_while_they_arrive(apps: dict[str, Running]) -> None:
    """Case 11. Before: 304 MB without a Content-Length were kept for a day."""

    def parts() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\n'
        for _ in range(12):
            yield b"x" * (1 << 20)
        yield b"\r\n--x--\r\n"

    with apps["nobody"].person("bob").http as http:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert http.post("gradio_api/upload", content=parts(), headers=headers).status_code == 413


def test_api_keeps_its_own_rules(app: Running, mode: str) -> None:
    with app.stranger().http as http:
        models = http.get("v1/models")
        rebound = http.get("v1/models", headers={"host": "evil.example"}).status_code
        assert rebound == (421 if mode in ("plain", "owner") else 404)
        if mode == "plain":
            assert models.status_code == 200
            assert http.get("v1/models", headers={"origin": EVIL, "sec-fetch-site": "cross-site"}).status_code == 403
        elif mode == "owner":
            assert models.status_code == 401
            keys = {who: {"authorization": f"Bearer {who}-key-0123456789"} for who in ("program", "admin", "nobody")}
            assert [http.get("v1/models", headers=key).status_code for key in keys.values()] == [200, 200, 401]
            load = {"lora_name": "x", "lora_path": "/no/such/folder"}
            answers = [http.post("v1/load_lora_adapter", json=load, headers=key).status_code for key in keys.values()]
            assert answers[0] == 403
            assert answers[1] in (400, 404)
            assert answers[2] == 401
        else:
            assert models.status_code == 404


@pytest.mark.parametrize("mode", WITH_LOGINS)
def test_passwords_are_not_guessed(app: Running) -> None:
    """Case 10. Before: 786 guesses a second. The last test with a login from this address."""
    guess = {"username": "alice", "password": "wrong password"}
    with app.stranger().http as http:
        statuses = [http.post("login", data=guess).status_code for _ in range(FREE_FAILURES + 1)]
        assert statuses == [400] * FREE_FAILURES + [429]
        right = {"username": "alice", "password": "alices password"}
        assert http.post("login", data=right).status_code == 429


def test_nothing_leaked(app: Running) -> None:
    """After all of the above."""
    assert app.process.poll() is None
    for secret in ("Traceback", TOKEN, "alices password", "program-key"):
        assert secret not in app.log, app.log
    for path in app.home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert TOKEN.encode() not in path.read_bytes(), path
    for folder in ("jobs", "adapters", "uploads", "drafts"):
        if (app.home / folder).is_dir():
            assert not stat.S_IMODE((app.home / folder).stat().st_mode) & 0o022, folder
    assert not app.home.exists() or not stat.S_IMODE(app.home.stat().st_mode) & 0o077
