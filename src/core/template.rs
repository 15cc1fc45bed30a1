//! Templates: built into the binary, replaceable by a directory, rendered strictly.
//! An undefined name is an error; `sh` quotes for a shell, `json` for JSON and YAML.

use std::collections::BTreeMap;

use include_dir::{Dir, include_dir};
use serde::Serialize;
use tera::{Context, Kwargs, State, Tera, Value};

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
        .map_err(|error| Error::refused("a template does not parse").because(error))?;
        Ok(Self { texts, tera })
    }

    /// Renders one template. Fails on any name it uses that `values` lacks.
    pub fn render(&self, name: &str, values: &impl Serialize) -> Result<String> {
        let refused = |error| {
            Error::refused(format!("the template {name} cannot be rendered")).because(error)
        };
        let context = Context::from_serialize(values).map_err(refused)?;
        self.tera.render(name, &context).map_err(refused)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }
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
}
