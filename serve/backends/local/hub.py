"""A base from the Hugging Face Hub: its files in the Hub's own cache, and the commit they are from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errors import BaseModelError
from serve.home import ProgressFn

_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]
# Seconds until a Hub that does not answer counts as unreachable.
_HUB_TIMEOUT_S = 10


def download(name: str, revision: str | None, report: ProgressFn) -> tuple[Path, str]:
    """The folder of `name` at `revision` (default: main) and its commit.

    A Hub that cannot be reached is no error while the cache has the base. Raises BaseModelError in one sentence.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    report(f"Looking up {name} on the Hugging Face Hub ...")
    try:
        # Asked first because snapshot_download would wait without end for a Hub that never answers.
        HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S)
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_PATTERNS, tqdm_class=_progress_bar_class(name, report)
            )
        )
    except GatedRepoError as fault:
        raise BaseModelError(
            f"The base '{name}' is gated: accept its terms on its Hub page, then run `hf auth login`."
        ) from fault
    except RevisionNotFoundError as fault:
        raise BaseModelError(
            f"The base '{name}' has no revision '{revision}' on the Hub: check the part after '@'."
        ) from fault
    except RepositoryNotFoundError as fault:
        raise BaseModelError(
            f"There is no base '{name}' on the Hub that you may read: check its spelling, or run `hf auth login`."
        ) from fault
    except Exception as fault:  # noqa: BLE001 - the client raises several libraries' errors for one broken line
        folder = _from_cache(name, revision, fault)
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError(
            f"The base '{name}' has no safetensors weights on the Hub: pickled weights are not loaded; look for a "
            "converted revision (refs/convert/safetensors or a pull request) and give it after '@'."
        )
    return folder, folder.name


def _from_cache(name: str, revision: str | None, error: Exception) -> Path:
    from huggingface_hub import snapshot_download

    if isinstance(error, OSError) and error.errno == 28:
        raise BaseModelError(
            f"The disk is full: '{name}' does not fit the Hub's cache; free some room or set HF_HOME to a larger disk."
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS, local_files_only=True))
    except Exception:  # noqa: BLE001 - likewise
        raise BaseModelError(
            f"The Hub could not be reached for '{name}' and it is not in the cache: check the network, or use "
            "--base embedded, a folder or a .gguf file."
        ) from error


def _progress_bar_class(name: str, report: ProgressFn) -> Any:
    """A progress bar that reports whole percents instead of drawing."""
    from tqdm import tqdm

    class Reporter(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._told = -1
            super().__init__(*arguments, **(options | {"disable": False}))

        def display(self, *_: Any, **__: Any) -> None:
            percent = int(100 * self.n / self.total) if self.total else 0
            if percent > self._told and self.unit == "B":
                self._told = percent
                report(f"Downloading {name} {percent} %")

        def close(self) -> None:
            self.disable = True
            super().close()

    return Reporter
