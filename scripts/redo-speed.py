#!/usr/bin/env python3
"""How fast redo is: PostgreSQL's startup process and Borealis on the same WAL, in one run, round by round.

    scripts/redo-speed.py [--rounds 5] [--size 1.0] [--only tpcb,btree] [--folder /dev/shm]

For each workload: a stock PostgreSQL (full_page_writes=off) is shut down, copied, started, loaded without a
checkpoint, and killed. Then the rounds alternate:

* PostgreSQL recovers a fresh copy. Files are on a memory file system, all pages fit shared_buffers, nothing is
  synced, checkpoints are out of the way. What its startup process used of a core is in its log ("redo done at …
  system usage"), to 10 ms.
* The example `redo_bench` of borealis-redo does the same from the same files, in one thread.

Both are counted in time on a core, which says the same on a busy machine. "ratio, user" counts only the user time
of the startup process, as if its system calls (reading WAL and pages) were free. After the first round every page
is compared with those that PostgreSQL's recovery left.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
POSTGRES = pathlib.Path("/usr/lib/postgresql/15/bin")
SETTINGS = """
listen_addresses = ''
fsync = off
synchronous_commit = off
full_page_writes = off
autovacuum = off
wal_level = replica
max_wal_size = 200GB
wal_keep_size = 200GB
checkpoint_timeout = 1h
bgwriter_lru_maxpages = 0
shared_buffers = 2GB
recovery_prefetch = off
max_prepared_transactions = 10
jit = off
dynamic_shared_memory_type = mmap
log_line_prefix = '%m '
log_min_messages = log
"""

# Each is (SQL before the copy, what makes the WAL: SQL, or pgbench arguments and script). {n} is the number of
# rows, --size times the number that stands first.
WORKLOADS = {
    "tpcb": (100_000, "PGBENCH 10", ("-c 4 -j 2 -M prepared", None)),
    "copy": (2_000_000, "create table t (a int, b text, c int); create table n (a int);", """
        copy t from program 'seq {n} | awk ''{{ print $1 "\\trow " $1 "\\t" $1 % 7 }}''';
        copy n from program 'seq {n}';
        """),
    "heap": (120_000, """
        create table t (a int, b int, c text) with (fillfactor = 60);
        insert into t select i, i, 'a row ' || i from generate_series(1, {n}) i; vacuum t;
        create table w (a int, b text); insert into w select i, 'b' from generate_series(1, {n}) i; vacuum w;
        """, """
        update t set b = b + 1;
        update t set b = b + 1, c = c || '.';
        update w set b = 'changed ' || a;
        begin; select count(*) from (select * from t for update) x; commit;
        delete from w where a % 3 = 0;
        insert into w select i, 'again' from generate_series(1, {n}) i;
        begin; update t set b = 0 where a % 2 = 0; rollback;
        vacuum t; vacuum (freeze) w;
        select count(*) from t;
        """),
    "rows": (150_000, """
        create table p (a int primary key, b int); insert into p select i, 0 from generate_series(1, 1000) i;
        create sequence s; vacuum p;
        """, ("-c 4 -j 2 -n -M prepared", """
        \\set a random(1, 1000)
        begin;
        select * from p where a = :a for key share;
        select nextval('s');
        savepoint one; update p set b = b + 1 where a = :a; release one;
        end;
        """)),
    "btree": (250_000, """
        create table t (a int, b text);
        create index t_a on t (a); create index t_b on t (b);
        """, """
        insert into t select (i * 7919::bigint) % 1000003, 'value ' || i % 1000 from generate_series(1, {n}) i;
        delete from t where a % 10 < 5; vacuum t;
        insert into t select i, md5(i::text) from generate_series(1, {n} / 2) i;
        """),
    "hash": (250_000, "create table t (a int, b text); create index on t using hash (a);", """
        insert into t select i, 'x' from generate_series(1, {n}) i;
        delete from t where a % 3 = 0; vacuum t;
        insert into t select -i, 'x' from generate_series(1, {n} / 2) i;
        """),
    "gin": (60_000, "create table t (a int[]); create index on t using gin (a) with (fastupdate = off);", """
        insert into t select array[i % 7, i % 300, i, i * 2, i % 5000] from generate_series(1, {n}) i;
        delete from t where a[1] = 3; vacuum t;
        """),
    "gist": (150_000, "create table t (p point); create index on t using gist (p);", """
        insert into t select point(i * 7919 % 10007, i * 104729::bigint % 9973) from generate_series(1, {n}) i;
        delete from t where p[0] < 3000; vacuum t;
        """),
    "spgist": (150_000, "create table t (w text, p point); create index on t using spgist (w);"
                        "create index on t using spgist (p);", """
        insert into t select 'http://example.test/' || i % 13 || '/' || md5(i::text), point(i % 1009, i * 7919 % 10007)
            from generate_series(1, {n}) i;
        delete from t where p[0] < 300; vacuum t;
        """),
    "brin": (400_000, "create table t (a int, b text) with (fillfactor = 20);"
                      "create index on t using brin (a) with (pages_per_range = 1, autosummarize = off);", """
        insert into t select i, 'some text' from generate_series(1, {n}) i;
        select brin_summarize_new_values('t_a_idx');
        insert into t select i % 1000 * 7919, 'wider' from generate_series(1, {n} / 4) i;
        """),
    "bloom": (60_000, "create extension bloom; create table t (a int, b int); create index on t using bloom (a, b);",
              "insert into t select i, i % 10 from generate_series(1, {n}) i;"),
}


def as_server_user(command):
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


def run(command, text=None, check=True):
    command = [str(part) for part in command]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Cluster:
    """A data directory and its server."""

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"

    def initialize(self):
        self.folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        run(as_server_user([POSTGRES / "initdb", "--no-sync", "--auth=trust", "--username=postgres", "-D", self.data]))
        with open(self.data / "postgresql.conf", "a") as configuration:
            configuration.write(SETTINGS)

    def copy_to(self, folder):
        run(["cp", "-a", self.folder, folder])
        other = Cluster(folder)
        other.log.unlink(missing_ok=True)
        return other

    def start(self):
        options = f"-c unix_socket_directories={self.folder}"
        run(as_server_user([POSTGRES / "pg_ctl", "-D", self.data, "-w", "-t", "3600", "-s", "-l", self.log, "-o",
                            options, "start"]))

    def stop(self):
        run(as_server_user([POSTGRES / "pg_ctl", "-D", self.data, "-w", "-t", "3600", "-s", "-m", "fast", "stop"]))

    def kill(self):
        """SIGKILL to the server and all its processes."""
        server = int((self.data / "postmaster.pid").read_text().split()[0])
        children = run(["ps", "-o", "pid=", "--ppid", server], check=False).split()
        for pid in [server, *map(int, children)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in [server, *children]):
            time.sleep(0.02)
        (self.data / "postmaster.pid").unlink()

    def client(self, program, arguments, text=None):
        return run(as_server_user([POSTGRES / program, "-h", self.folder, "-U", "postgres", *arguments]), text)

    def sql(self, script):
        self.client("psql", ["-X", "-q", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1", "-d", "postgres"], script)

    def control(self, label):
        text = run([POSTGRES / "pg_controldata", self.data])
        return re.search(rf"^{re.escape(label)}:\s*(.*)$", text, re.M).group(1)


def make_wal(name, size, folder):
    """The cluster before the workload, and the killed one with the workload's WAL."""
    rows, before, load = WORKLOADS[name]
    rows = int(rows * size)
    base = Cluster(folder / "base")
    base.initialize()
    base.start()
    if before.startswith("PGBENCH"):
        base.client("pgbench", ["-i", "-q", "-s", before.split()[1], "postgres"])
        base.sql("vacuum;")
    else:
        base.sql(before.format(n=rows))
    base.stop()
    killed = base.copy_to(folder / "killed")
    killed.start()
    if isinstance(load, str):
        killed.sql(load.format(n=rows))
    else:
        arguments, script = load
        arguments = arguments.split()
        clients = int(arguments[arguments.index("-c") + 1])
        if script:
            path = folder / "script.sql"
            path.write_text("\n".join(line.strip() for line in script.strip().splitlines()))
            path.chmod(0o644)
            arguments += ["-f", str(path)]
        killed.client("pgbench", [*arguments, "-t", str(rows // clients), "postgres"])
    # What is committed asynchronously may still be in memory only.
    killed.sql("set synchronous_commit = on; select pg_current_xact_id(); create table written (a int);")
    killed.kill()
    return base, killed


def postgres_round(base, killed, folder, keep):
    """Seconds of a core that redo took PostgreSQL (user and system), and the cluster if it is to be kept."""
    cluster = base.copy_to(folder / "recovered")
    shutil.rmtree(cluster.data / "pg_wal")
    run(["cp", "-a", killed.data / "pg_wal", cluster.data / "pg_wal"])
    run(["cp", "-a", killed.data / "global/pg_control", cluster.data / "global/pg_control"])
    cluster.start()
    cluster.stop()
    log = cluster.log.read_text()
    done = re.search(r"redo done at (\S+) system usage: CPU: user: ([0-9.]+) s, system: ([0-9.]+) s, "
                     r"elapsed: ([0-9.]+) s", log)
    if not done:
        sys.exit(f"PostgreSQL's log does not tell what redo cost:\n{log}")
    times = (float(done.group(2)), float(done.group(3)))
    if keep:
        return times, cluster
    shutil.rmtree(cluster.folder)
    return times, None


def borealis_round(bench, base, killed, start, options):
    out = subprocess.run([str(part) for part in [bench, "--base", base.data, "--wal", killed.data / "pg_wal", "--from",
                                                 start, *options]], capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"the benchmark failed:\n{out.stdout}\n{out.stderr}")
    return json.loads(out.stdout)


def spread(values, digits=0):
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measure(name, arguments, bench, folder, totals):
    base, killed = make_wal(name, arguments.size, folder)
    start = base.control("Latest checkpoint location")
    stock, ours, checked, last = [], [], "", None
    for number in range(arguments.rounds):
        times, recovered = postgres_round(base, killed, folder, number == 0)
        stock.append(times)
        options = []
        if recovered:
            options = ["--final", recovered.data, "--profile"]
        last = borealis_round(bench, base, killed, start, options)
        ours.append(last)
        if recovered:
            checked = f"{last['compared']} ({last['identical']})"
            for manager, tally in last["resource_managers"].items():
                total = totals.setdefault(manager, [0, 0])
                total[0] += tally["records"]
                total[1] += tally["ns"]
            shutil.rmtree(recovered.folder)
    records = last["records"]
    stock_ns = [sum(times) * 1e9 / records for times in stock]
    stock_user_ns = [times[0] * 1e9 / records for times in stock]
    ours_ns = [round_["cpu_ns"] / records for round_ in ours]
    ratios = [theirs / own for theirs, own in zip(stock_ns, ours_ns)]
    user_ratios = [theirs / own for theirs, own in zip(stock_user_ns, ours_ns)]
    decode = statistics.median(round_["decode_effects_cpu_ns"] / records for round_ in ours)
    print(f"| {name} | {records} | {last['record_bytes'] / records:.0f} | {spread(stock_ns)} | {spread(ours_ns)} "
          f"| {decode:.0f} | {1e6 / statistics.median(ours_ns):.0f} "
          f"| **{spread(ratios, 1)}** | {spread(user_ratios, 1)} | {checked} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=float, default=1.0, help="factor for the number of rows")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, separated by commas")
    parser.add_argument("--folder", default="/dev/shm", help="where everything is put, in a folder of its own")
    arguments = parser.parse_args()
    unknown = set(arguments.only.split(",")) - set(WORKLOADS)
    if unknown:
        sys.exit(f"no such workload: {', '.join(sorted(unknown))}")

    run(["cargo", "build", "--release", "--locked", "-q", "-p", "borealis-redo", "--example", "redo_bench",
         "--manifest-path", ROOT / "Cargo.toml"])
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    bench = target / "release" / "examples" / "redo_bench"
    print("Nanoseconds on a core per record, median and range of the rounds. Checked: pages equal to those of"
          " PostgreSQL's recovery (of which byte for byte).\n")
    print("| workload | records | bytes each | PostgreSQL | Borealis | of which decoding | thousand records/s "
          "| ratio | ratio, user | checked |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    totals = {}
    for name in arguments.only.split(","):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="redo-speed-", dir=arguments.folder))
        folder.chmod(0o755)
        try:
            measure(name, arguments, bench, folder, totals)
        finally:
            for pid_file in folder.glob("*/data/postmaster.pid"):
                Cluster(pid_file.parent.parent).kill()
            shutil.rmtree(folder)
    print("\nBorealis by resource manager, over all workloads, everything included:\n")
    print("| resource manager | records | ns per record |\n|---|---|---|")
    for manager, (records, ns) in sorted(totals.items(), key=lambda item: -item[1][0]):
        print(f"| {manager} | {records} | {ns / records:.0f} |")


if __name__ == "__main__":
    main()
