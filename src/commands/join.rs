//! `join`: the join alone, of any machine that SSH reaches and that has a kubelet. The same stages as in `up`: Access,
//! Join, Ready.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Setting, Verdict, joined_cluster, own_login};
use crate::cli;
use crate::core::error::{Context, Error, Kind, Result, one_line};
use crate::core::event::{Event, NodeResult, NodeRow};
use crate::core::journal::Journal;
use crate::core::label;
use crate::core::plan::{ClusterPlan, DEADLINES, Deadlines, Member};
use crate::core::server;
use crate::core::spec::is_node_name;
use crate::pipeline::runner::{Walked, names};
use crate::pipeline::stage::{Check, Reporter};
use crate::rooms::cluster::Cluster;
use crate::rooms::cluster::access::NeededBy;
use crate::rooms::ssh::{self, Session};
use crate::rooms::state::StateDir;
use crate::stages::candidate::{Candidate, Machine};
use crate::stages::removal::{Removal, Remover};
use crate::stages::{access_stages, join_stages};

const LIMIT: Duration = Duration::from_secs(20);

pub async fn run(args: &cli::Join, setting: &Setting) -> Result<Verdict> {
    let begun = Instant::now();
    let labels = args
        .labels
        .iter()
        .map(|label| parse_label(label))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let (mut terms, cluster) = joined_cluster(&args.cluster, setting).await?;
    terms.server = args.server.clone().or(terms.server);
    terms.access = args.access.map_or(terms.access, super::up::access);
    let _lock = StateDir::open(&terms.name)?.lock()?;
    let mut machine = open(args, labels, terms, cluster, setting).await?;
    let (once, each) = (access_stages::<Machine>(), join_stages::<Machine>());
    let name = machine.member.name.clone();
    let report = Reporter::new(setting.events.clone(), Some(name.clone()), each[0].name());
    // A machine that is in the cluster, or cannot be, needs no binding.
    let needed = match each[0]
        .check(&mut machine, &report)
        .await
        .map_err(|error| error.as_kind(Kind::Unfit))?
    {
        Check::Conflict(error) => return Err(error.as_kind(Kind::Unfit)),
        Check::Needed(_) => true,
        Check::Done(_) => false,
    };
    setting.events.send(Event::RunStarted {
        command: "join".into(),
        cluster: machine.terms.name.clone(),
        run_stages: names(&once),
        nodes: vec![NodeRow {
            name: name.clone(),
            stages: names(&each),
        }],
    });
    let journal = Journal::default();
    if needed {
        let walk = setting.walk(&once, &mut machine, None, &journal);
        let Walked { result, .. } = walk.forward().await;
        if result.is_err() {
            clean_up(&machine, &journal, false, setting).await;
        }
        result.map_err(|error| {
            if error.is_interruption() {
                error
            } else {
                error.as_kind(Kind::Unfit).shown()
            }
        })?;
    }
    let walk = setting.walk(&each, &mut machine, Some(name), &journal);
    let walked = walk.forward().await;
    let left = clean_up(&machine, &journal, walked.result.is_err(), setting).await;
    let result = tell(setting, &machine, walked, begun.elapsed().as_secs_f64());
    Ok(match result {
        _ if left => Verdict::Reported(Kind::Leftover),
        NodeResult::Done | NodeResult::Unchanged | NodeResult::Differs => Verdict::Done,
        NodeResult::Interrupted => Verdict::Reported(Kind::Interrupted),
        NodeResult::Failed => Verdict::Reported(Kind::Failed),
    })
}

/// What was bound for this join alone goes with it; and where it failed, all that it made. True if something is left.
async fn clean_up(machine: &Machine, journal: &Journal, failed: bool, setting: &Setting) -> bool {
    let mut left = Vec::new();
    let things = journal.backward();
    let bound = !journal.shared().is_empty();
    if failed && let Ok(owner) = machine.membership() {
        let removal = Removal {
            owner,
            uuid: None,
            things,
            drain: None,
            looked: None,
        };
        // A stop that ended the join does not end its undoing.
        let stop = tokio_util::sync::CancellationToken::new();
        let remover = Remover::new(
            &machine.terms.name,
            None,
            Some(&machine.cluster),
            setting.events.clone(),
            stop,
        );
        left = remover.undo_all(&removal, machine).await.left;
    }
    if bound {
        left.extend(
            machine
                .cluster
                .release_binding(&machine.terms.name, NeededBy::Tokens)
                .await
                .err(),
        );
    }
    for error in &left {
        setting.events.send(Event::Warning {
            node: None,
            message: one_line(error),
            help: error.help().map(str::to_owned),
        });
    }
    !left.is_empty()
}

fn tell(setting: &Setting, machine: &Machine, walked: Walked, seconds: f64) -> NodeResult {
    let (result, detail) = match walked.result {
        Ok(()) if walked.applied.is_empty() => (NodeResult::Unchanged, String::new()),
        Ok(()) => (NodeResult::Done, String::new()),
        Err(error) if error.is_interruption() => (NodeResult::Interrupted, error.to_string()),
        Err(error) => (NodeResult::Failed, error.to_string()),
    };
    let count = |wanted| usize::from(result == wanted);
    setting.events.send(Event::NodeFinished {
        node: machine.member.name.clone(),
        result,
        detail,
        seconds,
    });
    setting.events.send(Event::RunFinished {
        command: "join".into(),
        done: count(NodeResult::Done),
        unchanged: count(NodeResult::Unchanged),
        differing: 0,
        failed: count(NodeResult::Failed),
        stopped: count(NodeResult::Interrupted),
        seconds,
        next: Vec::new(),
    });
    result
}

/// Logs in and looks at what is there. Changes nothing.
async fn open(
    args: &cli::Join,
    labels: BTreeMap<String, String>,
    terms: ClusterPlan,
    cluster: Cluster,
    setting: &Setting,
) -> Result<Machine> {
    let target = own_login(&args.host);
    let shell = target.command();
    let ip = address_of(&target.host)?;
    let session = Session::open(target.clone(), LIMIT)
        .await
        .doing(format!("logging in to {}", args.host))
        .map_err(|error| error.with_help(format!("does `{shell}` work without a password?")))?;
    let server = terms.server.as_deref().unwrap_or(&cluster.server);
    if !ip.is_loopback()
        && let Err((what, help)) = server::check_way(server)
    {
        return Err(Error::unfit(what).with_help(help));
    }
    let facts = session
        .output(FACTS, LIMIT)
        .await
        .doing(format!("looking at {}", args.host))?;
    let facts = parse_facts(&facts, &args.host)?;
    if facts
        .own_ca
        .is_some_and(|ca| !holds_one_of(&ca, &cluster.ca_pem))
    {
        return Err(Error::unfit(format!(
            "{} is the control plane of another cluster: it holds the key of another CA",
            args.host
        ))
        .with_help(
            "is that the machine you mean? a join would replace its ca.crt; nothing was changed",
        ));
    }
    let name = args
        .name
        .clone()
        .or(facts.name_override)
        .unwrap_or_else(|| facts.hostname.to_lowercase());
    if !is_node_name(&name) {
        return Err(
            Error::usage(format!("`{name}` cannot name a Kubernetes node"))
                .with_help("give --name, and the same to the kubelet as --hostname-override"),
        );
    }
    let serving = args.approve_serving || terms.serving;
    let member = Member {
        name,
        hostname: facts.hostname,
        ip,
        labels,
        taints: Vec::new(),
        kubelet: None,
        serving,
        shell,
        deadlines: Deadlines {
            join: args.timeout.0,
            ready: args.timeout.0,
            ..DEADLINES
        },
    };
    Ok(Machine::new(
        member,
        facts.machine_id,
        (target, session),
        cluster,
        terms,
        setting.templates()?,
        args.reset,
    ))
}

/// Whether a file of certificates, without its line breaks, has one of a bundle's.
fn holds_one_of(file: &str, bundle: &str) -> bool {
    const END: &str = "-----END CERTIFICATE-----";
    let bundle = bundle.replace('\n', "");
    bundle
        .split_inclusive(END)
        .any(|certificate| file.contains(certificate))
}

/// Four lines, then the kubelet's unit with its drop-ins. The fourth is the CA of a machine that holds the CA's key.
const FACTS: &str = "cat /etc/machine-id; uname -n; command -v kubelet || echo; \
    if [ -e /etc/kubernetes/pki/ca.key ]; then tr -d '\\n' </etc/kubernetes/pki/ca.crt; fi; echo; systemctl cat kubelet 2>/dev/null || true";

struct MachineFacts {
    machine_id: String,
    hostname: String,
    /// Of a control plane: its CA, in PEM without line breaks.
    own_ca: Option<String>,
    name_override: Option<String>,
}

fn parse_facts(text: &str, at: &str) -> Result<MachineFacts> {
    let mut lines = text.lines();
    let mut next = || lines.next().unwrap_or_default().trim().to_owned();
    let (machine_id, hostname, kubelet, own_ca) = (next(), next(), next(), next());
    let unit: String = lines.map(|line| format!("{line} ")).collect();
    if kubelet.is_empty() {
        return Err(Error::unfit(format!("{at} has no kubelet")).with_help(
            "install one and the container runtime first: the scripts of a profile show how (nodegraft templates DIR), `up` runs them",
        ));
    }
    if !unit.contains("bootstrap-kubelet.conf") {
        return Err(Error::unfit(format!("the kubelet of {at} is not told of /etc/kubernetes/bootstrap-kubelet.conf")).with_help(
            "start it with --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf",
        ));
    }
    // The last one counts, as for the kubelet.
    let name_override = unit.rsplit_once("--hostname-override=").map(|(_, rest)| {
        rest.split([' ', '"', '\''])
            .next()
            .unwrap_or_default()
            .to_owned()
    });
    Ok(MachineFacts {
        machine_id,
        hostname,
        own_ca: Some(own_ca).filter(|ca| !ca.is_empty()),
        name_override,
    })
}

fn address_of(host: &str) -> Result<IpAddr> {
    ssh::resolve(host, 22)
        .map(|addresses| addresses[0].ip())
        .doing(format!("resolving {host}"))
}

fn parse_label(label: &str) -> Result<(String, String)> {
    let refused = |why: String| {
        Error::usage(format!("`{label}` is not a label"))
            .because(why)
            .with_help("write it as key=value")
    };
    let (key, value) = label
        .split_once('=')
        .ok_or_else(|| refused("it has no `=`".to_owned()))?;
    label::check_key(key)
        .and_then(|()| label::check_value(value))
        .map_err(refused)?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_its_kubelets_own_unit() {
        let unit = "0123abcd\nnode-104\n/usr/bin/kubelet\n\n# /etc/systemd/system/kubelet.service\nExecStart=/usr/bin/kubelet\n# drop-in\nExecStart=\nExecStart=/usr/bin/kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \\\n  --hostname-override=192.168.3.104 \\\n";
        let facts = parse_facts(unit, "root@n1").unwrap();
        assert_eq!(
            (facts.machine_id.as_str(), facts.hostname.as_str()),
            ("0123abcd", "node-104")
        );
        assert_eq!(facts.name_override.as_deref(), Some("192.168.3.104"));
        assert!(
            parse_facts("id\nn1\n\n\n", "n1")
                .is_err_and(|error| error.to_string().contains("has no kubelet"))
        );
        assert!(
            parse_facts(
                "id\nn1\n/usr/bin/kubelet\n\nExecStart=/usr/bin/kubelet\n",
                "n1"
            )
            .is_err()
        );
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(
            parse_label("disk=ssd").unwrap(),
            ("disk".into(), "ssd".into())
        );
        for bad in ["disk", "=x", "disk=a b", "-disk=ssd"] {
            assert!(parse_label(bad).is_err(), "{bad}");
        }
    }
}
