//! Drawing: axes, bars, lines, spans. Colours come from the page's style sheet, so that plots follow its light and dark.

use std::fmt::Write;

/// Size of a plot.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
/// Room for labels around it.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;
/// Height of a line of the legend.
const LEGEND_LINE: f64 = 16.0;
/// Steps of an axis, roughly.
const TICKS: f64 = 5.0;

/// Text that is safe between tags and in attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A line of a plot: its name, its colour's number, its points.
#[derive(Clone, Debug)]
pub struct Line {
    /// Shown in the legend.
    pub name: String,
    /// Which colour of the style sheet.
    pub colour: usize,
    /// Points in the plot's units.
    pub points: Vec<(f64, f64)>,
}

/// A bar: median, smallest and largest.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Which colour of the style sheet.
    pub colour: usize,
    /// Its height, and the ends of its whisker.
    pub value: crate::statistics::Summary,
    /// Drawn hatched: it must not be believed.
    pub invalid: bool,
}

/// A span along the horizontal axis.
#[derive(Clone, Debug)]
pub struct Span {
    /// Shown in it or, if there is no room, on hovering.
    pub label: String,
    /// Which colour of the style sheet.
    pub colour: usize,
    /// Its left edge, in units of the horizontal axis.
    pub begin: f64,
    /// Its right edge, in units of the horizontal axis.
    pub end: f64,
}

/// A round step that divides `range` into about [`TICKS`].
fn step(range: f64) -> f64 {
    if !range.is_finite() || range <= 0.0 {
        return 1.0;
    }
    let rough = range / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
    factor * power
}

fn label(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A drawing area with a linear or logarithmic horizontal axis.
#[derive(Debug)]
pub struct Plot {
    body: String,
    x: (f64, f64),
    y_max: f64,
    logarithmic: bool,
    legend: Vec<(String, usize)>,
}

impl Plot {
    /// An empty plot with these units; `logarithmic` is about the horizontal axis, which must then be positive.
    #[must_use]
    pub fn new(title: &str, x: (f64, f64), y_max: f64, logarithmic: bool) -> Plot {
        let body = format!("<text class=\"t\" x=\"{LEFT}\" y=\"14\">{}</text>", escape(title));
        let x_max = if x.1 > x.0 { x.1 } else { x.0 + 1.0 };
        let y_max = if y_max > 0.0 && y_max.is_finite() { y_max * 1.05 } else { 1.0 };
        Plot { body, x: (x.0, x_max), y_max, logarithmic, legend: Vec::new() }
    }

    fn at_x(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.max(1e-9).log10() } else { value };
        let (low, high) = (scale(self.x.0), scale(self.x.1));
        LEFT + (scale(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    }

    fn at_y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (value / self.y_max).clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn draw(&mut self, element: std::fmt::Arguments<'_>) {
        self.body.write_fmt(element).expect("writing to a string does not fail");
    }

    /// Draws the vertical axis.
    pub fn y_axis(&mut self, unit: &str) {
        let step = step(self.y_max);
        let mut value = 0.0;
        while value <= self.y_max {
            let y = self.at_y(value);
            let text = label(value);
            let right = WIDTH - RIGHT;
            self.draw(format_args!("<path class=\"g\" d=\"M{LEFT} {y:.1}H{right}\"/>"));
            self.draw(format_args!(
                "<text class=\"e\" x=\"{}\" y=\"{:.1}\">{text}</text>",
                LEFT - 6.0,
                y + 4.0
            ));
            value += step;
        }
        self.draw(format_args!("<text class=\"u\" x=\"4\" y=\"28\">{}</text>", escape(unit)));
    }

    /// Draws the horizontal axis.
    pub fn x_axis(&mut self, unit: &str) {
        let mut values = Vec::new();
        if self.logarithmic {
            let mut power = 10f64.powf(self.x.0.max(1e-9).log10().floor());
            while power <= self.x.1 {
                values.extend([power, 2.0 * power, 5.0 * power]);
                power *= 10.0;
            }
        } else {
            let step = step(self.x.1 - self.x.0);
            let mut value = (self.x.0 / step).ceil() * step;
            while value <= self.x.1 {
                values.push(value);
                value += step;
            }
        }
        let (top, bottom) = (TOP, HEIGHT - BOTTOM);
        let (first, last) = self.x;
        for value in values.into_iter().filter(|value| (first..=last).contains(value)) {
            let x = self.at_x(value);
            let text = label(value);
            self.draw(format_args!("<path class=\"g\" d=\"M{x:.1} {top}V{bottom}\"/>"));
            self.draw(format_args!("<text class=\"m\" x=\"{x:.1}\" y=\"{}\">{text}</text>", bottom + 16.0));
        }
        self.draw(format_args!(
            "<text class=\"e u\" x=\"{}\" y=\"{}\">{}</text>",
            WIDTH - RIGHT,
            bottom + 32.0,
            escape(unit)
        ));
    }

    /// Draws a line through its points, in its colour.
    pub fn line(&mut self, line: &Line) {
        let points: Vec<String> =
            line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", self.at_x(*x), self.at_y(*y))).collect();
        let colour = line.colour;
        self.draw(format_args!("<polyline class=\"l c{colour}\" points=\"{}\"/>", points.join(" ")));
        self.name(&line.name, colour);
    }

    /// Adds a name to the legend, once.
    pub fn name(&mut self, name: &str, colour: usize) {
        if !self.legend.iter().any(|(known, _)| known == name) {
            self.legend.push((name.to_owned(), colour));
        }
    }

    /// Shades a stretch of the horizontal axis.
    pub fn shade(&mut self, span: &Span) {
        let (begin, end) = (self.at_x(span.begin), self.at_x(span.end));
        let (top, height) = (TOP, HEIGHT - TOP - BOTTOM);
        let text = escape(&span.label);
        self.draw(format_args!(
            "<rect class=\"h\" x=\"{begin:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{height}\"/>\
             <text class=\"m s\" x=\"{:.1}\" y=\"{}\">{text}</text>",
            (end - begin).max(0.5),
            f64::midpoint(begin, end),
            top + 12.0
        ));
    }

    /// Draws groups of bars, one group for each label, all of the same bars' number.
    pub fn bars(&mut self, groups: &[(String, Vec<Option<Bar>>)]) {
        let bottom = HEIGHT - BOTTOM;
        let group_width = (WIDTH - LEFT - RIGHT) / groups.len().max(1) as f64;
        for (number, (name, bars)) in groups.iter().enumerate() {
            let left = LEFT + group_width * number as f64;
            let width = group_width * 0.8 / bars.len().max(1) as f64;
            for (place, bar) in bars.iter().enumerate() {
                let Some(bar) = bar else { continue };
                let x = left + group_width * 0.1 + width * place as f64;
                let middle = x + width * 0.45;
                let (y, low, high) =
                    (self.at_y(bar.value.median), self.at_y(bar.value.min), self.at_y(bar.value.max));
                let class = if bar.invalid { "b x" } else { "b" };
                let (colour, text) = (bar.colour, crate::statistics::number(bar.value.median));
                self.draw(format_args!(
                    "<rect class=\"{class} f{colour}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                     <title>{text}</title></rect>",
                    width * 0.9,
                    bottom - y
                ));
                self.draw(format_args!("<path class=\"w\" d=\"M{middle:.1} {low:.1}V{high:.1}\"/>"));
                let above = high.min(y) - 3.0;
                self.draw(format_args!(
                    "<text class=\"m s\" x=\"{middle:.1}\" y=\"{above:.1}\">{text}</text>"
                ));
                if bar.invalid {
                    let above = above - 11.0;
                    self.draw(format_args!(
                        "<text class=\"m s bad\" x=\"{middle:.1}\" y=\"{above:.1}\">INVALID</text>"
                    ));
                }
            }
            let middle = left + group_width / 2.0;
            self.draw(format_args!(
                "<text class=\"m\" x=\"{middle:.1}\" y=\"{}\">{}</text>",
                bottom + 16.0,
                escape(name)
            ));
        }
    }

    /// Draws rows of spans, one below the other, each row with its name.
    pub fn rows(&mut self, rows: &[(String, Vec<Span>)]) {
        let height = (HEIGHT - TOP - BOTTOM) / rows.len().max(1) as f64;
        for (number, (name, spans)) in rows.iter().enumerate() {
            let y = TOP + height * number as f64;
            for span in spans {
                let (begin, end) = (self.at_x(span.begin), self.at_x(span.end));
                let (colour, text) = (span.colour, escape(&span.label));
                self.draw(format_args!(
                    "<rect class=\"b f{colour}\" x=\"{begin:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                     <title>{text}: {} s</title></rect>",
                    y + height * 0.45,
                    (end - begin).max(0.5),
                    height * 0.45,
                    label(span.end - span.begin)
                ));
                self.name(&span.label, colour);
            }
            let baseline = y + height * 0.38;
            self.draw(format_args!("<text x=\"{}\" y=\"{baseline:.1}\">{}</text>", LEFT + 2.0, escape(name)));
        }
    }

    /// The finished drawing.
    #[must_use]
    pub fn finish(mut self) -> String {
        let (mut x, mut y) = (LEFT, HEIGHT - 8.0);
        for (name, colour) in std::mem::take(&mut self.legend) {
            let width = 24.0 + 6.6 * name.chars().count() as f64;
            if x + width > WIDTH && x > LEFT {
                (x, y) = (LEFT, y + LEGEND_LINE);
            }
            let text = escape(&name);
            self.draw(format_args!(
                "<rect class=\"f{colour}\" x=\"{x:.0}\" y=\"{}\" width=\"10\" height=\"10\"/>",
                y - 9.0
            ));
            self.draw(format_args!("<text x=\"{}\" y=\"{y}\">{text}</text>", x + 14.0));
            x += width;
        }
        let height = y + 8.0;
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">{}</svg>\n", self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_about_five() {
        for range in [0.003, 0.9, 1.0, 7.0, 42.0, 4641.0, 1e6] {
            let count = range / step(range);
            assert!((2.0..=5.1).contains(&count), "{range}: {count} steps");
        }
        assert_eq!(step(0.0), 1.0);
        assert_eq!(step(f64::NAN), 1.0);
    }

    #[test]
    fn names_cannot_break_out_of_the_drawing() {
        let mut plot = Plot::new("<script>", (0.0, 1.0), 1.0, false);
        plot.line(&Line { name: "a & <b>".into(), colour: 0, points: vec![(0.0, 0.0), (1.0, 1.0)] });
        let text = plot.finish();
        assert!(!text.contains("<script>") && !text.contains("<b>"), "{text}");
        assert!(text.contains("a &amp; &lt;b&gt;"));
    }

    #[test]
    fn a_long_legend_gets_more_lines() {
        let mut plot = Plot::new("", (0.0, 1.0), 1.0, false);
        for number in 0..8 {
            plot.name(&format!("a rather long name, number {number}"), number);
        }
        let text = plot.finish();
        let places: Vec<f64> = text
            .split("<rect")
            .skip(1)
            .filter_map(|rect| rect.split(" x=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(places.len(), 8);
        assert!(places.iter().all(|x| x + 200.0 < WIDTH), "{places:?}");
        assert!(!text.contains("viewBox=\"0 0 720 300\""));
    }

    #[test]
    fn strange_values_stay_inside() {
        let mut plot = Plot::new("", (5.0, 5.0), f64::NAN, false);
        plot.x_axis("s");
        plot.y_axis("tps");
        plot.line(&Line { name: String::new(), colour: 0, points: vec![(5.0, 1e300), (6.0, -1.0)] });
        assert!(!plot.finish().contains("NaN"));
        let mut plot = Plot::new("", (0.1, 1000.0), 1.0, true);
        plot.x_axis("ms");
        plot.line(&Line { name: String::new(), colour: 0, points: vec![(0.0, 0.0), (1000.0, 1.0)] });
        assert!(!plot.finish().contains("NaN"));
    }
}
