//! What people see, as a function of the events. The only place that prints: results on stdout, the story of a run on
//! stderr. `lines.rs` turns an event into text, `bars.rs` adds live bars on a terminal, `summary.rs` tells the times.

mod bars;
mod lines;
pub mod prompt;
mod summary;

use std::io::{IsTerminal, Write};
use std::thread::JoinHandle;

use console::style;
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::cli::Output;
use crate::core::error::{Error, Result, system_words};
use crate::core::event::{Event, Failure};
use crate::core::finding::{Finding, State};

/// Something that shows events as they come.
trait Renderer {
    fn event(&mut self, event: &Event);
}

/// Shows events on a thread of its own until their senders are gone.
pub fn start(
    mut events: UnboundedReceiver<Event>,
    output: Output,
    verbose: bool,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut renderer: Box<dyn Renderer> = match output {
            Output::Json => Box::new(Json),
            _ if std::io::stderr().is_terminal() => Box::new(bars::Bars::new(verbose)),
            _ => Box::new(lines::Lines::new(verbose)),
        };
        while let Some(event) = events.blocking_recv() {
            renderer.event(&event);
        }
    })
}

/// One event a line on stdout, and nothing else there.
struct Json;

impl Renderer for Json {
    fn event(&mut self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}

/// Prints a result on stdout. A reader that went away is not an error of ours.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::unfit("writing to stdout").because(system_words(&error)))
        }
        _ => Ok(()),
    }
}

/// Says on stderr what a command without a pipeline is at.
pub fn note(text: &str) {
    let _ = writeln!(
        std::io::stderr().lock(),
        "{}",
        style(text).for_stderr().dim()
    );
}

/// Prints a result as data; a command that has words of its own for people does not come here with `Text`.
pub fn print_data(value: &impl Serialize, output: Output) -> Result<()> {
    let what = "encoding the result";
    let text = match output {
        Output::Yaml => serde_saphyr::to_string(value)
            .map_err(|error| Error::bug(what).because(error.to_string()))?,
        Output::Json | Output::Text => serde_json::to_string_pretty(value)
            .map_err(|error| Error::bug(what).because(error.to_string()))?,
    };
    print(&format!("{}\n", text.trim_end()))
}

/// Columns as wide as their widest cell.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            format!("{}\n", cells.join("  ").trim_end())
        })
        .collect()
}

/// What `doctor` found.
pub fn findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let sign = match finding.state {
            State::Good => style("ok     ").green(),
            State::Doubtful => style("warning").yellow(),
            State::Bad => style("problem").red(),
        };
        text.push_str(&format!("{sign}  {}\n", finding.what));
        if let Some(help) = finding
            .help
            .as_ref()
            .filter(|_| finding.state != State::Good)
        {
            text.push_str(&format!("         -> {help}\n"));
        }
    }
    let bad = findings
        .iter()
        .filter(|finding| finding.state == State::Bad)
        .count();
    text.push_str(&if bad == 0 {
        "\nnothing stands in the way\n".to_owned()
    } else {
        format!("\n{bad} of {} checks found a problem\n", findings.len())
    });
    text
}

/// Prints an error with its causes, its lines and its remedy.
pub fn print_error(error: &Error) {
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "{}", failure_text("error", &Failure::from(error)));
}

fn failure_text(head: &str, failure: &Failure) -> String {
    let mut text = format!(
        "{}: {}\n",
        style(head).for_stderr().red().bold(),
        failure.message
    );
    for cause in &failure.causes {
        text.push_str(&format!("  because {cause}\n"));
    }
    for line in &failure.detail {
        text.push_str(&format!("  {line}\n"));
    }
    if let Some(help) = &failure.help {
        text.push_str(&format!(
            "  {} {help}\n",
            style("help:").for_stderr().cyan()
        ));
    }
    text
}
