#!/usr/bin/env python3
"""Which functions differ between two releases of PostgreSQL, by the code that ships for its just-in-time compiler.

    scripts/compare-releases.py OLD_PG_BIN NEW_PG_BIN [--under FOLDER]… [--function FILE:NAME]…

Debian's packages have LLVM bitcode of every C file of the server, static functions included. Each function is
compared without what says nothing: numbers of values, addresses of strings, line numbers, build folders. Lists the
functions that are new (+), gone (-) or changed (~), with the calls in them that have to do with WAL and pages (those
marked + or - came or went), so that these are read first; `--function` shows a difference. Needs llvm-dis of the
version that wrote the bitcode (package llvm-14 for Debian 12).
"""
import argparse
import collections
import difflib
import pathlib
import re
import shutil
import subprocess
import sys

# What is called by functions that write WAL, replay it, or change pages, status pages and files.
OF_INTEREST = re.compile(r"@(XLog\w*|log_\w+|MarkBufferDirty\w*|Page[A-Z]\w*|SimpleLru\w*|smgr\w*|Log[A-Z]\w*|"
                         r"visibilitymap_\w+|GenericXLog\w*|MultiXact\w*|FlushOneBuffer|mask_\w+|\w+_redo|\w+_mask)\(")


def strings_of(text):
    """The contents of the constants that have generated names."""
    constants = re.finditer(r"^(@[\w.$]+) = (?:private|internal) .*?constant (.*?)(?:, align \d+)?$", text, re.M)
    return {found[1]: found[2] for found in constants
            if found[1].startswith("@.str") or "__func__" in found[1] or "switch.table" in found[1]}


def normalized(body, strings):
    """A function's lines without numbers that any change elsewhere in the file moves."""
    body = re.sub(r"(?:,\s*)?![\w.]+ !\d+", "", body)
    body = re.sub(r" #\d+|; preds = .*", "", body)
    body = re.sub(r"@[\w.$]+", lambda name: f"TEXT({strings[name[0]]})" if name[0] in strings else name[0], body)
    # The file and the line of an error message.
    body = re.sub(r'\(\[\d+ x i8\], \[\d+ x i8\]\* TEXT\(\[\d+ x i8\] c"[^"]*?/\.\./((?:src|contrib)/[^"]*?)"\)',
                  r"(FILE(\1)", body)
    body = re.sub(r"(@(?:errfinish|s_lock)\(.*i32 noundef )\d+", r"\1LINE", body)
    body = re.sub(r"^(\d+):", r"LABEL %\1", body, flags=re.M)
    body = re.sub(r"%(struct|union)\.([\w.]*?)(?:\.\d+)?(?=[\s,*)\]}>])", r"TYPE.\1.\2", body)
    # Values and labels in the order in which they appear.
    names = {}
    body = re.sub(r"%[\w.]+", lambda name: names.setdefault(name[0], f"%{len(names)}"), body)
    return [line.strip() for line in body.splitlines() if line.strip()]


def functions_of(path):
    if not path.exists():
        return {}
    done = subprocess.run(["llvm-dis-14" if shutil.which("llvm-dis-14") else "llvm-dis", "-o", "-", path],
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"llvm-dis {path}: {done.stderr.strip()}")
    strings = strings_of(done.stdout)
    bodies = re.finditer(r"^define .*?@([\w.$]+)\(.*?^\}", done.stdout, re.M | re.S)
    return {found[1]: normalized(found[0], strings) for found in bodies}


def calls(lines):
    return collections.Counter(name for line in lines for name in OF_INTEREST.findall(line))


def bitcode(programs):
    folder = subprocess.run([programs / "pg_config", "--pkglibdir"], capture_output=True, text=True, check=True)
    folder = pathlib.Path(folder.stdout.strip()) / "bitcode"
    if not folder.is_dir():
        sys.exit(f"{folder} is missing: the server was built without --with-llvm")
    return folder


def show(old, new, file, name):
    file = pathlib.Path(f"{file}.bc")
    # One more value renumbers all that follow.
    before, after = ([re.sub(r"%\d+", "%", line) for line in functions_of(folder / file).get(name, [])]
                     for folder in (old, new))
    print("\n".join(difflib.unified_diff(before, after, f"{name} (old)", f"{name} (new)", lineterm="", n=4)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=pathlib.Path, metavar="OLD_PG_BIN",
                        help="folder with the older release's pg_config")
    parser.add_argument("new", type=pathlib.Path, metavar="NEW_PG_BIN")
    parser.add_argument("--under", action="append", metavar="FOLDER",
                        help="only this part, such as postgres/access or bloom (default: the server and contrib)")
    parser.add_argument("--function", action="append", metavar="FILE:NAME",
                        help="show the difference of this one, such as postgres/access/gist/gistxlog:gist_redo")
    arguments = parser.parse_args()
    old, new = bitcode(arguments.old), bitcode(arguments.new)
    if arguments.function:
        for wanted in arguments.function:
            show(old, new, *wanted.split(":"))
        return
    files = sorted({path.relative_to(folder) for folder in (old, new) for path in folder.rglob("*.bc")
                    if not path.name.endswith(".index.bc")})
    compared = different = 0
    for file in files:
        if arguments.under and not any(str(file).startswith(part) for part in arguments.under):
            continue
        before, after = functions_of(old / file), functions_of(new / file)
        for name in sorted(before.keys() | after.keys()):
            compared += 1
            if before.get(name) == after.get(name):
                continue
            different += 1
            sign = "+" if name not in before else "-" if name not in after else "~"
            first, second = calls(before.get(name, [])), calls(after.get(name, []))
            notes = [f"-{call}" for call in (first - second).elements()]
            notes += [f"+{call}" for call in (second - first).elements()]
            notes += sorted((first & second).keys())
            print(f"{sign} {file.with_suffix('')}:{name}  {' '.join(notes)}".rstrip())
    print(f"{compared} functions compared, {different} differ", file=sys.stderr)


if __name__ == "__main__":
    main()
