//! Breaks the write quorum on purpose, for the test that the benchmark notices it.
//!
//! Compiled only with the feature `broken-durability`, and even then without effect unless the environment variable
//! [`VARIABLE`] has exactly the value [`VALUE`]: a build with all features on is still a correct one.

/// The environment variable that breaks durability.
const VARIABLE: &str = "BOREALIS_BREAK_DURABILITY";
/// Its only value with an effect.
const VALUE: &str = "acknowledge-at-one-of-six";

/// Whether one node's acknowledgement is to count for all six. Asked once, when a writer begins.
pub fn is_wanted() -> bool {
    let wanted = std::env::var_os(VARIABLE).is_some_and(|value| value == VALUE);
    if wanted {
        tracing::error!("{VARIABLE} is set: commits are acknowledged at one of six nodes and WILL BE LOST");
    }
    wanted
}
