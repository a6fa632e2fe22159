#!/usr/bin/env python3
"""Holds the named assertions in the code, the table in ARCHITECTURE.md and the tests together.

Every `invariant!("name", …)` outside tests has a row in the table; every row has at least one assertion; and a test has
seen it fail: a test that expects the panic (`#[should_panic(expected = "invariant NAME is broken")]`), or that looks for
the same words in what a process or the simulation said.

`--list` prints the names, where each is asserted, and where it was seen to fail.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ASSERTED = re.compile(r'\binvariant!\(\s*"([a-z0-9-]+)"')
SEEN_TO_FAIL = re.compile(r"invariant ([a-z0-9-]+) is broken")
HEADING = "## Named assertions"
ROW = re.compile(r"^\| `([a-z0-9-]+)` \|", re.MULTILINE)
# Its own tests use a name that is nobody's.
MACRO = pathlib.Path("crates/protocol/types/src/invariant.rs")


def is_test_file(path):
    """Whether a whole file is tests, by its place or its name."""
    return any(part in ("tests", "benches") for part in path.parts) or path.stem in ("tests", "test_record") or path.stem.endswith("_tests")


def split_tests(text):
    """The text of a source file before and from its test module on: by convention the last item of the file."""
    at = re.search(r"^#\[cfg\(test\)\]\nmod \w+ \{", text, re.MULTILINE)
    return (text[: at.start()], text[at.start():]) if at else (text, "")


def main():
    asserted, seen = {}, {}
    for path in sorted((ROOT / "crates").rglob("*.rs")):
        relative = path.relative_to(ROOT)
        if "target" in relative.parts or relative == MACRO:
            continue
        text = path.read_text()
        code, tests = ("", text) if is_test_file(relative) else split_tests(text)
        for match in ASSERTED.finditer(code):
            line = code.count("\n", 0, match.start()) + 1
            asserted.setdefault(match.group(1), []).append(f"{relative}:{line}")
        for match in SEEN_TO_FAIL.finditer(tests):
            seen.setdefault(match.group(1), []).append(str(relative))
    section = (ROOT / "ARCHITECTURE.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    table = set(ROW.findall(section))

    if "--list" in sys.argv[1:]:
        for name, places in sorted(asserted.items()):
            print(f"{name}\n  asserted: {', '.join(places)}\n  seen to fail: {', '.join(sorted(set(seen.get(name, [])))) or 'never'}")
        return 0

    problems = [f"{places[0]}: invariant {name} has no row in ARCHITECTURE.md" for name, places in sorted(asserted.items()) if name not in table]
    problems += [f"{places[0]}: no test has seen invariant {name} fail" for name, places in sorted(asserted.items()) if name not in seen]
    problems += [f"ARCHITECTURE.md: invariant {name} is asserted nowhere" for name in sorted(table - asserted.keys())]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


sys.exit(main())
