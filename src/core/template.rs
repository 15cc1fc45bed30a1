//! Templates: built into the binary, replaceable by a directory, rendered strictly.
//! An undefined name is an error; `sh` quotes for a shell, `json` for JSON and YAML.

use std::collections::BTreeMap;

use include_dir::{Dir, include_dir};
use serde::Serialize;
use tera::{Context, ErrorKind, Kwargs, State, Tera, Value};

use crate::core::error::{Error, Result};

static BUILT_IN: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates");

/// All templates of a run, by their path below `templates/`.
#[derive(Debug, Clone)]
pub struct Templates {
    texts: BTreeMap<String, String>,
    tera: Tera,
}

impl Templates {
    /// The built-in templates.
    pub fn built_in() -> Self {
        Self::from_texts(built_in_texts()).expect("the built-in templates parse; a test sees to it")
    }

    /// The built-in templates with those of a directory laid over them. The caller has read the directory.
    pub fn with(own: BTreeMap<String, String>) -> Result<Self> {
        let mut texts = built_in_texts();
        texts.extend(own);
        Self::from_texts(texts)
    }

    fn from_texts(texts: BTreeMap<String, String>) -> Result<Self> {
        let mut tera = Tera::new();
        tera.autoescape_on(vec![".xml"]);
        tera.register_filter("sh", sh);
        tera.register_filter("json", json);
        for (name, text) in &texts {
            // Bash's array length opens a template comment and would swallow what follows.
            if let Some(line) = text.lines().position(|line| line.contains("${#")) {
                return Err(Error::refused(format!(
                    "template {name}:{} has `${{#`, which opens a template comment",
                    line + 1
                ))
                .with_help("write `$ {#` differently, or keep it inside {% raw %} in two pieces"));
            }
        }
        tera.add_raw_templates(
            texts
                .iter()
                .map(|(name, text)| (name.as_str(), text.as_str())),
        )
        .map_err(|error| refused("a template does not parse", &error, &texts))?;
        Ok(Self { texts, tera })
    }

    /// Renders one template. Fails on any name it uses that `values` lacks.
    pub fn render(&self, name: &str, values: &impl Serialize) -> Result<String> {
        let failed = |error| {
            let what = format!("the template {name} cannot be rendered");
            refused(&what, &error, &self.texts)
        };
        let context = Context::from_serialize(values).map_err(failed)?;
        self.tera.render(name, &context).map_err(failed)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }
}

/// What tera says, at its place in the template. It tells only in words what is wrong: those of the language that the
/// template is written in.
fn refused(what: &str, error: &tera::Error, texts: &BTreeMap<String, String>) -> Error {
    match error.kind() {
        ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => {
            let (name, span) = (report.filename(), report.span());
            let source = texts
                .get(name)
                .and_then(|text| text.lines().nth(span.start_line.checked_sub(1)?));
            let error = Error::refused(what).because(format!(
                "{name}:{}:{}: {}",
                span.start_line,
                span.start_col + 1,
                clause(report.message())
            ));
            error.with_detail(source.into_iter().flat_map(|line| {
                [
                    format!("{:>5} | {line}", span.start_line),
                    format!("      | {}^", " ".repeat(span.start_col)),
                ]
            }))
        }
        ErrorKind::CircularExtend { tpl, .. } | ErrorKind::CircularInclude { tpl, .. } => {
            Error::refused(what).because(format!("{tpl} includes itself"))
        }
        ErrorKind::MissingParent { current, parent } => Error::refused(what)
            .because(format!("{current} extends {parent}, which does not exist")),
        ErrorKind::TemplateNotFound(name) => {
            Error::refused(what).because(format!("{name} does not exist"))
        }
        _ => Error::refused(what).because(clause(&error.to_string())),
    }
}

/// A sentence as a clause.
fn clause(sentence: &str) -> String {
    let line = sentence.lines().next().unwrap_or_default();
    let mut letters = line.trim_end_matches('.').chars();
    let first = letters.next().map(char::to_lowercase);
    first.into_iter().flatten().chain(letters).collect()
}

fn built_in_texts() -> BTreeMap<String, String> {
    fn collect(dir: &Dir<'_>, texts: &mut BTreeMap<String, String>) {
        for file in dir.files() {
            let text = file
                .contents_utf8()
                .expect("templates are UTF-8")
                .to_owned();
            texts.insert(file.path().to_string_lossy().into_owned(), text);
        }
        dir.dirs().for_each(|dir| collect(dir, texts));
    }
    let mut texts = BTreeMap::new();
    collect(&BUILT_IN, &mut texts);
    texts
}

/// Quotes a value as one word of a POSIX shell.
pub fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn sh(value: Value, _: Kwargs, _: &State) -> tera::TeraResult<String> {
    match serde_json::to_value(&value) {
        Ok(serde_json::Value::String(text)) if text.contains('\0') => {
            Err(tera::Error::message("a NUL cannot be quoted for a shell"))
        }
        Ok(serde_json::Value::String(text)) => Ok(shell_quote(&text)),
        Ok(serde_json::Value::Number(number)) => Ok(shell_quote(&number.to_string())),
        Ok(serde_json::Value::Bool(flag)) => Ok(shell_quote(&flag.to_string())),
        _ => Err(tera::Error::message(
            "only text, numbers and booleans can be quoted for a shell",
        )),
    }
}

fn json(value: Value, _: Kwargs, _: &State) -> tera::TeraResult<String> {
    serde_json::to_string(&value).map_err(|error| tera::Error::message(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_templates_parse() {
        assert!(
            Templates::built_in()
                .names()
                .any(|name| name == "domain.xml")
        );
    }

    #[test]
    fn undefined_names_are_refused() {
        let templates =
            Templates::with([("t".to_owned(), "{{ missing }}".to_owned())].into()).unwrap();
        assert!(templates.render("t", &serde_json::json!({})).is_err());
    }

    #[test]
    fn xml_is_escaped_and_shell_is_quoted() {
        let texts = [
            ("a.xml".to_owned(), "<n>{{ v }}</n>".to_owned()),
            ("b.sh".to_owned(), "echo {{ v | sh }}".to_owned()),
        ];
        let templates = Templates::with(texts.into()).unwrap();
        let values = serde_json::json!({"v": "a&'b"});
        assert_eq!(
            templates
                .render("a.xml", &values)
                .unwrap()
                .matches('&')
                .count(),
            2
        );
        assert_eq!(
            templates.render("b.sh", &values).unwrap(),
            r"echo 'a&'\''b'"
        );
    }

    #[test]
    fn bash_array_lengths_are_refused_with_their_place() {
        let error =
            Templates::with([("t".to_owned(), "x\necho ${#a[@]}".to_owned())].into()).unwrap_err();
        assert!(error.to_string().contains("t:2"), "{error}");
    }

    #[test]
    fn a_mistake_is_shown_at_its_place() {
        let mistake = |text: &str| {
            let error = Templates::with([("t".to_owned(), text.to_owned())].into())
                .and_then(|templates| templates.render("t", &serde_json::json!({"node": 1})))
                .unwrap_err();
            let detail: Vec<_> = error.detail().into_iter().map(str::to_owned).collect();
            (error.causes(), detail)
        };
        let (causes, detail) = mistake("a\n{{ missing }}");
        assert_eq!(
            causes,
            ["t:2:4: variable `missing` is not defined. Available variables: node"]
        );
        assert_eq!(detail, ["    2 | {{ missing }}", "      |    ^"]);
        let (causes, detail) = mistake("{% if %}");
        assert!(causes[0].starts_with("t:1:7: found `%}`"), "{causes:?}");
        assert_eq!(detail.len(), 2);
    }
}
