#!/usr/bin/env python3
"""PostgreSQL's own regression suite on a Borealis cluster, and what must hold after it.

    scripts/regression.py [--suite isolation] [--tests NAME…] [--consistency] [--pg-set NAME=VALUE]… [--keep]

Takes the suite of the installed server's exact version from Debian's source package (or from --source), starts
six storage nodes and one PostgreSQL with shared_buffers=16MB, and runs the schedule. The expected files are
PostgreSQL's own, untouched. Then the instance is killed, its directory deleted, and it is started again: dumps
before and after must be equal, pg_amcheck and pg_visibility must find nothing, all six peers must hold the same
bytes, and an ordinary server on what `borealis export base` writes must give the same dump. Exits 1 if anything failed. Needs a release build, a C compiler and, for the first run, the network.
"""
import argparse
import contextlib
import difflib
import itertools
import json
import os
import pathlib
import pwd
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
POSTGRES = pathlib.Path("/usr/lib/postgresql/15/bin")
# Where the programs that run the suites are, each in its suite's folder.
RUNNERS = pathlib.Path("/usr/lib/postgresql/15/lib/pgxs/src/test")
# Where the server's own modules are; the suite wants two of contrib's beside its own.
MODULES = pathlib.Path("/usr/lib/postgresql/15/lib")
INSTALLED_HEADERS = pathlib.Path("/usr/include/postgresql/15/server")
SUITES_IN_SOURCE = "src/test"
# Of each suite: the program that runs it, and its schedule.
SUITES = {
    "regress": ("pg_regress", "parallel_schedule"),
    "isolation": ("pg_isolation_regress", "isolation_schedule"),
}
# What pg_regress gives a server that it starts itself: prepared transactions, two at most, are tested.
SETTINGS = {"shared_buffers": "16MB", "max_prepared_transactions": "2"}
LONGEST_DIFFERENCE_LINES = 400


class Failure(Exception):
    """Something that must hold does not; the message says what."""


def run(command, **options):
    """Runs a command and returns what it printed on standard output."""
    command = [str(word) for word in command]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Failure(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def as_server_user(command):
    """PostgreSQL refuses to run as root, and the suite's files are written by both sides."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


def give_to_server_user(folder):
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# The suite: its files, and the library that its tests load into the server.


class PrivateApt:
    """apt-get with the machine's own sources, source packages included, and all its state in one folder."""

    def __init__(self, folder):
        parts = folder / "sources.list.d"
        for inner in (parts, folder / "lists" / "partial", folder / "cache" / "archives" / "partial"):
            inner.mkdir(parents=True)
        lists = [pathlib.Path("/etc/apt/sources.list"), *pathlib.Path("/etc/apt/sources.list.d").glob("*")]
        for path in lists:
            if not path.is_file() or path.suffix not in (".list", ".sources"):
                continue
            text = path.read_text()
            if path.suffix == ".list":
                text += "\n" + re.sub(r"(?m)^deb(?=[ \t])", "deb-src", text)
            else:
                text = re.sub(r"(?m)^Types:.*$", "Types: deb deb-src", text)
            (parts / path.name).write_text(text)
        self.command = ["apt-get", "-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={parts}",
                        "-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}",
                        "-o", "APT::Sandbox::User=root"]
        # A source that has no source packages makes this fail; what is missing is said by the download.
        subprocess.run([*self.command, "update"], capture_output=True)

    def download(self, folder, *words):
        run([*self.command, *words], cwd=folder)


def package_version():
    """The version of the installed server's Debian package, such as 15.18-0+deb12u1."""
    return run(["dpkg-query", "-W", "-f", "${Version}", "postgresql-15"])


def postgres_version():
    """Such as 15.18."""
    return re.search(r"\d+\.\d+", run([POSTGRES / "postgres", "--version"])).group(0)


def headers_version(folder):
    text = folder / "pg_config.h"
    return re.search(r'PG_VERSION "([^" ]+)', text.read_text()).group(1) if text.exists() else None


def unpack_suites(source, suites):
    """Copies the suites out of a source folder or tarball, each into a folder of its name."""
    source = pathlib.Path(source)
    if source.is_dir():
        for name in SUITES:
            shutil.copytree(source / SUITES_IN_SOURCE / name, suites / name)
        return
    with tarfile.open(source) as archive:
        for member in archive:
            _, _, inner = member.name.partition(f"/{SUITES_IN_SOURCE}/")
            words = inner.split("/")
            if words[0] in SUITES and member.isfile() and ".." not in words:
                path = suites / inner
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())


def obtain(source, folder):
    """The folder with `suites` (the tests) and `library` (what they load): made once for each server version, or,
    from a given source, in `folder`."""
    version = postgres_version()
    made = (TARGET / "regression-suite" if source is None else folder / "made") / version
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as temporary:
        temporary = pathlib.Path(temporary)
        apt = None
        headers = INSTALLED_HEADERS
        if source is None or headers_version(headers) != version:
            apt = PrivateApt(temporary / "apt")
        result = temporary / "made"
        result.mkdir()
        if source is None:
            apt.download(temporary, "source", "--download-only", f"postgresql-15={package_version()}")
            source = next(temporary.glob("*.orig.tar.*"))
        unpack_suites(source, result / "suites")
        if headers_version(headers) != version:
            # Unpacked, not installed: nothing of the machine is changed.
            apt.download(temporary, "download", f"postgresql-server-dev-15={package_version()}")
            run(["dpkg", "-x", next(temporary.glob("postgresql-server-dev-15_*.deb")), temporary / "headers"])
            headers = temporary / "headers" / INSTALLED_HEADERS.relative_to("/")
            if headers_version(headers) != version:
                raise Failure(f"no headers for PostgreSQL {version} were found")
        library = result / "library"
        library.mkdir()
        run(["cc", "-shared", "-fPIC", "-O2", "-fwrapv", "-fno-strict-aliasing", "-D_GNU_SOURCE", "-I", headers,
             "-o", library / "regress.so", result / "suites" / "regress" / "regress.c"])
        for module in ("refint.so", "autoinc.so"):
            shutil.copy(MODULES / module, library)
        result.rename(made)
    return made


# The cluster.


class Borealis:
    """Six nodes in three zones, and a stock server on them."""

    def __init__(self, folder, binary):
        self.dir = folder / "cluster"
        self.binary = binary
        self.port = free_port()
        self.environment = os.environ | {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres"}

    def command(self, *words):
        return run([self.binary, *words, "--dir", self.dir])

    def start(self, settings, options):
        sets = itertools.chain.from_iterable(("--pg-set", f"{name}={value}") for name, value in settings.items())
        self.command("up", "--detach", "--port", self.port, *sets, *options)

    def down(self):
        subprocess.run([self.binary, "down", "--dir", self.dir], capture_output=True)

    def status(self):
        return json.loads(self.command("status", "--json"))

    def lose_instance(self):
        """kill -9 of the server and its driver, everything they had deleted, and a start."""
        self.command("instance", "kill")
        shutil.rmtree(self.dir / "instances")
        self.command("instance", "start")

    def client(self, program, *words):
        return run([POSTGRES / program, *words], env=self.environment)

    def sql(self, database, statement):
        """Rows of tab-separated columns."""
        text = self.client("psql", "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", statement, database)
        return [line.split("\t") for line in text.splitlines()]

    def databases(self):
        return [row[0] for row in self.sql("postgres", "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1")]


class Watch(threading.Thread):
    """Looks every second at what cannot be asked for afterwards: the server's files on the memory file system."""

    def __init__(self, borealis):
        super().__init__(daemon=True)
        self.borealis = borealis
        self.highest_cache_bytes = 0
        self.ended = threading.Event()

    def run(self):
        with contextlib.suppress(Failure, OSError, KeyError, IndexError):
            data = pathlib.Path(self.borealis.status()["instances"][0]["data_dir"])
            while not self.ended.wait(1):
                used = 0
                for folder, _, files in os.walk(data):
                    for name in files:
                        with contextlib.suppress(OSError):
                            used += os.lstat(os.path.join(folder, name)).st_blocks * 512
                self.highest_cache_bytes = max(self.highest_cache_bytes, used)

    def report(self):
        self.ended.set()
        self.join()
        status = self.borealis.status()
        instance = status["instances"][0]
        counters = instance["driver"]["counters"]
        nodes = max(resident_mib(node["pid"]) for node in status["nodes"])
        driver = resident_mib(instance["driver_pid"])
        return (f"highest resident memory: node {nodes:.0f} MiB, driver {driver:.0f} MiB; "
                f"the server's files in memory: {self.highest_cache_bytes / 2**20:.0f} MiB; {counters['reads']} pages "
                f"read from nodes, {counters.get('cache_blocks_dropped', 0)} dropped from the page cache")


class Killer(threading.Thread):
    """Keeps killing two of the six nodes, any two, and starting them again."""

    def __init__(self, borealis):
        super().__init__(daemon=True)
        self.borealis = borealis
        self.killed = 0
        self.error = None
        self.ended = threading.Event()

    def run(self):
        # The same nodes in the same order in every run.
        dice = random.Random(1)
        try:
            while not self.ended.wait(dice.uniform(2, 6)):
                victims = dice.sample(range(1, 7), 2)
                self.borealis.command("node", "kill", *victims)
                self.ended.wait(dice.uniform(1, 6))
                self.borealis.command("node", "start", *victims)
                self.killed += len(victims)
        except Failure as failure:
            self.error = failure

    def report(self):
        self.ended.set()
        self.join()
        if self.error:
            raise self.error
        return f"{self.killed} times a node was killed meanwhile and started again, always two at once"


def resident_mib(pid):
    """The most a process ever had."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text).group(1)) / 1024


# The suite's run.


def run_suite(borealis, made, output, name, schedule, tests):
    """Runs a suite; what it prints goes through. Returns the line that says how it ended."""
    output.mkdir()
    give_to_server_user(output)
    # Copied beside the output, because the server's user may not be able to enter the build folder.
    suite, library = output.parent / "suite", output.parent / "library"
    shutil.copytree(made / "suites" / name, suite)
    shutil.copytree(made / "library", library)
    program, usual_schedule = SUITES[name]
    command = [RUNNERS / name / program, f"--bindir={POSTGRES}", f"--inputdir={suite}", f"--outputdir={output}",
               f"--dlpath={library}", "--host=127.0.0.1", f"--port={borealis.port}", "--user=postgres",
               "--encoding=UTF8", "--no-locale", "--max-concurrent-tests=20"]
    if not tests:
        schedule = schedule or usual_schedule
        command.append(f"--schedule={schedule if pathlib.Path(schedule).exists() else suite / schedule}")
    elif name == "regress" and "test_setup" not in tests:
        # Every other test needs what this one makes.
        command += ["test_setup", *tests]
    else:
        command += tests
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    # A core file or psql's history of the server's user would land in its home.
    environment["HOME"] = str(output)
    process = subprocess.Popen([str(word) for word in as_server_user(command)], cwd=output, env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    passed, failed, last = 0, [], ""
    for line in process.stdout:
        print("   ", line.rstrip(), flush=True)
        verdict = re.match(r"(?:test)?\s+(\S+)\s+\.\.\. (ok|failed|FAILED)", line)
        if verdict and verdict.group(2) == "ok":
            passed += 1
        elif verdict:
            failed.append(verdict.group(1))
        last = line.strip(" =\n") or last
    code = process.wait()
    if code == 0 and passed > 0 and not failed:
        return f"{passed} of {passed} tests passed"
    differences = output / "regression.diffs"
    if differences.exists():
        lines = differences.read_text(errors="replace").splitlines()
        print("\n".join(lines[:LONGEST_DIFFERENCE_LINES]))
        if len(lines) > LONGEST_DIFFERENCE_LINES:
            print(f"... {len(lines) - LONGEST_DIFFERENCE_LINES} more lines in {differences}")
    which = " ".join(failed) or last
    raise Failure(f"{passed} tests passed, {len(failed)} failed: {which} ({program} ended with {code})")


# What must hold after it.


def dump(borealis):
    """The whole cluster as SQL, except what PostgreSQL itself loses in a crash: the contents of unlogged tables."""
    words = ["--no-unlogged-table-data"]
    if "--restrict-key" in borealis.client("pg_dumpall", "--help"):
        # Otherwise a random word that differs from dump to dump.
        words.append("--restrict-key=same")
    return borealis.client("pg_dumpall", *words).splitlines()


SETVAL = re.compile(r"SELECT pg_catalog\.setval\('(.*)', (-?\d+), (true|false)\);$")


def sequences_after_a_crash(borealis):
    """What each sequence's line in a dump must say after a crash, by database and the sequence's name.

    PostgreSQL logs a sequence up to 32 values ahead, so that most calls of nextval() write no WAL. The row keeps how
    many of those are left (`log_cnt`); a crash continues after the last of them.
    """
    expected = {}
    for database in borealis.databases():
        sequences = borealis.sql(database, "SELECT format('%I.%I', nspname, relname), seqincrement FROM pg_sequence "
                                 "JOIN pg_class c ON c.oid = seqrelid JOIN pg_namespace n ON n.oid = relnamespace "
                                 "WHERE relpersistence = 'p'")
        for name, increment in sequences:
            value, ahead, called = borealis.sql(database, f"SELECT last_value, log_cnt, is_called FROM {name}")[0]
            after = int(value) + int(ahead) * int(increment)
            expected[database, name] = f"{after}, {'true' if called == 't' else 'false'}"
    return expected


def with_sequences_after_a_crash(lines, expected):
    """A dump with each sequence's value replaced, and how many values that changed."""
    database, result, changed = "postgres", [], 0
    for line in lines:
        connect = re.match(r'\\connect (?:-reuse-previous=on "dbname=\'(.*)\'"|"?([^"]*)"?)$', line)
        if connect:
            database = connect.group(1) or connect.group(2)
        setval = SETVAL.match(line)
        if setval:
            name = setval.group(1).replace("''", "'")
            new = f"SELECT pg_catalog.setval('{setval.group(1)}', {expected[database, name]});"
            changed += new != line
            line = new
        result.append(line)
    return result, changed


def check_unlogged_is_empty(borealis):
    """A crash empties unlogged tables: what is left of them would be what PostgreSQL promises is gone."""
    tables = 0
    for database in borealis.databases():
        for (name,) in borealis.sql(database, "SELECT oid::regclass FROM pg_class WHERE relpersistence = 'u' "
                                    "AND relkind = 'r'"):
            if borealis.sql(database, f"SELECT 1 FROM ONLY {name} LIMIT 1"):
                raise Failure(f"unlogged table {name} in {database} has rows after a crash")
            tables += 1
    return f"{tables} unlogged tables are empty"


def check_restart(borealis):
    before = dump(borealis)
    expected, ahead = with_sequences_after_a_crash(before, sequences_after_a_crash(borealis))
    begin = time.monotonic()
    borealis.lose_instance()
    milliseconds = (time.monotonic() - begin) * 1000
    after = dump(borealis)
    if after != expected:
        lines = list(difflib.unified_diff(expected, after, "before", "after", lineterm="", n=2))
        print("\n".join(lines[:LONGEST_DIFFERENCE_LINES]))
        raise Failure("the dumps before and after differ")
    return (f"instance killed, its directory deleted, started again in {milliseconds:.0f} ms: dumps of "
            f"{len(after)} lines are equal ({ahead} sequences continue after the values they had logged ahead)")


def check_amcheck(borealis):
    borealis.client("pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check")
    return "pg_amcheck --heapallindexed --parent-check finds nothing in any database"


def check_visibility(borealis):
    """pg_visibility's two checks over every table that has a visibility map."""
    tables = 0
    for database in borealis.databases():
        borealis.sql(database, "CREATE EXTENSION IF NOT EXISTS pg_visibility")
        # A crash leaves rows of temporary tables whose files are gone, until autovacuum removes them.
        with_map = "relkind IN ('r', 'm', 't') AND relpersistence <> 't'"
        for check in ("pg_check_frozen", "pg_check_visible"):
            wrong = borealis.sql(
                database, f"SELECT oid::regclass, tid FROM pg_class, LATERAL {check}(oid) AS tid WHERE {with_map}")
            if wrong:
                raise Failure(f"{check} in {database}: {len(wrong)} rows, first {wrong[0]}")
        tables += int(borealis.sql(database, f"SELECT count(*) FROM pg_class WHERE {with_map}")[0][0])
    return f"pg_visibility finds nothing in {tables} tables"


def check_peers(borealis):
    return "borealis verify: " + borealis.command("verify").strip().splitlines()[-1]


class Stock:
    """An ordinary server, without anything of Borealis, on a folder that it may start from."""

    def __init__(self, data):
        self.port = free_port()
        self.environment = os.environ | {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres"}
        self.control = as_server_user([str(POSTGRES / "pg_ctl"), "-D", str(data), "-w", "-t", "120"])
        self.log = data.parent / "stock.log"
        self.log.touch()
        give_to_server_user(self.log)

    def __enter__(self):
        options = f"-c port={self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        run([*self.control, "-l", self.log, "-o", options, "start"], cwd="/")
        return self

    def __exit__(self, *_):
        run([*self.control, "-m", "fast", "stop"], cwd="/")

    def client(self, program, *words):
        return run([POSTGRES / program, *words], env=self.environment)


def check_export(borealis):
    """After check_restart, so that no sequence is ahead of what its page says."""
    folder = borealis.dir.parent / "exported"
    begin = time.monotonic()
    borealis.command("export", "base", "--to", folder)
    seconds = time.monotonic() - begin
    with Stock(folder) as stock:
        # Where a tablespace is, is not the same by intention.
        theirs, ours = ([line for line in dump(server) if not line.startswith("CREATE TABLESPACE")]
                        for server in (stock, borealis))
        stock.client("pg_amcheck", "--all", "--heapallindexed", "--parent-check")
    mib = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    if theirs != ours:
        lines = list(difflib.unified_diff(ours, theirs, "borealis", "stock", lineterm="", n=2))
        print("\n".join(lines[:LONGEST_DIFFERENCE_LINES]))
        raise Failure("the dump of a stock server on the exported folder differs")
    return (f"exported in {seconds:.1f} s ({mib:.0f} MiB); a stock server's dump of {len(theirs)} lines is equal, and "
            f"pg_amcheck finds nothing there")


CHECKS_AFTER = (check_restart, check_unlogged_is_empty, check_amcheck, check_visibility, check_peers, check_export)


def step(check, *arguments):
    """One check: prints its line with its time, and says whether it held."""
    begin = time.monotonic()
    try:
        text, held = check(*arguments), True
    except Failure as failure:
        text, held = str(failure), False
    print(f"{'ok  ' if held else 'FAIL'} {time.monotonic() - begin:7.1f} s  {text}", flush=True)
    return held


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path,
                        help="folder for the cluster and the suite's output (default: a temporary one)")
    parser.add_argument("--source", type=pathlib.Path,
                        help="PostgreSQL's source, a folder or a tarball, instead of Debian's package")
    parser.add_argument("--suite", choices=SUITES, default="regress")
    parser.add_argument("--schedule", help="a file, or the name of one in the suite, instead of the suite's usual one")
    parser.add_argument("--tests", nargs="+", default=[], help="only these, one after the other")
    parser.add_argument("--pg-set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    parser.add_argument("--consistency", action="store_true", help="the same as --pg-set wal_consistency_checking=all")
    parser.add_argument("--cache-limit", metavar="SIZE", help="given to `borealis up`")
    parser.add_argument("--kill-nodes", action="store_true",
                        help="keep killing two nodes and starting them again while the suite runs")
    parser.add_argument("--after", action=argparse.BooleanOptionalAction, default=True,
                        help="check what must hold after the suite")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running and its folder in place")
    parser.add_argument("--borealis", type=pathlib.Path, default=TARGET / "release" / "borealis", help="the binary")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    if not arguments.borealis.exists():
        sys.exit("build first: cargo build --release")
    settings = dict(SETTINGS)
    if arguments.consistency:
        settings["wal_consistency_checking"] = "all"
    settings |= dict(pair.split("=", 1) for pair in arguments.pg_set)
    options = ["--cache-limit", arguments.cache_limit] if arguments.cache_limit else []
    with contextlib.ExitStack() as stack:
        if arguments.dir:
            folder = arguments.dir.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                sys.exit(f"{folder} is not empty")
        else:
            folder = pathlib.Path(tempfile.mkdtemp(prefix="borealis-regression-", dir="/var/tmp"))
            if not arguments.keep:
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        borealis = Borealis(folder, arguments.borealis)
        if not arguments.keep:
            stack.callback(borealis.down)
        try:
            made = obtain(arguments.source, folder)
            borealis.start(settings, options)
        except Failure as failure:
            sys.exit(str(failure))
        print(f"PostgreSQL {postgres_version()} with {' '.join(f'{n}={v}' for n, v in settings.items())} "
              f"{' '.join(options)}", flush=True)
        watch = Watch(borealis)
        watch.start()
        killer = Killer(borealis) if arguments.kill_nodes else None
        if killer:
            killer.start()
        suite = (arguments.suite, arguments.schedule, arguments.tests)
        held = [step(run_suite, borealis, made, folder / "output", *suite)]
        if killer:
            held.append(step(killer.report))
        held.append(step(watch.report))
        if arguments.after:
            held += [step(check, borealis) for check in CHECKS_AFTER]
        if arguments.keep:
            print(f"kept: {borealis.dir}, port {borealis.port}")
        elif arguments.dir is None and not all(held):
            print("nothing is kept; give --keep or --dir to look at it")
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
