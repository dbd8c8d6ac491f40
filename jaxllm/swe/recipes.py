"""Recipes: pure-Python packages with good tests, by pinned version and hash, and how to run what they test."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxllm.config import ConfigError, check, load, nearest
from jaxllm.files import sha256
from jaxllm.swe.running import TestPlan
from jaxllm.swe.trees import bad_path, is_test_file, read_tree

SHIPPED = Path(__file__).with_name("recipes")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A package to mine.

    Attributes:
      package: name in the package index.
      version: exact.
      sha256: of its source distribution.
      code: directories whose modules are changed, relative to the distribution.
      tests: test files or directories.
      source: directories that modules are imported from.
      modules: that must come from there.
      left_out: paths of `code` that stay as they are, files or directories.
      excluded: ids of tests, or test files, that are left out.
      arguments: further words for pytest.
      requires: packages that its tests need beside pytest, as `name==version`; to be installed beforehand.
      test_s: wall time of one test.
      wall_s: of a whole run.
      memory_mb: of a run.
    """

    package: str
    version: str
    sha256: str
    code: tuple[str, ...]
    tests: tuple[str, ...]
    source: tuple[str, ...] = (".",)
    modules: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    test_s: float = 10.0
    wall_s: float = 120.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        check(len(self.sha256) == 64, "sha256", self.sha256, "must be 64 hexadecimal digits")
        for name in ("code", "tests"):
            check(len(getattr(self, name)) > 0, name, getattr(self, name), "needs a path")
            for path in getattr(self, name):
                check(bad_path(path) is None, name, path, bad_path(path) or "")

    @property
    def plan(self) -> TestPlan:
        """How its tests run."""
        return TestPlan(self.source, self.modules, self.arguments, self.test_s, self.wall_s, self.memory_mb)

    @property
    def name(self) -> str:
        """Package and version."""
        return f"{self.package}-{self.version}"


def open_recipe(name: str | Path) -> Recipe:
    """A shipped recipe by name, or one from a YAML file.

    Raises:
      ConfigError: there is no such, or it is wrong.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
        if str(name) not in known:
            raise ConfigError(f"recipe {str(name)!r}: no such recipe and no YAML file; {nearest(str(name), known)}")
        path = SHIPPED / f"{name}.yaml"
    return load(Recipe, path)


def fetch(recipe: Recipe, directory: str | Path | None = None) -> dict[str, bytes]:
    """The package's source distribution as a tree.

    Args:
      recipe: what.
      directory: where distributions lie; what is not there is fetched with pip and put there. A temporary one by
        default.

    Raises:
      ConfigError: it cannot be fetched, or is another file than the recipe's.
    """
    if directory is None:
        with tempfile.TemporaryDirectory() as temporary:
            return fetch(recipe, temporary)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stem = recipe.name.replace("-", "_")

    def there() -> list[Path]:
        return [path for path in sorted(directory.iterdir()) if path.name.endswith((".tar.gz", ".zip"))
                and path.name.replace("-", "_").startswith(f"{stem}.")]

    if not there():
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest",
             str(directory), f"{recipe.package}=={recipe.version}"], capture_output=True, text=True)
        if done.returncode or not there():
            last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise ConfigError(f"recipe {recipe.package}: pip could not fetch {recipe.name}: {last}")
    path = there()[0]
    found = sha256(path)
    if found != recipe.sha256:
        raise ConfigError(f"recipe {recipe.package}: {path} has sha256={found}, not {recipe.sha256}")
    return read_tree(path)


def code_files(recipe: Recipe, tree: dict[str, bytes]) -> list[str]:
    """Modules that are changed: those of `code`, tests and what is `left_out` excepted."""
    return [name for name in sorted(tree) if name.endswith(".py") and _below(name, recipe.code)
            and not is_test_file(name) and not _below(name, recipe.left_out)]


def test_files(recipe: Recipe, tree: dict[str, bytes]) -> list[str]:
    """Files that pytest finds tests in, `excluded` ones left out.

    Raises:
      ConfigError: there are none.
    """
    found = [name for name in sorted(tree) if name.endswith(".py") and _below(name, recipe.tests)
             and name.rsplit("/", 1)[-1] != "conftest.py" and name not in recipe.excluded
             and (name.rsplit("/", 1)[-1].startswith("test_") or name.endswith("_test.py") or name in recipe.tests)]
    if not found:
        raise ConfigError(f"recipe {recipe.package}: tests={list(recipe.tests)}: {recipe.name} has no test files there")
    return found


test_files.__test__ = False  # type: ignore[attr-defined]


def _below(name: str, paths: tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(f"{path}/") for path in paths)
