//! `status`: what the spec says, what libvirt has, and what the API server tells, side by side, each difference by its key.

use serde::Serialize;

use super::{Setting, Verdict, cluster_if_any};
use crate::cli::{self, Output};
use crate::core::difference::{self, Difference};
use crate::core::error::{Kind, Result};
use crate::core::kubelet::is_release;
use crate::core::plan::{Node, Plan};
use crate::rooms::libvirt::Host;
use crate::stages::inventory::{Ask, Existing, Inventory};
use crate::ui;

#[derive(Serialize)]
struct Row {
    node: String,
    address: String,
    /// `running`, `paused`, `off`, `absent` or `not ours`.
    domain: String,
    /// `Ready`, `NotReady` or `absent`.
    kubernetes: String,
    /// In what it is not as the spec says.
    differences: Vec<Difference>,
    notes: Vec<String>,
}

impl Row {
    /// Whether `up` would find nothing to do.
    fn is_as_specified(&self) -> bool {
        self.differences.is_empty()
            && self.domain == "running"
            && ["Ready", "-"].contains(&self.kubernetes.as_str())
    }
}

pub async fn run(args: &cli::Status, setting: &Setting) -> Result<Verdict> {
    let plan = setting.plan(&args.spec)?;
    let host = Host::open(&plan.host.uri).await?;
    let cluster = cluster_if_any(&plan.cluster).await?;
    let inventory =
        Inventory::take(&host, cluster.as_ref(), &plan.cluster.name, Ask::Nodes).await?;
    let mut rows: Vec<Row> = plan
        .nodes
        .iter()
        .map(|node| row(&plan, node, &inventory))
        .collect();
    if args.spec.nodes.is_empty() {
        rows.extend(
            inventory
                .nodes
                .iter()
                .filter(|node| !plan.names.contains(&node.owner.node))
                .map(stray),
        );
    }
    match setting.output {
        Output::Json | Output::Yaml => ui::print_data(&rows, setting.output)?,
        Output::Text => {
            let mut table =
                vec![["NODE", "ADDRESS", "DOMAIN", "KUBERNETES", "NOTES"].map(str::to_owned)];
            table.extend(rows.iter().map(|row| {
                let said = row
                    .differences
                    .iter()
                    .map(ToString::to_string)
                    .chain(row.notes.iter().cloned());
                [
                    row.node.clone(),
                    row.address.clone(),
                    row.domain.clone(),
                    row.kubernetes.clone(),
                    said.collect::<Vec<_>>().join("; "),
                ]
            }));
            ui::print(&ui::table(&table))?;
        }
    }
    let differs = rows.iter().any(|row| !row.is_as_specified());
    Ok(if args.exit_code && differs {
        Verdict::Reported(Kind::Failed)
    } else {
        Verdict::Done
    })
}

fn row(plan: &Plan, node: &Node, inventory: &Inventory) -> Row {
    let mut notes = Vec::new();
    let mut differences = Vec::new();
    let existing = inventory.node(&node.name);
    let domain = match existing {
        Some(existing) => {
            differences.extend(difference::of_machine(node, &existing.machine()));
            if existing.domain.name != node.name {
                notes.push(format!("its domain is called {}", existing.domain.name));
            }
            state(existing)
        }
        None if inventory.names.contains(&node.name) => "not ours",
        None => "absent",
    };
    let member = existing
        .and_then(|existing| existing.member.as_ref())
        .and_then(|member| member.node.as_ref());
    let kubernetes = match member {
        Some(member) => {
            differences.extend(member.differences(&node.labels, &node.taints));
            if let Some(asked) = plan
                .member(node)
                .kubelet
                .filter(|asked| !is_release(&member.kubelet, asked))
            {
                differences.push(Difference {
                    key: "kubelet.version".into(),
                    is: Some(member.kubelet.clone()),
                    wanted: Some(asked),
                });
            }
            notes.push(if member.ready {
                format!("{}, {}", member.kubelet, member.runtime)
            } else {
                member.message.clone()
            });
            if member.ready { "Ready" } else { "NotReady" }
        }
        None if plan.cluster.source.is_none() => "-",
        None => {
            if inventory.member(&node.name).is_some() {
                notes.push("the cluster's Node of this name is another machine's".into());
            }
            "absent"
        }
    };
    Row {
        node: node.name.clone(),
        address: node.address.clone(),
        domain: domain.into(),
        kubernetes: kubernetes.into(),
        differences,
        notes,
    }
}

fn state(existing: &Existing) -> &'static str {
    match (existing.domain.running, existing.domain.paused) {
        (true, false) => "running",
        (true, true) => "paused",
        (false, _) => "off",
    }
}

/// A node of this cluster that the spec no longer names.
fn stray(existing: &Existing) -> Row {
    let member = existing
        .member
        .as_ref()
        .and_then(|member| member.node.as_ref());
    Row {
        node: existing.owner.node.clone(),
        address: existing.mark.address.clone(),
        domain: state(existing).into(),
        kubernetes: member
            .map_or(
                "absent",
                |node| if node.ready { "Ready" } else { "NotReady" },
            )
            .into(),
        differences: vec![Difference {
            key: "node".into(),
            is: Some(existing.owner.node.clone()),
            wanted: None,
        }],
        notes: Vec::new(),
    }
}
