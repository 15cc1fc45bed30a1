//! The serial console: read from the first line on, kept in a log, its last lines at hand for an error.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::stream::Stream;
use virt::sys;

use super::{CONNECT_DEADLINE, Failure, Host, silent};
use crate::core::dead_end::Shown;
use crate::core::error::{Context, Result, system_words};
use crate::core::plain;

const KEPT_LINES: usize = 200;
/// Bytes of a line; what has no end by then is one.
const LONGEST: usize = 4 << 10;
const LOOK: Duration = Duration::from_millis(100);

/// What the guest printed.
struct Lines {
    whole: VecDeque<String>,
    /// How many were dropped from it.
    dropped: usize,
    heard: Instant,
    /// The line that has not ended: a prompt, perhaps.
    begun: String,
}

/// An open console. Closed when dropped.
pub struct Console {
    lines: Arc<Mutex<Lines>>,
    closed: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Host {
    /// Opens the console of a domain (virDomainOpenConsole) and follows it into a log file.
    ///
    /// It has a connection and a thread of its own: a reader that waits on a shared connection can keep libvirt before
    /// 9.1 from sending anybody else's calls.
    pub async fn open_console(&self, uuid: &str, log: PathBuf) -> Result<Console> {
        let (uri, wanted) = (self.uri().to_owned(), uuid.to_owned());
        let lines = Arc::new(Mutex::new(Lines {
            whole: VecDeque::new(),
            dropped: 0,
            heard: Instant::now(),
            begun: String::new(),
        }));
        let closed = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let (kept, stop, over) = (Arc::clone(&lines), Arc::clone(&closed), Arc::clone(&ended));
        let opened = tokio::task::spawn_blocking(move || {
            let file = File::options()
                .create(true)
                .append(true)
                .open(&log)
                .map_err(|error| local(&format!("opening {}", log.display()), &error))?;
            let conn = Connect::open(Some(&uri)).map_err(Failure::from)?;
            let stream = Stream::new(&conn, sys::VIR_STREAM_NONBLOCK).map_err(Failure::from)?;
            let domain = conn
                .lookup_domain_by_uuid_string(&wanted)
                .map_err(Failure::from)?;
            domain
                .open_console(None, &stream, sys::VIR_DOMAIN_CONSOLE_FORCE)
                .map_err(Failure::from)?;
            std::thread::Builder::new()
                .name("console".into())
                .spawn(move || {
                    follow(&domain, &stream, &stop, file, &kept);
                    over.store(true, Ordering::Relaxed);
                    let _ = stream.abort();
                })
                .map(drop)
                .map_err(|error| local("starting a thread", &error))
        });
        // Dropped where it does not open in time: what opens later is closed at once.
        let console = Console {
            lines,
            closed,
            ended,
        };
        let opened = match tokio::time::timeout(CONNECT_DEADLINE, opened).await {
            Ok(opened) => opened.unwrap_or(Err(Failure::Panicked)),
            Err(_) => Err(silent(self.uri(), CONNECT_DEADLINE)),
        };
        opened.doing("opening the console").map(|()| console)
    }
}

/// What this machine refuses.
fn local(what: &str, error: &std::io::Error) -> Failure {
    Failure::Other(format!("{what}: {}", system_words(error)))
}

impl Console {
    /// Nothing more comes: the VM stopped, most likely.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// What the guest printed, without terminal control codes.
    pub fn shown(&self) -> Shown {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lines.whole.iter().chain(std::iter::once(&lines.begun));
        Shown {
            lines: kept.cloned().collect(),
            before: lines.dropped,
            // Of a console that has ended it means nothing.
            silence: if self.ended() {
                Duration::ZERO
            } else {
                lines.heard.elapsed()
            },
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

fn follow(
    domain: &Domain,
    stream: &Stream,
    stop: &AtomicBool,
    mut file: File,
    kept: &Mutex<Lines>,
) {
    /// What a stream says that has nothing yet.
    const NOTHING_YET: isize = -2;
    let mut partial = String::new();
    let mut buffer = [0_u8; 16 << 10];
    while !stop.load(Ordering::Relaxed) {
        let read = match stream.recv(&mut buffer) {
            Ok(NOTHING_YET) => {
                // A call makes the library read what has come in for the stream.
                if domain.is_active().is_err() {
                    return;
                }
                std::thread::sleep(LOOK);
                continue;
            }
            Ok(read) => usize::try_from(read).unwrap_or(0),
            Err(_) => return,
        };
        if read == 0 {
            return;
        }
        let _ = file.write_all(&buffer[..read]);
        partial.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let mut lines = kept.lock().unwrap_or_else(PoisonError::into_inner);
        lines.heard = Instant::now();
        while let Some(end) = partial.find('\n') {
            lines.whole.push_back(plain::line(&partial[..end]));
            partial.drain(..=end);
        }
        if partial.len() > LONGEST {
            lines.whole.push_back(plain::line(&partial));
            partial.clear();
        }
        lines.begun = plain::line(&partial);
        while lines.whole.len() > KEPT_LINES {
            lines.whole.pop_front();
            lines.dropped += 1;
        }
    }
}
