//! What keeps a store from some of its work for now.

/// What hinders a store for now, and passes with its cause.
#[derive(Default, Debug)]
pub(crate) struct Hindrances {
    /// Why no redo is taken.
    pub full: Option<String>,
    /// Why the last round of materialization ended early.
    pub round: Option<String>,
}
