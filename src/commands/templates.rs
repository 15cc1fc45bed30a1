//! `templates`: writes the built-in templates to a directory, as a start for one's own.

use super::Verdict;
use crate::cli;
use crate::core::error::{Context, Error, Result};
use crate::core::template::Templates;
use crate::rooms::files;

pub fn run(args: &cli::Templates) -> Result<Verdict> {
    if args.dir.exists() {
        return Err(
            Error::refused(format!("{} exists already", args.dir.display())).with_help(
                "name a directory that does not, so that nothing of yours is overwritten",
            ),
        );
    }
    let templates = Templates::built_in();
    for name in templates.names() {
        let path = args.dir.join(name);
        if let Some(dir) = path.parent() {
            files::create_dirs(dir).doing(format!("making {}", dir.display()))?;
        }
        files::write(&path, templates.text(name).unwrap_or_default())
            .doing(format!("writing {}", path.display()))?;
    }
    crate::ui::print(&format!(
        "wrote the templates to {0}; use them with --templates {0}\n",
        args.dir.display()
    ))?;
    Ok(Verdict::Done)
}
