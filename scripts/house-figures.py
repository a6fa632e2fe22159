#!/usr/bin/env python3
"""Measures the shape of a checkout of this project: crates and arrows, circles, long files and functions, assertions,
empty docs, and how much of the pure code the purity check does not read.

    scripts/house-figures.py [--brief | --docs] [FOLDER]
    scripts/house-figures.py --no-circles

FOLDER is a checkout, this one by default. It may be older, with every crate directly below `crates`. `--brief` leaves
out the lists below the table; `--docs` lists the docs of four words or fewer. `--no-circles` measures nothing else, and
fails if there is one: lint asks for that.

What is counted:
* Lines of code have more than a comment on them, and are not in tests. The length of a function is the lines of code
  between its braces, as clippy::too_many_lines counts.
* An import circle is a set of files of one crate each of which reaches the others through `use crate::…`, `super::…` or
  such a path in its text. A module and those below it are one subject, so paths between them do not count; a name that
  a module only passes on counts as a path to where it comes from.
* Assertions are assert!, assert_eq!, assert_ne! and invariant! outside tests; debug_assert! and its kin stand apart.
* A one-line doc comment is `///` alone, with neither a line of its kind before nor after. One that begins with a symbol of
  PostgreSQL in backquotes says where a constant comes from, however short: it does not count as one of few words.
"""
import pathlib
import re
import subprocess
import sys

from rust_source import blank, crates, folder_of_module, lines_of_code, use_paths

FILE_LIMIT = 600
FUNCTION_LIMIT = 70
# As PostgreSQL names constants, structures and functions: `XLOG_HEAP_INSERT`, `xl_heap_insert`, `SizeOfPageHeaderData`.
SYMBOL = re.compile(r"`(?:[A-Z][A-Z0-9]*_[A-Z0-9_]+|xl_\w+|[A-Za-z]*[a-z][A-Z]\w*|[A-Z]{3,})\b")
PURE_OF_OLD = {"borealis-types", "borealis-wal", "borealis-redo", "borealis-quorum", "borealis-proto"}
PURE_PLACES = ("crates/protocol/", "crates/postgres/", "crates/compute/compute", "crates/control/controller")


class Modules:
    """The files of a crate as modules, and which of them uses which."""

    def __init__(self, crate):
        self.crate = crate
        self.files = {}
        source_folder = crate.folder / "src"
        for path in crate.code():
            relative = path.relative_to(source_folder).with_suffix("")
            words = relative.parts
            if words[-1] in ("mod", "lib", "main") and (len(words) > 1 or words[0] in ("lib", "main")):
                words = words[:-1]
            # A crate with both lib.rs and main.rs has two roots; the library is the one that modules are of.
            if words not in self.files or path.stem == "lib":
                self.files[words] = path
        self.passed_on = {}
        for words, path in self.files.items():
            for public, target, name in use_paths(self.code(path)):
                if public:
                    self.passed_on.setdefault(words, {})[name] = target

    def code(self, path):
        return self.crate.sources[path].code

    def resolve(self, here, path, depth=0):
        """The module of this crate that a path leads to; none if it leads elsewhere."""
        if path[0] == "crate":
            words, rest = (), path[1:]
        elif path[0] in ("super", "self"):
            words, rest = here, path
            while rest and rest[0] in ("super", "self"):
                words, rest = (words[:-1] if rest[0] == "super" else words), rest[1:]
        elif here + (path[0],) in self.files:
            words, rest = here, path
        else:
            return None
        while rest and words + (rest[0],) in self.files:
            words, rest = words + (rest[0],), rest[1:]
        if rest and depth < 5 and (target := self.passed_on.get(words, {}).get(rest[0])):
            return self.resolve(words, target, depth + 1) or words
        return words

    def edges(self):
        inline = re.compile(r"\b(?:crate|super)(?:::\w+)+")
        for words, path in self.files.items():
            code = self.code(path)
            paths = [target for public, target, _ in use_paths(code) if not public]
            without_use = re.sub(r"\buse\s+[^;]+;", lambda match: blank(match.group()), code)
            paths += [match.group().split("::") for match in inline.finditer(without_use)]
            targets = {self.resolve(words, target) for target in paths} - {None, words}
            yield words, {t for t in targets if t[: len(words)] != words and words[: len(t)] != t}

    def circles(self):
        return [sorted(c) for c in components(dict(self.edges())) if len(c) > 1]


def components(graph):
    """Tarjan's strongly connected components."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = set()
            while True:
                component.add(top := stack.pop())
                if top == node:
                    break
            found.append(component)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def one_line_docs(source):
    """Each `///` comment of one line outside tests: its line and its words."""
    lines = source.text.splitlines()
    for number, line in enumerate(lines):
        text = line.strip()
        if not text.startswith("///") or source.in_tests(sum(len(l) + 1 for l in lines[:number])):
            continue
        around = [lines[n].strip() if 0 <= n < len(lines) else "" for n in (number - 1, number + 1)]
        if not any(other.startswith("///") for other in around):
            yield number + 1, text[3:].split()


def unread_by_purity_check(root, every):
    """Lines of pure code that `check-dependencies.py` of that checkout does not read: of code, of tests beside it."""
    checker = root / "scripts/check-dependencies.py"
    if not checker.exists() or 'split("#[cfg(test)]")' not in checker.read_text():
        return 0, 0
    code = tests = 0
    for crate in every:
        if crate.name not in PURE_OF_OLD and not crate.place.startswith(PURE_PLACES):
            continue
        for path, source in crate.sources.items():
            at = source.text.find("#[cfg(test)]")
            if at < 0 or path.relative_to(crate.folder).parts[0] != "src":
                continue
            unread = lines_of_code(source.code[at:]) if not crate.is_test(path) else 0
            code += unread
            tests += lines_of_code(source.stripped[at:]) - unread
    return code, tests


def repeated_constants(root):
    """What check-constants.py of this checkout says of that one; it alone knows PostgreSQL's constants."""
    checker = pathlib.Path(__file__).parent / "check-constants.py"
    done = subprocess.run([sys.executable, checker, "--root", root], stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1]


def words_of(circle):
    """A circle for a reader."""
    return " ↔ ".join("::".join(words) or "the root" for words in circle)


def main():
    flags = {argument for argument in sys.argv[1:] if argument.startswith("--")}
    arguments = [argument for argument in sys.argv[1:] if argument not in flags]
    root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parent.parent).resolve()
    every = crates(root)
    if "--no-circles" in flags:
        circles = [(crate.name, circle) for crate in every for circle in Modules(crate).circles()]
        for name, circle in circles:
            print(f"{name}: a circle of imports: {words_of(circle)}", file=sys.stderr)
        sys.exit(1 if circles else 0)
    names = {crate.name for crate in every}
    arrows = [(c.name, d) for c in every for d in sorted(c.dependencies()) if d in names]
    circles, long_files, long_functions, empty_docs = [], [], [], []
    files = lines = functions = assertions = debug_assertions = invariants = docs = 0
    assertion = re.compile(r"(?<![\w:])(debug_)?(assert|assert_eq|assert_ne|invariant)!")
    for crate in every:
        circles += [(crate.name, circle) for circle in Modules(crate).circles()]
        for path, source in crate.code().items():
            place = path.relative_to(root).as_posix()
            length = lines_of_code(source.code)
            files += 1
            lines += length
            if length > FILE_LIMIT:
                long_files.append((length, place))
            for name, at, body in source.functions():
                functions += 1
                if body > FUNCTION_LIMIT:
                    long_functions.append((body, f"{place}:{source.line(at)} {name}"))
            for match in assertion.finditer(source.code):
                debug_assertions += bool(match.group(1))
                assertions += not match.group(1)
                invariants += match.group(2) == "invariant"
            for number, words in one_line_docs(source):
                docs += 1
                if len(words) <= 4 and not (words and SYMBOL.match(words[0])):
                    empty_docs.append(f"{place}:{number} {' '.join(words)}")
    unread_code, unread_tests = unread_by_purity_check(root, every)
    rows = [
        ("crates", len(every)),
        ("arrows between them", len(arrows)),
        ("files with code outside tests", files),
        ("lines of code outside tests", lines),
        ("import circles within a crate", f"{len(circles)} ({sum(len(c) for _, c in circles)} files)"),
        (f"files over {FILE_LIMIT} lines of code", len(long_files)),
        ("functions outside tests", functions),
        (f"functions over {FUNCTION_LIMIT} lines", len(long_functions)),
        ("assertions outside tests", f"{assertions} ({invariants} of them named; {debug_assertions} debug apart)"),
        ("assertions per 100 functions", f"{100 * assertions / functions:.1f}"),
        ("one-line docs of four words or fewer", f"{len(empty_docs)} of {docs} ({100 * len(empty_docs) / docs:.1f} %)"),
        ("constants of PostgreSQL", repeated_constants(root)),
        ("lines of pure code that the purity check does not read", f"{unread_code} ({unread_tests} of tests apart)"),
    ]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:{width}}  {value}")
    if "--brief" in flags:
        return
    if "--docs" in flags:
        print("\n" + "\n".join(empty_docs))
        return
    print("\narrows")
    for crate in every:
        to = [target.removeprefix("borealis-") for source, target in arrows if source == crate.name]
        print(f"  {crate.name.removeprefix('borealis-')} → {' '.join(to) or '(none)'}")
    print("\nimport circles")
    for name, circle in circles:
        print(f"  {name}: {words_of(circle)}")
    print(f"\nfiles over {FILE_LIMIT} lines of code")
    for length, place in sorted(long_files, reverse=True):
        print(f"  {length} {place}")
    print(f"\nfunctions over {FUNCTION_LIMIT} lines")
    for length, place in sorted(long_functions, reverse=True):
        print(f"  {length} {place}")


if __name__ == "__main__":
    main()
