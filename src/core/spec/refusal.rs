//! How a spec is refused: each problem with its place, a caret and a remedy.

use serde::de::DeserializeOwned;
use serde_saphyr::Location;

use crate::core::error::{Error, Result};
use crate::core::yaml::{self, Mistake};

/// Something the spec says that cannot be, and where it says so.
#[derive(Debug)]
pub struct Problem {
    pub at: Location,
    pub message: String,
    pub help: String,
}

pub fn read<T: DeserializeOwned>(text: &str, file: &str) -> Result<T> {
    yaml::read(text).map_err(|Mistake { at, message, help }| {
        let help =
            help.unwrap_or_else(|| "see the README for every key a spec may have".to_owned());
        refuse(text, file, vec![Problem { at, message, help }])
    })
}

/// One error out of all problems, each with `file:line:column` and a caret under the place.
pub fn refuse(text: &str, file: &str, problems: Vec<Problem>) -> Error {
    let count = problems.len();
    let help = problems[0].help.clone();
    let mut detail = Vec::new();
    for (index, problem) in problems.into_iter().enumerate() {
        let (line, column) = (problem.at.line() as usize, problem.at.column() as usize);
        detail.push(if line == 0 {
            format!("{file}: {}", problem.message)
        } else {
            format!("{file}:{line}:{column}: {}", problem.message)
        });
        if let Some(source) = line
            .checked_sub(1)
            .and_then(|index| text.lines().nth(index))
        {
            detail.push(format!("{line:>5} | {source}"));
            detail.push(format!("      | {}^", " ".repeat(column.saturating_sub(1))));
        }
        if index > 0 || count > 1 {
            detail.push(format!("        {}", problem.help));
        }
    }
    let what = if count == 1 {
        format!("{file} was refused")
    } else {
        format!("{file} was refused for {count} reasons")
    };
    let error = Error::refused(what).with_detail(detail);
    if count == 1 {
        error.with_help(help)
    } else {
        error.with_help("correct these; nothing was touched")
    }
}
