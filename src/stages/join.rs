//! Join: a token of the node's own, the bootstrap kubeconfig, the kubelet's start, and approval of exactly its one
//! certificate request. The token lives from just before the kubelet starts until the Node exists.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{NodeRun, is_ours, locked};
use crate::cluster::access::{BOOTSTRAPPERS, Right};
use crate::cluster::csr::State;
use crate::cluster::token::{Terms, Token};
use crate::error::{Context, Error, Result};
use crate::pipeline::stage::{Check, Reporter, Stage, Undone};
use crate::spec;
use crate::ssh::Session;

const SHORT: Duration = Duration::from_secs(60);
/// How long somebody else, who may, is given to approve the request before we do.
const OTHERS: Duration = Duration::from_secs(10);
const IDENTITY: &str = "/etc/kubernetes/kubelet.conf";
const WAITING_FOR_CERTIFICATE: &str = "waiting for the certificate";
const CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
const BOOTSTRAP: &str = "/etc/kubernetes/bootstrap-kubelet.conf";

pub struct Join;

#[async_trait]
impl Stage<NodeRun> for Join {
    fn name(&self) -> &'static str {
        "Join"
    }

    fn deadline(&self, on: &NodeRun) -> Duration {
        on.node.deadlines.join + Duration::from_secs(180)
    }

    async fn check(&self, on: &NodeRun, _: &Reporter) -> Result<Check> {
        let cluster = &on.run.plan.cluster.name;
        let Some(node) = on.run.cluster().node(&on.node.name).await? else { return Ok(Check::Needed("it is not a Node yet".into())) };
        if !node.belongs_to(cluster, &on.node.name, &on.node.machine_id) {
            return Ok(Check::Conflict(taken(&on.node.name, node.address.as_deref())));
        }
        let session = on.session(SHORT).await.doing("logging in")?;
        if !has_identity(&session).await? {
            return Ok(Check::Needed("the cluster has a Node of an earlier life of this VM".into()));
        }
        let labelled = on.node.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value));
        if node.owner.is_none() || !labelled {
            return Ok(Check::Needed("the Node's labels are to be set".into()));
        }
        Ok(Check::Done(format!("Node {}", node.name)))
    }

    async fn apply(&self, on: &NodeRun, report: &Reporter) -> Result<()> {
        let (cluster, name) = (on.run.cluster(), &on.node.name);
        let session = on.session(SHORT).await.doing("logging in")?;
        if !has_identity(&session).await? {
            // The Node of a VM that is no more would keep the new one's kubelet from registering as itself.
            cluster.delete_node(name).await?;
            graft(on, &session, report).await?;
        }
        if cluster.node(name).await?.is_none() {
            report.progress("waiting for the kubelet to register the Node");
            session.output("systemctl restart kubelet", SHORT).await.doing("restarting the kubelet")?;
            registered(on, &session, on.node.deadlines.join).await?;
        }
        cluster.mark_node(name, &on.run.plan.cluster.name, &on.node.labels).await
    }

    async fn undo(&self, on: &NodeRun, _: &Reporter) -> Result<Undone> {
        let (run, name) = (&on.run, &on.node.name);
        let domain = on.domain().await?.is_some_and(|domain| is_ours(&domain, on));
        let tokens = run.cluster().tokens_of(&run.plan.cluster.name, name).await?;
        let node = run.cluster().node(name).await?;
        let joined = node.as_ref().is_some_and(|node| node.belongs_to(&run.plan.cluster.name, name, &on.node.machine_id));
        if !domain && !joined && tokens.is_empty() {
            // Whatever else bears this name is not ours.
            return Ok(node.map_or(Undone::Absent, |node| Undone::Kept(format!("the Node {} belongs to another machine", node.name))));
        }
        // A kubelet that lives would renew its lease behind our back.
        if domain {
            run.host.suspend(name).await?;
        }
        let mut removed = Vec::new();
        for id in tokens {
            if run.cluster().delete_token(&id).await? {
                removed.push(format!("token {id}"));
            }
        }
        if node.is_some() && !joined {
            return Ok(Undone::Kept(format!("the Node {name} belongs to another machine")));
        }
        if run.cluster().delete_node(name).await? {
            removed.push(format!("Node {name}"));
        }
        removed.extend(run.cluster().delete_csrs_of(name).await?.into_iter().map(|csr| format!("request {csr}")));
        Ok(if removed.is_empty() { Undone::Absent } else { Undone::Removed(removed.join(", ")) })
    }
}

pub(super) fn taken(name: &str, address: Option<&str>) -> Error {
    Error::new(format!(
        "the cluster already has a Node {name}, of another machine{}",
        address.map(|a| format!(" at {a}")).unwrap_or_default()
    ))
    .with_help(format!("give this node another name, or, if that machine is gone: kubectl delete node {name}"))
}

async fn has_identity(session: &Session) -> Result<bool> {
    // An old kubelet writes its kubeconfig before it has the certificate that this points to.
    let probe =
        format!("[ -s {IDENTITY} ] && {{ [ -s {CERTIFICATE} ] || grep -q client-certificate-data {IDENTITY}; }} && echo yes || echo no");
    let found = session.output(&probe, SHORT).await.doing("looking for the kubelet's identity")?;
    Ok(found.trim() == "yes")
}

/// Token, files, kubelet, request. The token is deleted however this ends.
async fn graft(on: &NodeRun, session: &Session, report: &Reporter) -> Result<()> {
    let (run, name) = (&on.run, &on.node.name);
    let cluster_name = &run.plan.cluster.name;
    reachable(on, session).await?;
    for left in run.cluster().tokens_of(cluster_name, name).await? {
        run.cluster().delete_token(&left).await?;
    }
    let token = Token::generate()?;
    let groups = extra_groups(on);
    report.progress(format!("token {}", token.id));
    let terms = Terms {
        life: Some(on.node.deadlines.join + Duration::from_secs(300)),
        description: Some(format!("nodegraft: node {name} joins")),
        groups,
        authentication: true,
        node: Some((cluster_name.clone(), name.clone())),
        ..Terms::default()
    };
    run.cluster().create_token(&token, &terms).await?;
    let joined = with_token(on, session, &token, report).await;
    let deleted = run.cluster().delete_token(&token.id).await;
    let removed = session.output(&format!("rm -f {BOOTSTRAP}"), SHORT).await.doing("removing the bootstrap kubeconfig");
    joined?;
    deleted?;
    removed.map(drop)
}

/// The groups of our tokens besides `system:bootstrappers`.
fn extra_groups(on: &NodeRun) -> Vec<String> {
    match on.run.plan.cluster.access {
        spec::Access::None => Vec::new(),
        _ => vec![on.run.plan.cluster.group()],
    }
}

/// What the API server answers for the bearer of a token of ours.
async fn may(on: &NodeRun, user: &str, right: Right) -> Result<bool> {
    let extra = extra_groups(on);
    let groups: Vec<&str> = std::iter::once(BOOTSTRAPPERS).chain(extra.iter().map(String::as_str)).collect();
    on.run.cluster().may(user, &groups, right).await
}

/// The guest can reach the API server: the commonest fault, and the kubelet would only log about it.
async fn reachable(on: &NodeRun, session: &Session) -> Result<()> {
    let server = server(on);
    let authority = server.split("://").nth(1).unwrap_or_default().split('/').next().unwrap_or_default();
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "443"));
    let host = host.trim_matches(['[', ']']);
    let probe = format!("timeout 10 bash -c 'exec 3<>/dev/tcp/{host}/{port}' 2>&1 || {{ echo unreachable; false; }}");
    session.output(&probe, SHORT).await.map(drop).map_err(|error| {
        Error::new(format!("the guest cannot reach the API server {server}")).because(error).with_help(
            "is that address right as seen from the guest? set `cluster.server` in the spec to the one that is; check gateway and firewall",
        )
    })
}

fn server(on: &NodeRun) -> &str {
    on.run.plan.cluster.server.as_deref().unwrap_or(&on.run.cluster().server)
}

async fn with_token(on: &NodeRun, session: &Session, token: &Token, report: &Reporter) -> Result<()> {
    let (run, name) = (&on.run, &on.node.name);
    let script = run.plan.templates.render("join/reset.sh", &serde_json::json!({"node": &on.node}))?;
    let start = run.plan.templates.render("join/start.sh", &serde_json::json!({"node": &on.node}))?;
    let kubeconfig = run.plan.bootstrap_kubeconfig(server(on), &run.cluster().ca_base64, &token.reveal())?;
    session.output(&script, SHORT).await.doing("clearing an earlier membership")?;
    session.write("/etc/kubernetes/pki/ca.crt", run.cluster().ca_pem.clone().into_bytes(), "0644", SHORT).await?;
    session.write(BOOTSTRAP, kubeconfig.into_bytes(), "0600", SHORT).await?;
    report.progress("starting the kubelet");
    session.output(&start, SHORT).await.doing("starting the kubelet")?;

    let until = Instant::now() + on.node.deadlines.join;
    let stage = Mutex::new("the kubelet's certificate request".to_owned());
    let say = |what: String| {
        report.progress(what.clone());
        *locked(&stage) = what;
    };
    say("waiting for the kubelet's certificate request".into());
    let issued = async {
        approve(on, token, &say).await?;
        say(WAITING_FOR_CERTIFICATE.into());
        run.cluster().watch_csr(&token.user(), |csr| csr.state == State::Issued && csr.objection(&token.user(), name).is_none()).await?;
        say("waiting for the kubelet to register the Node".into());
        run.cluster().watch_node(name, |_| true, |_| {}).await.map(drop)
    };
    match tokio::time::timeout_at(until, issued).await {
        Ok(result) => result,
        Err(_) => {
            let waited = locked(&stage).clone();
            Err(stuck(on, session, token, &waited).await)
        }
    }
}

/// Sees the one request approved: by whoever may, else by us.
async fn approve(on: &NodeRun, token: &Token, say: &(impl Fn(String) + Sync)) -> Result<()> {
    let (run, name, user) = (&on.run, &on.node.name, token.user());
    let csr = run.cluster().watch_csr(&user, |_| true).await?;
    if let Some(objection) = csr.objection(&user, name) {
        return Err(Error::new(format!("the certificate request {} is not the one this node should make: {objection}", csr.name))
            .with_help("nothing was approved; is `--hostname-override` in the kubelet template the node's name?"));
    }
    let others = may(on, &user, Right::ClientApproval).await?;
    if others && csr.state == State::Pending {
        say(format!("waiting for the controller manager to approve {}", csr.name));
        let approved = run.cluster().watch_csr(&user, |seen| seen.name == csr.name && seen.state != State::Pending);
        if let Ok(seen) = tokio::time::timeout(OTHERS, approved).await {
            return refuse_denied(seen?);
        }
    }
    say(format!("approving {}", csr.name));
    run.cluster().approve_csr(&csr.name, &format!("node {name} of cluster {} joins", run.plan.cluster.name)).await?;
    refuse_denied(run.cluster().watch_csr(&user, |seen| seen.name == csr.name && seen.state != State::Pending).await?)
}

fn refuse_denied(csr: crate::cluster::csr::Request) -> Result<()> {
    match csr.state {
        State::Denied(reason) => Err(Error::new(format!("the certificate request {} was denied", csr.name))
            .because(Error::new(reason))
            .with_help("somebody, or a policy, denies kubelet requests in this cluster; ask them, then `nodegraft up` again")),
        _ => Ok(()),
    }
}

async fn registered(on: &NodeRun, session: &Session, limit: Duration) -> Result<()> {
    match tokio::time::timeout(limit, on.run.cluster().watch_node(&on.node.name, |_| true, |_| {})).await {
        Ok(node) => node.map(drop),
        Err(_) => Err(Error::new(format!("the kubelet did not register the Node within {} s", limit.as_secs()))
            .with_detail(kubelet_log(session).await)
            .with_help("its identity may be of another cluster: `nodegraft down` and `up` make the node anew")),
    }
}

/// What stands in the way, as far as the API server and the kubelet's log tell.
async fn stuck(on: &NodeRun, session: &Session, token: &Token, waited: &str) -> Error {
    let run = &on.run;
    let log = kubelet_log(session).await;
    let all = log.join("\n").to_lowercase();
    let state = session.output("systemctl is-active kubelet || true", SHORT).await.unwrap_or_default();
    let known = run.cluster().token_exists(&token.id).await.unwrap_or(true);
    let allowed = may(on, &token.user(), Right::Request).await.unwrap_or(true);
    let error = Error::new(format!("the node did not join within {} s: {waited}", on.node.deadlines.join.as_secs()))
        .with_detail(std::iter::once("the kubelet's last lines:".to_owned()).chain(log.into_iter().map(|line| format!("  {line}"))));
    let help = if !known {
        "the token is gone from the cluster: it expired or was deleted while the node joined; run `nodegraft up` again".to_owned()
    } else if !allowed {
        let mut groups = vec![BOOTSTRAPPERS.to_owned()];
        groups.extend(extra_groups(on));
        return error.because(Error::new(format!(
            "the token is known, but {} in {} may not create certificatesigningrequests; the kubelet goes on as system:anonymous, who may do nothing",
            token.user(),
            groups.join(", ")
        )))
        .with_help("no ClusterRoleBinding gives system:node-bootstrapper to that group: nodegraft access grant, or leave `access: ensure` in the spec");
    } else if waited == WAITING_FOR_CERTIFICATE {
        "the request is approved, but nobody signs it: is kube-controller-manager up, with --cluster-signing-cert-file and --cluster-signing-key-file?".to_owned()
    } else if all.contains("x509") || all.contains("certificate signed by unknown authority") {
        "the kubelet does not trust the API server's certificate: is the CA of this kubeconfig the one that signed it, and are both clocks right?".to_owned()
    } else if all.contains("connection refused") || all.contains("no route to host") || all.contains("i/o timeout") {
        format!("the kubelet cannot reach {}: set `cluster.server` to an address that guests reach", server(on))
    } else if all.contains("unauthorized") {
        "the API server does not accept the token: is --enable-bootstrap-token-auth on, and are the clocks right?".to_owned()
    } else if state.trim() != "active" {
        "the kubelet does not stay up; its log says why".to_owned()
    } else {
        format!("read on: nodegraft exec {} -- journalctl -u kubelet", on.node.name)
    };
    error.with_help(help)
}

/// The kubelet's last errors; an old one repeats `node not found` ten times a second, which helps nobody.
async fn kubelet_log(session: &Session) -> Vec<String> {
    let errors = "journalctl -u kubelet -n 1000 --no-pager -o cat 2>/dev/null | grep -E '^[EF][0-9]{4} |[Ee]rror|panic' | grep -v 'not found$' | tail -n 8 || true";
    let log = session.output(errors, SHORT).await.unwrap_or_default();
    log.lines().map(|line| line.chars().take(400).collect()).collect()
}
