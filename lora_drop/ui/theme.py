"""Gradio's theme in the page's own colours. System fonts only: the page asks no other host for anything."""

from __future__ import annotations

import gradio as gr

from lora_drop.run.exports.colors import COLORS

FONT = ["Inter", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    light, dark = COLORS["light"], COLORS["dark"]
    return gr.themes.Base(
        font=FONT,
        font_mono=MONO,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        body_background_fill=light["page"],
        body_background_fill_dark=dark["page"],
        body_text_color=light["ink"],
        body_text_color_dark=dark["ink"],
        body_text_color_subdued=light["muted"],
        body_text_color_subdued_dark=dark["muted"],
        block_background_fill=light["panel"],
        block_background_fill_dark=dark["panel"],
        block_border_color=light["line"],
        block_border_color_dark=dark["line"],
        block_label_text_color=light["ink"],
        block_label_text_color_dark=dark["ink"],
        block_title_text_color=light["ink"],
        block_title_text_color_dark=dark["ink"],
        block_info_text_color=light["muted"],
        block_info_text_color_dark=dark["muted"],
        block_shadow="none",
        block_shadow_dark="none",
        input_background_fill=light["panel"],
        input_background_fill_dark=dark["page"],
        input_border_width="1px",
        input_border_width_dark="1px",
        input_border_color="#8894A1",
        input_border_color_dark="#66727F",
        input_border_color_focus=light["baseline"],
        input_border_color_focus_dark=dark["baseline"],
        slider_color=light["baseline"],
        slider_color_dark=dark["baseline"],
        checkbox_background_color_selected=light["baseline"],
        checkbox_background_color_selected_dark=light["baseline"],
        checkbox_border_color="#8894A1",
        checkbox_border_color_dark="#66727F",
        button_primary_background_fill=light["baseline"],
        button_primary_background_fill_dark=light["baseline"],
        button_primary_background_fill_hover="#005A8E",
        button_primary_background_fill_hover_dark="#005A8E",
        button_primary_text_color="#FFFFFF",
        button_primary_text_color_dark="#FFFFFF",
        button_secondary_background_fill=light["grid"],
        button_secondary_background_fill_dark=dark["grid"],
        button_secondary_text_color=light["ink"],
        button_secondary_text_color_dark=dark["ink"],
        color_accent=light["baseline"],
        link_text_color=light["baseline"],
        link_text_color_dark=dark["baseline"],
    )
