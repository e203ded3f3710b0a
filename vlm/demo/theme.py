"""How the page looks, light and dark, and the fixed texts on it. Needs the extra `demo`."""

import gradio as gr

HEADER = "<header><h1>Sightline</h1><p>Ask about a picture, and see where the model looked.</p></header>"
NO_TABLES = """### Not with this model
It has not been taught to write tables. A model that has says so in its card, and then a button stands here: start the
demo on one with `python app.py --model FOLDER`."""
THEME = gr.themes.Soft(
    primary_hue="teal",
    neutral_hue="slate",
    # Fonts of the reader's own machine: none is fetched.
    font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
    font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
).set(
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
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1rem; }
header h1 { margin: 0; font-size: 1.6rem; } header p { margin: 0; color: var(--body-text-color-subdued); }
p.quiet { color: var(--body-text-color-subdued); font-size: .9rem; margin: 0; min-height: 1.3em; }
#notice p { margin: 0; padding: .7rem 1rem; border-radius: 8px; border: 1px solid var(--error-border-color);
  background: var(--error-background-fill); color: var(--error-text-color); }
#pictures .grid-wrap, #examples .grid-wrap, #heat .grid-wrap { min-height: 0; max-height: none; overflow: visible; }
#pictures .grid-wrap { padding-top: 2.6rem; }
#heat .thumbnail-item, #pictures .thumbnail-item { aspect-ratio: auto; height: auto; }
#heat img, #pictures img { height: auto; max-height: 420px; object-fit: contain; background: white; }
#examples .thumbnail-item { aspect-ratio: 4 / 3; background: white; }
#examples .grid-container { grid-auto-rows: auto; grid-template-columns: repeat(4, minmax(0, 1fr)); }
#card table { display: block; overflow-x: auto; }
#words input { position: absolute; opacity: 0; } #words label { padding: .15rem .6rem; }
#words label:focus-within { outline: 2px solid var(--color-accent); outline-offset: 2px; }
#card td, #card th { word-break: normal !important; overflow-wrap: normal !important; }
#card td, #card th { border-width: 0 0 1px; border-color: var(--border-color-primary); }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container .app { padding: var(--size-3) !important; }
  .gradio-container :is(.wrap, main, .column, .row, .tabs, .tabitem, .block, .form) { min-width: 0 !important; }
  .gradio-container .tab-container button { padding: 0 .5rem; font-size: .9rem; }
}
"""
