//! What a person sees while it runs: a few lines that are drawn again and again, or a line for each fault in a file.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the lines are drawn.
const INTERVAL: Duration = Duration::from_millis(250);
/// How much of the past the bars show.
const BARS: usize = 60;
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The state of the run, as it is shown.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// A letter for each node.
    pub nodes: String,
    /// Whether SQL is answered.
    pub instance: bool,
    /// Processes killed so far.
    pub kills: u64,
    /// Commits acknowledged so far.
    pub acknowledged: u64,
    /// Snapshots that were right so far.
    pub snapshots: u64,
    /// The longest commit since the last drawing.
    pub longest: Duration,
}

/// The picture.
#[derive(Debug)]
pub struct Picture {
    begin: Instant,
    drawn: Option<Instant>,
    is_terminal: bool,
    lines: usize,
    last_acknowledged: u64,
    rates: Vec<u64>,
    last_fault: String,
}

impl Picture {
    /// On standard error.
    #[must_use]
    pub fn new() -> Picture {
        Picture {
            begin: Instant::now(),
            drawn: None,
            is_terminal: std::io::stderr().is_terminal(),
            lines: 0,
            last_acknowledged: 0,
            rates: Vec::new(),
            last_fault: String::new(),
        }
    }

    /// Something was done.
    pub fn say(&mut self, what: &str) {
        self.last_fault = what.to_owned();
        if !self.is_terminal {
            eprintln!("[{:>6.1} s] {what}", self.begin.elapsed().as_secs_f64());
        }
    }

    /// Whether it is time to draw.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.drawn.is_none_or(|drawn| drawn.elapsed() >= INTERVAL)
    }

    /// Draws it, if there is somebody who sees it drawn.
    pub fn draw(&mut self, shown: &Shown) {
        let interval = self.drawn.map_or(INTERVAL, |drawn| drawn.elapsed());
        self.drawn = Some(Instant::now());
        let commits = shown.acknowledged.saturating_sub(self.last_acknowledged);
        self.last_acknowledged = shown.acknowledged;
        self.rates.push((commits as f64 / interval.as_secs_f64()) as u64);
        let surplus = self.rates.len().saturating_sub(BARS);
        self.rates.drain(..surplus);
        if !self.is_terminal {
            return;
        }
        let text = format!(
            "{:>6.0} s   nodes {}   instance {}   kills {}   right snapshots {}\n\
             commits {}   now {:>5}/s   longest wait {:>6.0} ms   {}\n\
             {}",
            self.begin.elapsed().as_secs_f64(),
            shown.nodes,
            if shown.instance { "up" } else { "--" },
            shown.kills,
            shown.snapshots,
            shown.acknowledged,
            self.rates.last().copied().unwrap_or(0),
            shown.longest.as_secs_f64() * 1e3,
            bars(&self.rates),
            self.last_fault,
        );
        let mut out = std::io::stderr().lock();
        if self.lines > 0 {
            // Up to where the last one began, and everything below away.
            let _ = write!(out, "\x1b[{}A\x1b[J", self.lines);
        }
        let _ = writeln!(out, "{text}");
        self.lines = text.lines().count();
    }
}

impl Default for Picture {
    fn default() -> Picture {
        Picture::new()
    }
}

/// A bar for each rate, the highest of them full.
fn bars(rates: &[u64]) -> String {
    let most = rates.iter().copied().max().unwrap_or(0).max(1);
    let last = BLOCKS.len() as u64 - 1;
    rates.iter().map(|&rate| if rate == 0 { ' ' } else { BLOCKS[(rate * last / most) as usize] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_rates() {
        assert_eq!(bars(&[0, 1, 70, 35]), " ▁█▄");
        assert_eq!(bars(&[]), "");
    }
}
