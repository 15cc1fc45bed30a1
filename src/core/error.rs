//! What went wrong, why, and what to do next; and the exit codes that callers may rely on.
//! An error's own text is one clause; only `ui` prints the chain behind it.

use std::error::Error as StdError;

/// The exit codes of `nodegraft`, a contract with scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Bug = 1,
    Usage = 2,
    /// The spec or the plan was refused; nothing was touched.
    Refused = 3,
    /// The host or the cluster is unfit; nothing was created.
    Unfit = 4,
    /// Some nodes failed.
    NodesFailed = 5,
    /// Teardown left something behind.
    Leftover = 6,
    Interrupted = 130,
}

type Source = Box<dyn StdError + Send + Sync>;

/// One failure: a clause, its cause, lines worth reading, and a remedy.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    what: String,
    help: Option<String>,
    detail: Vec<String>,
    exit: Option<Exit>,
    shown: bool,
    #[source]
    source: Option<Source>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            help: None,
            detail: Vec::new(),
            exit: None,
            shown: false,
            source: None,
        }
    }

    /// The work was stopped by the user, not by a fault.
    pub fn interrupted() -> Self {
        Self::new("stopped at your request")
            .with_exit(Exit::Interrupted)
            .with_help(
                "run `nodegraft up` again to go on, or `nodegraft down` to remove what was made",
            )
    }

    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Lines to read: the end of a log, the serial console's last words.
    pub fn with_detail<S: Into<String>>(mut self, lines: impl IntoIterator<Item = S>) -> Self {
        self.detail.extend(lines.into_iter().map(Into::into));
        self
    }

    pub fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = Some(exit);
        self
    }

    pub fn because(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The causes below this error, nearest first.
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut next = self.source();
        while let Some(error) = next {
            let text = error.to_string();
            // Some libraries print their source and also return it.
            if causes.last().is_none_or(|last| !last.contains(&text)) {
                causes.push(text);
            }
            next = error.source();
        }
        causes
    }

    /// The remedy nearest to the surface.
    pub fn help(&self) -> Option<&str> {
        self.own().find_map(|error| error.help.as_deref())
    }

    /// All lines worth reading, from the surface down.
    pub fn detail(&self) -> Vec<&str> {
        self.own()
            .flat_map(|error| error.detail.iter().map(String::as_str))
            .collect()
    }

    pub fn exit(&self) -> Option<Exit> {
        self.own().find_map(|error| error.exit)
    }

    /// An event has told it already: it only carries the exit code from here on.
    pub fn shown(mut self) -> Self {
        self.shown = true;
        self
    }

    pub fn is_shown(&self) -> bool {
        self.shown
    }

    pub fn is_interruption(&self) -> bool {
        self.exit() == Some(Exit::Interrupted)
    }

    /// This error and those of our own kind below it.
    fn own(&self) -> impl Iterator<Item = &Error> {
        let mut next: Option<&(dyn StdError + 'static)> = Some(self);
        std::iter::from_fn(move || {
            while let Some(error) = next {
                next = error.source();
                if let Some(own) = error.downcast_ref::<Error>() {
                    return Some(own);
                }
            }
            None
        })
    }
}

/// Says what was being done when something failed: `.doing("opening the pool kvmimage")`.
pub trait Context<T> {
    fn doing(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: StdError + Send + Sync + 'static> Context<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::new(what).because(source))
    }
}

/// The plain text of an error and its causes, for places that have one line.
pub fn one_line(error: &Error) -> String {
    let mut text = error.to_string();
    for cause in error.causes() {
        text.push_str(": ");
        text.push_str(&cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_detail_and_exit_come_from_the_nearest_error_that_has_them() {
        let inner = Error::new("pool is off")
            .with_help("start it")
            .with_detail(["a", "b"])
            .with_exit(Exit::Unfit);
        let outer = Err::<(), _>(inner).doing("opening the pool").unwrap_err();
        assert_eq!(outer.help(), Some("start it"));
        assert_eq!(outer.detail(), ["a", "b"]);
        assert_eq!(outer.exit(), Some(Exit::Unfit));
        assert_eq!(one_line(&outer), "opening the pool: pool is off");
    }

    #[test]
    fn a_cause_that_repeats_its_source_is_told_once() {
        let io = std::io::Error::other("refused");
        let error = Error::new("connecting").because(Error::new("dial: refused").because(io));
        assert_eq!(error.causes(), ["dial: refused"]);
    }
}
