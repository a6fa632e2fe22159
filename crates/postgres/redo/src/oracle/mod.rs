//! The oracle: whether redo makes of a page what PostgreSQL makes of it.
//!
//! [`consistency`] compares one page with the image that a record carries, after [`mask`] has hidden what redo does not
//! reproduce; [`check`] replays a log and asks about every page.

pub mod check;
pub mod consistency;
mod mask;
