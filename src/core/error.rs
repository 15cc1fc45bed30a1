//! What went wrong, of what kind, why, and what to do next. An error's own text is one clause; only `ui` prints the chain
//! behind it.

use std::error;
use std::io;

/// What an error means to whoever ran the command. `main` alone turns it into an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nodegraft is wrong, not the user or the world.
    Bug,
    /// The command line, or an answer at a prompt.
    Usage,
    /// The spec, a template or a file of the user was refused, or the user declined; nothing was touched.
    Refused,
    /// This machine, the host or the cluster is unfit.
    Unfit,
    /// A node failed.
    Failed,
    /// A removal left something behind.
    Leftover,
    /// The user stopped it.
    Interrupted,
}

/// The error of a room: it knows its kind, and its remedy if there is one. Errors of libraries have neither, which is why
/// [`Context::doing`] does not take them: the room says first what they mean.
pub trait Cause: error::Error + Send + Sync + 'static {
    fn kind(&self) -> Kind;

    /// What to do next.
    fn help(&self) -> Option<String> {
        None
    }
}

type Source = Box<dyn error::Error + Send + Sync>;

/// Why something failed: a clause, or an error that knows its kind. What a library says is neither.
pub struct Why(Source);

impl From<&str> for Why {
    fn from(clause: &str) -> Self {
        Self(clause.into())
    }
}

impl From<String> for Why {
    fn from(clause: String) -> Self {
        Self(clause.into())
    }
}

impl<E: Cause> From<E> for Why {
    fn from(cause: E) -> Self {
        Self(Box::new(cause))
    }
}

/// One failure: its kind, a clause, its cause, lines worth reading, and a remedy.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: Kind,
    what: String,
    help: Option<String>,
    detail: Vec<String>,
    shown: bool,
    #[source]
    source: Option<Source>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            help: None,
            detail: Vec::new(),
            shown: false,
            source: None,
        }
    }

    pub fn bug(what: impl Into<String>) -> Self {
        Self::new(Kind::Bug, what)
    }

    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(Kind::Refused, what)
    }

    pub fn unfit(what: impl Into<String>) -> Self {
        Self::new(Kind::Unfit, what)
    }

    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Kind::Failed, what)
    }

    pub fn leftover(what: impl Into<String>) -> Self {
        Self::new(Kind::Leftover, what)
    }

    /// The work was stopped by the user, not by a fault.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "stopped at your request").with_help(
            "run `nodegraft up` again to go on, or `nodegraft down` to remove what was made",
        )
    }

    /// What was being done when `cause` came about, with the cause's kind and remedy.
    pub fn during(what: impl Into<String>, cause: impl Cause) -> Self {
        Self {
            help: cause.help(),
            ..Self::new(cause.kind(), what).because(cause)
        }
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

    /// The same with another kind, where the place tells more than the cause: before a run has begun, whatever fails is unfit.
    pub fn as_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    pub fn because(mut self, why: impl Into<Why>) -> Self {
        self.source = Some(why.into().0);
        self
    }

    /// The causes below this error, nearest first.
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        for text in chain(self).skip(1).map(ToString::to_string) {
            // Some libraries print their source and also return it.
            if causes.last().is_none_or(|last| !last.contains(&text)) {
                causes.push(text);
            }
        }
        causes
    }

    /// The nearest cause of a type, this error aside.
    pub fn cause<E: error::Error + 'static>(&self) -> Option<&E> {
        chain(self).skip(1).find_map(|error| error.downcast_ref())
    }

    pub fn kind(&self) -> Kind {
        self.kind
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

    /// An event has told it already: it only carries its kind from here on.
    pub fn shown(mut self) -> Self {
        self.shown = true;
        self
    }

    pub fn is_shown(&self) -> bool {
        self.shown
    }

    pub fn is_interruption(&self) -> bool {
        self.kind == Kind::Interrupted
    }

    /// This error and those of our own type below it.
    fn own(&self) -> impl Iterator<Item = &Error> {
        chain(self).filter_map(|error| error.downcast_ref())
    }
}

/// An error and the causes below it, nearest first.
fn chain(error: &Error) -> impl Iterator<Item = &(dyn error::Error + 'static)> {
    let first: &(dyn error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| (*error).source())
}

impl Cause for Error {
    fn kind(&self) -> Kind {
        self.kind
    }
}

/// Says what was being done when something failed: `.doing("opening the pool kvmimage")`.
pub trait Context<T> {
    fn doing(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Cause> Context<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|cause| Error::during(what, cause))
    }
}

/// What the operating system says, as a clause: without its number, and in lower case.
pub fn system_words(error: &io::Error) -> String {
    let said = error.to_string();
    let words = said.split(" (os error ").next().unwrap_or_default();
    let mut letters = words.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => "it gave no reason".to_owned(),
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
    fn kind_help_and_detail_are_inherited() {
        let inner = Error::unfit("pool is off")
            .with_help("start it")
            .with_detail(["a", "b"]);
        let outer = Err::<(), _>(inner).doing("opening the pool").unwrap_err();
        assert_eq!(outer.help(), Some("start it"));
        assert_eq!(outer.detail(), ["a", "b"]);
        assert_eq!(outer.kind(), Kind::Unfit);
        assert_eq!(one_line(&outer), "opening the pool: pool is off");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the pool is busy")]
    struct Busy;

    impl Cause for Busy {
        fn kind(&self) -> Kind {
            Kind::Leftover
        }

        fn help(&self) -> Option<String> {
            Some("wait".to_owned())
        }
    }

    #[test]
    fn the_error_of_a_room_gives_its_kind_and_its_remedy_and_is_found_again() {
        let error = Err::<(), _>(Busy).doing("looking").doing("removing");
        let error = error.unwrap_err();
        assert_eq!((error.kind(), error.help()), (Kind::Leftover, Some("wait")));
        assert!(error.cause::<Busy>().is_some());
        assert!(Error::bug("none").cause::<Busy>().is_none());
    }

    #[test]
    fn another_kind_is_only_given_by_name() {
        let error = Error::unfit("outer").because(Error::failed("inner"));
        assert_eq!(error.kind(), Kind::Unfit);
        assert_eq!(error.as_kind(Kind::Refused).kind(), Kind::Refused);
    }

    #[test]
    fn the_system_speaks_in_clauses() {
        let words = |code| system_words(&io::Error::from_raw_os_error(code));
        assert_eq!(words(2), "no such file or directory");
        assert_eq!(words(13), "permission denied");
        let own = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(system_words(&own), "unexpected end of file");
    }

    #[test]
    fn a_cause_that_repeats_its_source_is_told_once() {
        let dial = Error::failed("dial: refused").because("refused");
        let error = Error::failed("connecting").because(dial);
        assert_eq!(error.causes(), ["dial: refused"]);
    }
}
