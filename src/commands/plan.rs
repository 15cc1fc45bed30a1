//! `plan`: all that `up` would do, from the spec alone. Touches nothing, and asks nobody.

use serde::Serialize;

use super::{Setting, Verdict};
use crate::cli::{self, Output};
use crate::core::bootstrap::bootstrap_kubeconfig;
use crate::core::domain_xml::HostFacts;
use crate::core::error::Result;
use crate::core::host_key::HostKey;
use crate::core::mark::Mark;
use crate::core::ownership::Owner;
use crate::core::plan::{Node, Plan};
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Stage, Work};
use crate::stages::{node_stages, run_stages};
use crate::ui;

/// A plan as data, for `--output json`.
#[derive(Serialize)]
struct Shown<'a> {
    cluster: &'a str,
    host: &'a str,
    pool: &'a str,
    joins: bool,
    nodes: Vec<ShownNode<'a>>,
}

#[derive(Serialize)]
struct ShownNode<'a> {
    #[serde(flatten)]
    node: &'a Node,
    stages: Vec<(StageName, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<(String, String)>,
}

pub fn run(args: &cli::Plan, setting: &Setting) -> Result<Verdict> {
    let plan = setting.plan(&args.spec)?;
    let joins = plan.cluster.source.is_some();
    let mut nodes = Vec::new();
    for node in &plan.nodes {
        let files = if args.show {
            files(&plan, node)?
        } else {
            Vec::new()
        };
        nodes.push(ShownNode {
            node,
            stages: story(&node_stages(node, joins), node),
            files,
        });
    }
    let shown = Shown {
        cluster: &plan.cluster.name,
        host: &plan.host.uri,
        pool: &plan.host.pool,
        joins,
        nodes,
    };
    match setting.output {
        Output::Json | Output::Yaml => ui::print_data(&shown, setting.output)?,
        Output::Text => ui::print(&text(&shown, &story(&run_stages(joins), &plan)))?,
    }
    Ok(Verdict::Done)
}

/// What each stage will do, in the list's order and each in its own words.
fn story<C: Work>(stages: &[Box<dyn Stage<C>>], planned: &C::Planned) -> Vec<(StageName, String)> {
    stages
        .iter()
        .map(|stage| (stage.name(), stage.plan(planned)))
        .collect()
}

/// Every file as it will be rendered; what is a secret, or known only to the host, stands in angle brackets.
fn files(plan: &Plan, node: &Node) -> Result<Vec<(String, String)>> {
    let host = HostFacts {
        virt_type: match plan.host.virt_type {
            crate::core::spec::VirtType::Kvm => "kvm".into(),
            _ => "qemu".into(),
        },
        disk_path: "<path of the disk>".into(),
        seed_path: "<path of the seed volume>".into(),
    };
    let owner = Owner::of(&plan.cluster.name, &node.name, "<instance, made by up>");
    let key = HostKey {
        public: "<public host key>".into(),
        private: Some("<private host key, made by up>".into()),
    };
    let mark = Mark {
        host_key: key.public.clone(),
        made_with: node.made_with(),
        ..Mark::new(owner, &node.address, Vec::new())
    };
    let mut files = vec![(
        "domain.xml".to_owned(),
        plan.domain_xml(node, &host, &mark)?,
    )];
    let authorized: Vec<String> = std::iter::once("<the login key>".to_owned())
        .chain(plan.authorized_keys.iter().cloned())
        .collect();
    files.extend(
        plan.seed_files(node, "<machine-id, made by up>", &key, &authorized)?
            .into_iter()
            .map(|(name, text)| (format!("seed/{name}"), text)),
    );
    files.extend(node.steps.iter().map(|step| {
        (
            format!("steps/{}-{}.sh", step.number, step.name),
            step.script.clone(),
        )
    }));
    let server = plan
        .cluster
        .server
        .as_deref()
        .unwrap_or("<server of the kubeconfig>");
    files.push((
        "join/bootstrap-kubelet.conf".into(),
        bootstrap_kubeconfig(
            &plan.templates,
            server,
            "<CA of the kubeconfig>",
            "<token, made by up>",
        )?,
    ));
    for name in ["join/reset.sh", "join/start.sh"] {
        files.push((
            name.into(),
            plan.templates
                .render(name, &serde_json::json!({"node": plan.member(node)}))?,
        ));
    }
    Ok(files)
}

fn text(shown: &Shown<'_>, once: &[(StageName, String)]) -> String {
    let mut text = format!(
        "cluster {}, host {}, pool {}\n",
        shown.cluster, shown.host, shown.pool
    );
    let rows = |stages: &[(StageName, String)]| -> String {
        stages
            .iter()
            .map(|(stage, what)| format!("  {stage:<9}  {what}\n"))
            .collect()
    };
    text.push_str(&format!("\n{}", rows(once)));
    for node in &shown.nodes {
        text.push_str(&format!("\n{}\n{}", node.node.name, rows(&node.stages)));
        for (name, content) in &node.files {
            text.push_str(&format!(
                "\n--- {}: {name}\n{}\n",
                node.node.name,
                content.trim_end()
            ));
        }
    }
    text
}
