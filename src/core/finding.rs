//! What one look at the host or the cluster found.

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub state: State,
    pub what: String,
    pub help: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Good,
    Doubtful,
    Bad,
}

impl Finding {
    pub fn good(what: impl Into<String>) -> Self {
        Self {
            state: State::Good,
            what: what.into(),
            help: None,
        }
    }

    pub fn doubtful(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            state: State::Doubtful,
            what: what.into(),
            help: Some(help.into()),
        }
    }

    pub fn bad(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            state: State::Bad,
            what: what.into(),
            help: Some(help.into()),
        }
    }
}
