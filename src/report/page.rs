//! What the pages of a stage and of a run share: the frame, its style, escaping, lists and tables.

use super::chart::COLORS;
use super::findings::{Finding, Severity};
use super::table::Table;

/// A page of its own: no scripts, nothing loaded.
pub(super) fn frame(title: &str, body: &str) -> String {
    let style = page_style();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title>\n<style>{style}</style></head>\n<body>\n{body}</body></html>\n",
        escape(title)
    )
}

/// The style of all pages, in light and dark.
pub fn page_style() -> String {
    let mut dark = String::new();
    for (i, color) in COLORS.iter().enumerate() {
        let hex = format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2);
        dark.push_str(&format!(
            "svg [stroke=\"{hex}\"]{{stroke:var(--c{i})}}svg [fill=\"{hex}\"]{{fill:var(--c{i})}}.c{i}{{color:var(--c{i})}}\n"
        ));
    }
    format!("{STYLE}{dark}")
}

/// Escapes text for HTML: no output of a model and no data may become markup.
pub fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

/// A table of names and values; empty without any.
pub(super) fn facts(facts: &[(String, String)]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let rows: String = (facts.iter())
        .map(|(name, value)| {
            format!(
                "<tr><th>{}</th><td>{}</td></tr>\n",
                escape(name),
                escape(value)
            )
        })
        .collect();
    format!("<div class=\"scroll\" tabindex=\"0\"><table class=\"facts\">\n{rows}</table></div>\n")
}

/// A paragraph for each warning. `of`: the stage, where several are on the page.
pub(super) fn warnings(found: &[Finding], of: Option<&str>) -> String {
    let warnings = found.iter().filter(|f| f.severity == Severity::Warning);
    let of = of.map_or(String::new(), |stage| format!("<b>{}</b>: ", escape(stage)));
    warnings
        .map(|finding| format!("<p class=\"warning\">{of}{}</p>\n", escape(&finding.text)))
        .collect()
}

/// A list of the notes; empty without any.
pub(super) fn notes(found: &[Finding]) -> String {
    let notes: String = (found.iter())
        .filter(|finding| finding.severity == Severity::Note)
        .map(|finding| format!("<li>{}</li>\n", escape(&finding.text)))
        .collect();
    match notes.is_empty() {
        true => notes,
        false => format!("<ul>\n{notes}</ul>\n"),
    }
}

/// A table, numbers to the right.
pub(super) fn table(table: &Table) -> String {
    let numeric = table.numeric();
    let row = |cells: &[String], tag: &str| -> String {
        let cells = cells.iter().zip(&numeric);
        let cells: String = cells
            .map(|(cell, &numeric)| {
                let class = if numeric { " class=\"number\"" } else { "" };
                format!("<{tag}{class}>{}</{tag}>", escape(cell))
            })
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = table.rows.iter().map(|cells| row(cells, "td")).collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\"><table>\n{}{rows}</table></div>\n",
        row(&table.header, "th")
    )
}

/// Commands, each with what it is for.
pub(super) fn commands(commands: &[(String, String)]) -> String {
    let lines: Vec<String> = (commands.iter())
        .map(|(what, command)| {
            format!(
                "<div class=\"command\"><small>{}</small><pre tabindex=\"0\">{}</pre></div>\n",
                escape(what),
                escape(command)
            )
        })
        .collect();
    lines.concat()
}

const STYLE: &str = "
:root{--ink:#1d2126;--soft:#5d6670;--paper:#fff;--panel:#f5f6f7;--rule:#dde1e5;--mark:#fff3dc;--warn:#b36b00;--good:#1d7a3f;--bad:#b3372b;
--c0:#1f6fb4;--c1:#b84d0c;--c2:#25803f;--c3:#8252aa}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e4e7ea;--soft:#9aa4ae;--paper:#15181c;--panel:#1f2429;--rule:#353c44;--mark:#3a2e14;
--warn:#e0a440;--good:#5fc384;--bad:#ee8378;--c0:#62abea;--c1:#f0934f;--c2:#63c487;--c3:#b893dc}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:0 auto;padding:1.5em 1em 3em;color:var(--ink);background:var(--paper)}
h1{font-size:1.6em;line-height:1.2;margin:.2em 0}h2{font-size:1.2em;margin:1.8em 0 .5em}h3{font-size:1em;margin:1.2em 0 .3em}
h2 small,h3 small{font-weight:normal}p{margin:.5em 0}ul{padding-left:1.3em}a{color:var(--c0)}small,.soft{color:var(--soft)}
pre{background:var(--panel);padding:.6em .8em;overflow-x:auto;margin:.3em 0;border-radius:4px;font:13px/1.45 ui-monospace,monospace}
.command{margin:.6em 0}.warning{background:var(--mark);border-left:4px solid var(--warn);padding:.5em .8em;border-radius:0 4px 4px 0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:1.2em}
.columns{display:grid;gap:0 2em;align-items:start}@media(min-width:1000px){.columns{grid-template-columns:42% 1fr}}.columns>*{min-width:0}
figure{margin:0;display:flex;flex-direction:column;justify-content:flex-end;break-inside:avoid}figcaption{flex:1}
figcaption span{white-space:nowrap;margin-left:.5em}svg{display:block;width:100%;max-width:520px;height:auto}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.35em .8em .35em 0;border-bottom:1px solid var(--rule)}th{font-weight:600}
.facts th{color:var(--soft);font-weight:normal;white-space:nowrap}.facts td{overflow-wrap:anywhere}.number{text-align:right;white-space:nowrap}
.up{color:var(--good)}.down{color:var(--bad)}
.samples td{white-space:pre-wrap;overflow-wrap:anywhere;min-width:13em;max-width:32em}
details{margin:.6em 0}details[open]{grid-column:1/-1}summary{cursor:pointer;color:var(--soft)}
svg [stroke=\"#000000\"]{stroke:var(--ink)}svg [fill=\"#000000\"]{fill:var(--ink)}
.pipeline{max-width:520px}.pipeline text{fill:var(--ink);font:14px system-ui,sans-serif}.pipeline .soft{fill:var(--soft);font-size:12px}
.pipeline .label{paint-order:stroke;stroke:var(--paper);stroke-width:5px}.pipeline .title{font-weight:600}.pipeline rect{fill:var(--panel);stroke:var(--rule)}.pipeline .flow{fill:none;stroke:var(--soft);stroke-width:1.4}
.pipeline marker path{fill:var(--soft)}.pipeline .done{fill:var(--good)}.pipeline .running{fill:var(--c1)}.pipeline .stopped{fill:var(--warn)}
.pipeline .waiting{fill:var(--rule)}
@media print{body{max-width:none;font-size:10pt;padding:0}pre{white-space:pre-wrap}.warning,tr,section>h2{break-inside:avoid}h2,h3{break-after:avoid}
.charts{grid-template-columns:1fr 1fr}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
";

#[cfg(test)]
pub(super) mod testing {
    /// Asserts that a page is well formed as far as this program writes HTML, runs no script and loads nothing.
    pub(in crate::report) fn assert_sound(html: &str) {
        for foreign in [
            "<script",
            "<link",
            "src=",
            "@import",
            "url(h",
            "url(\"",
            "onload",
            "javascript:",
        ] {
            assert!(!html.contains(foreign), "{foreign}");
        }
        for (at, _) in html.match_indices("href=\"") {
            let target = &html[at + 6..];
            assert!(
                !target.starts_with("http") && !target.starts_with("//"),
                "{}",
                &target[..40]
            );
        }
        // The namespace of SVG is the only address.
        assert_eq!(
            html.matches("://").count(),
            html.matches("http://www.w3.org/2000/svg").count()
        );
        // A screen reader reads a picture's name.
        let pictures = html.matches("role=\"img\"").count();
        assert_eq!(pictures, html.matches("role=\"img\" aria-label=\"").count());
        let mut open: Vec<&str> = Vec::new();
        let mut rest = html;
        while let Some(at) = rest.find('<') {
            rest = &rest[at + 1..];
            let end = rest.find('>').expect("every tag ends");
            let tag = &rest[..end];
            let name = tag
                .trim_start_matches('/')
                .split([' ', '/', '\n'])
                .next()
                .unwrap_or("");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "closed in the order opened");
            } else if !tag.ends_with('/') && !matches!(name, "!doctype" | "meta" | "br") {
                open.push(name);
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
    }
}
