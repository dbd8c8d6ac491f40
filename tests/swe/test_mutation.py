"""Sites and rewrites: the vocabulary, its inverses, and what is left alone."""

import ast
import inspect
import itertools

import pytest

from jaxllm.swe import blocks, diffs, trees
from jaxllm.swe.mutation import (
    KINDS,
    OPERATORS,
    OTHERS,
    apply_rewrite,
    find_functions,
    find_mutants,
    find_sites,
    inverse,
    same_program,
)

CASES = [  # expression in `return`, what each rewrite may make of it
    ("a < b", {"a <= b", "a > b", "not (a < b)"}), ("a not  in b", {"a in b", "not (a not  in b)"}),
    ("a is b", {"a is not b", "not (a is b)"}), ("(a) + (b)", {"(a) - (b)", "(not (a) + (b))"}),
    ("a and b and c", {"a or b and c", "a and b or c", "not (a and b and c)",
                        "not (a) and b and c", "a and not (b) and c", "a and b and not (c)"}),
    ("not a", {"a"}), ("not(a)", {"(a)"}),
    ("[x for x in a if not x]", {"[x for x in a if x]", "not ([x for x in a if not x])"}),
    ("f(a, b)", {"f(b, a)", "not (f(a, b))"}),
    ("f(a, (b), c)", {"f(b, (a), c)", "f(a, (c), b)", "not (f(a, (b), c))"}),
    ("a[1:n]", {"a[2:n]", "a[0:n]", "a[1:n + 1]", "a[1:n - 1]", "not (a[1:n])"}),
    ("a[:n + 1]", {"a[:n - 1]", "a[:n + 2]", "a[:n + 0]", "a[:n + 1 + 1]", "a[:n]", "not (a[:n + 1])"}),
    ("-1", {"0", "-2", "not (-1)"}), ("True", {"False", "not (True)"}), ("min(a)", {"max(a)", "not (min(a))"}),
    ("a.startswith(b)", {"a.endswith(b)", "not (a.startswith(b))"}),
    ("'%s' % a", {"not ('%s' % a)"}), ("f'{a + 1}'", {"not (f'{a + 1}')"}), ("0x10", {"not (0x10)"}),
]


@pytest.mark.parametrize(("text", "wanted"), CASES, ids=lambda x: x[:20] if isinstance(x, str) else "to")
def test_rewrites_of_an_expression(text, wanted):
    source = f"def f(a, b, c, n):\n    return {text}\n"
    head = len("def f(a, b, c, n):\n    return ")
    found = {m.source.decode()[head:-1] for m in find_mutants("m.py", source.encode())
             if same_program(m.source) != same_program(source.encode())}
    assert {ast.dump(ast.parse(x.strip())) for x in found} == {ast.dump(ast.parse(x.strip())) for x in wanted}


def test_statements_and_places():
    source = b'''"""1 < 2"""
LIMIT = 3 + 1
class A:
    x: int = 1 + 1
    @wraps(1 + 1)
    def f(self, n=2 + 2):
        """True"""
        y: "1 < 2" = n
        while y:
            y += 1  # \xc3\xa9 4
            if n: break
        else:
            return lambda z=5: z - 6
        def g():
            return 7
'''
    sites = find_sites(source)
    assert {(s.function, s.code_line) for s in sites} == {("A.f", 5), ("A.f.g", 14)}
    assert [(f.name, f.start, f.end) for f in find_functions(source)] == [("A.f", 5, 15), ("A.f.g", 14, 15)]
    made = {apply_rewrite(source, s, o) for s in sites for o, _ in s.rewrites}
    for old, new in ((b"y += 1", b"y -= 1"), (b"y += 1", b"y += 2"), (b"break", b"continue"), (b"z=5", b"z=4"),
                     (b"z - 6", b"z + 6"), (b"while y", b"while not (y)"), (b"return 7", b"return 8")):
        assert source.replace(old, new) in made
    for site in sites:
        assert source.count(b"\n", 0, site.start) + 1 == site.line


def test_vocabulary_is_closed():
    assert all(one in OTHERS[other] for one, others in OTHERS.items() for other in others)
    assert len(set(OPERATORS)) == len(OPERATORS) and {o.split()[0] for o in OPERATORS} == set(KINDS)


@pytest.mark.parametrize("module", [blocks, diffs, trees], ids=lambda m: m.__name__)
def test_real_modules_mutate_and_mend(module):
    """Each mutant differs in one place and one choice of site and operator mends it."""
    source = inspect.getsource(module).encode()
    mutants = list(find_mutants("m.py", source))
    assert len(mutants) > 80 and len({m.source for m in mutants}) == len(mutants) == len({m.name for m in mutants})
    assert all(o in OPERATORS for m in mutants for o, _ in m.site.rewrites)
    for mutant in itertools.islice(mutants, 0, None, max(len(mutants) // 5, 1)):
        found = inverse(mutant.source, source)
        assert found is not None, mutant.name
        site, operator = found
        assert same_program(apply_rewrite(mutant.source, site, operator)) == same_program(source)
        assert site.function == mutant.site.function


def test_nothing_to_find():
    for source in (b"def f(:", b"\xff", b"", b"x = 1 + 1\n", b"\xef\xbb\xbfdef f():\n    return 1\n"):
        assert find_sites(source) == [] and list(find_mutants("m", source)) == []
