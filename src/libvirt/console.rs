//! The serial console: read from the first line on, kept in a log, its last lines at hand for an error.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use virt::stream::Stream;
use virt::sys;

use super::Host;
use crate::error::Result;

const KEPT_LINES: usize = 200;

/// An open console. Closed when dropped.
pub struct Console {
    lines: Arc<Mutex<VecDeque<String>>>,
    stream: Option<Stream>,
}

impl Host {
    /// Opens the console of a domain (virDomainOpenConsole) and follows it into a log file.
    pub async fn open_console(&self, name: &str, log: PathBuf) -> Result<Console> {
        let wanted = name.to_owned();
        let stream = self
            .call(format!("opening the console of {name}"), move |conn| {
                let stream = Stream::new(conn, 0)?;
                conn.lookup_domain_by_name(&wanted)?.open_console(None, &stream, sys::VIR_DOMAIN_CONSOLE_FORCE)?;
                Ok(stream)
            })
            .await?;
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let (reader, kept) = (stream.clone(), Arc::clone(&lines));
        std::thread::Builder::new()
            .name(format!("console {name}"))
            .spawn(move || follow(&reader, &kept, &log))
            .map_err(|error| crate::error::Error::new("starting a thread for the console").because(error))?;
        Ok(Console { lines, stream: Some(stream) })
    }
}

impl Console {
    /// The last lines the guest printed, without terminal control codes.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let said: Vec<&String> = lines.iter().filter(|line| !line.trim().is_empty()).collect();
        said[said.len().saturating_sub(count)..].iter().map(|line| (*line).clone()).collect()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            // Wakes the reader out of its call.
            let _ = stream.abort();
        }
    }
}

fn follow(stream: &Stream, kept: &Mutex<VecDeque<String>>, log: &std::path::Path) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log).ok();
    let mut partial = String::new();
    let mut buffer = [0_u8; 4096];
    while let Ok(read) = stream.recv(&mut buffer) {
        let Ok(read @ 1..) = usize::try_from(read) else { break };
        if let Some(file) = &mut file {
            let _ = file.write_all(&buffer[..read]);
        }
        partial.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let mut lines = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while let Some(end) = partial.find('\n') {
            lines.push_back(plain(&partial[..end]));
            partial.drain(..=end);
        }
        while lines.len() > KEPT_LINES {
            lines.pop_front();
        }
    }
}

/// The line as a person would read it: no escape sequences, only what the last carriage return left.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.trim_end_matches('\r').chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next_if_eq(&'[').is_some() {
                    while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
                } else {
                    chars.next();
                }
            }
            '\r' => text.clear(),
            c if c.is_control() && c != '\t' => {}
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_codes_vanish() {
        assert_eq!(super::plain("[\u{1b}[0;32m  OK  \u{1b}[0m] Started sshd\r"), "[  OK  ] Started sshd");
        assert_eq!(super::plain("loading\rdone"), "done");
    }
}
