#!/usr/bin/env python3
"""Sees lint fail: plants one fault after the other into a copy of this checkout, and expects the check that is for it to
name it. A check that never fails checks nothing.

    scripts/test-lint.py            all of it
    scripts/test-lint.py --quick    without the faults that only the compiler finds

The copy stands in target/test-lint and goes at the end; what the compiler made of it stays there for the next time.
"""
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "test-lint"
COPY = FOLDER / "copy"
QUORUM = "crates/protocol/quorum"
SEGMENT = f"{QUORUM}/src/segment/mod.rs"

DEPENDENCIES = ["python3", "scripts/check-dependencies.py"]
SOURCE = ["python3", "scripts/check-source.py"]
INVARIANTS = ["python3", "scripts/check-invariants.py"]
ADVISORIES = ["python3", "scripts/check-advisories.py"]
CONSTANTS = ["python3", "scripts/check-constants.py"]
DOCUMENTS = ["python3", "scripts/check-documents.py"]
SPELLING = ["scripts/lint.sh", "texts"]
FORMAT = ["cargo", "fmt", "--all", "--check"]
CLIPPY = ["cargo", "clippy", "--quiet", "--locked", "-p", "borealis-types", "-p", "borealis-quorum", "--all-targets", "--", "-D", "warnings"]


def at_foot(text):
    return lambda old: old + text


def instead(before, after):
    def change(old):
        assert before in old, f"nothing to plant at: {before!r}"
        return old.replace(before, after, 1)
    return change


IMPURE = "\nfn now_planted() -> std::time::Instant {\n    std::time::Instant::now()\n}\n"
IMPURE_TEST = "\n#[test]\nfn planted() {\n    let _ = std::collections::HashMap::<u8, u8>::new();\n}\n"
LONG = "\n/// Longer than anyone can read at once, and no reason why.\npub fn planted(mut value: u64) -> u64 {\n" + "    value += 1;\n" * 75 + "    value\n}\n"
LIBC = instead("[dependencies]\n", "[dependencies]\nlibc.workspace = true\n")
# Split, so that this file is spelt right.
TYPO = "rec" + "ieve"

# What is planted, into which file, what notices, and the words it must say.
TEXT_FAULTS = [
    ("a clock at the foot of the segment machine", SEGMENT, at_foot(IMPURE), DEPENDENCIES, "Instant in a pure crate"),
    ("a hash map in a test of a pure crate", f"{QUORUM}/src/segment/tests.rs", at_foot(IMPURE_TEST), DEPENDENCIES, "HashMap in a pure crate"),
    ("a grouped import of a module that does I/O", SEGMENT, at_foot("\nuse std::{fmt, fs};\n"), DEPENDENCIES, "in a pure crate"),
    ("an attribute that switches the bans off", SEGMENT, at_foot("\n#[allow(clippy::disallowed_methods)]\nfn planted() {}\n"), DEPENDENCIES, "switches clippy's bans off"),
    ("a clippy.toml that forgets what the root says", "crates/postgres/clippy.toml", instead("allow-expect-in-tests", "# allow-expect-in-tests"), DEPENDENCIES, "differs from that of clippy.toml"),
    ("a dependency that nothing uses", "crates/storage/store/Cargo.toml", LIBC, DEPENDENCIES, "dependency libc is not used"),
    ("a dependency of a pure crate on the system", f"{QUORUM}/Cargo.toml", LIBC, DEPENDENCIES, "a pure crate must not depend on libc"),
    ("an arrow from compute to the storage engine", "crates/compute/instance/Cargo.toml", instead("[dependencies]\n", "[dependencies]\nborealis-store.workspace = true\n"), DEPENDENCIES, "crates/compute/instance: must not depend on crates/storage/store"),
    ("a licence that is not allowed", "crates/protocol/types/Cargo.toml", instead("license.workspace = true", 'license = "GPL-3.0"'), DEPENDENCIES, "is not among the allowed"),
    ("an advisory about a locked version", "scripts/advisories.json", instead('"advisories": [', '"advisories": [{"id": "RUSTSEC-PLANTED", "package": "serde", "informational": null, "title": "", "patched": [">= 99.0.0"], "unaffected": []},'), ADVISORIES, "RUSTSEC-PLANTED"),
    ("a public function that nobody uses", SEGMENT, at_foot("\n/// Planted.\npub fn planted_and_dead() {}\n"), SOURCE, "pub fn planted_and_dead: nothing uses it"),
    ("a file over 600 lines", SEGMENT, at_foot("\nconst _: () = ();" * 601 + "\n"), SOURCE, "lines of code, tests apart"),
    ("&& beside || without brackets", SEGMENT, at_foot("\nfn planted(a: bool, b: bool, c: bool) -> bool {\n    a && b || c\n}\n"), SOURCE, "&& beside ||"),
    ("a thread without a name", "crates/storage/node/src/lib.rs", at_foot("\nfn planted() {\n    std::thread::spawn(|| ());\n}\n"), SOURCE, "a thread without a name"),
    ("an assertion whose name no table has", SEGMENT, at_foot('\nfn planted() {\n    borealis_types::invariant!("planted-name", true);\n}\n'), INVARIANTS, "invariant planted-name has no row"),
    ("a link to a file that is not there", "ARCHITECTURE.md", at_foot("\n[planted](docs/planted.md)\n"), DOCUMENTS, "docs/planted.md"),
    ("a word spelt wrongly", "README.md", at_foot(f"\n{TYPO}\n"), SPELLING, TYPO),
]
COMPILER_FAULTS = [
    ("a clock at the foot of the segment machine", SEGMENT, at_foot(IMPURE), CLIPPY, "std::time::Instant::now"),
    ("a hash map in a test of a pure crate", f"{QUORUM}/src/segment/tests.rs", at_foot(IMPURE_TEST), CLIPPY, "std::collections::HashMap"),
    ("a function over 70 lines without a reason", "crates/protocol/types/src/lib.rs", at_foot(LONG), CLIPPY, "too many lines"),
    ("lines that rustfmt would write otherwise", SEGMENT, at_foot("\nfn planted( ) {}\n"), FORMAT, "planted"),
]
# The check that another crate's constants are not defined twice, where it exists.
CONSTANT_FAULT = ("a constant of PostgreSQL a second time", "crates/postgres/redo/src/lib.rs", at_foot("\nconst PLANTED_XLOG_HEAP_INSERT: u8 = 0x00;\npub(crate) const XLOG_HEAP_INSERT: u8 = 0x00;\n"), CONSTANTS, "XLOG_HEAP_INSERT")


def make_copy():
    """What git would commit and what it has, as it is on disk now."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.check_output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, COPY / name)


def run(command):
    environment = {**os.environ, "CARGO_TARGET_DIR": str(FOLDER / "target"), "CARGO_NET_OFFLINE": "true"}
    done = subprocess.run(command, cwd=COPY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def see(name, file, change, command, words):
    """Plants one fault; what is wrong with the check, if anything."""
    path, lock = COPY / file, COPY / "Cargo.lock"
    before, locked = path.read_text(), lock.read_text()
    path.write_text(change(before))
    if path.name == "Cargo.toml":
        # The lock names each package's dependencies.
        run(["cargo", "metadata", "--format-version", "1"])
    try:
        code, said = run(command)
    finally:
        path.write_text(before)
        lock.write_text(locked)
    if code == 0:
        return "passed all the same"
    if words not in said:
        return f"failed without saying {words!r}:\n{said}"
    return None


def main():
    quick = "--quick" in sys.argv[1:]
    faults = list(TEXT_FAULTS)
    if not shutil.which("codespell"):
        faults = [fault for fault in faults if fault[3] is not SPELLING]
        print("NOT TESTED: spelling, codespell is not installed", file=sys.stderr)
    if (ROOT / CONSTANTS[1]).exists():
        faults.append(CONSTANT_FAULT)
    if not quick:
        faults += COMPILER_FAULTS
    failed = unclean = 0
    make_copy()
    try:
        # Without a fault there is nothing to say; otherwise a check that fails would show nothing.
        before = {tuple(fault[3]): run(fault[3]) for fault in faults}
        for command, (code, said) in before.items():
            if code != 0:
                unclean += 1
                print(f"without any planted fault, {' '.join(command)} fails:\n{said}", file=sys.stderr)
        for fault in faults:
            problem = see(*fault)
            if not problem and fault[4] in before[tuple(fault[3])][1]:
                problem = f"says {fault[4]!r} without it"
            if problem:
                failed += 1
                print(f"planted {fault[0]}: {' '.join(fault[3])} {problem}", file=sys.stderr)
    finally:
        shutil.rmtree(COPY, ignore_errors=True)
    print(f"test-lint: {len(faults) - failed} of {len(faults)} planted faults were noticed", file=sys.stderr)
    return 1 if failed or unclean else 0


if __name__ == "__main__":
    sys.exit(main())
