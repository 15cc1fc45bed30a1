//! `plan`: all that `up` would do, from the spec alone. Touches nothing, and asks nobody.

use serde::Serialize;

use super::{Setting, Verdict};
use crate::cli::{self, Output};
use crate::core::error::Result;
use crate::core::mark::Mark;
use crate::core::ownership::Owner;
use crate::core::plan::{HostFacts, HostKey, Node, Plan};
use crate::core::spec::{Clone as CloneMode, Size};
use crate::stages::node_stages;
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
    stages: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<(String, String)>,
}

pub fn run(args: &cli::Plan, setting: &Setting) -> Result<Verdict> {
    let plan = setting.plan(&args.spec)?;
    let mut nodes = Vec::new();
    for node in &plan.nodes {
        let files = if args.show {
            files(&plan, node)?
        } else {
            Vec::new()
        };
        nodes.push(ShownNode {
            node,
            stages: story(&plan, node),
            files,
        });
    }
    let shown = Shown {
        cluster: &plan.cluster.name,
        host: &plan.host.uri,
        pool: &plan.host.pool,
        joins: plan.cluster.source.is_some(),
        nodes,
    };
    match setting.output {
        Output::Json | Output::Yaml => ui::print_data(&shown, setting.output)?,
        Output::Text => ui::print(&text(&shown))?,
    }
    Ok(Verdict::Done)
}

/// What each stage will do for a node, in the list's order and words.
fn story(plan: &Plan, node: &Node) -> Vec<(String, String)> {
    let steps: Vec<&str> = node.steps.iter().map(|step| step.name.as_str()).collect();
    let how = match node.clone {
        CloneMode::Overlay => "a thin overlay on",
        CloneMode::Full => "a full copy of",
    };
    let walked = node_stages(node, plan.cluster.source.is_some());
    let dns: Vec<String> = node.dns.iter().map(ToString::to_string).collect();
    [
        (
            "Claim",
            format!(
                "{}: {} cpus, {}, {}",
                node.name,
                node.cpus,
                Size(node.memory),
                node.network
            ),
        ),
        (
            "Volume",
            format!(
                "in {}: {how} {}, {}",
                plan.host.pool,
                node.template,
                Size(node.disk)
            ),
        ),
        (
            "Inject",
            "the first-boot unit, offline, by virt-customize".into(),
        ),
        (
            "Seed",
            format!(
                "{} via {}, DNS {}, MAC {}, host name {}",
                node.address,
                node.gateway,
                if dns.is_empty() {
                    "none".into()
                } else {
                    dns.join(" ")
                },
                node.mac,
                node.hostname
            ),
        ),
        (
            "Boot",
            format!(
                "start it, SSH answers at {} within {} s",
                node.ip,
                node.deadlines.boot.as_secs()
            ),
        ),
        (
            "Login",
            format!(
                "as {}, host key pinned, first boot over; then the key is blanked in the seed",
                node.user
            ),
        ),
        (
            "Steps",
            format!("{} of the profile {}", steps.join(", "), node.profile),
        ),
        (
            "Join",
            format!(
                "a token of its own, the kubelet, approval of its one request, as Node {}",
                node.name
            ),
        ),
        (
            "Ready",
            format!(
                "the Node is Ready within {} s",
                node.deadlines.ready.as_secs()
            ),
        ),
    ]
    .into_iter()
    .filter(|(stage, _)| walked.iter().any(|walked| walked.name() == *stage))
    .map(|(stage, what)| (stage.to_owned(), what))
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
    let owner = Owner {
        cluster: plan.cluster.name.clone(),
        node: node.name.clone(),
        instance: "<instance, made by up>".into(),
    };
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
        plan.bootstrap_kubeconfig(server, "<CA of the kubeconfig>", "<token, made by up>")?,
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

fn text(shown: &Shown<'_>) -> String {
    let mut text = format!(
        "cluster {}, host {}, pool {}\n",
        shown.cluster, shown.host, shown.pool
    );
    text.push_str(
        "\n  Preflight  pool, network, templates, space, names and addresses are as they must be\n",
    );
    if shown.joins {
        text.push_str("  Access     tokens may ask for certificates; binds our own group if nothing else lets them\n");
    }
    for node in &shown.nodes {
        text.push_str(&format!("\n{}\n", node.node.name));
        for (stage, what) in &node.stages {
            text.push_str(&format!("  {stage:<9}  {what}\n"));
        }
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
