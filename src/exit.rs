//! The exit codes of `nodegraft`, a contract with scripts.

use crate::core::error::Kind;

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

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Bug => Self::Bug,
            Kind::Usage => Self::Usage,
            Kind::Refused => Self::Refused,
            Kind::Unfit => Self::Unfit,
            Kind::Failed => Self::NodesFailed,
            Kind::Leftover => Self::Leftover,
            Kind::Interrupted => Self::Interrupted,
        }
    }
}
