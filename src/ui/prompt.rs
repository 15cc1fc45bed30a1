//! Questions on a terminal. Each has a flag, so that a script is never asked.

use std::io::IsTerminal;

use console::Term;
use dialoguer::{Confirm, Input};

use crate::core::error::{Error, Result, system_words};

/// Whether there is somebody to ask, and whether defaults are as good as answers.
#[derive(Debug, Clone, Copy)]
pub struct Prompt {
    interactive: bool,
    take_defaults: bool,
}

/// One thing to know: by its flag, by its default, or by asking.
pub struct Question<'a> {
    /// Such as `--memory`.
    pub flag: &'static str,
    pub text: &'a str,
    /// What the flag said.
    pub given: Option<&'a str>,
    pub default: Option<String>,
}

impl Prompt {
    pub fn new(take_defaults: bool) -> Self {
        Self {
            interactive: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
            take_defaults,
        }
    }

    /// The answer as `read` understands it. A flag's value that is wrong is refused at once; a typed one is asked for again.
    pub fn ask<T>(
        &self,
        question: &Question<'_>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T> {
        if let Some(given) = question.given {
            return read(given)
                .map_err(|why| Error::usage(format!("{} {given}: {why}", question.flag)));
        }
        if let Some(default) = question.default.as_deref().filter(|_| self.take_defaults) {
            return read(default)
                .map_err(|why| Error::usage(format!("{} {default}: {why}", question.flag)));
        }
        if !self.interactive {
            return Err(Error::usage(format!(
                "{} is missing, and there is no terminal to ask on",
                question.flag
            ))
            .with_help("give it, or --yes to take the defaults of what has one"));
        }
        let mut input = Input::<String>::new().with_prompt(question.text);
        if let Some(default) = &question.default {
            input = input.default(default.clone());
        }
        let answer = input
            .validate_with(|typed: &String| read(typed).map(drop))
            .interact_text_on(&Term::stderr())
            .map_err(unanswered)?;
        read(&answer).map_err(Error::usage)
    }

    /// True without asking where nobody is to be asked; `default` is what Enter means.
    pub fn confirm(&self, text: &str, default: bool) -> Result<bool> {
        if !self.asks() {
            return Ok(true);
        }
        Confirm::new()
            .with_prompt(text)
            .default(default)
            .interact_on(&Term::stderr())
            .map_err(unanswered)
    }

    /// Whether there is anything to ask, and anybody.
    pub fn asks(&self) -> bool {
        self.interactive && !self.take_defaults
    }

    /// Something to read before the next question.
    pub fn say(&self, text: &str) {
        let _ = Term::stderr().write_line(text);
    }
}

/// Ctrl-C at a prompt is a stop like any other.
fn unanswered(error: dialoguer::Error) -> Error {
    let dialoguer::Error::IO(io) = &error;
    if io.kind() == std::io::ErrorKind::Interrupted {
        return Error::interrupted();
    }
    Error::unfit("the terminal gave no answer")
        .because(system_words(io))
        .with_help("answer by flags, or take the defaults with --yes")
}
