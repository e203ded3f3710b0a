"""What the page says in its own words: quiet lines, and one friendly sentence when something is wrong."""

import html

import gradio as gr

from vlm.errors import VLMError

PLAIN = {
    "image_unsupported": "This file is no picture that can be read here; take a JPEG, PNG, WebP, GIF, BMP or TIFF.",
    "image_corrupt": "This picture's file is damaged; take another.",
    "image_truncated": "Part of this picture's file is missing; send it again.",
    "image_too_large": "This picture is too large; take a smaller copy of it.",
    "image_empty": "This file is empty; take another.",
    "context_length_exceeded": "This conversation has become too long for the model; clear it and ask again.",
}
"""What is said of errors whose message is meant for programs."""


def quiet(text: str) -> str:
    return f'<p class="quiet">{html.escape(text)}</p>'


def notice(text: str) -> gr.HTML:
    """Return one friendly sentence where it is seen."""
    return gr.HTML(f'<p role="alert">{html.escape(text)}</p>', visible=True)


def wrong_notice(error: VLMError) -> gr.HTML:
    """Return what is wrong, in words for a person who is no programmer."""
    return notice(PLAIN.get(error.code, error.message))


def hidden() -> gr.HTML:
    return gr.HTML(visible=False)
