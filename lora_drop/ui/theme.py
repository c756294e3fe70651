"""Gradio's theme in the page's colours. System fonts only: the page asks no other host for anything."""

from __future__ import annotations

import gradio as gr

from lora_drop.run.exports.colors import COLORS

FONT = ["Inter", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
COLOR_NAMES = {  # a name in `COLORS` for each variable of Gradio, in light and dark mode
    "body_background_fill": "page",
    "body_text_color": "ink",
    "body_text_color_subdued": "muted",
    "block_background_fill": "panel",
    "block_border_color": "line",
    "block_label_text_color": "ink",
    "block_title_text_color": "ink",
    "block_info_text_color": "muted",
    "button_secondary_background_fill": "grid",
    "button_secondary_text_color": "ink",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "ink",
    "button_primary_border_color": "accent",
    "button_primary_text_color": "panel",
    "input_border_color": "edge",
    "checkbox_border_color": "edge",
    "input_border_color_focus": "accent",
    "slider_color": "accent",
    "link_text_color": "accent",
}


def theme() -> gr.themes.Base:
    """The theme of light and dark mode."""
    light, dark = COLORS["light"], COLORS["dark"]
    values = {name: light[color] for name, color in COLOR_NAMES.items()}
    values |= {f"{name}_dark": dark[color] for name, color in COLOR_NAMES.items()}
    for name, value in {
        "block_shadow": "none",
        "input_border_width": "1px",
        "checkbox_background_color_selected": light["accent"],  # its tick is white
    }.items():
        values[name] = values[f"{name}_dark"] = value
    return gr.themes.Base(
        font=FONT,
        font_mono=MONO,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        **values,
        input_background_fill=light["panel"],
        input_background_fill_dark=dark["page"],
        color_accent=light["accent"],
    )
