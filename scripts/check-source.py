#!/usr/bin/env python3
"""Checks what neither rustc nor clippy does: public items that nobody uses, files that outgrew one subject, and `&&`
beside `||` without brackets.

* A `pub` function, method, type or constant of a library is used by code, by a test outside src, or by another crate.
  rustc says so of private items only. What has the same name as something that is used is not found; that is accepted.
* A file has at most 600 lines of code: tests, comments and blank lines do not count.
* `a && b || c` is read wrongly sooner or later. Clippy's `precedence` asks for brackets around shifts only.
* What runs beside the main thread has a name that `top -H`, a panic and a backtrace show: `thread::Builder`, not
  `thread::spawn` or a scope's `spawn`, outside tests.

`--wide` lists instead the public items that no other crate names: they could be `pub(crate)`.
"""
import pathlib
import re
import sys
from collections import Counter

from rust_source import closing, crates, end_of_item, lines_of_code

FILE_LIMIT = 600
# Public items that stay although nothing in this repository names them: place and name, and why.
PUBLIC_EXCEPTIONS = {
    ("crates/protocol/quorum/src/quorum_set.rs", "is_read_quorum"): "the arithmetic of what a look at every write needs, tested exhaustively",
}
# Threads outside tests that need no name, and why.
UNNAMED_THREADS = {
    "crates/control/local/src/status.rs": "asks one process each, and is joined before the answer",
    "crates/testing/bench/src/processes.rs": "a measurement's only sampler, joined at its end",
    "crates/testing/bench/src/server/borealis.rs": "materializes one node each, and is joined",
    "crates/testing/bench/src/workload/faults.rs": "joined within the measurement",
    "crates/testing/sim/src/main.rs": "one for each core, joined before the summary",
    "crates/testing/bench/src/workload/pages.rs": "answers for the length of one probe, and is joined",
}

ROOT = pathlib.Path(__file__).resolve().parent.parent
ITEM = re.compile(
    r"\bpub\s+(?P<rest>(?:const\s+|async\s+|unsafe\s+)*(?:(?P<kind>fn|struct|enum|union|trait|type|static|const)\s+(?:mut\s+)?(?P<name>[A-Za-z_]\w*)))"
)
TYPES = {"struct", "enum", "union", "trait", "type"}
WORD = re.compile(r"\w+")


def public_text(crate):
    """Words of each public signature of a crate: what stands before the bodies of its public functions, the whole of its
    public types, and what its public constants are; by the item that says them."""
    for path, source in crate.code().items():
        for match in ITEM.finditer(source.code):
            end = end_of_item(source.code, match.start())
            text = source.code[match.start() : end]
            if match["kind"] == "fn":
                body = source.body_of(match.end())
                text = source.code[match.start() : body[0] if body else end]
            yield (path, match.start()), match["name"], set(WORD.findall(text))
        # What a trait is implemented for, and a public trait's associated types, are part of the interface too.
        for match in re.finditer(r"\bimpl\b[^{;]*?\bfor\b[^{;]*\{", source.code):
            body_end = closing(source.code, match.end() - 1)
            words = set(WORD.findall(match.group()))
            for inner in re.finditer(r"\btype\s+\w+\s*=[^;]*;", source.code[match.end() : body_end]):
                words |= set(WORD.findall(inner.group()))
            yield (path, match.start()), None, words - {"for", "impl"}


def counts(every):
    """How often each word stands in code, in tests beside code (by package), and in tests, examples and such."""
    code, beside, apart = Counter(), {}, Counter()
    for crate in every:
        beside[crate.name] = Counter()
        for path, source in crate.sources.items():
            words = Counter(WORD.findall(source.stripped))
            if path.relative_to(crate.folder).parts[0] != "src":
                apart += words
            elif crate.is_test(path):
                beside[crate.name] += words
            else:
                own = Counter(WORD.findall(source.code))
                code += own
                beside[crate.name] += words - own
    return code, beside, apart


def public_items(every):
    for crate in every:
        if (crate.folder / "src/lib.rs").exists():
            for path, source in crate.code().items():
                for match in ITEM.finditer(source.code):
                    yield crate, path, source, match


def dead_public(every):
    code, beside, apart = counts(every)
    definitions = Counter(match["name"] for _, _, _, match in public_items(every))
    for crate, path, source, match in public_items(every):
        name, place = match["name"], path.relative_to(ROOT).as_posix()
        elsewhere = code[name] - definitions[name] + apart[name] + sum(c[name] for other, c in beside.items() if other != crate.name)
        if elsewhere <= 0 and (place, name) not in PUBLIC_EXCEPTIONS and not exported(source, match.start()):
            who = "only its own unit tests use" if beside[crate.name][name] else "nothing uses"
            yield f"{place}:{source.line(match.start())}: pub {match['kind']} {name}: {who} it: delete it, or make it #[cfg(test)]"


def exported(source, at):
    """Whether an item is for a linker: it has a name that is not mangled."""
    return "no_mangle" in source.stripped[max(0, at - 200) : at].rpartition("}")[2]


def wide_public(every):
    """Public items that no other crate names: not wrong, but rustc no longer says when they are dead. For reading, no gate."""
    code_of = {}
    for crate in every:
        inside, outside = set(), set()
        for path, source in crate.sources.items():
            own_program = path == crate.folder / "src/main.rs" or crate.folder / "src/bin" in path.parents
            below_src = path.relative_to(crate.folder).parts[0] == "src" and not own_program
            (inside if below_src else outside).update(WORD.findall(source.stripped))
        code_of[crate.name] = inside, outside
    for crate, path, source, match in public_items(every):
        name = match["name"]
        used = name in code_of[crate.name][1] or any(name in a | b for other, (a, b) in code_of.items() if other != crate.name)
        signatures = public_text(crate) if match["kind"] in TYPES and not used else ()
        if not used and not any(name in words and at != (path, match.start()) and name != other for at, other, words in signatures):
            yield f"{path.relative_to(ROOT)}:{source.line(match.start())}: pub {match['kind']} {name} could be pub(crate)"


def long_files(every):
    for crate in every:
        for path, source in crate.code().items():
            length = lines_of_code(source.code)
            if length > FILE_LIMIT:
                yield f"{path.relative_to(ROOT)}: {length} lines of code, tests apart; at most {FILE_LIMIT}: it has two subjects"


MARK = re.compile(r"&&|\|\||[(){}\[\];,]|=>|(?<![=<>!+\-*/%&|^])=(?!=)|\b(?:if|while|match|return|let|else|in|break)\b|->")


def mixed_operators(code):
    """Where `&&` and `||` stand in one expression of one level of brackets."""
    levels = [set()]
    for match in MARK.finditer(code):
        mark = match.group()
        if mark in "([{":
            levels.append(set())
        elif mark in ")]}":
            if len(levels) > 1:
                levels.pop()
            if mark == "}":
                levels[-1].clear()
        elif mark in ("&&", "||"):
            before = code[: match.start()].rstrip()[-30:]
            last_word = re.search(r"\w+$", before)
            operand = before and (before[-1] in ")]}?\"'" or last_word and last_word.group() not in ("move", "return", "in", "else", "match", "if", "while", "break"))
            # Without something on its left it is a closure without arguments, or a reference to a reference.
            if not operand:
                if mark == "||":
                    levels[-1].clear()
                continue
            levels[-1].add(mark)
            if len(levels[-1]) == 2:
                levels[-1].clear()
                yield match.start()
        else:
            levels[-1].clear()


def ambiguous(every):
    for crate in every:
        for path, source in crate.sources.items():
            for at in mixed_operators(source.stripped):
                yield f"{path.relative_to(ROOT)}:{source.line(at)}: && beside || without brackets"


def unnamed_threads(every):
    for crate in every:
        for path, source in crate.code().items():
            place = path.relative_to(ROOT).as_posix()
            at = [match.start() for match in re.finditer(r"\bthread\s*::\s*spawn\b", source.code)]
            for scope in re.finditer(r"\bscope\s*\(\s*(?:move\s*)?\|\s*(\w+)[^|]*\|", source.code):
                end = closing(source.code, source.code.index("(", scope.start()))
                spawned = re.compile(rf"\b{scope[1]}\s*\.\s*spawn\b").finditer(source.code, scope.end(), end)
                at += [match.start() for match in spawned]
            if place not in UNNAMED_THREADS:
                yield from (f"{place}:{source.line(a)}: a thread without a name: thread::Builder gives it one" for a in at)
            elif not at:
                yield f"{place}: no thread without a name is left; the exception can go"


def main():
    every = crates(ROOT)
    if "--wide" in sys.argv[1:]:
        print("\n".join(wide_public(every)))
        return 0
    problems = [*dead_public(every), *long_files(every), *ambiguous(every), *unnamed_threads(every)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
