"""Prompt templates: data in YAML, placeholders checked when they are loaded."""

from __future__ import annotations

import dataclasses
import functools
import string
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from jaxllm.config import ConfigError, nearest

PACKAGED = Path(__file__).with_name("templates.yaml")
Draws = Literal["cell", "group", "pair"]
# What every prompt may name, and what each kind of draw adds. A field of SENTENCES is genes, the others are words.
COMMON = ("num_genes", "organism")
OF_DRAW: dict[str, tuple[str, ...]] = {"cell": ("sentence",), "group": ("sentences", "num_cells", "text"),
                                       "pair": ("control", "perturbed")}
SENTENCES = ("sentence", "sentences", "control", "perturbed")
_KEYS = ("draws", "prompts", "response")


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of a template: literal text, or a field to fill in."""

    text: str = ""
    field: str | None = None


@dataclasses.dataclass(frozen=True)
class Template:
    """One task's wordings.

    Attributes:
      name: the task.
      draws: what an example is made of.
      prompts: each as its parts in order.
      response: its parts.
    """

    name: str
    draws: Draws
    prompts: tuple[tuple[Part, ...], ...]
    response: tuple[Part, ...]

    @property
    def answers(self) -> Literal["label", "cell", "cells", "perturbed", "text"]:
        """What the response is."""
        fields = [part.field for part in self.response if part.field is not None]
        for field in fields:
            if field in SENTENCES:
                return "cell" if field == "sentence" else "cells" if field == "sentences" else "perturbed"
        return "text" if "text" in fields else "label"

    @property
    def fields(self) -> frozenset[str]:
        """All fields that it names."""
        return frozenset(p.field for parts in (*self.prompts, self.response) for p in parts if p.field is not None)


def load_templates(path: str | Path | None = None) -> dict[str, Template]:
    """The templates of a YAML file by task; jaxllm's own by default.

    Raises:
      ConfigError: not such a file, a task without wordings, or a placeholder that is no name in braces.
    """
    file = templates_file(path)
    if not file.is_file():
        raise ConfigError(f"cells.templates={str(file)!r}: no such file")
    return _load(str(file), file.read_text(encoding="utf-8"))


def templates_file(path: str | Path | None = None) -> Path:
    """The YAML that `load_templates` reads."""
    return PACKAGED if path is None else Path(path)


@functools.lru_cache(maxsize=8)
def _load(file: str, text: str) -> dict[str, Template]:
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"{file}: not YAML ({err})") from None
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{file}: expected tasks by name, each with {', '.join(_KEYS)}")
    return {str(name): _template(f"{file}: {name}", str(name), entry) for name, entry in data.items()}


def _template(where: str, name: str, entry: Any) -> Template:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected {', '.join(_KEYS)}")
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), _KEYS)}")
    draws: Any = entry.get("draws")
    if draws not in get_args(Draws):
        raise ConfigError(f"{where}: draws={draws!r}; use one of {', '.join(get_args(Draws))}")
    prompts, response = entry.get("prompts"), entry.get("response")
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ConfigError(f"{where}: prompts={prompts!r}; expected a list of texts, at least one")
    if not isinstance(response, str) or not response:
        raise ConfigError(f"{where}: response={response!r}; expected a text")
    made = Template(name, draws, tuple(_parts(where, p) for p in prompts), _parts(where, response))
    own = {field for fields in OF_DRAW.values() for field in fields}
    for field in sorted(made.fields & (own - set(OF_DRAW[draws]))):
        raise ConfigError(f"{where}: {{{field}}} does not exist where draws={draws}; there are "
                          f"{', '.join((*COMMON, *OF_DRAW[draws]))}, and names of the config's columns")
    return made


def _parts(where: str, text: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as err:
        raise ConfigError(f"{where}: {text!r}: {err}; write {{{{ and }}}} for braces") from None
    for literal, field, spec, conversion in pieces:
        if literal:
            parts.append(Part(text=literal))
        if field is None:
            continue
        if not field.isidentifier() or spec or conversion:
            raise ConfigError(f"{where}: {text!r}: {{{field}}} is no placeholder; expected a name in braces")
        parts.append(Part(field=field))
    return tuple(parts)


def check_fields(template: Template, columns: Collection[str], source: str) -> None:
    """`ConfigError` unless every field of the template is one that its draw or the config's `columns` fill in."""
    known = {*COMMON, *OF_DRAW[template.draws], *columns}
    for field in sorted(template.fields - known):
        raise ConfigError(f"{source}: template {template.name!r} names {{{field}}}, which nothing fills in; "
                          f"{nearest(field, known)}; or give it an obs column in cells.columns")
