"""Configs: files, overrides, coercion by type, and errors that name file, key and remedy."""

import dataclasses

import pytest

from jaxllm.config import ConfigError, check, dump, load


@dataclasses.dataclass(frozen=True)
class Part:
    steps: int
    rate: float = 1e-3

    def __post_init__(self):
        check(self.steps >= 1, "steps", self.steps, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...] = (Part(1),)
    name: str = "x"
    rate: float = 0.1
    maybe: int | None = None


def write(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return file


def test_values_are_coerced_by_field_type(tmp_path):
    # YAML 1.1 reads 1e-4 as text.
    assert load(Whole, write(tmp_path, "rate: 1e-4\nparts:\n- {steps: 3}")) == Whole(parts=(Part(3),), rate=1e-4)
    assert load(Whole, None, ["rate=5e-4", "maybe=null", "name=abc"]) == Whole(rate=5e-4, name="abc")


def test_overrides_reach_items_of_lists(tmp_path):
    file = write(tmp_path, "parts:\n- {steps: 3}\n- {steps: 4}")
    assert load(Whole, file, ["parts.1.steps=9"]).parts == (Part(3), Part(9))
    with pytest.raises(ConfigError, match="parts.2: parts holds 2 items"):
        load(Whole, file, ["parts.2.steps=9"])


@pytest.mark.parametrize("overrides, message", [
    (["rat=1"], "unknown key 'rat'; did you mean rate"), (["parts.0.step=1"], "unknown key 'parts.0.step'.*steps"),
    (["rate=abc"], "rate"), (["rate"], "key=value"), (["parts.0.steps=0"], "steps=0: must be at least 1"),
    (["name=on"], "name")])
def test_errors_name_key_and_remedy(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(Whole, write(tmp_path, "parts:\n- {steps: 3}"), overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data, message", [
    (b"a: [", "c.yaml: not valid YAML"), (b"- 1", "c.yaml: expected a mapping"), (b"\xff\xfe\xff", "c.yaml")])
def test_bad_files(tmp_path, data, message):
    (tmp_path / "c.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load(Whole, tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot read"):
        load(Whole, tmp_path / "nowhere.yaml")


def test_dump_loads_back(tmp_path):
    config = Whole(parts=(Part(2, 0.5), Part(7)), name="y", maybe=3)
    assert load(Whole, write(tmp_path, dump(config))) == config
