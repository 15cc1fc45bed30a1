//! `kubeconfig bootstrap`: the file of the seed's chapter 7.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use super::{Setting, cluster_of};
use crate::cli;
use crate::core::error::{Context, Exit, Result};
use crate::core::plan::bootstrap_kubeconfig;
use crate::rooms::cluster::token::Token;
use crate::ui;

pub async fn run(command: &cli::Kubeconfig, setting: &Setting) -> Result<Exit> {
    let cli::Kubeconfig::Bootstrap {
        cluster,
        token,
        server,
        write,
    } = command;
    let token = Token::parse(token)?;
    let cluster = cluster_of(cluster, setting).await?;
    let server = server.as_deref().unwrap_or(&cluster.server);
    let text = bootstrap_kubeconfig(
        &setting.templates()?,
        server,
        &cluster.ca_base64,
        &token.reveal(),
    )?;
    match write {
        None => ui::print(&text)?,
        Some(path) => {
            // It holds a secret: never readable by others, not even for a moment.
            let mut file = std::fs::OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(path)
                .doing(format!("making {}", path.display()))
                .map_err(|error| error.with_help("name a file that does not exist yet"))?;
            file.write_all(text.as_bytes())
                .doing(format!("writing {}", path.display()))?;
        }
    }
    Ok(Exit::Done)
}
