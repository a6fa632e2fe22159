//! One page with everything in it: no scripts, nothing fetched.

use crate::model::Results;
use crate::report::svg::escape;
use crate::report::table::Table;
use crate::report::{plots, tables};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2127; --paper: #fff; --grid: #d9dee3; --shade: #e9a23b33; --bad: #c02020;
  --c0: #6b7c8f; --c1: #b07d2b; --c2: #9aa86b; --c3: #1f77b4; --c4: #4aa3c7; --c5: #7a6fb5; --c6: #c26a8e; --c7: #5b9e6f;
  --c8: #d08a4c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7eb; --paper: #14181c; --grid: #333b43; --bad: #ff7070;
  --c0: #93a4b7; --c1: #d6a451; --c2: #bccb8a; --c3: #58aee8; --c4: #7cc7e4; --c5: #a79fe0; --c6: #e394b4; --c7: #86c79a;
  --c8: #eab27e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1500px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
.bad { color: var(--bad); fill: var(--bad) !important; font-weight: 600; }
.good { color: var(--c7); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; } svg .t { font-size: 13px; font-weight: 600; }
svg .e { text-anchor: end; } svg .m { text-anchor: middle; } svg .s { font-size: 10px; } svg .u { opacity: .7; }
svg .g { stroke: var(--grid); fill: none; } svg .w { stroke: var(--ink); opacity: .7; fill: none; }
svg .h { fill: var(--shade); } svg .l { fill: none; stroke-width: 1.6; } svg .x { opacity: .35; }
";

/// Colours of the style sheet.
const COLOURS: usize = 9;

/// The whole report as one page without references to anything else.
#[must_use]
pub fn page(results: &Results) -> String {
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>borealis bench</title><style>",
    );
    page += STYLE;
    for number in 0..COLOURS {
        page +=
            &format!(".c{number} {{ stroke: var(--c{number}); }} .f{number} {{ fill: var(--c{number}); }}\n");
    }
    page += "</style></head><body>\n<h1>Borealis beside stock PostgreSQL</h1>\n";
    let class = if results.is_invalid() { " class=\"bad\"" } else { "" };
    page +=
        &format!("<p{class}>{}</p>\n", escape(&tables::headline(results).replace("**", "").replace('`', "")));
    for failure in &results.failures {
        page += &format!("<p class=\"bad\">NOT FINISHED: {}</p>\n", escape(failure));
    }
    if !results.notes.is_empty() {
        page += "<ul>";
        for note in &results.notes {
            page += &format!("<li>{}</li>", escape(note));
        }
        page += "</ul>\n";
    }
    let mut tables = tables::all(results).into_iter();
    // Whether it is good enough comes first, then the pictures, then every figure.
    if let Some(targets) = tables.next() {
        page += &table(&targets);
    }
    for (heading, drawings) in plots::all(results) {
        page +=
            &format!("<h2>{}</h2>\n<div class=\"plots\">\n{}</div>\n", escape(&heading), drawings.concat());
    }
    for other in tables {
        page += &table(&other);
    }
    page + "</body></html>\n"
}

fn table(table: &Table) -> String {
    let mut text = format!("<h2>{}</h2>\n", escape(&table.title));
    if !table.note.is_empty() {
        text += &format!("<p>{}</p>\n", escape(&table.note));
    }
    text += "<div class=\"wide\"><table><thead><tr>";
    for cell in &table.header {
        text += &format!("<th>{}</th>", escape(cell));
    }
    text += "</tr></thead><tbody>\n";
    for row in &table.rows {
        text += "<tr>";
        for cell in row {
            let class = match cell.as_str() {
                "not met" => " class=\"bad\"",
                "met" => " class=\"good\"",
                cell if cell.contains("INVALID") => " class=\"bad\"",
                _ => "",
            };
            text += &format!("<td{class}>{}</td>", escape(cell));
        }
        text += "</tr>\n";
    }
    text + "</tbody></table></div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::some_results;

    #[test]
    fn the_page_stands_alone_and_is_whole() {
        let page = page(&some_results());
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        for foreign in ["<script", "http://", "https://", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        for tag in ["svg", "table", "tr", "td", "h2", "div"] {
            let opened =
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn the_page_has_bars_distributions_timelines_and_targets() {
        let page = page(&some_results());
        for expected in [
            "TPC-B: transactions per second, median and spread",
            "8 clients: share of transactions that took at most",
            "32 clients: throughput over time",
            "from kill -9 to the first answered query",
            "a &lt;phase&gt;",
            "<td>S9</td>",
            "Is what was acknowledged still there?",
        ] {
            assert!(page.contains(expected), "{expected}");
        }
        assert!(page.contains("prefers-color-scheme: dark"));
    }
}
