//! `kubeconfig bootstrap`: the file that a kubelet starts with.

use super::{Setting, Verdict, cluster_of};
use crate::cli;
use crate::core::bootstrap::bootstrap_kubeconfig;
use crate::core::error::{Context, Result};
use crate::rooms::cluster::token::Token;
use crate::rooms::files;
use crate::ui;

pub async fn run(command: &cli::Kubeconfig, setting: &Setting) -> Result<Verdict> {
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
        Some(path) => files::create_private(path, &text)
            .doing(format!("writing the kubeconfig {}", path.display()))?,
    }
    Ok(Verdict::Done)
}
