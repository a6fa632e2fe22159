//! What a server process asks of the kernel for itself.

use libc::c_int;

use crate::shim;

/// Each server process asks the kernel to be told of the postmaster's death by a signal that only sets a flag, and
/// looks at the flag when it next waits for input. A process that waits for a lock instead, held by one that
/// ended because the driver is gone, would wait for ever, and its client with it. An instance without its
/// postmaster is of no use to anyone, so the signal becomes the one that ends a server process at once.
///
/// The C declaration is variadic; on the processors Borealis runs on, integer arguments are passed alike.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn prctl(
    option: c_int,
    second: libc::c_ulong,
    third: libc::c_ulong,
    fourth: libc::c_ulong,
    fifth: libc::c_ulong,
) -> c_int {
    let second = match shim::get() {
        Some(_) if option == libc::PR_SET_PDEATHSIG && second != 0 => libc::SIGQUIT as libc::c_ulong,
        _ => second,
    };
    // SAFETY: the caller keeps the contract of prctl(2).
    unsafe { libc::syscall(libc::SYS_prctl, option, second, third, fourth, fifth) as c_int }
}
