//! Join: a token of the node's own, the bootstrap kubeconfig, the kubelet's start, and approval of exactly its one
//! certificate request. The token lives from just before the kubelet starts until the Node exists.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;

use super::candidate::{Candidate, Earlier};
use super::facts::{self, Begun, Known, server};
use super::{access, locked, serving};
use crate::core::bootstrap::bootstrap_kubeconfig;
use crate::core::diagnosis::{CRASH_LOOP, Facts, TokenState, Waited, explain, off_by};
use crate::core::error::{Context, Error, Result};
use crate::core::journal::{Journal, Thing};
use crate::core::ownership::Owner;
use crate::core::plan;
use crate::core::spec;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Check, Reporter, Stage};
use crate::rooms::cluster::access::{BOOTSTRAPPERS, Right};
use crate::rooms::cluster::csr::{Request, State};
use crate::rooms::cluster::node::Node;
use crate::rooms::cluster::token::{OurToken, Terms, Token};
use crate::rooms::ssh::Session;

const SHORT: Duration = Duration::from_secs(60);
/// How long somebody else, who may, is given to approve the request before we do.
const OTHERS: Duration = Duration::from_secs(10);
/// How often the kubelet is looked at while it is waited for.
const LOOK: Duration = Duration::from_secs(4);
/// Every so many looks it is looked at whole.
const WHOLE: u32 = 5;
const IDENTITY: &str = "/etc/kubernetes/kubelet.conf";
/// An old kubelet writes its kubeconfig before it has the certificate that this points to.
const IS_IDENTITY: &str = "{ [ -s /etc/kubernetes/kubelet.conf ] && \
    { [ -s /var/lib/kubelet/pki/kubelet-client-current.pem ] || grep -q client-certificate-data /etc/kubernetes/kubelet.conf; }; }";
const BOOTSTRAP: &str = "/etc/kubernetes/bootstrap-kubelet.conf";
/// The first line of a bootstrap kubeconfig of ours: others make such a file, too.
const OURS: &str = "# nodegraft: for one join, removed when it is done";
const FORGET: &str = "! grep -qs '^# nodegraft' /etc/kubernetes/bootstrap-kubelet.conf || rm -f /etc/kubernetes/bootstrap-kubelet.conf";

pub struct Join;

#[async_trait]
impl<C: Candidate> Stage<C> for Join {
    fn name(&self) -> StageName {
        StageName::Join
    }

    fn plan(&self, node: &plan::Node) -> String {
        format!(
            "a token of its own, the kubelet, approval of its one request, as Node {}",
            node.name
        )
    }

    fn deadline(&self, on: &C) -> Duration {
        on.member().deadlines.join * 2 + Duration::from_secs(180)
    }

    async fn check(&self, on: &mut C, _: &Reporter) -> Result<Check> {
        let (member, owner) = (on.member(), on.membership()?);
        let node = on.cluster().node(&member.name).await?;
        if let Some(other) = node.as_ref().filter(|node| !node.is_of(&owner)) {
            return Ok(Check::Conflict(taken(
                &member.name,
                other.address.as_deref(),
            )));
        }
        let session = on.session(SHORT).await.doing("logging in")?;
        let found = Found::look(&session).await?;
        let Some(node) = node else {
            return Ok(match on.earlier() {
                Earlier::Respected if found.identity => Check::Conflict(was_a_node(&member.name)),
                _ => Check::Needed("it is not a Node yet".into()),
            });
        };
        let stays = found.identity && on.earlier() != Earlier::Cleared;
        if !stays
            && on.cluster().has_fresh_lease(&node).await?
            && lives_elsewhere(on, &found, &node).await?
        {
            return Ok(Check::Conflict(shared_machine_id(&node, &owner)));
        }
        if !found.identity {
            return Ok(Check::Needed(
                "its kubelet has no identity, though the cluster has its Node".into(),
            ));
        }
        if !stays {
            return Ok(Check::Needed(
                "its earlier membership is to be cleared, as you asked".into(),
            ));
        }
        if found.bootstrap || !tokens_of(on, &owner).await?.is_empty() {
            return Ok(Check::Needed(
                "what a run that was killed left of its token is to be removed".into(),
            ));
        }
        let (labels, taints) = on.wanted(&node);
        if let Some(first) = node.differences(&labels, &taints).first() {
            return Ok(Check::Needed(first.to_string()));
        }
        if node.owner.as_ref() != Some(&owner) {
            return Ok(Check::Needed("the Node is to be marked".into()));
        }
        if member.serving && !serving::is_served(on, &session).await? {
            return Ok(Check::Needed(
                "its request for a serving certificate is to be approved".into(),
            ));
        }
        Ok(Check::Done(format!("Node {}", node.name)))
    }

    async fn apply(&self, on: &mut C, report: &Reporter, journal: &Journal) -> Result<()> {
        let owner = on.membership()?;
        let session = on.session(SHORT).await.doing("logging in")?;
        let mut token = None;
        if on.earlier() == Earlier::Cleared || !Found::look(&session).await?.identity {
            token = Some(graft(on, &session, report, journal).await?);
            on.grafted();
        } else {
            delete_tokens(on, &owner).await?;
            session
                .output(FORGET, SHORT)
                .await
                .doing("removing the bootstrap kubeconfig")?;
        }
        let (cluster, member, name) = (on.cluster(), on.member(), &on.member().name);
        let node = match cluster.node(name).await? {
            Some(node) => node,
            None => {
                journal.made(Thing::Node { name: name.clone() });
                report.progress(Waited::Registration.describe());
                let begun = Begun::now(&session, None).await?;
                session
                    .output("systemctl restart kubelet", SHORT)
                    .await
                    .doing("restarting the kubelet")?;
                registered(on, &session, begun).await?
            }
        };
        if !node.is_of(&owner) {
            return Err(taken(name, node.address.as_deref()));
        }
        let (labels, taints) = on.wanted(&node);
        cluster
            .converge_node(&node, &owner, token.as_deref(), &labels, &taints)
            .await?;
        if member.serving {
            serving::serve(on, &session, report).await
        } else {
            Ok(())
        }
    }

    /// Neither a token nor the file with it outlives a run that was stopped; a kubelet that got no identity has nothing to
    /// do without them.
    async fn stopped(&self, on: &C) {
        let Ok(owner) = on.membership() else { return };
        let _ = delete_tokens(on, &owner).await;
        if let Ok(session) = on.session(Duration::from_secs(10)).await {
            let end = format!("{IS_IDENTITY} || systemctl stop kubelet; {FORGET}");
            let _ = session.output(&end, Duration::from_secs(10)).await;
        }
    }
}

pub(super) fn taken(name: &str, address: Option<&str>) -> Error {
    Error::failed(format!(
        "the cluster already has a Node {name}, of another machine{}",
        address.map(|a| format!(" at {a}")).unwrap_or_default()
    ))
    .with_help(format!(
        "give this node another name, or, if that machine is gone: kubectl delete node {name}"
    ))
}

fn was_a_node(name: &str) -> Error {
    Error::failed(format!("the machine of {name} was a node before: it has {IDENTITY} and a certificate")).with_help(
        "if that membership is over, add --reset: it removes kubelet.conf and /var/lib/kubelet/pki, then joins anew; nothing was changed",
    )
}

fn shared_machine_id(node: &Node, owner: &Owner) -> Error {
    Error::failed(format!(
        "the Node {} is of another machine that lives{}, with the same machine-id",
        node.name,
        node.address.as_deref().map(|address| format!(" at {address}")).unwrap_or_default()
    ))
    .because(format!("one is a copy of the other: both have the machine-id {}, but the Node's kubelet runs elsewhere", owner.machine_id()))
    .with_help("give this machine an id of its own: rm /etc/machine-id && systemd-machine-id-setup, reboot it, and give it another name; the Node was not touched")
}

/// What there is of a membership on a machine.
struct Found {
    /// The kubelet's own certificate and kubeconfig.
    identity: bool,
    /// A bootstrap kubeconfig of ours.
    bootstrap: bool,
    /// New with every start of a machine, and never the same on two.
    boot_id: String,
}

impl Found {
    async fn look(session: &Session) -> Result<Self> {
        let look = format!(
            "{IS_IDENTITY} && echo identity; grep -qs '^# nodegraft' {BOOTSTRAP} && echo bootstrap; echo boot=$(cat /proc/sys/kernel/random/boot_id)"
        );
        let found = session
            .output(&look, SHORT)
            .await
            .doing("looking for the kubelet's identity")?;
        let says = |word: &str| found.lines().any(|line| line == word);
        let boot_id = found
            .lines()
            .find_map(|line| line.strip_prefix("boot="))
            .unwrap_or_default()
            .to_owned();
        Ok(Self {
            identity: says("identity"),
            bootstrap: says("bootstrap"),
            boot_id,
        })
    }
}

/// Whether the Node with this machine's id is that of another machine, which lives. A copy has the machine-id, and a boot of
/// its own. To be asked while this machine's own kubelet does not run, or tells its boot.
async fn lives_elsewhere<C: Candidate>(on: &C, found: &Found, node: &Node) -> Result<bool> {
    let other_boot = |node: &Node| !found.boot_id.is_empty() && node.boot_id != found.boot_id;
    if !other_boot(node) || !on.cluster().renews_lease(node).await? {
        return Ok(false);
    }
    // A kubelet that has only just started renews its lease a moment before it tells its boot.
    Ok(on
        .cluster()
        .node(&node.name)
        .await?
        .is_some_and(|now| now.uid == node.uid && other_boot(&now)))
}

/// Token, files, kubelet, request; returns the token's id. The token is deleted however this ends.
async fn graft<C: Candidate>(
    on: &C,
    session: &Session,
    report: &Reporter,
    journal: &Journal,
) -> Result<String> {
    let (cluster, name, owner) = (on.cluster(), &on.member().name, on.membership()?);
    // Before anything is given up for it.
    reachable(on, session).await?;
    delete_tokens(on, &owner).await?;
    let token = Token::generate()?;
    report.progress(format!("token {}", token.id));
    let terms = Terms {
        life: Some(on.member().deadlines.join + Duration::from_secs(300)),
        description: Some(format!("nodegraft: node {name} joins")),
        groups: extra_groups(on),
        authentication: true,
        node: Some(owner.clone()),
        ..Terms::default()
    };
    journal.made(Thing::Token {
        id: token.id.clone(),
    });
    let server_clock = cluster.create_token(&token, &terms).await?;
    let joined = async {
        goes_first(on, &token, &owner).await?;
        // Another host's `down` may have taken the binding away since Access looked: from here on the token keeps it.
        access::restore(on, report, journal).await?;
        with_token(on, session, &token, server_clock, report, journal).await
    };
    let joined = joined.await;
    let deleted = delete_tokens(on, &owner).await;
    if joined.is_err() {
        // Without its token the kubelet could not even read the answer.
        let _ = cluster
            .delete_requests_of(name, std::slice::from_ref(&token.id), false)
            .await;
    }
    let removed = session
        .output(FORGET, SHORT)
        .await
        .doing("removing the bootstrap kubeconfig");
    joined?;
    deleted?;
    removed.map(|_| token.id)
}

/// The tokens that were minted for this very machine.
async fn tokens_of<C: Candidate>(on: &C, owner: &Owner) -> Result<Vec<OurToken>> {
    Ok(on
        .cluster()
        .our_tokens()
        .await?
        .into_iter()
        .filter(|token| token.owner == *owner)
        .collect())
}

async fn delete_tokens<C: Candidate>(on: &C, owner: &Owner) -> Result<()> {
    for token in tokens_of(on, owner).await? {
        on.cluster().delete_token_of(&token).await?;
    }
    Ok(())
}

/// Two machines that join under one name at once would take turns being the same Node: the one with the older token goes
/// on. One that has expired is of a run that was killed.
async fn goes_first<C: Candidate>(on: &C, token: &Token, owner: &Owner) -> Result<()> {
    let tokens = on.cluster().our_tokens().await?;
    let age = |token: &OurToken| (token.created, token.id.clone());
    let Some(mine) = tokens.iter().find(|known| known.id == token.id) else {
        return Ok(());
    };
    let is_rival = |other: &&OurToken| {
        let alive = other.expires.is_none_or(|expires| expires > mine.created);
        alive && other.owner.is_rival_of(owner) && age(other) < age(mine)
    };
    match tokens.iter().find(is_rival) {
        None => Ok(()),
        Some(rival) => Err(Error::failed(format!(
            "another machine is joining as {} at this moment, with the token {}",
            owner.node, rival.id
        ))
        .with_help(format!(
            "give one of the two another name; if that join is dead: nodegraft token delete {}",
            rival.id
        ))),
    }
}

/// The groups of our tokens besides `system:bootstrappers`.
fn extra_groups<C: Candidate>(on: &C) -> Vec<String> {
    match on.terms().access {
        spec::Access::None => Vec::new(),
        _ => vec![on.terms().group()],
    }
}

/// What the API server answers for the bearer of a token of ours.
async fn may<C: Candidate>(on: &C, user: &str, right: Right) -> Result<bool> {
    let extra = extra_groups(on);
    let groups: Vec<&str> = std::iter::once(BOOTSTRAPPERS)
        .chain(extra.iter().map(String::as_str))
        .collect();
    on.cluster().may(user, &groups, right).await
}

/// The machine can reach the API server: the commonest fault, and the kubelet would only log about it.
async fn reachable<C: Candidate>(on: &C, session: &Session) -> Result<()> {
    let server = server(on);
    let authority = server
        .split("://")
        .nth(1)
        .unwrap_or_default()
        .split('/')
        .next()
        .unwrap_or_default();
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "443"));
    let host = host.trim_matches(['[', ']']);
    let probe = format!(
        "timeout 10 bash -c 'exec 3<>/dev/tcp/{host}/{port}' 2>&1 || {{ echo unreachable; false; }}"
    );
    session.output(&probe, SHORT).await.map(drop).map_err(|error| {
        Error::failed(format!("the guest cannot reach the API server {server}")).because(error).with_help(
            "is that address right as seen from the guest? set `cluster.server` in the spec, or --server, to the one that is; check gateway and firewall",
        )
    })
}

async fn with_token<C: Candidate>(
    on: &C,
    session: &Session,
    token: &Token,
    server_clock: Option<i64>,
    report: &Reporter,
    journal: &Journal,
) -> Result<()> {
    let (cluster, member) = (on.cluster(), on.member());
    let begun = Begun::now(session, server_clock)
        .await
        .doing("reading the machine's clock")?;
    if let Some(skew) = begun.skew.filter(|_| begun.is_off()) {
        report.warn(
            format!("the clock of {} is {}", member.name, off_by(skew)),
            Some("certificates and tokens may look invalid there: set it, and keep it with a time service".into()),
        );
    }
    let values = serde_json::json!({"node": member});
    let kubeconfig = bootstrap_kubeconfig(
        on.templates(),
        server(on),
        &cluster.ca_base64,
        &token.reveal(),
    )?;
    session
        .output(&on.templates().render("join/reset.sh", &values)?, SHORT)
        .await
        .doing("clearing an earlier membership")?;
    let owner = on.membership()?;
    // The Node of this machine's earlier life would keep its new kubelet from registering as itself.
    if let Some(node) = cluster
        .node(&member.name)
        .await?
        .filter(|node| node.is_of(&owner))
    {
        // Of this machine nothing renews its lease any more.
        if lives_elsewhere(on, &Found::look(session).await?, &node).await? {
            return Err(shared_machine_id(&node, &owner));
        }
        // What that life asked for in the Node's name nobody could prove to be ours once the Node is gone.
        cluster
            .delete_requests_of(&node.name, node.token.as_slice(), true)
            .await?;
        cluster.delete_node(&node).await?;
    }
    // Only now: the Node of a copy of this machine would be taken for ours.
    journal.made(Thing::Node {
        name: member.name.clone(),
    });
    journal.made(Thing::Membership);
    session
        .write(
            "/etc/kubernetes/pki/ca.crt",
            cluster.ca_pem.clone().into_bytes(),
            "0644",
            SHORT,
        )
        .await?;
    session
        .write(
            BOOTSTRAP,
            format!("{OURS}\n{kubeconfig}").into_bytes(),
            "0600",
            SHORT,
        )
        .await?;
    report.progress("starting the kubelet");
    session
        .output(&on.templates().render("join/start.sh", &values)?, SHORT)
        .await
        .doing("starting the kubelet")?;

    let waited = Mutex::new(Waited::Request);
    let at = |place: Waited| {
        report.progress(place.describe());
        *locked(&waited) = place;
    };
    at(Waited::Request);
    let issued = async {
        approve(on, token, report, &at).await?;
        at(Waited::Certificate);
        let ours = |seen: &Request| {
            seen.state == State::Issued && seen.objection(&token.user(), &member.name).is_none()
        };
        cluster.watch_csr(&token.user(), ours).await?;
        at(Waited::Registration);
        cluster
            .watch_node(&member.name, |_| true, |_| {})
            .await
            .map(drop)
    };
    let stuck = async |how: String| {
        let facts = now(on, session, begun, token, &waited).await;
        Err(facts::error(
            format!("the node did not join {how}: {}", facts.waited.describe()),
            &facts,
        ))
    };
    let limit = member.deadlines.join;
    tokio::select! {
        ended = tokio::time::timeout(limit, issued) => match ended {
            Ok(result) => result,
            Err(_) => stuck(format!("within {} s", limit.as_secs())).await,
        },
        () = hopeless(on, session, begun, token, &waited) => stuck("and cannot as it is".into()).await,
    }
}

/// The facts of this moment.
async fn now<C: Candidate>(
    on: &C,
    session: &Session,
    begun: Begun,
    token: &Token,
    waited: &Mutex<Waited>,
) -> Facts {
    let waited = *locked(waited);
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    groups.extend(extra_groups(on));
    let known = Known {
        token: on
            .cluster()
            .token_state(&token.id)
            .await
            .unwrap_or(TokenState::Alive),
        user: token.user(),
        groups,
        may_request: may(on, &token.user(), Right::Request).await.unwrap_or(true),
    };
    facts::facts(on, session, begun, waited, known).await
}

/// Ends when the join fails for a reason that waiting will not mend: the kubelet ends again and again, its clock is off,
/// it does not trust the API server.
async fn hopeless<C: Candidate>(
    on: &C,
    session: &Session,
    begun: Begun,
    token: &Token,
    waited: &Mutex<Waited>,
) {
    let mut enough = CRASH_LOOP;
    for look in 1.. {
        tokio::time::sleep(LOOK).await;
        // The whole look costs a slow guest seconds.
        let restarts = facts::restarts(session).await;
        if restarts < enough && look % WHOLE != 0 {
            continue;
        }
        if explain(&now(on, session, begun, token, waited).await).hopeless {
            return;
        }
        if restarts >= enough {
            enough = restarts + CRASH_LOOP;
        }
    }
}

/// Sees the one request approved: by whoever may, else by us.
async fn approve<C: Candidate>(
    on: &C,
    token: &Token,
    report: &Reporter,
    at: &(impl Fn(Waited) + Sync),
) -> Result<()> {
    let (cluster, name, user) = (on.cluster(), &on.member().name, token.user());
    let csr = cluster.watch_csr(&user, |_| true).await?;
    if let Some(objection) = csr.objection(&user, name) {
        return Err(Error::failed(format!("the certificate request {} is not the one this node should make: {objection}", csr.name))
            .with_help("nothing was approved; is `--hostname-override` in the kubelet template the node's name?"));
    }
    let decided = |seen: &Request| seen.name == csr.name && seen.state != State::Pending;
    // Who may not ask who may what waits for the others first.
    let others = may(on, &user, Right::ClientApproval).await.unwrap_or(true);
    if others && csr.state == State::Pending {
        report.progress(format!(
            "waiting for the controller manager to approve {}",
            csr.name
        ));
        if let Ok(seen) = tokio::time::timeout(OTHERS, cluster.watch_csr(&user, decided)).await {
            return refuse_denied(seen?);
        }
    }
    report.progress(format!("approving {}", csr.name));
    let objection = |seen: &Request| seen.objection(&user, name);
    if !cluster
        .approve_csr(
            &csr,
            &format!("node {name} of cluster {} joins", on.terms().name),
            objection,
        )
        .await?
    {
        at(Waited::Approval);
    }
    refuse_denied(cluster.watch_csr(&user, decided).await?)
}

fn refuse_denied(csr: Request) -> Result<()> {
    match csr.state {
        State::Denied(reason) => Err(Error::failed(format!("the certificate request {} was denied", csr.name))
            .because(if reason.is_empty() { "who denied it gave no reason".to_owned() } else { reason })
            .with_help("somebody, or a policy, denies kubelet requests in this cluster; ask them, then run the same command again")),
        _ => Ok(()),
    }
}

/// A kubelet that has an identity registers itself.
async fn registered<C: Candidate>(on: &C, session: &Session, begun: Begun) -> Result<Node> {
    let limit = on.member().deadlines.join;
    match tokio::time::timeout(
        limit,
        on.cluster().watch_node(&on.member().name, |_| true, |_| {}),
    )
    .await
    {
        Ok(node) => node,
        Err(_) => {
            let facts =
                facts::facts(on, session, begun, Waited::Registration, Known::nothing()).await;
            Err(facts::error(
                format!(
                    "the kubelet did not register the Node within {} s",
                    limit.as_secs()
                ),
                &facts,
            ))
        }
    }
}
