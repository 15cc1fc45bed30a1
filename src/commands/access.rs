//! `access`: what bootstrap tokens may do.

use serde::Serialize;

use super::{Setting, Verdict, cluster_of};
use crate::cli::{self, Output};
use crate::core::error::{Kind, Result};
use crate::rooms::cluster::Cluster;
use crate::rooms::cluster::access::{BOOTSTRAPPERS, Binding, NODES, Right};
use crate::ui;

/// A right, whether it is there, and through which bindings.
#[derive(Serialize)]
struct Answer {
    right: &'static str,
    allowed: bool,
    bindings: Vec<String>,
    help: Option<String>,
}

pub async fn run(command: &cli::Access, setting: &Setting) -> Result<Verdict> {
    match command {
        cli::Access::Check { cluster, groups } => {
            let cluster = cluster_of(cluster, setting).await?;
            let answers = check(&cluster, groups).await?;
            if setting.output == Output::Text {
                ui::print(&text(&answers))?
            } else {
                ui::print_data(&answers, setting.output)?
            }
            Ok(if answers[0].allowed {
                Verdict::Done
            } else {
                Verdict::Reported(Kind::Unfit)
            })
        }
        cli::Access::Grant {
            cluster,
            group,
            no_auto_approve,
        } => {
            let cluster = cluster_of(cluster, setting).await?;
            for binding in Binding::granted(group, !no_auto_approve) {
                cluster.bind(&binding).await?;
                ui::print(&format!(
                    "{}: {} -> {}\n",
                    binding.name, binding.group, binding.role
                ))?;
            }
            Ok(Verdict::Done)
        }
        cli::Access::Revoke { cluster } => {
            let cluster = cluster_of(cluster, setting).await?;
            for binding in Binding::granted(BOOTSTRAPPERS, true) {
                let ours = cluster.unbind(&binding.name).await?;
                ui::print(&if ours {
                    format!("{} removed\n", binding.name)
                } else {
                    format!("{}: none of ours\n", binding.name)
                })?;
            }
            Ok(Verdict::Done)
        }
    }
}

async fn check(cluster: &Cluster, extra: &[String]) -> Result<Vec<Answer>> {
    let mut groups = vec![BOOTSTRAPPERS];
    groups.extend(extra.iter().map(String::as_str));
    let token = "system:bootstrap:000000";
    let questions: [(&str, &str, &[&str], Right); 3] = [
        (
            "tokens may ask for certificates",
            token,
            &groups,
            Right::Request,
        ),
        (
            "client requests are approved by the controllers",
            token,
            &groups,
            Right::ClientApproval,
        ),
        (
            "renewals are approved by the controllers",
            "system:node:any",
            &[NODES],
            Right::RenewalApproval,
        ),
    ];
    let mut answers = Vec::new();
    for (right, user, groups, asked) in questions {
        let allowed = cluster.may(user, groups, asked).await?;
        let help = match asked {
            _ if allowed => None,
            Right::Request => Some(
                "nodegraft access grant --no-auto-approve; without it a kubelet is `forbidden` to ask, and `up` binds a group of its own"
                    .to_owned(),
            ),
            Right::ClientApproval => Some("nodegraft access grant, or leave it: nodegraft approves its own nodes".to_owned()),
            Right::RenewalApproval => {
                Some("nodegraft access grant; without it a node drops out when its first certificate ends".to_owned())
            }
        };
        answers.push(Answer {
            right,
            allowed,
            bindings: cluster.bindings_of(asked.role(), groups).await?,
            help,
        });
    }
    Ok(answers)
}

fn text(answers: &[Answer]) -> String {
    let mut text = String::new();
    for answer in answers {
        let word = if answer.allowed { "yes" } else { "no" };
        let through = if answer.bindings.is_empty() {
            String::new()
        } else {
            format!("  (by {})", answer.bindings.join(", "))
        };
        text.push_str(&format!("{word:<4} {}{through}\n", answer.right));
        if let Some(help) = &answer.help {
            text.push_str(&format!("     -> {help}\n"));
        }
    }
    text
}
