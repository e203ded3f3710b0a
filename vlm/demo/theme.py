"""How the page looks, light and dark, and the fixed texts on it. Needs the extra `demo`."""

import gradio as gr

HEADER = "<header><h1>Sightline</h1><p>Ask about a picture, and see where the model looked.</p></header>"
NO_TABLES = """### Not with this model
It has not been taught to write tables. A model that has says so in its card, and then a button stands here: start the
demo on one with `python app.py --model FOLDER`."""

# Gradio's own words, where they say something else than what happens here; one of them lacks a translation (6.31).
WORDS = gr.I18n(
    en={
        "upload_text.drop_gallery": "Drop pictures here",
        "upload_text.click_to_upload": "Choose files",
        "common.webcam": "Take a photograph",
    }
)

THEME = gr.themes.Soft(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="lg",
    # Fonts of the reader's own machine: none is fetched.
    font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
    font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
).set(
    body_background_fill="*neutral_50",
    # Text stands out by 4.5 to 1 and more.
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_500",
    color_accent="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    input_background_fill_dark="*neutral_900",
    block_label_background_fill="*primary_50",
    block_label_text_color="*primary_700",
    block_title_background_fill="transparent",
    block_title_background_fill_dark="transparent",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_title_padding="0",
    block_border_width="1px",
    block_border_width_dark="1px",
)
CSS = """
.gradio-container { max-width: min(1240px, 100vw) !important; margin: 0 auto !important; }
.dark { --color-accent: var(--primary-400); }
.gradio-container .html-container { padding: 0; }
.gradio-container .main > .wrap { padding-bottom: 2rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1rem; }
header h1 { margin: 0; font-size: 1.7rem; letter-spacing: -.02em; }
header p { margin: 0; color: var(--body-text-color-subdued); }
p.quiet { color: var(--body-text-color-subdued); font-size: .9rem; margin: 0; min-height: 1.3em; }
#notice p { margin: 0; padding: .7rem 1rem; border-radius: 8px; border: 1px solid var(--error-border-color);
  background: var(--error-background-fill); color: var(--error-text-color); }
#pictures .grid-wrap, #examples .grid-wrap, #heat .grid-wrap { min-height: 0; max-height: none; overflow: visible; }
#pictures .grid-wrap { padding-top: 2.8rem; }
#heat .thumbnail-item, #pictures .thumbnail-item { aspect-ratio: auto; height: auto; }
#heat img, #pictures img { height: auto; max-height: 420px; object-fit: contain; background: white; }
#examples .thumbnail-item { aspect-ratio: 4 / 3; background: white; }
#examples .grid-container { grid-auto-rows: auto; grid-template-columns: repeat(4, minmax(0, 1fr)); }
#chat .message-buttons-right { display: none; }
#chat .message-wrap { gap: .25rem; }
#chat .placeholder { padding-top: 2.5rem; }
#looked { gap: .75rem; }
#words input { position: absolute; opacity: 0; }
#words label { padding: .15rem .6rem; min-height: 2rem; }
#words label span { margin: 0; }
#words label:focus-within { outline: 2px solid var(--color-accent); outline-offset: 2px; }
#card table { display: block; overflow-x: auto; border: 0; }
#card td, #card th { word-break: normal !important; overflow-wrap: normal !important;
  border: solid var(--border-color-primary); border-width: 0 0 1px; }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container .app { padding: var(--size-4) !important; }
  .gradio-container :is(.wrap, main, .column, .row, .tabs, .tabitem, .block, .form) { min-width: 0 !important; }
  .gradio-container .tab-wrapper .tab-container button { padding: 0 .4rem; font-size: .85rem; }
  #examples .grid-wrap { overflow-x: auto; }
  #examples .grid-container { grid-auto-flow: column; grid-template-columns: none; grid-auto-columns: 34%; }
  #pictures img, #heat img { max-height: 300px; }
}
"""
