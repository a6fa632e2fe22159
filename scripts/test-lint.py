#!/usr/bin/env python3
"""Sees lint fail: plants faults into a copy of this checkout, and expects the check that is for each to name it. A check
that never fails checks nothing. `./test` itself must fail with each of its parts.

    scripts/test-lint.py            all of it
    scripts/test-lint.py --quick    without the faults that only the compiler finds

The copy stands in target/test-lint and goes at the end.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What lint itself has compiled serves the copy too, but for the few crates that are checked there.
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
COPY = TARGET / "test-lint"
SEGMENT = "crates/protocol/quorum/src/segment/mod.rs"
SEGMENT_TESTS = "crates/protocol/quorum/src/segment/tests.rs"

CLIPPY = "cargo clippy --quiet --keep-going --locked -p borealis-quorum --all-targets -- -D warnings"


def at_foot(text):
    return lambda old: old + text


def instead(before, after):
    def change(old):
        assert before in old, f"nothing to plant at: {before!r}"
        return old.replace(before, after, 1)
    return change


def function(name, body=""):
    return f"\nfn {name}() {{\n    {body}\n}}\n"


CLOCK = function("planted_clock", "let _ = std::time::Instant::now();")
HASH_MAP_IN_TEST = "\n#[test]" + function("planted_map", "let _ = std::collections::HashMap::<u8, u8>::new();")
LOGIC = "\nfn planted_logic(a: bool, b: bool, c: bool) -> bool {\n    a && b || c\n}\n"
LONG = "\n/// Longer than anyone can read at once, and no reason why.\npub fn planted_long(mut value: u64) -> u64 {\n" + "    value += 1;\n" * 75 + "    value\n}\n"
ADVISORY = '{"id": "RUSTSEC-PLANTED", "package": "serde", "informational": null, "title": "", "patched": [">= 99.0.0"], "unaffected": []},'
FUZZ_ADVISORY = ADVISORY.replace("RUSTSEC-PLANTED", "RUSTSEC-FUZZ").replace("serde", "libfuzzer-sys")
# Stands for each part of `./test`: notes the call, and fails if it is the one that shall.
CALLED = """echo "$(basename "$0") $*" >>"$(dirname "$0")/../called"
[ "$(wc -l <"$(dirname "$0")/../called")" != "$FAILING" ]
"""
# Split, so that this file is spelt right.
TYPO = "rec" + "ieve"


# Tests need not be the last item of a file.
AFTER_TESTS = "\n#[cfg(test)]\nmod planted_tests {}\n"


def depend(name):
    return instead("[dependencies]\n", f"[dependencies]\n{name}.workspace = true\n")


# For each check: what is planted, into which file, how, and the words by which the check must name it.
TEXT_FAULTS = {
    "scripts/check-dependencies.py": [
        ("a clock at the foot of the segment machine", SEGMENT, at_foot(CLOCK), "Instant in a pure crate"),
        ("a hash map in a test of a pure crate", SEGMENT_TESTS, at_foot(HASH_MAP_IN_TEST), "HashMap in a pure crate"),
        ("a grouped import of a module that does I/O", SEGMENT, at_foot("\nuse std::{fmt, fs};\n"), "std::{fmt, fs in a pure crate"),
        ("std under another name", SEGMENT, at_foot("\nuse std as planted;\n"), "std as planted in a pure crate"),
        ("blanks inside a path", SEGMENT, at_foot("\nuse std :: fs;\n"), "std :: fs in a pure crate"),
        ("a crate with lints of its own", "crates/storage/client/Cargo.toml", instead("[lints]\nworkspace = true", '[lints.clippy]\nall = "allow"'), "crates/storage/client/Cargo.toml: [lints] must be"),
        ("an attribute that switches the bans off", SEGMENT, at_foot("\n#[allow(clippy::disallowed_methods)]" + function("planted_allow")), "switches clippy's bans off"),
        ("a clippy.toml that forgets what the root says", "crates/postgres/clippy.toml", instead("allow-expect-in-tests", "# allow-expect-in-tests"), "differs from that of clippy.toml"),
        ("a dependency that nothing uses", "crates/storage/store/Cargo.toml", depend("clap"), "crates/storage/store: dependency clap is not used"),
        ("a dependency of a pure crate on the system", "crates/protocol/quorum/Cargo.toml", depend("libc"), "a pure crate must not depend on libc"),
        ("an arrow from compute to the storage engine", "crates/compute/instance/Cargo.toml", depend("borealis-store"), "crates/compute/instance: must not depend on crates/storage/store"),
        ("an arrow that only one crate of a folder is kept from", "crates/compute/shm/Cargo.toml", depend("borealis-wal"), "crates/compute/shm: must not depend on crates/postgres/wal"),
        ("a licence that is not allowed", "crates/protocol/types/Cargo.toml", instead("license.workspace = true", 'license = "GPL-3.0"'), "'GPL-3.0' is not among the allowed"),
    ],
    "scripts/check-advisories.py": [
        ("an advisory about a locked version", "scripts/advisories.json", instead('"advisories": [', f'"advisories": [{ADVISORY}'), "RUSTSEC-PLANTED"),
        ("an advisory about a crate of the fuzz targets alone", "scripts/advisories.json", instead('"advisories": [', f'"advisories": [{FUZZ_ADVISORY}'), "RUSTSEC-FUZZ"),
    ],
    "scripts/check-source.py": [
        ("a public function that nobody uses", SEGMENT, at_foot("\n/// Planted.\npub fn planted_and_dead() {}\n"), "pub fn planted_and_dead: nothing uses it"),
        ("a file over 600 lines", SEGMENT, at_foot("\nconst _: () = ();" * 601 + "\n"), f"{SEGMENT}: "),
        ("&& beside || without brackets", SEGMENT_TESTS, at_foot(LOGIC), f"{SEGMENT_TESTS}:"),
        ("a thread without a name", "crates/storage/node/src/lib.rs", at_foot(function("planted_thread", "std::thread::spawn(|| ());")), "crates/storage/node/src/lib.rs:"),
        ("a thread of a scope without a name", "crates/storage/store/src/lib.rs", at_foot(function("planted_scope", "std::thread::scope(|s| { s.spawn(|| ()); });")), "crates/storage/store/src/lib.rs:"),
    ],
    "scripts/check-invariants.py": [
        ("an assertion whose name no table has", SEGMENT, at_foot(function("planted", 'borealis_types::invariant!("planted-name", true);')), "invariant planted-name has no row"),
        ("an assertion that no test has seen fail", SEGMENT, at_foot(function("planted", 'borealis_types::invariant!("planted-name", true);')), "no test has seen invariant planted-name fail"),
        ("an assertion after the tests of its file", "crates/protocol/quorum/src/writer.rs", at_foot(AFTER_TESTS + function("planted", 'borealis_types::invariant!("planted-below", true);')), "invariant planted-below has no row"),
        ("a row that names another file", "ARCHITECTURE.md", instead("| `protocol/quorum/src/read_routing.rs` |", "| `protocol/quorum/src/writer.rs` |"), "invariant asked-peer-is-complete is asserted in"),
        ("an invariant of the whole that is asserted as nothing", "ARCHITECTURE.md", instead("`durable-at-write-quorum`,", "`planted-at-nothing`,"), "planted-at-nothing, of the invariants of the whole, is no named assertion"),
    ],
    "scripts/check-documents.py": [
        ("a link to a file that is not there", "README.md", at_foot("\n[planted](docs/planted.md)\n"), "docs/planted.md is not there"),
        ("a path that is not there", "README.md", at_foot("\n`crates/planted/src`\n"), "crates/planted/src is not there"),
        ("a target that has no row", "README.md", at_foot("\nS99 is met.\n"), "S99 has no row"),
        ("a target in a comment that has no row", SEGMENT, at_foot("\n// As S98 asks.\n"), "S98 has no row"),
        ("hazards that have no row", SEGMENT, at_foot("\n// Hazards 1 and 98.\n"), "hazard 98 has no row"),
        ("a function that is gone from its file", "ARCHITECTURE.md", instead("`QuorumSets::is_write_quorum`", "`QuorumSets::planted_quorum`"), "has no planted_quorum"),
    ],
    "scripts/house-figures.py --no-circles": [
        ("two files that import each other", "crates/protocol/quorum/src/segment/types.rs", at_foot("\nuse crate::recovery::Outcome as _;\n"), "a circle of imports"),
    ],
    "scripts/check-constants.py": [
        ("a constant of PostgreSQL a second time", "crates/postgres/redo/src/lib.rs", at_foot("\nconst XLOG_HEAP_INSERT: u8 = 0x00;\n"), "XLOG_HEAP_INSERT"),
        ("a constant of PostgreSQL as a static", "crates/postgres/redo/src/lib.rs", at_foot("\nstatic XLOG_HEAP_DELETE: u8 = 0x10;\n"), "XLOG_HEAP_DELETE"),
        ("a number of the vocabulary in an arm", "crates/storage/store/src/lib.rs", at_foot(function("planted_number", "match 1 { 1 => 1_636, _ => 0 };")), "1_636 is MEMBERS_PER_PAGE"),
        ("an operation's number after the tests of its file", "crates/storage/store/src/read/mod.rs", at_foot(AFTER_TESTS + function("planted_operation", "record.operation() == 0x10;")), "crates/storage/store/src/read/mod.rs:"),
    ],
    "scripts/lint.sh spelling": [("a word spelt wrongly", "README.md", at_foot(f"\n{TYPO}\n"), TYPO)],
}
COMPILER_FAULTS = {
    CLIPPY: [
        ("a clock at the foot of the segment machine", SEGMENT, at_foot(CLOCK), "`std::time::Instant::now`"),
        ("a hash map in a test of a pure crate", SEGMENT_TESTS, at_foot(HASH_MAP_IN_TEST), "`std::collections::HashMap`"),
        ("a function over 70 lines without a reason", SEGMENT, at_foot(LONG), "this function has too many lines"),
    ],
    "cargo fmt --all --check": [("lines that rustfmt would write otherwise", SEGMENT, at_foot("\nfn planted( ) {}\n"), "planted")],
}


def make_copy():
    """The checkout as it is on disk now, without what programs made in it."""
    made = [pattern.strip("/\n") for pattern in open(ROOT / ".gitignore") if pattern.strip()]
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name == ".git" or path.name in made:
            continue
        # A build of a package of its own, such as fuzz/target, is none of it either.
        if path.is_dir():
            shutil.copytree(path, COPY / path.name, symlinks=True, ignore=shutil.ignore_patterns("target"))
        else:
            shutil.copy2(path, COPY / path.name)


def shortened(said):
    lines = said.strip().splitlines()
    return "\n".join(f"    {line}" for line in [*lines[:10], *(["…"] if len(lines) > 10 else [])])


def run(command):
    command = ["python3", *command] if command[0].endswith(".py") else command
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET), "CARGO_NET_OFFLINE": "true"}
    done = subprocess.run(command, cwd=COPY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def plant(faults):
    """Writes the faults into the copy; what to write back."""
    files = {COPY / file for _, file, _, _ in faults} | {COPY / "Cargo.lock"}
    before = {path: path.read_text() for path in files}
    for _, file, change, _ in faults:
        (COPY / file).write_text(change((COPY / file).read_text()))
    if any(path.name == "Cargo.toml" for path in files):
        # The lock names each package's dependencies.
        run(["cargo", "metadata", "--format-version", "1"])
    return before


def calls_of_test(folder, failing):
    """How `./test` ends, and what it has called by then, where call number `failing` fails and nothing is really run."""
    (folder / "called").write_text("")
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CARGO_TARGET_DIR": str(folder / "target"), "FAILING": str(failing)}
    done = subprocess.run([folder / "test"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode, (folder / "called").read_text().splitlines()


def ends_where_a_part_fails():
    """Whether `./test` fails with each of its parts, and goes on to no other part; it passed with a failed lint once."""
    parts = ["scripts/install-dependencies.sh", "scripts/lint.sh", "scripts/test-lint.py", "bin/cargo"]
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shutil.copy2(COPY / "test", folder / "test")
        another = "target/postgresql/another/usr/lib/postgresql/15/bin/postgres"
        for path, body in [*((part, CALLED) for part in parts), ("scripts/fetch-postgres.sh", "exit 0\n"), (another, "echo another\n")]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(f"#!/bin/sh\n{body}")
            (folder / path).chmod(0o755)
        code, calls = calls_of_test(folder, 0)
        # Lint needs no PostgreSQL; where there is none, `./test` ends where it asks for its release.
        if len(calls) < 8 or (code != 0 and pathlib.Path("/usr/lib/postgresql/15/bin/postgres").exists()):
            print(f"./test with parts that all pass ends with {code} after {calls}", file=sys.stderr)
            return False
        for failing in range(1, len(calls) + 1):
            code, called = calls_of_test(folder, failing)
            # What the honesty of the benchmark needs is undone before its failure counts.
            allowed = failing + 1 if "broken-durability" in calls[failing - 1] else failing
            if code == 0 or len(called) > allowed:
                missed += 1
                print(f"./test ends with {code} where {calls[failing - 1]!r} fails, after {len(called) - failing} more", file=sys.stderr)
    return missed == 0


def main():
    plan = {name: list(faults) for name, faults in TEXT_FAULTS.items()}
    if not shutil.which("codespell"):
        del plan["scripts/lint.sh spelling"]
        print("NOT TESTED: spelling, codespell is not installed", file=sys.stderr)
    if "--quick" not in sys.argv[1:]:
        plan |= COMPILER_FAULTS
    planted = noticed = unclean = 0
    make_copy()
    try:
        for check, faults in plan.items():
            # Without a fault there is nothing to say; otherwise a check that fails would show nothing.
            code, clean = run(check.split())
            if code != 0:
                unclean += 1
                print(f"without any planted fault, {check} fails:\n{shortened(clean)}", file=sys.stderr)
            before = plant(faults)
            code, said = run(check.split())
            for path, text in before.items():
                path.write_text(text)
            for name, _, _, words in faults:
                planted += 1
                if code != 0 and words in said and words not in clean:
                    noticed += 1
                else:
                    print(f"planted {name}: {check} does not say {words!r}:\n{shortened(said)}", file=sys.stderr)
        unclean += 0 if ends_where_a_part_fails() else 1
    finally:
        shutil.rmtree(COPY, ignore_errors=True)
    print(f"test-lint: {noticed} of {planted} planted faults were noticed", file=sys.stderr)
    return 1 if noticed < planted or unclean else 0


if __name__ == "__main__":
    sys.exit(main())
