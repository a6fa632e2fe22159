#!/usr/bin/env python3
"""Checks that no locked dependency has a known security advisory, without a network.

    scripts/check-advisories.py
    scripts/check-advisories.py --refresh FOLDER

It compares Cargo.lock and fuzz/Cargo.lock with a committed snapshot of RustSec's advisories, scripts/advisories.json, which
has those about crates of these two and nothing else. `--refresh` writes the snapshot anew from FOLDER, a clone of
https://github.com/RustSec/advisory-db (with a work tree or without).

A locked version that an advisory affects fails the check. That a crate is unmaintained is a warning, as is a snapshot
that has become old, or that was made before a crate came into Cargo.lock: the calendar alone fails nothing.
"""
import datetime
import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
SNAPSHOT = ROOT / "scripts/advisories.json"
# How old the snapshot's source may be before it is mentioned.
OLD_DAYS = 90
# Advisories that do not reach this program, and why.
ACCEPTED = {}


def locked():
    """Name and version of each crate from outside."""
    locks = [tomllib.loads((ROOT / file).read_text()) for file in ("Cargo.lock", "fuzz/Cargo.lock")]
    return sorted({(package["name"], package["version"]) for lock in locks for package in lock["package"] if "source" in package})


def version_key(version):
    """Orders versions as semver does: a pre-release before its release; what was built does not count."""
    core, _, pre = version.split("+")[0].partition("-")
    numbers = [int(part) for part in core.split(".")]
    numbers += [0] * (3 - len(numbers))
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".")) if pre else ()
    return tuple(numbers), (0, parts) if pre else (1, ())


def satisfies(version, requirement):
    """Whether a version is in a range as Cargo writes it: `>= 1.2.3, < 1.3.0`, `^1.2`, `= 1.0.0`."""
    key = version_key(version)
    for part in requirement.split(","):
        operator, bound = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|~)?\s*([0-9][^\s]*)\s*", part).groups()
        low = version_key(bound)
        if operator in (None, "^", "~"):
            numbers = [int(n) for n in bound.split("+")[0].split("-")[0].split(".")]
            at = 0
            if operator == "~":
                at = min(1, len(numbers) - 1)
            else:
                while at < len(numbers) - 1 and numbers[at] == 0:
                    at += 1
            high = version_key(".".join(map(str, [*numbers[:at], numbers[at] + 1])))
            good = low <= key < high
        else:
            good = {">=": key >= low, "<=": key <= low, ">": key > low, "<": key < low, "=": key == low}[operator]
        if not good:
            return False
    return True


def affected(version, advisory):
    return not any(satisfies(version, r) for r in advisory["patched"] + advisory["unaffected"])


def git(folder, *arguments):
    return subprocess.check_output(["git", "-C", folder, *arguments], text=True)


def refresh(folder):
    names = sorted({name for name, _ in locked()})
    tree = git(folder, "ls-tree", "-r", "--name-only", "HEAD", "crates").splitlines()
    advisories = []
    for path in sorted(tree):
        if pathlib.PurePosixPath(path).parent.name not in names or not path.endswith(".md"):
            continue
        text = git(folder, "show", f"HEAD:{path}")
        head, _, rest = text.partition("```toml\n")[2].partition("\n```")
        data = tomllib.loads(head)
        if "withdrawn" in data["advisory"]:
            continue
        title = next((line[2:].strip() for line in rest.splitlines() if line.startswith("# ")), "")
        advisories.append({
            "id": data["advisory"]["id"],
            "package": data["advisory"]["package"],
            "informational": data["advisory"].get("informational"),
            "title": title,
            "patched": data.get("versions", {}).get("patched", []),
            "unaffected": data.get("versions", {}).get("unaffected", []),
        })
    commit, date = git(folder, "log", "-1", "--format=%H %cs").split()
    snapshot = {"source": "RustSec/advisory-db", "commit": commit, "date": date, "crates": names, "advisories": advisories}
    SNAPSHOT.write_text(json.dumps(snapshot, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(advisories)} advisories of {date} about {len(names)} locked crates")


def check():
    snapshot = json.loads(SNAPSHOT.read_text())
    problems = []
    for name, version in locked():
        for advisory in snapshot["advisories"]:
            if advisory["package"] != name or advisory["id"] in ACCEPTED or not affected(version, advisory):
                continue
            line = f"{name} {version}: {advisory['id']} {advisory['title']}"
            if advisory["informational"] in ("unmaintained", "notice"):
                print(f"warning: {line} ({advisory['informational']})", file=sys.stderr)
            else:
                problems.append(f"{line}; patched: {', '.join(advisory['patched']) or 'in no version'}")
    age = (datetime.date.today() - datetime.date.fromisoformat(snapshot["date"])).days
    again = "scripts/check-advisories.py --refresh FOLDER makes it anew"
    if age > OLD_DAYS:
        print(f"warning: the snapshot of advisories is of {snapshot['date']}, {age} days ago; {again}", file=sys.stderr)
    unknown = sorted({name for name, _ in locked()} - set(snapshot["crates"]))
    if unknown:
        print(f"warning: the snapshot of advisories does not cover {', '.join(unknown)}; {again}", file=sys.stderr)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--refresh"]:
        if len(sys.argv) != 3:
            sys.exit(__doc__)
        refresh(sys.argv[2])
    else:
        sys.exit(check())
