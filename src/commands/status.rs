//! `status`: what the spec says, what libvirt has, and what the API server tells, side by side.

use serde::Serialize;

use super::{Setting, cluster_if_any};
use crate::cli::{Output, SpecArgs};
use crate::error::{Exit, Result};
use crate::libvirt::Host;
use crate::plan::{Node, Plan};
use crate::spec::Size;
use crate::ui;

#[derive(Serialize)]
struct Row {
    node: String,
    address: String,
    /// `running`, `off`, `absent` or `not ours`.
    domain: String,
    /// `Ready`, `NotReady` or `absent`.
    kubernetes: String,
    /// In what the three differ.
    notes: Vec<String>,
}

pub async fn run(args: &SpecArgs, setting: &Setting) -> Result<Exit> {
    let plan = setting.plan(args)?;
    let host = Host::open(&plan.host.uri).await?;
    let cluster = cluster_if_any(&plan.cluster).await?;
    let mut rows = Vec::new();
    for node in &plan.nodes {
        rows.push(row(&plan, node, &host, cluster.as_ref()).await?);
    }
    if args.nodes.is_empty() {
        rows.extend(strays(&plan, &host).await?);
    }
    match setting.output {
        Output::Json | Output::Yaml => ui::print_data(&rows, setting.output)?,
        Output::Text => {
            let mut table = vec![["NODE", "ADDRESS", "DOMAIN", "KUBERNETES", "NOTES"].map(str::to_owned)];
            table.extend(
                rows.iter()
                    .map(|row| [row.node.clone(), row.address.clone(), row.domain.clone(), row.kubernetes.clone(), row.notes.join("; ")]),
            );
            ui::print(&ui::table(&table))?;
        }
    }
    Ok(Exit::Done)
}

async fn row(plan: &Plan, node: &Node, host: &Host, cluster: Option<&crate::cluster::Cluster>) -> Result<Row> {
    let mut notes = Vec::new();
    let domain = match host.domain(&node.name).await? {
        None => "absent",
        Some(domain) => match domain.mark {
            Some(mark) if mark.cluster == plan.cluster.name && mark.node == node.name => {
                if domain.memory != node.memory {
                    notes.push(format!("memory is {}, the spec says {}", Size(domain.memory), Size(node.memory)));
                }
                if domain.cpus != node.cpus {
                    notes.push(format!("cpus are {}, the spec says {}", domain.cpus, node.cpus));
                }
                if mark.address != node.address {
                    notes.push(format!("address is {}, the spec says {}", mark.address, node.address));
                }
                if mark.plan != node.digest && notes.is_empty() {
                    notes.push("made from an earlier version of the spec".into());
                }
                if domain.running { "running" } else { "off" }
            }
            _ => "not ours",
        },
    };
    let found = match cluster {
        Some(cluster) => cluster.node(&node.name).await?,
        None => None,
    };
    let kubernetes = match found {
        None if cluster.is_none() => "-".to_owned(),
        None => "absent".to_owned(),
        Some(found) => {
            if !found.is_of(&node.machine_id) {
                notes.push("the Node is another machine's".into());
            } else if found.ready {
                notes.push(format!("{}, {}", found.kubelet, found.runtime));
            } else {
                notes.push(found.message.clone());
            }
            if found.ready { "Ready".into() } else { "NotReady".into() }
        }
    };
    Ok(Row { node: node.name.clone(), address: node.address.clone(), domain: domain.into(), kubernetes, notes })
}

/// Domains of this cluster that the spec no longer names.
async fn strays(plan: &Plan, host: &Host) -> Result<Vec<Row>> {
    let marked = host.marked_domains().await?;
    Ok(marked
        .into_iter()
        .filter_map(|domain| domain.mark.clone().map(|mark| (domain, mark)))
        .filter(|(_, mark)| mark.cluster == plan.cluster.name && plan.nodes.iter().all(|node| node.name != mark.node))
        .map(|(domain, mark)| Row {
            node: domain.name,
            address: mark.address,
            domain: if domain.running { "running".into() } else { "off".into() },
            kubernetes: "?".into(),
            notes: vec!["not in the spec".into()],
        })
        .collect())
}
