//! What the system's administrator put around this process: a security profile, a filter of system calls.
//!
//! Both refuse with the same "Permission denied" or "Operation not permitted" as an ordinary file mode, which sends
//! people to look in the wrong place.

use std::fs;
use std::io;

/// What confines this process, as a clause for an error message; `None` if nothing does.
#[must_use]
pub fn of_this_process() -> Option<String> {
    let (profile, status) = read();
    describe(&profile, &status)
}

/// The same from the content of `/proc/<pid>/attr/current` and `/proc/<pid>/status`.
fn describe(profile: &str, status: &str) -> Option<String> {
    let profile = profile.trim_matches(['\0', '\n', ' ']);
    // AppArmor says `unconfined`, SELinux `unconfined_u:unconfined_r:…`; both have `kernel` for the whole system.
    // A profile in complain mode forbids nothing.
    let is_free = profile.is_empty() || profile.contains("unconfined") || profile == "kernel";
    let is_confined = !is_free && !profile.ends_with("(complain)");
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

/// An error with its causes, each said once (many a text ends with its cause's own), and what confines this process if that
/// may be one.
pub fn in_words<'e>(errors: impl Iterator<Item = &'e (dyn std::error::Error + 'static)> + Clone) -> String {
    let mut words = String::new();
    for cause in errors.clone().map(ToString::to_string) {
        match words.is_empty() {
            true => words = cause,
            false if words.ends_with(&cause) => {}
            false => words = format!("{words}: {cause}"),
        }
    }
    match as_cause_of(errors) {
        Some(confinement) => format!("{words} ({confinement})"),
        None => words,
    }
}

/// What confines this process, if one of the errors is of the kind that it gives.
fn as_cause_of<'e>(errors: impl Iterator<Item = &'e (dyn std::error::Error + 'static)>) -> Option<String> {
    let (profile, status) = read();
    errors.filter_map(number_of).find_map(|number| {
        // A filter answers with these two, never with "Permission denied", which is an ordinary file's mode far more
        // often than a profile's doing.
        let status = if matches!(number, libc::EPERM | libc::ENOSYS) { status.as_str() } else { "" };
        let profile = if matches!(number, libc::EPERM | libc::EACCES) { profile.as_str() } else { "" };
        describe(profile, status)
    })
}

/// The operating system's number of an error.
fn number_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    number.or_else(|| error.downcast_ref::<nix::errno::Errno>().map(|errno| *errno as i32))
}

fn read() -> (String, String) {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    (text("/proc/self/attr/current"), text("/proc/self/status"))
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
        assert_eq!(describe("docker-default (complain)\n", free), None);
        assert_eq!(describe("unconfined_u:unconfined_r:unconfined_t:s0\0", free), None);
        assert!(
            describe("docker-default (enforce)\n", free).is_some_and(|text| text.contains("docker-default"))
        );
        assert!(describe("", filtered).is_some_and(|text| text.contains("seccomp")));
        let both = describe("system_u:system_r:container_t:s0\0", filtered).expect("confined");
        assert!(both.contains("container_t") && both.contains("seccomp"), "{both}");
    }

    #[test]
    fn errors_of_the_system_have_a_number_and_others_have_none() {
        assert_eq!(number_of(&io::Error::from_raw_os_error(libc::EPERM)), Some(libc::EPERM));
        assert_eq!(number_of(&nix::errno::Errno::ENOSYS), Some(libc::ENOSYS));
        assert_eq!(number_of(&std::fmt::Error), None);
    }

    #[test]
    fn what_a_text_ends_with_is_not_said_again() {
        let cause = || io::Error::other("it is not empty");
        let error = crate::on("cannot create", std::path::Path::new("/x"))(cause());
        let source = std::error::Error::source(&error).expect("a cause");
        let chain = [&error as &(dyn std::error::Error + 'static), source];
        assert_eq!(in_words(chain.into_iter()), "cannot create /x: it is not empty");
        let other = std::fmt::Error;
        let chain = [&other as &(dyn std::error::Error + 'static), source];
        assert_eq!(in_words(chain.into_iter()), format!("{other}: it is not empty"));
    }
}
