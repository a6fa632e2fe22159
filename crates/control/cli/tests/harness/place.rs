//! A copy of the program somewhere on the machine, used by somebody, in some environment.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::{free_port, text};

/// Where and how the program is used. Everything is removed when it is dropped.
pub struct Place {
    _folder: tempfile::TempDir,
    /// The copy of the program; its shim stands beside it.
    pub program: PathBuf,
    /// The cluster's directory.
    pub dir: PathBuf,
    pub port: u16,
    /// User and group, if not the test's own.
    user: Option<(u32, u32)>,
    environment: Option<Vec<(&'static str, OsString)>>,
    umask: Option<libc::mode_t>,
    /// Mounts of its own.
    mounts: Option<Mounts>,
    /// A program that starts the others, with its words.
    prefix: Vec<&'static str>,
    /// A system call that a filter refuses with "Operation not permitted".
    refused_call: Option<libc::c_long>,
    /// More words for `up`.
    pub up_arguments: Vec<OsString>,
}

impl Place {
    /// In a new folder of mode 0755 below `parent`; the program is in a folder `bin` of it.
    pub fn below(parent: &Path) -> Place {
        Place::named(parent, "bin", "cluster")
    }

    /// With other names for the folders.
    pub fn named(parent: &Path, bin: &str, cluster: &str) -> Place {
        let folder = tempfile::Builder::new().prefix("borealis-test-").tempdir_in(parent).expect("a folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
        let bin = folder.path().join(bin);
        std::fs::create_dir_all(&bin).expect("made");
        let built = Path::new(env!("CARGO_BIN_EXE_borealis"));
        let program = bin.join("borealis");
        for name in ["borealis", "libborealis_shim.so"] {
            std::fs::copy(built.with_file_name(name), bin.join(name)).expect("copied");
        }
        Place {
            program,
            dir: folder.path().join(cluster),
            port: free_port(),
            user: None,
            environment: None,
            umask: None,
            mounts: None,
            prefix: Vec::new(),
            refused_call: None,
            up_arguments: Vec::new(),
            _folder: folder,
        }
    }

    pub fn folder(&self) -> &Path {
        self._folder.path()
    }

    /// Used by this user; the folder becomes theirs.
    pub fn by_user(mut self, user: u32, group: u32) -> Place {
        std::os::unix::fs::chown(self.folder(), Some(user), Some(group)).expect("given");
        self.user = Some((user, group));
        self
    }

    /// With nothing in the environment but these, and `PATH`.
    pub fn with_environment(mut self, variables: &[(&'static str, &str)]) -> Place {
        let mut all = vec![("PATH", OsString::from("/usr/local/bin:/usr/bin:/bin"))];
        all.extend(variables.iter().map(|(name, value)| (*name, OsString::from(value))));
        self.environment = Some(all);
        self
    }

    pub fn with_umask(mut self, umask: libc::mode_t) -> Place {
        self.umask = Some(umask);
        self
    }

    /// After this script, which may mount what it likes: nobody else sees it.
    pub fn with_mounts(mut self, script: &str) -> Place {
        self.mounts = Some(Mounts::after(script));
        self
    }

    /// Started by this program, which must end with `exec`.
    pub fn started_by(mut self, prefix: &[&'static str]) -> Place {
        self.prefix = prefix.to_vec();
        self
    }

    /// With a filter that refuses this system call.
    pub fn refusing(mut self, call: libc::c_long) -> Place {
        self.refused_call = Some(call);
        self
    }

    /// A program with this place's user, environment and mounts.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match &self.mounts {
            Some(mounts) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &mounts.holder.id().to_string(), "--mount", "--"]).arg(program);
                command
            }
            None => match self.prefix.split_first() {
                Some((first, words)) => {
                    let mut command = Command::new(first);
                    command.args(words).arg(program);
                    command
                }
                None => Command::new(program),
            },
        };
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        if let Some(environment) = &self.environment {
            command.env_clear().envs(environment.iter().cloned());
        }
        let (umask, refused_call) = (self.umask, self.refused_call);
        // SAFETY: between fork and exec only system calls are made, on memory of this frame.
        unsafe {
            command.pre_exec(move || {
                if let Some(umask) = umask {
                    libc::umask(umask);
                }
                refused_call.map_or(Ok(()), refuse_call)
            });
        }
        command.current_dir(self.dir.parent().expect("a folder"));
        command
    }

    /// Runs `borealis` with these words and `--dir`.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(&self.program).arg("--dir").arg(&self.dir).args(arguments).output().expect("it runs")
    }

    pub fn up(&self) -> Output {
        let port = self.port.to_string();
        let mut command = self.command(&self.program);
        command.args(["up", "--detach", "--port", &port]).args(&self.up_arguments);
        command.arg("--dir").arg(&self.dir).output().expect("it runs")
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn sql(&self, statement: &str) -> String {
        self.ok(&["psql", "--", "-X", "-A", "-t", "-c", statement]).trim().to_owned()
    }

    /// What the README promises: work, lose the server and everything it had, find all of it again.
    pub fn main_job(&self) {
        let up = self.up();
        assert!(up.status.success(), "up: {}", text(&up));
        self.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id");
        self.ok(&["instance", "kill"]);
        std::fs::remove_dir_all(self.dir.join("instances")).expect("what the README says one may do");
        self.ok(&["instance", "start"]);
        assert_eq!(self.sql("SELECT count(*), sum(id) FROM kept"), "1000|500500");
        assert!(self.ok(&["status"]).contains("writer"));
        assert!(self.ok(&["verify"]).contains("no difference"));
        self.ok(&["down"]);
        let memory = super::memory_directory_of(&self.dir);
        assert_eq!(super::memory_folders(&memory), [] as [PathBuf; 0], "memory was left behind");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.dir.join("cluster.json").exists() {
            // A test that failed may have left it running.
            let _ = self.run(&["down"]);
        }
    }
}

/// A process that keeps a mount namespace of its own until its input ends.
struct Mounts {
    holder: Child,
}

impl Mounts {
    fn after(script: &str) -> Mounts {
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-e", "-c"])
            .arg(format!("{script}\necho ready; exec cat"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare, of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n", "the mounts could not be made: {script}");
        Mounts { holder }
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Installs a filter that answers one system call with `EPERM` and lets all others through.
fn refuse_call(call: libc::c_long) -> std::io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        // The call's number stands at the start of `struct seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(call as u32, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its statements outlive the call, which copies them.
    let status = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
