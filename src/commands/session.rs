//! `ssh` and `exec`: into a node with the key we made and the host key we know, by the system's own `ssh`.

use std::os::unix::process::CommandExt;

use super::{Setting, Verdict, load_spec};
use crate::core::error::{Context, Error, Result, system_words};
use crate::core::plan::Plan;
use crate::rooms::files;
use crate::rooms::libvirt::Host;
use crate::rooms::state::StateDir;

/// Replaces this process with `ssh`; returns only if that fails.
pub async fn run(
    file: &std::path::Path,
    node: &str,
    command: &[String],
    setting: &Setting,
) -> Result<Verdict> {
    let plan = Plan::new(&load_spec(file)?, setting.templates()?, &[node.to_owned()])?;
    let node = &plan.nodes[0];
    let host = Host::open(&plan.host.uri).await?;
    let domains = host.domains().await?;
    let mark = domains
        .into_iter()
        .find(|domain| domain.is_claim(&plan.cluster.name, &node.name))
        .and_then(|domain| domain.mark);
    let mark = mark.ok_or_else(|| {
        Error::unfit(format!(
            "there is no VM {} of the cluster {}",
            node.name, plan.cluster.name
        ))
        .with_help("run `nodegraft up` first")
    })?;
    let state = StateDir::open(&plan.cluster.name)?;
    let known = state.log(&node.name, "known_hosts")?;
    files::write(&known, &format!("{} {}\n", node.ip, mark.host_key))
        .doing(format!("writing {}", known.display()))?;
    let failed = std::process::Command::new("ssh")
        .arg("-i")
        .arg(state.login_key_path(plan.ssh_key.as_deref()))
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .args([
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "LogLevel=ERROR",
        ])
        .arg(format!("{}@{}", node.user, node.ip))
        .args(
            command
                .iter()
                .map(|word| crate::core::template::shell_quote(word)),
        )
        .exec();
    Err(Error::unfit("starting ssh")
        .because(system_words(&failed))
        .with_help("install it: apt-get install openssh-client"))
}
