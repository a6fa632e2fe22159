//! Physical replication and base backups: refused, and the client is told why.
//!
//! The server's own log begins at its last start, in the middle of a segment whose older part is zeros, and is gone
//! after the next one. A standby, an archive or a base backup fed from it would sooner or later miss rows that were
//! acknowledged, and look whole. So nobody gets them until log can be read back from the storage nodes.
//!
//! * A connection for physical replication (`replication=true`: standbys, `pg_receivewal`, `pg_basebackup`) ends when
//!   it has authenticated, by PostgreSQL's hook for libraries that do such things (`src/include/libpq/auth.h`).
//! * A connection for logical replication (`replication=database`) may give the same commands. There the files are
//!   refused that these need: segments of the log, unless a logical slot is in use, and the list of the data directory.
//!
//! Logical decoding is served: its slots live as long as the log that they need, to the end of this server.
//!
//! One program gets past: the holder of the pass ([`REPLICATION_PASS_NAME`]), which reads this server's log for what it
//! is.

use std::ffi::CStr;
use std::sync::OnceLock;

use borealis_shm::path::REPLICATION_PASS_NAME;
use libc::{c_char, c_int, c_void};

use crate::path_buffer::PathBuffer;
use crate::real::{errno, set_errno};

/// `ClientAuthentication_hook_type`.
type AuthenticationHook = unsafe extern "C" fn(port: *mut c_void, status: c_int);

/// `STATUS_OK` (`src/include/c.h`): the client has authenticated.
const STATUS_OK: c_int = 0;
/// Levels of messages (`src/include/utils/elog.h`, since version 14).
const WARNING: c_int = 19;
const FATAL: c_int = 22;
/// `ERRCODE_FEATURE_NOT_SUPPORTED`, 0A000, as `MAKE_SQLSTATE` packs it.
const FEATURE_NOT_SUPPORTED: c_int = 17 << 6;

/// Where `ReplicationSlot` (`src/include/replication/slot.h`, version 15) has `data.database`, which is zero in a physical
/// slot: `data` is aligned to eight bytes after what fills less than 24, with a spin lock of one byte or four, and begins
/// with a name of 64.
const SLOT_DATABASE_OFFSET: usize = 24 + 64;

const MESSAGE: &CStr = c"physical replication and base backups are not possible with Borealis";
const DETAIL: &CStr = c"This server has only the log since its last start. A standby, an archive or a backup made from it would miss acknowledged rows.";
const HINT: &CStr = c"Use logical replication or pg_dump. All data is on six storage nodes already.";

/// PostgreSQL's own functions and variables, by their names.
struct Server {
    am_walsender: *const u8,
    am_db_walsender: *const u8,
    my_replication_slot: *const *const u8,
    errstart: unsafe extern "C" fn(level: c_int, domain: *const c_char) -> bool,
    errcode: unsafe extern "C" fn(code: c_int) -> c_int,
    errmsg: unsafe extern "C" fn(format: *const c_char, ...) -> c_int,
    errdetail: unsafe extern "C" fn(format: *const c_char, ...) -> c_int,
    errhint: unsafe extern "C" fn(format: *const c_char, ...) -> c_int,
    errfinish: unsafe extern "C" fn(file: *const c_char, line: c_int, function: *const c_char),
    /// Another library's hook, which was there before.
    earlier_hook: Option<AuthenticationHook>,
    /// The pass, if somebody has one.
    pass: PathBuffer,
}

// SAFETY: the pointers are to functions and variables of the program, which live as long as the process; the variables
// are set by the one thread that PostgreSQL's processes have.
unsafe impl Send for Server {}
// SAFETY: as above.
unsafe impl Sync for Server {}

static SERVER: OnceLock<Server> = OnceLock::new();

/// The program's symbol; `None` if it has none of this name.
fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a C string; looking a symbol up has no other precondition.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// From now on refuses, in this process and its children. `None` if the program is not one whose connections this can
/// see.
///
/// Call it before the program's own code runs.
pub(crate) fn watch(data_directory: &[u8]) -> Option<()> {
    let hook = symbol(c"ClientAuthentication_hook")?.cast::<Option<AuthenticationHook>>();
    // SAFETY: the functions and variables of these names have these types in PostgreSQL (`src/include/utils/elog.h`,
    // `replication/walsender.h`, `replication/slot.h`, `libpq/auth.h`); a `bool` of C is one byte. Nothing else runs yet.
    unsafe {
        let server = Server {
            am_walsender: symbol(c"am_walsender")?.cast(),
            am_db_walsender: symbol(c"am_db_walsender")?.cast(),
            my_replication_slot: symbol(c"MyReplicationSlot")?.cast(),
            errstart: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int, *const c_char) -> bool>(
                symbol(c"errstart")?,
            ),
            errcode: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> c_int>(symbol(
                c"errcode",
            )?),
            errmsg: message_function(c"errmsg_internal")?,
            errdetail: message_function(c"errdetail_internal")?,
            errhint: message_function(c"errhint")?,
            errfinish: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*const c_char, c_int, *const c_char),
            >(symbol(c"errfinish")?),
            earlier_hook: *hook,
            pass: PathBuffer::beside(data_directory, REPLICATION_PASS_NAME)?,
        };
        if SERVER.set(server).is_ok() {
            *hook = Some(authenticated);
        }
    }
    Some(())
}

/// One of PostgreSQL's functions that take a format and arguments.
///
/// # Safety
/// The name is that of such a function.
unsafe fn message_function(name: &CStr) -> Option<unsafe extern "C" fn(*const c_char, ...) -> c_int> {
    // SAFETY: the caller's promise.
    Some(unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char, ...) -> c_int>(symbol(name)?)
    })
}

/// Called by PostgreSQL when a client has authenticated, or has failed to.
unsafe extern "C" fn authenticated(port: *mut c_void, status: c_int) {
    let Some(server) = SERVER.get() else { return };
    if let Some(earlier) = server.earlier_hook {
        // SAFETY: another library's hook, called as PostgreSQL would.
        unsafe { earlier(port, status) };
    }
    if status == STATUS_OK && server.is_physical() && !server.has_pass() {
        server.say(FATAL);
    }
}

/// Whether this process must not open a segment of the log for reading: it would send it to another server. Then the client has
/// been told, and `errno` is set.
pub(crate) fn refuses_log() -> bool {
    refuses(|server| server.sends_log() && !server.uses_logical_slot())
}

/// Whether this process must not list the folder, as the first step of a base backup.
pub(crate) fn refuses_folder(path: &CStr) -> bool {
    path.to_bytes() == b"." && refuses(|server| server.sends_log() && !server.uses_logical_slot())
}

fn refuses(condition: impl Fn(&Server) -> bool) -> bool {
    let Some(server) = SERVER.get() else { return false };
    let before = errno();
    let refused = condition(server) && !server.has_pass();
    if refused {
        server.say(WARNING);
    }
    set_errno(if refused { libc::EOPNOTSUPP } else { before });
    refused
}

impl Server {
    fn sends_log(&self) -> bool {
        // SAFETY: a variable of the program, which its only thread changes.
        unsafe { self.am_walsender.read_volatile() != 0 }
    }

    fn is_physical(&self) -> bool {
        // SAFETY: as above.
        self.sends_log() && unsafe { self.am_db_walsender.read_volatile() == 0 }
    }

    fn uses_logical_slot(&self) -> bool {
        // SAFETY: a variable of the program, which its only thread changes. It is null or points to a slot in shared
        // memory that this process holds, so that nobody else changes whose it is.
        unsafe {
            let slot = self.my_replication_slot.read_volatile();
            !slot.is_null() && slot.add(SLOT_DATABASE_OFFSET).cast::<u32>().read_volatile() != 0
        }
    }

    /// Whether a process with the pass runs.
    fn has_pass(&self) -> bool {
        let mut text = [0u8; 16];
        // SAFETY: the path is a C string and the buffer is writable for the length given. Raw calls, because this library
        // replaces `open` and `read`; the descriptor is known to nobody else.
        let length = unsafe {
            let flags = libc::O_RDONLY | libc::O_CLOEXEC;
            let path = self.pass.as_c_str().as_ptr();
            let descriptor = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, 0);
            if descriptor < 0 {
                return false;
            }
            let length = libc::syscall(libc::SYS_read, descriptor, text.as_mut_ptr(), text.len());
            libc::syscall(libc::SYS_close, descriptor);
            length
        };
        let holder = usize::try_from(length).ok().and_then(|length| text.get(..length)).and_then(|text| {
            std::str::from_utf8(text).ok()?.trim().parse::<c_int>().ok().filter(|holder| *holder > 0)
        });
        // SAFETY: signal zero only asks whether there is such a process; one of another user counts.
        holder.is_some_and(|holder| unsafe { libc::kill(holder, 0) } == 0 || errno() == libc::EPERM)
    }

    /// Tells the client; with [`FATAL`], PostgreSQL ends the process in here.
    fn say(&self, level: c_int) {
        // SAFETY: PostgreSQL's own way to report (`ereport`), in a process of its that serves a client. The texts have
        // no format directives. No destructor of ours is pending, should the process end.
        unsafe {
            if (self.errstart)(level, std::ptr::null()) {
                (self.errcode)(FEATURE_NOT_SUPPORTED);
                (self.errmsg)(MESSAGE.as_ptr());
                (self.errdetail)(DETAIL.as_ptr());
                (self.errhint)(HINT.as_ptr());
                (self.errfinish)(c"borealis".as_ptr(), 0, c"replication".as_ptr());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_no_format_directives() {
        for text in [MESSAGE, DETAIL, HINT] {
            assert!(!text.to_bytes().contains(&b'%'), "{text:?}");
        }
    }
}
