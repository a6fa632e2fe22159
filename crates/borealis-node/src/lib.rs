//! The storage node process: receives, persists and acknowledges redo, gossips with peers, serves pages.
