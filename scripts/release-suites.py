#!/usr/bin/env python3
"""Redo against any release of PostgreSQL: its own test suites on a stock server, and redo-check on all of their WAL.

    scripts/release-suites.py PG_BIN [--suite regress|isolation|contrib]… [--source FOLDER|TARBALL] [--dir DIR]

Each suite gets a fresh server from PG_BIN with wal_consistency_checking=all, which keeps all WAL: about 10 GB for the
largest. Then `borealis redo-check --server-version` of that release must find no difference. Whether the tests pass
is shown and not judged: a suite of a neighbouring release does for WAL, where Debian's archive lacks the source.
Exits 1 if redo differs. Needs a release build, a C compiler, and the server's headers (package
postgresql-server-dev-15) where pg_config says or --headers does.
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

import regression
from regression import Failure, as_server_user, free_port, give_to_server_user, run

# What is needed of PostgreSQL's source.
PARTS = ("src/test/regress/", "src/test/isolation/", "src/pl/plpgsql/src/", "contrib/")
# Modules of contrib that want another server configuration, a language that may not be installed, or SELinux.
LEFT_OUT = re.compile(r"basic_archive|sepgsql|.*_pl(perl|python)")
SETTINGS = """
listen_addresses = '127.0.0.1'
fsync = off
wal_consistency_checking = all
wal_keep_size = 200GB
max_wal_size = 20GB
max_prepared_transactions = 10
shared_buffers = 64MB
dynamic_shared_memory_type = mmap
"""
SETTINGS_OF_SUITES = {
    "regress": "wal_level = replica",
    "isolation": "wal_level = replica",
    "contrib": "wal_level = logical\nlogical_decoding_work_mem = 64kB\ntrack_commit_timestamp = on\n"
               "compute_query_id = off\nshared_preload_libraries = 'pg_stat_statements'",
}


class Release:
    """Programs of one release."""

    def __init__(self, folder, headers):
        self.programs = folder.resolve()
        self.version = re.search(r"\d+\.\d+", run([folder / "postgres", "--version"])).group(0)
        self.headers = headers or self.config("--includedir-server")
        if not (self.headers / "postgres.h").exists():
            raise Failure(f"the server's headers are not in {self.headers}; give --headers")
        self.modules = self.config("--pkglibdir")
        self.runners = self.modules / "pgxs" / "src" / "test"

    def config(self, option):
        return pathlib.Path(run([self.programs / "pg_config", option]).strip())


def unpack(source, folder):
    """The parts of the source that hold suites, as the server's user's."""
    if source is None:
        apt = regression.PrivateApt(folder / "apt")
        apt.download(folder, "source", "--download-only", f"postgresql-15={regression.package_version()}")
        source = next(folder.glob("*.orig.tar.*"))
    tree = folder / "source"
    if source.is_dir():
        for part in PARTS:
            shutil.copytree(source / part, tree / part)
    else:
        with tarfile.open(source) as archive:
            for member in archive:
                _, _, inner = member.name.partition("/")
                if member.isfile() and inner.startswith(PARTS) and ".." not in inner.split("/"):
                    path = tree / inner
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.extractfile(member).read())
    if os.geteuid() == 0:
        run(["chown", "-R", "postgres:postgres", tree])
    return tree


class Server:
    """A stock server on a fresh cluster in a folder of its own."""

    def __init__(self, release, folder, settings):
        self.release, self.folder, self.port = release, folder, free_port()
        self.data = folder / "data"
        folder.mkdir()
        give_to_server_user(folder)
        self.call("initdb", "-D", self.data, "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale")
        with open(self.data / "postgresql.conf", "a") as configuration:
            configuration.write(f"{SETTINGS}{settings}\nport = {self.port}\nunix_socket_directories = '{folder}'\n")
        self.call("pg_ctl", "-D", self.data, "-w", "-s", "-l", folder / "log", "start")

    def environment(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
        # Modules that connect back find the server by these.
        return kept | {"HOME": str(self.folder), "PGHOST": str(self.folder), "PGUSER": "postgres"}

    def call(self, program, *words):
        run(as_server_user([self.release.programs / program, *words]), cwd=self.folder, env=self.environment())

    def stop(self):
        self.call("pg_ctl", "-D", self.data, "-w", "-s", "-m", "fast", "stop")


def build_library(release, tree, folder):
    """The C functions that the regression suite loads."""
    folder.mkdir()
    run(["cc", "-shared", "-fPIC", "-O2", "-fwrapv", "-fno-strict-aliasing", "-D_GNU_SOURCE", "-I", release.headers,
         "-o", folder / "regress.so", tree / "src/test/regress/regress.c"])
    for module in ("refint.so", "autoinc.so"):
        shutil.copy(release.modules / module, folder)


def run_tests(server, program, folder, library, *words):
    """Runs one of PostgreSQL's test programs in the folder of a suite; how many tests passed, and which did not."""
    output = server.folder / "output" / folder.name
    output.mkdir(parents=True, exist_ok=True)
    give_to_server_user(output)
    command = [server.release.runners / program, f"--bindir={server.release.programs}", f"--inputdir={folder}",
               f"--outputdir={output}", f"--dlpath={library}", "--host=127.0.0.1", f"--port={server.port}",
               "--user=postgres", "--encoding=UTF8", "--no-locale", "--max-concurrent-tests=20", *words]
    done = subprocess.run([str(word) for word in as_server_user(command)], cwd=folder, env=server.environment(),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    failed = re.findall(r"(?:test)?\s+(\S+)\s+\.\.\. (?:failed|FAILED)", done.stdout)
    return len(re.findall(r"\.\.\. ok", done.stdout)), failed


def modules_with_tests(tree):
    """Folder, regression tests and isolation tests of each module of contrib, and of PL/pgSQL."""
    for makefile in [*sorted(tree.glob("contrib/*/Makefile")), tree / "src/pl/plpgsql/src/Makefile"]:
        text = makefile.read_text().replace("\\\n", " ")
        lists = []
        for variable in ("REGRESS", "ISOLATION"):
            found = re.search(rf"^{variable}\s*=\s*(.*)$", text, re.M)
            lists.append([word for word in (found[1].split() if found else []) if "$" not in word])
        if any(lists) and not LEFT_OUT.fullmatch(makefile.parent.name):
            yield makefile.parent, *lists


def run_suite(server, suite, tree, library):
    regress, isolation = "regress/pg_regress", "isolation/pg_isolation_regress"
    if suite == "regress":
        folder = tree / "src/test/regress"
        return run_tests(server, regress, folder, library, f"--schedule={folder / 'parallel_schedule'}")
    if suite == "isolation":
        folder = tree / "src/test/isolation"
        return run_tests(server, isolation, folder, library, f"--schedule={folder / 'isolation_schedule'}")
    passed, failed = 0, []
    for folder, tests, isolation_tests in modules_with_tests(tree):
        for program, names in ((regress, tests), (isolation, isolation_tests)):
            if names:
                database = f"--dbname=tests_{folder.name}"
                more_passed, more_failed = run_tests(server, program, folder, library, database, *names)
                passed, failed = passed + more_passed, failed + more_failed
    return passed, failed


def check(release, suite, tree, folder, borealis):
    """Whether redo made everything of the suite's WAL equal."""
    begin = time.monotonic()
    server = Server(release, folder / suite, SETTINGS_OF_SUITES[suite])
    try:
        library = server.folder / "library"
        build_library(release, tree, library)
        passed, failed = run_suite(server, suite, tree, library)
    finally:
        server.stop()
    print(f"{release.version} {suite}: {passed} tests passed, {len(failed)} failed{': ' if failed else ''}"
          f"{' '.join(failed)}", flush=True)
    done = subprocess.run([borealis, "redo-check", "--server-version", release.version, server.data / "pg_wal"],
                          stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        print("\n".join(lines[:-1]))
    total = lines[-1] if lines else "no report"
    print(f"{release.version} {suite}: {total} ({time.monotonic() - begin:.0f} s)", flush=True)
    shutil.rmtree(server.data)
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=pathlib.Path, metavar="PG_BIN", help="folder with the release's programs")
    parser.add_argument("--suite", action="append", choices=SETTINGS_OF_SUITES, help="only this one")
    parser.add_argument("--headers", type=pathlib.Path, help="folder with the server's postgres.h")
    parser.add_argument("--source", type=pathlib.Path,
                        help="PostgreSQL's source, a folder or a tarball (default: Debian's of the installed release)")
    parser.add_argument("--dir", type=pathlib.Path, help="folder for servers and WAL (default: a temporary one)")
    parser.add_argument("--borealis", type=pathlib.Path, default=regression.TARGET / "release" / "borealis")
    arguments = parser.parse_args()
    if not arguments.borealis.exists():
        sys.exit("build first: cargo build --release")
    with tempfile.TemporaryDirectory(prefix="borealis-release-", dir=arguments.dir or "/var/tmp") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        try:
            release = Release(arguments.programs, arguments.headers)
            tree = unpack(arguments.source, folder)
            suites = arguments.suite or list(SETTINGS_OF_SUITES)
            equal = [check(release, suite, tree, folder, arguments.borealis) for suite in suites]
        except Failure as failure:
            sys.exit(str(failure))
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
