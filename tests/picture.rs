//! docs/run.svg, the README's picture: docs/run.txt, a run as it was recorded, as a terminal that types it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::reference::assert_generated;

const LINE: usize = 20;
const COLUMN: f64 = 8.4;
const MARGIN: usize = 16;
const BAR: usize = 32;
/// How many seconds of the run pass in one of the picture.
const HASTE: f64 = 25.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The seconds at the end of a stage's line.
fn seconds(line: &str) -> Option<f64> {
    let (_, number) = line.strip_suffix(" s")?.rsplit_once(' ')?;
    number.parse().ok()
}

/// A line with its colours: the prompt, the sign of a stage, its time.
fn coloured(line: &str) -> String {
    if let Some(command) = line.strip_prefix("$ ") {
        return format!("<tspan class=\"dim\">$</tspan> {}", escape(command));
    }
    for (sign, class) in [("✓", "good"), ("=", "dim")] {
        let Some((head, tail)) = line.split_once(&format!(" {sign} ")) else {
            continue;
        };
        let (detail, time) = tail.rsplit_once("  ").unwrap_or((tail, ""));
        return format!(
            "{} <tspan class=\"{class}\">{sign}</tspan> {}  <tspan class=\"dim\">{}</tspan>",
            escape(head),
            escape(detail),
            escape(time)
        );
    }
    escape(line)
}

fn svg(run: &str) -> String {
    let lines: Vec<&str> = run.lines().collect();
    let columns = lines.iter().map(|line| line.chars().count()).max().unwrap();
    let width = 2 * MARGIN + (columns as f64 * COLUMN).ceil() as usize;
    let height = BAR + lines.len() * LINE + MARGIN;
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">
<title>{}</title>
<style>
text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d8dee9; white-space: pre }}
.good {{ fill: #a3be8c }}
.dim {{ fill: #7b88a1 }}
@media (prefers-reduced-motion: no-preference) {{ .line {{ animation: appear 1ms both }} }}
@keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#242933"/>
<circle cx="20" cy="18" r="5" fill="#bf616a"/><circle cx="38" cy="18" r="5" fill="#ebcb8b"/><circle cx="56" cy="18" r="5" fill="#a3be8c"/>
"##,
        escape(lines.first().unwrap()),
    );
    let mut at = 0.5;
    for (number, line) in lines.iter().enumerate() {
        let stage = line.contains(" ✓ ") || line.contains(" = ");
        at += match (number, seconds(line)) {
            (0, _) => 0.0,
            (_, Some(took)) if stage => took / HASTE + 0.15,
            _ => 0.4,
        };
        writeln!(
            text,
            r#"<text class="line" x="{MARGIN}" y="{}" style="animation-delay:{at:.2}s">{}</text>"#,
            BAR + (number + 1) * LINE - 4,
            coloured(line)
        )
        .unwrap();
    }
    text.push_str("</svg>\n");
    text
}

#[test]
fn picture_of_a_run_is_up_to_date() {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/run.txt");
    assert_generated("docs/run.svg", &svg(&fs::read_to_string(run).unwrap()));
}

#[test]
fn a_line_keeps_its_text_and_escapes_it() {
    assert_eq!(
        coloured("n1  Boot  ✓ SSH <2>  3.0 s"),
        "n1  Boot  <tspan class=\"good\">✓</tspan> SSH &lt;2&gt;  <tspan class=\"dim\">3.0 s</tspan>"
    );
    assert_eq!(seconds("n1  Boot  ✓ SSH  53.5 s"), Some(53.5));
    assert_eq!(seconds("up: 1 node of cluster lab"), None);
}
