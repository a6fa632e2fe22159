#!/usr/bin/env python3
"""Holds the named assertions in the code, the tables in ARCHITECTURE.md and the tests together.

Every `invariant!("name", …)` outside tests has a row in the table, which names each file that asserts it and no other;
every row has at least one assertion; and a test has seen it fail: a test that expects the panic (`#[should_panic(expected
= "invariant NAME is broken")]`), or that looks for the same words in what a process or the simulation said. Names in the
column "Asserted as" of the invariants of the whole are names of the table.

`--list` prints the names, where each is asserted, and where it was seen to fail.
"""
import pathlib
import re
import sys

from rust_source import crates

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Found in the text without comments and literals, where a name is blanks between its quotes.
ASSERTED = re.compile(r'\binvariant!\(\s*"')
NAME = re.compile(r"[a-z0-9-]+")
SEEN_TO_FAIL = re.compile(r"invariant ([a-z0-9-]+) is broken")
WHOLE = "## Invariants of the whole"
NAMED = "## Named assertions"
ROW = re.compile(r"^\| `([a-z0-9-]+)` \|.*\|([^|]*)\|$", re.MULTILINE)
WHOLE_ROW = re.compile(r"^\| \d+ \|.*\|([^|]*)\|$", re.MULTILINE)
# Its own tests use a name that is nobody's.
MACRO = "crates/protocol/types/src/invariant.rs"


def section(document, heading):
    return document.partition(heading)[2].partition("\n## ")[0]


def main():
    asserted, seen = {}, {}
    for crate in crates(ROOT):
        for path, source in crate.sources.items():
            relative = path.relative_to(ROOT).as_posix()
            if relative == MACRO:
                continue
            whole_file = crate.is_test(path)
            for match in ASSERTED.finditer("" if whole_file else source.code):
                name = NAME.match(source.text, match.end()).group()
                asserted.setdefault(name, []).append((relative, source.line(match.start())))
            for match in SEEN_TO_FAIL.finditer(source.text):
                if whole_file or source.in_tests(match.start()):
                    seen.setdefault(match.group(1), []).append(relative)
    document = (ROOT / "ARCHITECTURE.md").read_text()
    table = {name: set(re.findall(r"`([^`]+)`", cell)) for name, cell in ROW.findall(section(document, NAMED))}

    if "--list" in sys.argv[1:]:
        for name, places in sorted(asserted.items()):
            where = ", ".join(f"{file}:{line}" for file, line in places)
            print(f"{name}\n  asserted: {where}\n  seen to fail: {', '.join(sorted(set(seen.get(name, [])))) or 'never'}")
        return 0

    problems = []
    for name, places in sorted(asserted.items()):
        at = "{}:{}".format(*places[0])
        files = {file.removeprefix("crates/") for file, _ in places}
        if name not in table:
            problems.append(f"{at}: invariant {name} has no row in ARCHITECTURE.md")
        elif table[name] != files:
            problems.append(f"ARCHITECTURE.md: invariant {name} is asserted in {', '.join(sorted(files))}; its row says otherwise")
        if name not in seen:
            problems.append(f"{at}: no test has seen invariant {name} fail")
    problems += [f"ARCHITECTURE.md: invariant {name} is asserted nowhere" for name in sorted(table.keys() - asserted.keys())]
    for cell in WHOLE_ROW.findall(section(document, WHOLE)):
        problems += [f"ARCHITECTURE.md: {name}, of the invariants of the whole, is no named assertion"
                     for name in re.findall(r"`([^`]+)`", cell) if name not in table]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


sys.exit(main())
