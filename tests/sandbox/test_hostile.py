"""Every hostile program is contained at each level that claims it: as this user and, from root, as an ordinary one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.sandbox import Sandbox, SandboxConfig, offered
from tests.sandbox.hostile import LIMITS, PROGRAMS, Host, attack

ROOT = Path(__file__).parents[2]
CLAIMING = ("namespaces", "landlock")
NOBODY = 65534


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return Host(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module", params=CLAIMING)
def sandbox(request):
    if reason := offered()[request.param]:
        pytest.skip(f"{request.param}: {reason}")
    with Sandbox(SandboxConfig(level=request.param, workers=1, limits=LIMITS)) as opened:
        yield opened


def test_there_are_enough_of_them():
    assert len(PROGRAMS) >= 40


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_contained(sandbox, host, name):
    wrong, _ = attack(sandbox, host, name)
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("level", CLAIMING)
def test_as_an_ordinary_user(level, tmp_path_factory):
    """Where the tests run as root; otherwise the tests above are this one."""
    if os.getuid() != 0:
        pytest.skip("these tests run as an ordinary user anyway")
    if reason := offered()[level]:
        pytest.skip(f"{level}: {reason}")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [f"/usr/bin/{version}", f"/usr/local/bin/{version}", os.path.realpath(sys.executable)]
    readable = [python for python in filter(os.path.exists, places) if _runs(python, "pass")]
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    if not readable or not _runs(readable[0], f"import os; os.listdir({packages!r}); os.listdir({str(ROOT)!r})"):
        pytest.skip(f"no {version}, or no way to this repository, that an ordinary user may use")
    found = subprocess.run(
        [readable[0], "-m", "tests.sandbox.hostile", level], user=NOBODY, group=NOBODY, extra_groups=[], cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{packages}", "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-2000:]
    report = json.loads(found.stdout)
    assert report["user"] == NOBODY and set(report["programs"]) == set(PROGRAMS)
    assert not {name: about["wrong"] for name, about in report["programs"].items() if about["wrong"]}


def _runs(python, program):
    try:
        return subprocess.run([python, "-c", program], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/",
                              stderr=subprocess.DEVNULL).returncode == 0
    except PermissionError:
        return False
