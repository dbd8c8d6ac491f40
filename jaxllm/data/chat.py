"""Chats to tokens through the tokenizer's own template, with a mask of what the assistant wrote.

A template that marks the assistant's words by `{% generation %}` blocks says itself what is learned.
Any other is rendered with and without each assistant turn, and the difference is learned.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxllm.config import ConfigError
from jaxllm.data.sources import is_encodable
from jaxllm.files import read_json

# A template that writes today's date would give other tokens every day; it gets this one (that of Llama 3's).
DATE = "2024-07-26"
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens it names.

    Attributes:
      source: Jinja text.
      special_tokens: such as `("bos_token", "<s>")`.
    """

    source: str
    special_tokens: tuple[tuple[str, str], ...] = ()


class ChatError(ValueError):
    """A conversation that the template cannot render, or whose turns cannot be told apart."""


def load_chat_template(path: str | Path) -> ChatTemplate:
    """The template of a tokenizer's directory: `chat_template.jinja`, or that of `tokenizer_config.json`.

    Args:
      path: the directory, a `tokenizer.json` in it, or a `.jinja` file (special tokens from its directory).

    Raises:
      ConfigError: there is none.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            settings |= read_json(directory / name)
    file = path if path.suffix == ".jinja" else directory / "chat_template.jinja"
    source = settings.get("chat_template")
    if file.is_file():
        source = file.read_text(encoding="utf-8")
    elif path.suffix == ".jinja":
        raise ConfigError(f"data.chat_template={str(path)!r}: no such file")
    elif isinstance(source, list):  # named templates
        source = next((t.get("template") for t in source if t.get("name") == "default"), None)
    if not isinstance(source, str):
        raise ConfigError(f"{directory}: no chat template: neither chat_template.jinja nor tokenizer_config.json's "
                          "chat_template is there; for training data name one by data.chat_template")
    tokens = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return ChatTemplate(source, tuple(sorted(tokens.items())))


def encode_chat(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[dict[str, Any]],
                tools: Sequence[dict[str, Any]] | None = None) -> tuple[list[int], np.ndarray]:
    """Token ids of a conversation and uint8 `[T]`, 1 on tokens with a character that the assistant wrote.

    Raises:
      ChatError: the template refuses the conversation, or has no `{% generation %}` blocks and renders
        earlier turns differently once others follow.
    """
    if _GENERATION.search(template.source):
        text, spans = _render(template, messages, tools, spans=True)
    else:
        text, spans = _by_difference(template, messages, tools)
    if not is_encodable(text):
        raise ChatError("the conversation holds half a surrogate pair, which is no character")
    encoded = tokenizer.encode(text, add_special_tokens=False)  # the template writes its own
    before = np.zeros(len(text) + 2, np.int64)  # learned characters before each place
    for start, end in spans:
        before[start + 1:end + 1] = 1
    before = np.cumsum(before)
    # Tokens without characters of their own (trimmed white space) go by the character at their place.
    learned = np.array([before[max(end, start + 1)] > before[start] for start, end in encoded.offsets], np.uint8)
    return encoded.ids, learned


def render_prompt(template: ChatTemplate, messages: Sequence[dict[str, Any]],
                  tools: Sequence[dict[str, Any]] | None = None) -> str:
    """The conversation as text, up to where the assistant answers.

    Raises:
      ChatError: the template refuses the conversation.
    """
    return _render(template, messages, tools, prompt=True)[0]


def _by_difference(template: ChatTemplate, messages: Sequence[dict[str, Any]],
                   tools: Sequence[dict[str, Any]] | None) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the spans by which each assistant turn lengthens it."""
    text, _ = _render(template, messages, tools)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = _render(template, messages[:number], tools, prompt=True)
        after, _ = _render(template, messages[:number + 1], tools)
        if not (after.startswith(before) and text.startswith(after)):
            raise ChatError(f"messages[{number}]: the chat template renders the conversation up to here differently "
                            "from its start in the whole, so what was said cannot be told from what was asked; give "
                            "data.chat_template one with {% generation %} blocks")
        content = message.get("content")
        # White space after the end-of-turn token belongs to the template: the model has stopped by then.
        kept = after if content and after.endswith(content) else after.rstrip()
        spans.append((len(before), max(len(before), len(kept))))
    return text, spans


def _render(template: ChatTemplate, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, *,
            spans: bool = False, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            [list(messages)], tools=None if tools is None else list(tools), chat_template=_dated(template.source),
            return_assistant_tokens_mask=spans, add_generation_prompt=prompt, **dict[str, Any](template.special_tokens))
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as err:
        raise ChatError(f"the chat template refuses the conversation ({' '.join(str(err).split())})") from None
    texts, found = rendered
    return texts[0], found[0] if spans else []


def _dated(source: str) -> str:
    """The template with `strftime_now` fixed, so that tokens depend on the records alone."""
    if "strftime_now" not in source:
        return source
    day = datetime.date.fromisoformat(DATE)
    formats = {match.group(2) for match in _DATE_CALL.finditer(source)}
    known = json.dumps({f: day.strftime(f) for f in sorted(formats)})
    macro = "{%- macro strftime_now(format) -%}{{- " + known + f'.get(format, "{DATE}") -}}}}' + "{%- endmacro %}\n"
    return macro + source
