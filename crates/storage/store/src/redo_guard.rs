//! A guard around redo: a panic there costs one page, not the node.
//!
//! All six nodes apply the same records to the same pages. A panic in redo that ends the process would end all of them,
//! at every start again. So redo runs under [`guarded`], which turns a panic into a failure of that record. Everywhere
//! else a panic still ends the process, and at once: a program calls [`abort_on_panic`] first thing. Profiles therefore
//! unwind (decision 19).

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Whether this thread is inside of [`guarded`].
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs pure code on bytes from outside. A panic in it is returned as its message.
///
/// What `body` was changing must be thrown away then.
pub(crate) fn guarded<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    let before = IS_GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    IS_GUARDED.set(before);
    outcome.map_err(|payload| format!("redo panicked: {}", message_of(&*payload)))
}

fn message_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// From now on a panic ends the process, except in redo of a record: what another thread would find after it is
/// unknown, and the peers of a node go on without it.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !IS_GUARDED.get() {
            std::process::abort();
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_thread_goes_on() {
        assert_eq!(guarded(|| 7), Ok(7));
        let failed = guarded(|| -> u8 { panic!("a page of {} bytes", 3) });
        assert_eq!(failed, Err("redo panicked: a page of 3 bytes".to_owned()));
        assert!(!IS_GUARDED.get());
        let inner = guarded(|| guarded(|| -> u8 { panic!("inner") }).is_err() && IS_GUARDED.get());
        assert_eq!(inner, Ok(true), "the outer guard still holds");
    }
}
