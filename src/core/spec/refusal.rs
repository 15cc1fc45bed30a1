//! How a spec is refused: each problem with its place, a caret and a remedy.

use serde::de::DeserializeOwned;
use serde_saphyr::{Error as Yaml, Location};

use crate::core::error::{Error, Result};
use crate::core::nearest::nearest;

/// Something the spec says that cannot be, and where it says so.
#[derive(Debug)]
pub struct Problem {
    pub at: Location,
    pub message: String,
    pub help: String,
}

pub fn read<T: DeserializeOwned>(text: &str, file: &str) -> Result<T> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (message, help) = words(&error);
        let at = error.location().unwrap_or(Location::UNKNOWN);
        refuse(text, file, vec![Problem { at, message, help }])
    })
}

/// What the parser found, without its own terms and settings.
fn words(error: &Yaml) -> (String, String) {
    let readme = "see the README for every key a spec may have";
    match error {
        Yaml::SerdeUnknownField {
            field, expected, ..
        } => {
            let known = format!("known here: {}", expected.join(", "));
            let help = nearest(field, expected.iter().copied()).map_or(known.clone(), |near| {
                format!("did you mean `{near}`? {known}")
            });
            (format!("unknown key `{field}`"), help)
        }
        Yaml::SerdeUnknownVariant {
            variant, expected, ..
        } => (
            format!("`{variant}` is not one of {}", expected.join(", ")),
            nearest(variant, expected.iter().copied()).map_or_else(
                || readme.to_owned(),
                |near| format!("did you mean `{near}`?"),
            ),
        ),
        Yaml::SerdeMissingField { field, .. } => (
            format!("the key `{field}` is missing"),
            format!("add `{field}:`"),
        ),
        Yaml::DuplicateMappingKey { key, .. } => (
            match key {
                Some(key) => format!("the key `{key}` is given twice"),
                None => "a key is given twice".to_owned(),
            },
            "keep one of them".to_owned(),
        ),
        Yaml::InvalidScalar { ty, .. } => {
            (format!("this is not {}", kind_of(ty)), readme.to_owned())
        }
        Yaml::InvalidBooleanStrict { .. } => (
            "this is neither true nor false".to_owned(),
            "write `true` or `false`".to_owned(),
        ),
        _ => {
            let text = error.to_string();
            let clause = text.split(" at line ").next().unwrap_or(&text);
            (clause.to_owned(), readme.to_owned())
        }
    }
}

/// A type of Rust's as a person would call it.
fn kind_of(ty: &str) -> &'static str {
    match ty {
        "bool" => "true or false",
        "f32" | "f64" => "a number",
        _ if ty.starts_with(['i', 'u']) => "a whole number that fits",
        _ => "what is expected here",
    }
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
        error.with_help("mend these; nothing was touched")
    }
}
