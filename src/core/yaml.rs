//! YAML that people write, and their mistakes in it, each with its place. The parser's own texts speak of its types and
//! options; what it found is known by its variants.

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, Location};

use crate::core::nearest::nearest;

/// What stands somewhere and cannot.
#[derive(Debug)]
pub struct Mistake {
    pub at: Location,
    pub message: String,
    /// What to write instead, where that is known.
    pub help: Option<String>,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at.line() {
            0 => f.write_str(&self.message),
            line => write!(f, "{line}:{}: {}", self.at.column(), self.message),
        }
    }
}

pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Mistake> {
    read_with(text, true)
}

/// The same, where `yes` and `no` are booleans too.
pub fn read_loosely<T: DeserializeOwned>(text: &str) -> Result<T, Mistake> {
    read_with(text, false)
}

fn read_with<T: DeserializeOwned>(text: &str, strict_booleans: bool) -> Result<T, Mistake> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: strict_booleans };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (message, help) = words(&error);
        Mistake {
            at: error.location().unwrap_or(Location::UNKNOWN),
            message,
            help,
        }
    })
}

/// What the parser found, and what to do about it.
fn words(error: &Error) -> (String, Option<String>) {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => words(error),
        // Of our own types, which say what they expect.
        Error::Message { msg, .. } => (msg.clone(), None),
        Error::SerdeUnknownField {
            field, expected, ..
        } => {
            let known = format!("known here: {}", expected.join(", "));
            let help = match nearest(field, expected.iter().copied()) {
                Some(near) => format!("did you mean `{near}`? {known}"),
                None => known,
            };
            (format!("unknown key `{field}`"), Some(help))
        }
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => (
            format!("`{variant}` is not one of {}", expected.join(", ")),
            nearest(variant, expected.iter().copied())
                .map(|near| format!("did you mean `{near}`?")),
        ),
        Error::SerdeMissingField { field, .. } => (
            format!("the key `{field}` is missing"),
            Some(format!("add `{field}:`")),
        ),
        Error::DuplicateMappingKey { key, .. } => (
            match key {
                Some(key) => format!("the key `{key}` is given twice"),
                None => "a key is given twice".to_owned(),
            },
            Some("keep one of them".to_owned()),
        ),
        Error::InvalidScalar { ty, .. } => (format!("this is not {}", kind_of(ty)), None),
        Error::InvalidBooleanStrict { .. } => (
            "this is neither true nor false".to_owned(),
            Some("write `true` or `false`".to_owned()),
        ),
        other => (plain(other).to_owned(), None),
    }
}

/// What needs no names.
fn plain(error: &Error) -> &'static str {
    match error {
        Error::Unexpected { expected, .. } => match *expected {
            "sequence start" => "this is not a list",
            "mapping start" => "this is not a mapping of keys to values",
            _ => "this is not a single value",
        },
        Error::NullIntoString { .. } => "a text is expected, and there is nothing",
        Error::ExpectedMappingEndAfterEnumVariantValue { .. } => "one key may stand here, not two",
        Error::SerdeInvalidType { .. }
        | Error::SerdeInvalidValue { .. }
        | Error::SerdeInvalidLength { .. }
        | Error::UnexpectedValueForUnit { .. }
        | Error::UnexpectedValueForUnitEnumVariant { .. }
        | Error::ExpectedStringKeyForExternallyTaggedEnum { .. }
        | Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => {
            "another kind of value is expected here"
        }
        Error::Eof { .. } => "the file is empty, or ends too early",
        Error::InvalidUtf8Input => "this is not text",
        Error::MultipleDocuments { .. } => "a second document begins here, and one is expected",
        Error::UnknownAnchor { .. } => "nothing before it is marked with this anchor",
        Error::MergeValueNotMapOrSeqOfMaps { .. } | Error::MergeKeyNotAllowed { .. } => {
            "`<<` takes a mapping, or a list of mappings"
        }
        Error::TaggedScalarCannotDeserializeIntoString { .. }
        | Error::TaggedEnumMismatch { .. }
        | Error::UnsupportedTag { .. }
        | Error::TaggedStructFieldName { .. } => "a tag such as !!int may not stand here",
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::Budget { .. } => "it is too large, or refers to itself",
        _ => "this is not YAML: look at the brackets, quotes, colons and indentation here",
    }
}

/// A type of Rust's as a person would call it.
fn kind_of(ty: &str) -> &'static str {
    match ty {
        "boolean" => "true or false",
        "floating point" => "a number",
        _ => "a whole number that fits",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Read {
        number: u32,
        small: Option<u16>,
        name: Option<String>,
        flag: Option<bool>,
        list: Option<Vec<String>>,
        map: Option<BTreeMap<String, String>>,
        choice: Option<Choice>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[expect(dead_code, reason = "only read")]
    enum Choice {
        One(u8),
        Two(u8),
    }

    #[test]
    fn every_mistake_is_told_in_words_of_ours_with_its_place() {
        let cases = [
            ("number: two", "1:9: this is not a whole number that fits"),
            ("number: -1", "1:9: this is not a whole number that fits"),
            (
                "number: 1\nsmall: 99999",
                "2:8: this is not a whole number that fits",
            ),
            ("number: [1]", "1:9: this is not a single value"),
            (
                "number: 1\nnumber: 2",
                "2:1: the key `number` is given twice",
            ),
            (
                "number: 1\nflag: yes",
                "2:7: this is neither true nor false",
            ),
            ("number: 1\nname: ~\n", ""),
            ("number: 1\nlist: x", "2:7: this is not a list"),
            (
                "number: 1\nmap: 3",
                "2:6: this is not a mapping of keys to values",
            ),
            ("name: x", "1:1: the key `number` is missing"),
            ("numbre: 1", "1:1: unknown key `numbre`"),
            (
                "number: 1\nchoice: {three: 1}",
                "2:10: `three` is not one of one, two",
            ),
            (
                "number: 1\nchoice: {one: 1, two: 2}",
                "2:18: one key may stand here, not two",
            ),
            ("", "1:1: the file is empty, or ends too early"),
            ("x", "1:1: this is not a mapping of keys to values"),
            (
                "number: *x",
                "1:9: nothing before it is marked with this anchor",
            ),
            (
                "list: [}",
                "1:7: this is not YAML: look at the brackets, quotes, colons and indentation here",
            ),
            (
                "number: 1\n\tname: x",
                "1:9: this is not YAML: look at the brackets, quotes, colons and indentation here",
            ),
        ];
        for (text, told) in cases {
            let said = match read::<Read>(text) {
                Ok(_) => String::new(),
                Err(mistake) => mistake.to_string(),
            };
            assert_eq!(said, told, "{text}");
        }
    }
}
