//! What the system's administrator put around this process: a security profile, a filter of system calls.
//!
//! Both refuse with the same "Permission denied" or "Operation not permitted" as an ordinary file mode, which sends
//! people to look in the wrong place.

use std::fs;
use std::io;

/// What confines this process, as a clause for an error message; `None` if nothing does.
#[must_use]
pub fn of_this_process() -> Option<String> {
    let profile = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    describe(&profile, &status)
}

/// The same from the content of `/proc/<pid>/attr/current` and `/proc/<pid>/status`.
fn describe(profile: &str, status: &str) -> Option<String> {
    let profile = profile.trim_matches(['\0', '\n', ' ']);
    // AppArmor says `unconfined`, SELinux `unconfined_u:unconfined_r:…`; both have `kernel` for the whole system.
    let is_confined = !profile.is_empty() && !profile.contains("unconfined") && profile != "kernel";
    // `SECCOMP_MODE_DISABLED` is 0 (`linux/seccomp.h`).
    let is_filtered =
        status.lines().find_map(|line| line.strip_prefix("Seccomp:")).is_some_and(|mode| mode.trim() != "0");
    match (is_confined, is_filtered) {
        (false, false) => None,
        (true, false) => {
            Some(format!("this process is confined by the security profile `{profile}`, which may forbid it"))
        }
        (false, true) => Some("a seccomp filter is at work on this process, which may forbid it".to_owned()),
        (true, true) => Some(format!(
            "this process is confined by the security profile `{profile}` and a seccomp filter; either may forbid it"
        )),
    }
}

/// What confines this process, if one of the errors is of the kind that a confined process is given.
pub fn as_cause_of<'e>(
    mut errors: impl Iterator<Item = &'e (dyn std::error::Error + 'static)>,
) -> Option<String> {
    errors.any(may_have_caused).then(of_this_process).flatten()
}

fn may_have_caused(error: &(dyn std::error::Error + 'static)) -> bool {
    let source = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let source = source.or_else(|| error.downcast_ref::<nix::errno::Errno>().map(|errno| *errno as i32));
    matches!(source, Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_and_a_filter_are_told_apart() {
        let filtered = "Name:\ta\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let free = "Name:\ta\nSeccomp:\t0\n";
        assert_eq!(describe("unconfined\n", free), None);
        assert_eq!(describe("", ""), None);
        assert_eq!(describe("unconfined_u:unconfined_r:unconfined_t:s0\0", free), None);
        assert!(
            describe("docker-default (enforce)\n", free).is_some_and(|text| text.contains("docker-default"))
        );
        assert!(describe("", filtered).is_some_and(|text| text.contains("seccomp")));
        let both = describe("system_u:system_r:container_t:s0\0", filtered).expect("confined");
        assert!(both.contains("container_t") && both.contains("seccomp"), "{both}");
    }

    #[test]
    fn only_refusals_count() {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        assert!(may_have_caused(&refused) && may_have_caused(&nix::errno::Errno::ENOSYS));
        assert!(!may_have_caused(&io::Error::from_raw_os_error(libc::ENOENT)));
        assert!(!may_have_caused(&std::fmt::Error));
    }
}
