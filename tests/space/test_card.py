"""The card of the Space: its metadata for the Hub, and its agreement with the program."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
from huggingface_hub import SpaceHardware

from errors import PromptOrTuneError
from space.build import CARD, REQUIREMENTS, check_card, front_matter, pinned_version, with_thumbnail
from tests import messages

TEXT = CARD.read_text(encoding="utf-8")
LIST = REQUIREMENTS.read_text(encoding="utf-8")
# From "Currently supported scopes" in the Hub's manual: they write only what the Space itself created.
NARROW_SCOPES = {"openid", "profile", "contribute-repos", "jobs"}


def test_card_is_valid_for_the_hub() -> None:
    values = check_card(TEXT, LIST)
    assert values["sdk"] == "gradio"
    assert values["app_file"] == "app.py"
    assert values["license"] == "apache-2.0"
    assert values["models"]
    assert values["datasets"]
    assert values["tags"]
    assert values["suggested_hardware"] in {str(each.value) for each in SpaceHardware}
    assert re.fullmatch(r"\d+[hm]", values["startup_duration_timeout"])


def test_gradio_version_is_the_same_in_card_requirements_and_environment() -> None:
    assert front_matter(TEXT)["sdk_version"] == pinned_version("gradio", LIST) == version("gradio")


def test_python_version_is_supported_by_zero_gpu_and_this_program() -> None:
    # ZeroGPU has 3.10.13 and 3.12.12 ("Spaces ZeroGPU", Supported Versions); this program needs 3.11 or newer.
    assert front_matter(TEXT)["python_version"] == "3.12.12"


def test_login_requests_only_the_scopes_of_publishing_and_jobs() -> None:
    values = front_matter(TEXT)
    assert values["hf_oauth"] is True
    assert set(values["hf_oauth_scopes"]) <= NARROW_SCOPES
    assert {"contribute-repos", "jobs"} <= set(values["hf_oauth_scopes"])
    assert values["hf_oauth_expiration_minutes"] <= 43_200


def test_all_links_of_the_card_are_absolute() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert all(target.startswith("https://") for target in targets)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("sdk_version: 6.31.0", "sdk_version: 5.0.0"), r"is 5\.0\.0 and requirements\.txt pins gradio .*: write"),
        (("license: apache-2.0\n", ""), "lacks license: add it"),
        (("colorTo: gray", "colorTo: mauve"), "colorTo of README.md is 'mauve': choose one of red"),
        (("Prompt it", "Prompt it " * 6), r"has \d+ characters and 60 are allowed: shorten it"),
        (("title: Prompt", "title: [Prompt"), "is no YAML"),
        (("---\n", "", 1), "has no front matter"),
    ],
)
def test_invalid_card_is_refused(change: tuple[str, str], expected: str) -> None:
    with pytest.raises(PromptOrTuneError, match=expected) as caught:
        check_card(TEXT.replace(*change), LIST)
    assert str(caught.value).endswith(".")


def test_requirements_without_a_pin_are_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.GRADIO_NOT_PINNED):
        check_card(TEXT, "gradio>=6\n")


def test_thumbnail_is_added_to_the_front_matter() -> None:
    text = with_thumbnail(TEXT, "https://example.org/a.png")
    assert front_matter(text) == front_matter(TEXT) | {"thumbnail": "https://example.org/a.png"}
    assert text.count("thumbnail:") == 1
