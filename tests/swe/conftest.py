"""A small repository, and a sandbox for all tests of this directory."""

import pytest

from jaxllm.swe.running import TestPlan, sandbox_for_tests

REPO = {
    "lib/__init__.py": b"from lib.core import add, half, first\n",
    "lib/core.py": b"def add(a, b):\n    return a + b\n\n\ndef half(x):\n    if not x:\n"
                   b"        raise ValueError('none')\n    return x // 2\n\n\n"
                   b"def first(items, most=2):\n    return items[:most]\n",
    "tests/test_core.py": b"import pytest\nimport unittest\nfrom lib import add, half, first\n\n\n"
                          b"def test_add():\n    assert add(2, 3) == 5\n\n\n"
                          b"def test_half():\n    assert half(7) == 3\n\n\n"
                          b"def test_half_raises():\n    with pytest.raises(ValueError):\n        half(0)\n\n\n"
                          b"@pytest.mark.parametrize('n', [1, 2])\ndef test_first(n):\n"
                          b"    assert len(first([1, 2, 3], n)) == n\n\n\n"
                          b"class TestMore(unittest.TestCase):\n    def test_unit(self):\n"
                          b"        self.assertEqual(add(1, 1), 2)\n        self.assertTrue(half(4) == 2)\n",
    "tests/test_marks.py": b"import pytest\nfrom lib import half\n\n\n"
                           b"@pytest.mark.xfail\ndef test_expected():\n    assert half(3) == 1.5\n\n\n"
                           b"@pytest.mark.skip\ndef test_skipped():\n    pass\n",
    "setup.cfg": b"[tool:pytest]\naddopts = --no-such-option\n",
}
PLAN = TestPlan(modules=("lib",), test_s=2, wall_s=20)


@pytest.fixture
def repo():
    return dict(REPO)


@pytest.fixture
def plan():
    return PLAN


@pytest.fixture(scope="session")
def sandbox():
    with sandbox_for_tests(least="landlock") as found:
        yield found
