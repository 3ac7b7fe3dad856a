"""The form of the Train page: settings, techniques, drafts, and the report's HTML."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from errors import DataError, PromptOrTuneError
from jobs.job import ServingOptions, resolve_settings
from train.settings import FIELDS, make_config
from train.techniques import TECHNIQUES
from ui.train import preview_view
from ui.train import settings as cards
from ui.train import settings as settings_form
from ui.train.drafts import Draft, DraftStore, check_dataset_name, safe_file_name
from ui.train.events import (
    FormValues,
    find_unused_name,
    flags_to_setting_names,
    suggest_adapter_name,
    train_config_fields,
)

VISITOR, OTHER = "browser-0123456789abcdef", "browser-fedcba9876543210"
EVIL = "<script>alert(1)</script>${alert(1)}"
SERVING = ServingOptions()


def upload(folder: Path, name: str = "mine.csv", text: str = "intent,code\na,b\n") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# Settings


def test_every_setting_of_a_training_is_a_field_or_settled_elsewhere() -> None:
    shown = {each.name for each in settings_form.ALL_SETTINGS}
    assert shown | settings_form.HIDDEN_SETTINGS == set(FIELDS)
    assert not shown & settings_form.HIDDEN_SETTINGS


@pytest.mark.parametrize("technique", cards.technique_choices(SERVING))
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_what_the_fields_say_by_default_is_what_is_trained(technique: str, preset: str) -> None:
    draft = Draft("starter", technique=technique, settings={"adapter_name": "mine", "preset": preset})
    trained = resolve_settings(train_config_fields(draft, SERVING), SERVING, None)
    for name, text in settings_form.default_values(technique, preset).items():
        setting = next(each for each in settings_form.ALL_SETTINGS if each.name == name)
        if name not in ("adapter_name", "preset") and text != "":
            assert trained[name] == make_config(adapter_name="a", dataset_name="b", **{name: text}).__dict__[name], name
        assert setting.help.endswith(".")


def test_fields_left_empty_are_left_out() -> None:
    values: list[Any] = [False if each.is_flag else "" for each in settings_form.ALL_SETTINGS]
    values[0], values[1] = " mine ", "3"
    values[[each.name for each in settings_form.ALL_SETTINGS].index("use_dora")] = True
    values[[each.name for each in settings_form.ALL_SETTINGS].index("optim")] = "as usual"
    assert settings_form.parse_settings(values) == {"adapter_name": "mine", "num_train_epochs": "3", "use_dora": True}


def test_a_technique_takes_its_own_settings_alone() -> None:
    settings = {"adapter_name": "a", "lora_r": "8", "num_virtual_tokens": "9", "seed": "1"}
    assert settings_form.settings_for_technique(settings, "lora") == {"adapter_name": "a", "lora_r": "8", "seed": "1"}
    assert settings_form.settings_for_technique(settings, "ia3") == {"adapter_name": "a", "seed": "1"}
    decided = settings_form.apply_technique("prompt-tuning", settings)
    assert (decided["learning_rate"], decided["num_virtual_tokens"], decided["seed"]) == ("0.03", "20", "1")


@pytest.mark.parametrize(
    ("values", "name", "sentence"),
    [
        ({"learning_rate": "abc"}, "learning_rate", "'Learning rate' cannot be 'abc': it must be a number."),
        ({"lora_r": "0"}, "lora_r", "'Rank' must be at least 1."),
        ({"adapter_name": "No Name"}, "adapter_name", "'No Name' cannot name an adapter"),
        ({"validation_split": "2"}, "validation_split", "'Share held out' must be above 0 and below 1"),
    ],
)
def test_a_sentence_about_a_setting_stands_at_its_field(values: dict[str, str], name: str, sentence: str) -> None:
    draft = Draft("starter", technique="lora", settings={"adapter_name": "mine", **values})
    with pytest.raises(PromptOrTuneError) as error:
        resolve_settings(train_config_fields(draft, SERVING), SERVING, None)
    found, said = settings_form.locate_error(str(error.value))
    assert found == name
    assert said.startswith(sentence)
    marked = dict(
        zip((each.name for each in settings_form.ALL_SETTINGS), settings_form.error_updates(found, said), strict=True)
    )
    assert [each for each, update in marked.items() if update["elem_classes"] == ["wrong"]] == [name]
    assert marked[name]["info"] == said
    assert marked["seed"]["info"] == "The same seed and rows give the same adapter."


def test_flags_of_the_command_become_fields() -> None:
    sentence = flags_to_setting_names(
        "1 training samples are fewer than one batch: a smaller --per-device-train-batch-size."
    )
    assert settings_form.locate_error(sentence) == (
        "per_device_train_batch_size",
        "1 training samples are fewer than one batch: a smaller 'Rows in a batch'.",
    )


def test_a_browser_may_send_anything_for_a_field() -> None:
    fields = [None for _ in settings_form.ALL_SETTINGS]
    filled = FormValues.parse([None, 7, ["x"], {}, "cpu", *fields])
    assert filled == FormValues("", "", "", "", "cpu", {})
    with pytest.raises(PromptOrTuneError, match="not offered here"):
        train_config_fields(Draft("starter", technique="full"), SERVING)


# Techniques


def test_the_cards_show_the_figures_of_the_measurement() -> None:
    measured = cards.read_technique_score()
    assert measured is not None
    row = measured.scores[("IA3", "nf4")]
    labels = {value: label.split("\n") for label, value in cards.radio_choices(SERVING, measured)}
    assert labels["ia3"][0] == "IA3"
    assert labels["ia3"][-1] == f"CodeBLEU {row['CodeBLEU']} on the NF4 base"
    assert "n = 60" in cards.scores_note(SERVING, measured)
    assert measured.scores[("zero-shot", "nf4")]["CodeBLEU"] in cards.scores_note(SERVING, measured)


def test_without_the_measurement_the_cards_claim_no_figure(tmp_path: Path) -> None:
    assert cards.read_technique_score(tmp_path / "none.md") is None
    assert all("CodeBLEU" not in label for label, _ in cards.radio_choices(SERVING, None))
    assert cards.scores_note(SERVING, None) == ""


@pytest.mark.parametrize(
    ("served", "recommended", "prefix"),
    [("nf4", "qlora-4bit", "nf4"), ("int8", "qlora-8bit", "int8"), ("none", "lora", "none")],
)
def test_what_is_recommended_learns_on_the_weights_that_answer(served: str, recommended: str, prefix: str) -> None:
    serving = dataclasses.replace(SERVING, quantization=served)
    assert cards.recommended_technique(serving) == recommended
    assert recommended in cards.technique_choices(serving)
    assert cards.training_quantization(recommended, serving) == served
    assert cards.training_quantization("prefix-tuning", serving) == prefix
    assert cards.training_quantization("lora", serving) == "none"
    assert "full" not in cards.technique_choices(serving)
    assert set(cards.technique_choices(serving)) <= set(TECHNIQUES)


# Drafts


def test_a_draft_is_there_again_for_its_visitor_alone(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    draft = drafts.save_upload(VISITOR, upload(tmp_path), 1000)
    drafts.save(VISITOR, dataclasses.replace(draft, columns=("a", "b"), technique="ia3", settings={"seed": "7"}))
    again = DraftStore(tmp_path / "home").get(VISITOR)
    assert again is not None
    assert (again.name, again.columns, again.technique, again.settings) == (
        "mine.csv",
        ("a", "b"),
        "ia3",
        {"seed": "7"},
    )
    assert drafts.path(VISITOR, again).read_text(encoding="utf-8") == "intent,code\na,b\n"
    assert drafts.get(OTHER) is None


def test_a_new_upload_replaces_the_earlier_one(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    first = drafts.save_upload(VISITOR, upload(tmp_path), 0)
    second = drafts.save_upload(VISITOR, upload(tmp_path, text="intent,code\nc,d\n"), 0)
    assert first.digest != second.digest
    assert not drafts.path(VISITOR, first).exists()
    assert drafts.get(VISITOR) == second
    drafts.delete(VISITOR)
    assert drafts.get(VISITOR) is None
    assert list((tmp_path / "home" / "uploads").iterdir()) == []


def test_a_file_too_large_is_refused_and_the_earlier_one_stays(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    kept = drafts.save_upload(VISITOR, upload(tmp_path), 0)
    with pytest.raises(PromptOrTuneError, match=r"'big.csv' has .* MB is the limit here"):
        drafts.save_upload(VISITOR, upload(tmp_path, "big.csv", "x" * 2000), 1000)
    assert drafts.get(VISITOR) == kept


@pytest.mark.parametrize("state", ["", "{", "[1]", '{"name": 1, "what": 2}', '{"digest": "x"}'])
def test_a_broken_state_is_no_draft(tmp_path: Path, state: str) -> None:
    drafts = DraftStore(tmp_path)
    drafts.select_dataset(VISITOR, "starter")
    (tmp_path / "uploads" / VISITOR / "draft.json").write_text(state, encoding="utf-8")
    assert drafts.get(VISITOR) is None


def test_a_draft_whose_file_is_gone_is_none(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    draft = drafts.save_upload(VISITOR, upload(tmp_path), 0)
    drafts.path(VISITOR, draft).unlink()
    assert drafts.get(VISITOR) is None


@pytest.mark.parametrize("visitor", ["", "..", "../../etc", "browser-0123456789abcdef/..", "BROWSER-x"])
def test_a_visitor_is_never_a_path(tmp_path: Path, visitor: str) -> None:
    with pytest.raises(PromptOrTuneError, match="load the page again"):
        DraftStore(tmp_path).get(visitor)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("my data.csv", "my_data.csv"),
        ("../../etc/passwd", "passwd"),
        ("C:\\rows\\my.csv", "my.csv"),
        ("<img src=x onerror=alert(1)>.csv", "_img_src_x_onerror_alert_1_.csv"),
        ("...", "upload"),
        (".hidden.csv", "hidden.csv"),
        ("ä" * 200 + ".jsonl", "_.jsonl"),
        ("x" * 200 + ".jsonl", "x" * 74 + ".jsonl"),
    ],
)
def test_a_file_name_is_nothing_but_a_name(name: str, safe: str) -> None:
    assert safe_file_name(name) == safe


@pytest.mark.parametrize("name", ["starter", "conala", "someone/pairs", " someone/pairs@main ", "a.b/c-d@0123456"])
def test_data_sets_go_by_their_names(name: str) -> None:
    assert check_dataset_name(name) == name.strip()


@pytest.mark.parametrize(
    "name", ["", "nope", "/etc/passwd", "../secrets", "~/rows", "tasks/starter", "a/b.csv", "./x/y", "a/../b", EVIL]
)
def test_no_name_reaches_a_path_of_this_machine(name: str) -> None:
    with pytest.raises(DataError, match="is no data set"):
        check_dataset_name(name)


@pytest.mark.parametrize(
    ("technique", "rows", "name"),
    [
        ("lora", "My Pairs.csv", "lora-my-pairs"),
        ("qlora-4bit", "someone/pairs@main", "qlora-pairs"),
        ("ia3", "数据.jsonl", "ia3-mine"),
    ],
)
def test_adapters_are_named_after_their_rows(technique: str, rows: str, name: str, tmp_path: Path) -> None:
    assert suggest_adapter_name(technique, rows) == name
    make_config(adapter_name=suggest_adapter_name(technique, rows), dataset_name="starter")
    assert find_unused_name(name, tmp_path, []) == name
    (tmp_path / "adapters" / name).mkdir(parents=True)
    assert find_unused_name(name, tmp_path, []) == f"{name}-2"


# The report


def finding(*sentences: str, count: int | None = None) -> dict[str, Any]:
    return {"count": len(sentences) if count is None else count, "shown": list(sentences)}


FOUND: dict[str, Any] = {
    "source": "mine.csv, validated on 41 of its rows.",
    "mapping": "intent -> snippet",
    "columns": ["intent", "snippet"],
    "rows": {"read": 415, "left out": 3, "train": 371, "validation": 41},
    "changes": {"a code fence taken off": 2},
    "faults": finding("mine.csv, line 2: x"),
    "duplicates": finding(),
    "conflicts": finding("mine.csv, line 9 has the intent of mine.csv, line 3"),
    "unparsable": finding(),
    "special": finding(),
    "leak": {"rows": 0, "intents": 0, "codes": 0, "shown": []},
    "too_long": {"limit": 512, "train": finding("line 8: 900 tokens"), "validation": finding()},
    "response_tokens": {"total": 12345},
    "examples": [
        {
            "place": EVIL,
            "tokens": 9,
            "learned_tokens": 4,
            "pieces": [[f"### {EVIL}\n", False], [f"{EVIL}\tx \n<|end|>", True]],
        }
    ],
    "steps": 94,
    "steps_per_epoch": 47,
    "estimate": {
        "memory_bytes": 3_600_000_000, "seconds": 800.0, "evaluation_seconds": 40.0, "adapter_bytes": 3_700_000,
        "free_bytes": 5_000_000_000,
    },
}  # fmt: skip


def test_the_report_counts_and_folds() -> None:
    errors = finding(*(f"line {n}: column 'x' is empty." for n in range(2, 9)), count=9)
    html = preview_view.report_html(Draft("mine.csv", "d"), {"faults": errors}, FOUND)
    assert '<h3 class="mapped">mine.csv: 415 rows, 370 to learn, 41 held out</h3>' in html
    assert "<strong>9 rows left out</strong>" in html
    assert "<summary>6 more</summary>" in html
    assert "and 2 more" in html
    assert "1 row contradicting" in html
    assert "2 rows had a code fence taken off" in html
    assert "Looked for and not found: repeated, not Python, with special tokens, on both sides." in html


def test_no_text_of_a_file_becomes_html() -> None:
    errors = finding(f"line 2: column '{EVIL}' is empty.")
    shown = {**FOUND, "faults": errors, "mapping": EVIL, "source": EVIL, "changes": {EVIL: 1}}
    facts = {"rows": 1, "sound": 0, "faults": errors}
    draft = Draft(EVIL, "d")
    for html in (
        preview_view.report_html(draft, None, shown),
        preview_view.facts_html(draft, facts),
        preview_view.examples_html(shown),
        preview_view.title_html(draft),
        preview_view.error_html(EVIL),
        preview_view.progress_html(EVIL),
        preview_view.cost_html({"estimate": {"reason": EVIL}}),
    ):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_what_is_learned_is_marked_and_what_an_eye_misses_is_shown() -> None:
    html = preview_view.examples_html(FOUND)
    assert html.count("<mark>") == 2  # the legend's own, and the example's
    assert '<mark><span class="visually-hidden">learned: </span>' in html
    assert '<span class="unseen">⇥\t</span>x<span class="unseen">·</span>' in html
    assert preview_view.escape_visible("a\u202eb\x1b") == (
        'a<span class="unseen">\\u202e</span>b<span class="unseen">\\u001b</span>'
    )


def test_the_cost_warns_where_memory_is_short() -> None:
    html = preview_view.cost_html(FOUND)
    assert "about 14 min" in html
    assert "3.6 GB" in html
    assert "3.7 MB" in html
    assert "sentence" not in html
    short = {**FOUND, "estimate": {**FOUND["estimate"], "free_bytes": 1_000_000_000}}
    assert "more memory than is free now" in preview_view.cost_html(short)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "about 1 s"), (90, "about 90 s"), (840, "about 14 min"), (9000, "about 2.5 h")]
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert preview_view.format_duration(seconds) == words


def test_a_draft_is_plain_json(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    drafts.save_upload(VISITOR, upload(tmp_path), 0)
    state = json.loads((tmp_path / "home" / "uploads" / VISITOR / "draft.json").read_text(encoding="utf-8"))
    assert (state["name"], state["size"], len(state["digest"])) == ("mine.csv", 16, 16)
