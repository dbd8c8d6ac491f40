"""Typed configs: frozen dataclasses as the only schema, YAML as short data, dotted overrides.

`load(Config, path, overrides)` reads a YAML file, applies `a.b=value` overrides, rejects unknown
keys with the nearest right names, coerces values by field type (so `1e-4` is a float and `on` is
not silently a boolean for a text field) and builds the dataclass, whose `__post_init__` checks
ranges. Every failure is a `ConfigError` with the file, the key and what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is unknown, has the wrong type or is out of range; the text names key and remedy."""


def check(condition: bool, field: str, value: Any, remedy: str) -> None:
    """Raise a one-line `ConfigError` naming field, value and remedy unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field}={value!r}: {remedy}")


def load(
    cls: type[T], path: str | Path | None = None, overrides: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """Build `cls` from defaults, then a YAML file, then `key.sub=value` overrides.

    Args:
      cls: a frozen dataclass, possibly holding further dataclasses.
      path: YAML file of the same nesting; None for defaults only.
      overrides: strings such as `optimizer.learning_rate=1e-4`; values are YAML.
      defaults: values below the file, for commands that ship a default set.

    Raises:
      ConfigError: unreadable file, unknown key, wrong type, or a failed range check.
    """
    return build(cls, *settings(path, overrides, defaults))


def settings(path: str | Path | None, overrides: Iterable[str] = (),
             defaults: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """What `load` builds from: the merged nested mapping, not checked yet, and where it came from."""
    data: dict[str, Any] = dict(defaults or {})
    source = "defaults"
    if path is not None:
        source = str(path)
        data = _merge(data, read_yaml(path))
    for item in overrides:
        key, sep, text = item.partition("=")
        if not sep or not key:
            raise ConfigError(f"override {item!r}: write key=value, such as optimizer.learning_rate=1e-4")
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            value = text
        source = f"{source}, override {item}" if len(source) < 200 else source
        data = _merge(data, _nest(key.split("."), value))
    return data, source


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; `ConfigError` names the file and line if it cannot be read."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{path}: cannot read config file ({err.strerror})") from None
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: not UTF-8 text ({err.reason})") from None
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(err).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    return data


def build(cls: type[T], data: Mapping[str, Any], source: str = "config") -> T:
    """Build dataclass `cls` from a nested mapping; `source` names where it came from in errors."""
    _reject_unknown(cls, data, source, ())
    try:
        # Strings from YAML such as "1e-4" become floats here; a bool never becomes text.
        return pydantic.TypeAdapter(cls).validate_python(dict(data))
    except pydantic.ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(p) for p in first["loc"] if not str(p).startswith("function-"))
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first.get("input"), dict) else f"={first.get('input')!r}"
        if first["type"] == "value_error":
            shown = ""
        raise ConfigError(f"{source}: {key}{shown}: {message}" if key else f"{source}: {message}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config dataclass, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def dump(config: Any) -> str:
    """YAML text of a config dataclass; `load` of it gives an equal config."""
    return yaml.safe_dump(_plain(to_dict(config)), sort_keys=False)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean a, b?` for the known names closest to `name`, or the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"known names: {', '.join(known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            out[key] = _merge(old, value)
        elif isinstance(old, (list, tuple)) and isinstance(value, Mapping):
            out[key] = _merge_items(key, list(old), value)
        else:
            out[key] = value
    return out


def _merge_items(name: str, items: list[Any], changes: Mapping[str, Any]) -> list[Any]:
    """`items` with those changed that `stages.0.steps=10` and the like name by number."""
    for number, value in changes.items():
        if not number.isdigit() or int(number) >= len(items):
            raise ConfigError(f"{name}.{number}: {name} holds {len(items)} items; write {name}.0 and up")
        old = items[int(number)]
        items[int(number)] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return items


def _dataclass_in(annotation: Any) -> Any:
    """The dataclass inside `X`, `X | None` or `tuple[X, ...]`, else None."""
    if dataclasses.is_dataclass(annotation):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list):
        for arg in typing.get_args(annotation):
            if (found := _dataclass_in(arg)) is not None:
                return found
    return None


def _reject_unknown(cls: Any, data: Any, source: str, prefix: tuple[str, ...]) -> None:
    if isinstance(data, (list, tuple)):
        for i, item in enumerate(data):
            _reject_unknown(cls, item, source, (*prefix, str(i)))
        return
    if not isinstance(data, Mapping):
        return
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    for key, value in data.items():
        dotted = ".".join((*prefix, str(key)))
        if key not in fields:
            raise ConfigError(f"{source}: unknown key {dotted!r}; {nearest(str(key), fields)}")
        inner = _dataclass_in(hints[key])
        if inner is not None:
            _reject_unknown(inner, value, source, (*prefix, str(key)))
