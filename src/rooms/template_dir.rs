//! The user's own templates: a directory laid over the built-in ones.

use std::collections::BTreeMap;
use std::path::Path;

use crate::core::error::{Context as _, Result};
use crate::rooms::files::{self, Failure};

/// Every file below it that is text, by its relative path.
pub fn read(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(&next)
            .map_err(Failure::from)
            .doing(format!("reading the template directory {}", next.display()))?
        {
            let path = entry
                .map_err(Failure::from)
                .doing(format!("reading the template directory {}", next.display()))?
                .path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path
                    .strip_prefix(dir)
                    .expect("it was found below")
                    .to_string_lossy()
                    .into_owned();
                texts.insert(
                    name,
                    files::read(&path).doing(format!("reading the template {}", path.display()))?,
                );
            }
        }
    }
    Ok(texts)
}
