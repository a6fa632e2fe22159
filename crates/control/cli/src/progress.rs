//! One line on the terminal for what takes longer than a moment.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Says what is being done, and how long it took once it is.
pub struct Step {
    begin: Instant,
    terminal: bool,
}

impl Step {
    /// Begins a step; `what` is shown on a terminal at once.
    pub fn begin(what: &str) -> Step {
        let terminal = std::io::stderr().is_terminal();
        if terminal {
            eprint!("{what} … ");
            // A line that is not shown is no reason to fail.
            let _ = std::io::stderr().flush();
        }
        Step { begin: Instant::now(), terminal }
    }

    /// Ends the step, and shows on a terminal how long it took.
    pub fn done(self) {
        if self.terminal {
            eprintln!("{} ms", self.begin.elapsed().as_millis());
        }
    }
}
