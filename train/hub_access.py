"""What must be true before work begins whose result is to be published: a token, the right to write, a base to read.

Nothing is created or changed here. The token is found as huggingface_hub finds it (HF_TOKEN, `hf auth login`) and
appears in no message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adapters.checks import PICKLES
from adapters.hub import REQUEST_TIMEOUT_S, parse_repo_spec
from adapters.weights import WEIGHTS_NAME
from common.format import quote_untrusted
from common.hub import hub_error_message, hub_errors
from errors import AdapterError, BaseModelError, TrainingError

_WRITE_ROLES = ("admin", "write", "contributor")
_WEIGHT_SUFFIXES = (*PICKLES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx")
_SETTINGS_URL = "huggingface.co/settings/tokens"


def check_access(repo_id: str, token: str | None = None, *, is_full_model: bool = False) -> None:
    """TrainingError in one sentence unless the token's owner may publish to `repo_id` ("user/name").

    Checked are the token, what it may do, whose the namespace is, and, where the repository exists, that it may be
    written to and holds nothing but a former version: an adapter, or with `whole_model` a model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    check_repo_id(repo_id)
    key = find_token(repo_id, token)
    with hub_errors(repo_id, "checking access to", error=TrainingError):
        person = HfApi().whoami(token=key)
    check_owner(repo_id, person)
    with hub_errors(repo_id, "checking access to", error=TrainingError):
        try:
            found = HfApi().model_info(repo_id, timeout=REQUEST_TIMEOUT_S, token=key)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return check_scopes(repo_id, person)
        HfApi().auth_check(repo_id, write=True, token=key)
    return _check_repo_files(repo_id, [each.rfilename for each in found.siblings or ()], is_full_model)


def check_base_access(base: str, token: str | None = None) -> None:
    """BaseModelError in one sentence when `base` is a Hub id whose files this token may not read.

    A base in the cache needs no Hub. The embedded base, folders and GGUF files have nothing to check here.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    from models.source import EMBEDDED, EMBEDDED_ID

    local = base in (EMBEDDED, EMBEDDED_ID) or base.endswith(".gguf") or base.startswith((".", "/", "~"))
    if local or Path(base).is_dir():
        return
    name, _, revision = base.partition("@")
    try:
        HfApi().model_info(name, revision=revision or None, timeout=REQUEST_TIMEOUT_S, token=token)
        HfApi().auth_check(name, token=token)
    except Exception as error:
        cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str)
        if not (cached and _is_unreachable(error)):
            raise BaseModelError(hub_error_message(error, name, "looking up the base", revision)) from error


def check_repo_id(repo_id: str) -> None:
    """TrainingError unless it is `user/name` as the Hub takes it."""
    try:
        revision = parse_repo_spec(repo_id)[1]
    except AdapterError:
        revision = ""
    if revision is not None:
        raise TrainingError(
            f"{quote_untrusted(repo_id)!r} cannot name a repository on the Hub: write user/name with letters, digits, '-', '_' "
            "and single '.', such as someone/lora-conala."
        )


def find_token(repo_id: str, token: str | None = None) -> str:
    """The token given, or the one that huggingface_hub knows; TrainingError where there is none."""
    from huggingface_hub import get_token

    with hub_errors(repo_id, "finding the token for", error=TrainingError):
        key = token or get_token()
    if not key:
        raise TrainingError(
            f"Publishing to '{repo_id}' needs a token of the Hub: run `hf auth login`, or set HF_TOKEN "
            f"(make one with write access at {_SETTINGS_URL})."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise TrainingError(
            "The token of the Hub has characters that no token has: run `hf auth login`, or set HF_TOKEN anew."
        )
    return key


def check_owner(repo_id: str, whoami: Mapping[str, Any]) -> None:
    """TrainingError unless the namespace is the person's own, or an organisation's in which they may write.

    `person` is what `HfApi.whoami` says.
    """
    owner, _, rest = repo_id.partition("/")
    namespace = owner.casefold()
    name = str(whoami.get("name", ""))
    roles = {str(each.get("name", "")).casefold(): each.get("roleInOrg") for each in whoami.get("orgs") or ()}
    if namespace != name.casefold() and namespace not in roles:
        raise TrainingError(
            f"'{repo_id}' is not yours to publish to: the token belongs to '{name}', "
            f"so name the repository {name}/{rest}."
        )
    if namespace != name.casefold() and roles[namespace] not in (None, *_WRITE_ROLES):
        raise TrainingError(
            f"'{name}' may only read in '{owner}': ask for the right to write there, or publish to {name}/{rest}."
        )
    if _token_access(whoami).get("role") == "read":
        raise TrainingError(f"The token may only read, so '{repo_id}' cannot be written: make one at {_SETTINGS_URL}.")


def check_scopes(repo_id: str, whoami: Mapping[str, Any]) -> None:
    """TrainingError unless the token may create `repo_id`.

    A fine-grained one must name the namespace, because a repository that does not exist yet cannot be named.
    """
    if _token_access(whoami).get("role") != "fineGrained":
        return
    scoped = (_token_access(whoami).get("fineGrained") or {}).get("scoped") or ()
    writable = {
        str((each.get("entity") or {}).get("name", "")).casefold()
        for each in scoped
        if "repo.write" in (each.get("permissions") or ())
    }
    owner = repo_id.partition("/")[0]
    if owner.casefold() not in writable:
        raise TrainingError(
            f"The fine-grained token may not create '{repo_id}': give it write access to the repositories of "
            f"'{owner}' at {_SETTINGS_URL}."
        )


def _check_repo_files(repo_id: str, paths: Iterable[str], is_full_model: bool) -> None:
    """Other weights are somebody's work, and two sets of weights in one repository are a trap for whoever loads it."""
    for path in sorted(paths):
        own = path.startswith("model") and path.endswith(".safetensors") if is_full_model else path == WEIGHTS_NAME
        if path.lower().endswith(_WEIGHT_SUFFIXES) and not own:
            raise TrainingError(
                f"'{repo_id}' holds other weights already ({path}): publish under another name, or delete them there."
            )


def _token_access(whoami: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of a token made by hand; nothing of those that a login makes."""
    found = (whoami.get("auth") or {}).get("accessToken")
    return found if isinstance(found, Mapping) else {}


def _is_unreachable(error: BaseException) -> bool:
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, HTTPError | OfflineModeIsEnabled | OSError)
