"""Gradio theme: colours, fonts and borders of Gradio's own components. The rest is in style.css."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, sizes

_HERE = Path(__file__).parent
CSS_PATHS = (
    _HERE / "style.css",
    *(_HERE / page / f"{page}.css" for page in ("advise", "arena", "train", "data", "results", "adapters")),
    _HERE.parent / "advise" / "report.css",
    _HERE / "train" / "jobs.css",
    _HERE / "train" / "publish.css",
)
SANS_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "Arial", "sans-serif")
MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Cascadia Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

_NEUTRAL_HUE = colors.Color(
    name="ink",
    c50="#f7f8f8", c100="#eef0f1", c200="#dfe3e5", c300="#c6ccd0", c400="#939ca3", c500="#69737b",
    c600="#505a62", c700="#39424a", c800="#242b32", c900="#171c21", c950="#0f1317",
)  # fmt: skip


def make_theme() -> gr.themes.Base:
    """Return the theme: teal on white, a brighter teal on near-black; text has AA contrast on every background."""
    theme = gr.themes.Base(
        primary_hue=colors.teal,
        secondary_hue=colors.teal,
        neutral_hue=_NEUTRAL_HUE,
        text_size=sizes.text_md,
        radius_size=sizes.radius_md,
        font=SANS_FONTS,
        font_mono=MONO_FONTS,
    )
    return theme.set(
        body_background_fill="white",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_300",
        block_title_text_weight="500",
        block_title_text_size="14px",
        block_info_text_size="14px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_600",
        input_border_width="1px",
        input_border_color_focus="*primary_700",
        input_border_color_focus_dark="*primary_400",
        input_shadow="none",
        input_shadow_focus="0 0 0 2px *primary_200",
        input_shadow_focus_dark="0 0 0 2px *primary_800",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color="white",
        button_primary_text_color_dark="*neutral_950",
        button_primary_text_color_hover_dark="*neutral_950",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_900",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        button_medium_text_weight="500",
        button_small_text_weight="400",
        button_small_text_size="14px",
        button_large_text_size="16px",
        slider_color="*primary_700",
        slider_color_dark="*primary_400",
    )
