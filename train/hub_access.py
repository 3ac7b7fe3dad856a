"""Hub access checks before training and publishing: the token, permission to write, and access to the base.

The checks create and change nothing. The token is found as huggingface_hub finds it (HF_TOKEN, `hf auth login`) and
appears in no message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adapters.install import REQUEST_TIMEOUT_S, parse_repo_spec
from adapters.manifest import PICKLES
from adapters.weights import WEIGHTS_NAME
from common.format import quote_untrusted
from common.hub import hub_error_message, hub_errors, is_hub_unreachable
from errors import AdapterError, BaseModelError, TrainingError

_WRITE_ROLES = ("admin", "write", "contributor")
_WEIGHT_SUFFIXES = (*PICKLES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx")
_SETTINGS_URL = "huggingface.co/settings/tokens"


def check_access(repo_id: str, token: str | None = None, *, is_full_model: bool = False) -> None:
    """Raise TrainingError unless the token's owner may publish to `repo_id` ("user/name").

    Checks the token and its permissions, the owner of the namespace, and, if the repository exists, that it is writable
    and holds only a previous version: an adapter, or with `is_full_model` a model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    check_repo_id(repo_id)
    key = find_token(repo_id, token)
    with hub_errors(repo_id, "checking access to", error=TrainingError):
        whoami = HfApi().whoami(token=key)
    check_owner(repo_id, whoami)
    with hub_errors(repo_id, "checking access to", error=TrainingError):
        try:
            info = HfApi().model_info(repo_id, timeout=REQUEST_TIMEOUT_S, token=key)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return check_scopes(repo_id, whoami)
        HfApi().auth_check(repo_id, write=True, token=key)
    return _check_repo_files(repo_id, [file.rfilename for file in info.siblings or ()], is_full_model)


def check_base_access(base: str, token: str | None = None) -> None:
    """Raise BaseModelError when `base` is a Hub id whose files this token may not read.

    A base in the cache needs no connection. For the embedded base, folders and GGUF files there is nothing to check.
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
        if not (cached and is_hub_unreachable(error)):
            raise BaseModelError(hub_error_message(error, name, "looking up the base", revision)) from error


def check_repo_id(repo_id: str) -> None:
    """Raise TrainingError unless `repo_id` is a valid `user/name` of the Hub."""
    try:
        revision = parse_repo_spec(repo_id)[1]
    except AdapterError:
        revision = ""
    if revision is not None:
        raise TrainingError(
            f"{quote_untrusted(repo_id)!r} cannot name a repository on the Hub: write user/name with letters, digits, "
            "'-', '_' and single '.', such as someone/lora-conala."
        )


def find_token(repo_id: str, token: str | None = None) -> str:
    """Return `token`, or the one that huggingface_hub finds. Raises TrainingError when there is none."""
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
    """Raise TrainingError unless the token's owner may write in the namespace of `repo_id`.

    `whoami` is the result of `HfApi.whoami`.
    """
    owner, _, rest = repo_id.partition("/")
    namespace = owner.casefold()
    name = str(whoami.get("name", ""))
    roles = {str(org.get("name", "")).casefold(): org.get("roleInOrg") for org in whoami.get("orgs") or ()}
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
    """Raise TrainingError unless the token may create `repo_id`.

    A fine-grained token must have access to the namespace, because it cannot name a repository that does not exist yet.
    """
    if _token_access(whoami).get("role") != "fineGrained":
        return
    scoped = (_token_access(whoami).get("fineGrained") or {}).get("scoped") or ()
    writable = {
        str((scope.get("entity") or {}).get("name", "")).casefold()
        for scope in scoped
        if "repo.write" in (scope.get("permissions") or ())
    }
    owner = repo_id.partition("/")[0]
    if owner.casefold() not in writable:
        raise TrainingError(
            f"The fine-grained token may not create '{repo_id}': give it write access to the repositories of "
            f"'{owner}' at {_SETTINGS_URL}."
        )


def _check_repo_files(repo_id: str, paths: Iterable[str], is_full_model: bool) -> None:
    """Raise TrainingError when the repository has other weights: a loader could not know which ones to use."""
    for path in sorted(paths):
        own = path.startswith("model") and path.endswith(".safetensors") if is_full_model else path == WEIGHTS_NAME
        if path.lower().endswith(_WEIGHT_SUFFIXES) and not own:
            raise TrainingError(
                f"'{repo_id}' holds other weights already ({path}): publish under another name, or delete them there."
            )


def _token_access(whoami: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the permissions of a token that was created by hand; {} for one of a login."""
    access = (whoami.get("auth") or {}).get("accessToken")
    return access if isinstance(access, Mapping) else {}
