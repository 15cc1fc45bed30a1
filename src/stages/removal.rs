//! Removing what is ours, thing by thing: what `down` found in the inventory, or what the journal says a failed run made.
//! Every thing is proven anew before it goes. A stop is honoured between things, never while a VM is frozen.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::candidate::Candidate;
use crate::cluster::{Cluster, node::Node};
use crate::error::{Context, Error, Result};
use crate::event::{Event, Failure, Outcome};
use crate::journal::Thing;
use crate::libvirt::Host;
use crate::ownership::Owner;
use crate::pipeline::stage::{Events, Reporter};

const SHORT: Duration = Duration::from_secs(30);

/// Whether nodes are drained before they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    Within(Duration),
    /// Pods go with the node, whatever their budgets say.
    No,
}

/// What is to go of one node, in order.
pub struct Removal {
    pub owner: Owner,
    /// Its domain's.
    pub uuid: Option<String>,
    pub things: Vec<Thing>,
    /// The Node to drain before anything goes, and how long that may take.
    pub drain: Option<(Node, Duration)>,
}

/// What became of one thing.
#[derive(Debug, PartialEq, Eq)]
pub enum Undone {
    Removed(String),
    Absent,
    /// It has the name, and is not ours.
    Foreign(String),
}

/// How a removal ended.
#[derive(Debug, Default)]
pub struct Removed {
    /// What is left, each with the reason.
    pub left: Vec<Error>,
    /// Something went.
    pub any: bool,
    /// The user stopped it; what had not begun stays.
    pub stopped: bool,
}

/// With what things are removed.
pub struct Remover<'a> {
    pub host: Option<&'a Host>,
    pub cluster: Option<&'a Cluster>,
    pub events: Events,
    pub stop: CancellationToken,
}

impl Thing {
    /// What people read.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Domain { .. } => "Domain",
            Self::Volume { .. } => "Volume",
            Self::Running => "Power",
            Self::Token { .. } => "Token",
            Self::Membership => "Kubelet",
            Self::Node { .. } => "Node",
            Self::Binding { .. } => "Binding",
        }
    }
}

impl Removal {
    /// The rows of a display.
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.drain.iter().map(|_| "Drain".to_owned()).collect();
        words.extend(self.things.iter().map(|thing| thing.word().to_owned()));
        words
    }

    fn powers_off(&self) -> bool {
        self.things.contains(&Thing::Running)
    }
}

impl Remover<'_> {
    /// Walks a removal to its end, to the first thing that must stay, or to a stop.
    pub async fn remove(&self, removal: &Removal) -> Removed {
        let mut ended = Removed::default();
        if self.stop.is_cancelled() {
            return Removed { stopped: true, ..ended };
        }
        if let Some((node, limit)) = &removal.drain
            && !self.drain(removal, node, *limit, &mut ended).await
        {
            return ended;
        }
        // A kubelet that lives would register its Node again, and renew its lease.
        let freeze = removal.powers_off() && removal.things.iter().any(|thing| matches!(thing, Thing::Node { .. }));
        let mut frozen = false;
        for thing in &removal.things {
            if self.stop.is_cancelled() && !frozen {
                return Removed { stopped: true, ..ended };
            }
            if freeze && !frozen && matches!(thing, Thing::Node { .. }) {
                match self.freeze(removal).await {
                    Ok(did) => frozen = did,
                    Err(error) => {
                        ended.left.push(error);
                        return ended;
                    }
                }
            }
            let done = self.tell(removal, thing.word(), self.undo(removal, thing, None)).await;
            match done {
                Ok(undone) => ended.any |= matches!(undone, Undone::Removed(_)),
                Err(error) => {
                    ended.left.push(error);
                    // What comes after would cut it off, or lose the claim that tells of it.
                    if frozen {
                        self.thaw(removal, &mut ended).await;
                    }
                    return ended;
                }
            }
            frozen &= *thing != Thing::Running;
        }
        ended
    }

    /// Removes what a journal tells of, newest first, all of it that can go.
    pub async fn undo_all<C: Candidate>(&self, removal: &Removal, on: &C) -> Removed {
        let mut ended = Removed::default();
        // Where the VM goes as a whole, what was done inside it does, too.
        let vm_goes = removal.things.iter().any(|thing| matches!(thing, Thing::Domain { .. }));
        let inside = |thing: &&Thing| !(vm_goes && **thing == Thing::Membership);
        let frozen = vm_goes && self.freeze(removal).await.unwrap_or(false);
        for thing in removal.things.iter().filter(inside) {
            match self.tell(removal, thing.word(), self.undo(removal, thing, Some(on))).await {
                Ok(undone) => ended.any |= matches!(undone, Undone::Removed(_)),
                Err(error) => ended.left.push(error),
            }
            // A claim whose volumes are left stays, and tells of them.
            if !ended.left.is_empty() && matches!(thing, Thing::Volume { .. }) {
                break;
            }
        }
        if frozen && !ended.left.is_empty() {
            self.thaw(removal, &mut ended).await;
        }
        ended
    }

    /// False if the removal ends here.
    async fn drain(&self, removal: &Removal, node: &Node, limit: Duration, ended: &mut Removed) -> bool {
        let Some(cluster) = self.cluster else { return true };
        let report = Reporter::new(self.events.clone(), Some(removal.owner.node.clone()), "Drain");
        let begun = Instant::now();
        let evicted = self.tell(removal, "Drain", async {
            let evicted = cluster.drain(node, limit, &self.stop, |what| report.progress(what)).await?;
            Ok(if evicted == 0 { Undone::Absent } else { Undone::Removed(format!("{evicted} pods evicted")) })
        });
        if let Err(error) = evicted.await {
            if error.is_interruption() {
                ended.stopped = true;
            } else {
                ended.left.push(error);
            }
            return false;
        }
        // That may have taken minutes: somebody may have begun to use its files meanwhile.
        if begun.elapsed() > SHORT
            && let Some(host) = self.host
            && let Err(error) = still_unused(host, removal).await
        {
            ended.left.push(error);
            return false;
        }
        true
    }

    async fn freeze(&self, removal: &Removal) -> Result<bool> {
        match (self.host, &removal.uuid) {
            (Some(host), Some(uuid)) => host.suspend(uuid).await.doing(format!("freezing the VM of {}", removal.owner.node)),
            _ => Ok(false),
        }
    }

    /// Lets it run again, if it still does.
    async fn thaw(&self, removal: &Removal, ended: &mut Removed) {
        if let (Some(host), Some(uuid)) = (self.host, &removal.uuid)
            && matches!(host.domain(uuid).await, Ok(Some(domain)) if domain.paused)
            && let Err(error) = host.resume(uuid).await
        {
            ended.left.push(error.with_help(format!("it is paused: virsh resume {uuid}")));
        }
    }

    /// Tells the display of one thing.
    async fn tell(&self, removal: &Removal, word: &str, work: impl Future<Output = Result<Undone>>) -> Result<Undone> {
        let (begun, node, stage) = (Instant::now(), Some(removal.owner.node.clone()), word.to_owned());
        self.events.send(Event::StageStarted { node: node.clone(), stage: stage.clone() });
        let done = work.await;
        let seconds = begun.elapsed().as_secs_f64();
        match &done {
            Ok(undone) => {
                let (outcome, detail) = match undone {
                    Undone::Removed(what) => (Outcome::Removed, what.clone()),
                    Undone::Absent => (Outcome::Absent, String::new()),
                    Undone::Foreign(why) => (Outcome::Kept, why.clone()),
                };
                self.events.send(Event::StageFinished { node, stage, outcome, detail, seconds });
            }
            Err(error) if error.is_interruption() => {}
            Err(error) => self.events.send(Event::StageFailed { node, stage, failure: Failure::from(error), seconds }),
        }
        done
    }

    /// One thing. An error means that it is left.
    async fn undo(&self, removal: &Removal, thing: &Thing, on: Option<&dyn Guest>) -> Result<Undone> {
        match thing {
            Thing::Node { name } => self.node(removal, name).await,
            Thing::Token { id } => self.token(removal, id).await,
            Thing::Membership => match on {
                Some(on) => on.leave().await,
                None => Ok(Undone::Absent),
            },
            Thing::Running => {
                let (host, uuid) = self.machine(removal)?;
                Ok(if host.power_off(uuid).await? { Undone::Removed("powered off".into()) } else { Undone::Absent })
            }
            Thing::Volume { pool, name } => self.volume(pool, name).await,
            Thing::Domain { name, .. } => {
                let (host, uuid) = self.machine(removal)?;
                if !removal.powers_off() {
                    host.power_off(uuid).await?;
                }
                Ok(if host.undefine(uuid).await? { Undone::Removed(name.clone()) } else { Undone::Absent })
            }
            // Shared by the nodes of a cluster: it is released once, after all of them.
            Thing::Binding { .. } => Ok(Undone::Absent),
        }
    }

    fn machine<'r>(&self, removal: &'r Removal) -> Result<(&Host, &'r str)> {
        self.host.zip(removal.uuid.as_deref()).ok_or_else(|| Error::new("there is no VM of ours to remove"))
    }

    async fn volume(&self, pool: &str, name: &str) -> Result<Undone> {
        let host = self.host.ok_or_else(|| Error::new("there is no host to remove it from"))?;
        host.delete_volume(pool, name).await.map(|gone| if gone { Undone::Removed(name.to_owned()) } else { Undone::Absent }).map_err(
            |error| {
                error.with_help(format!("is the pool active? virsh -c '{}' pool-start {pool}; then run the same command again", host.uri()))
            },
        )
    }

    async fn token(&self, removal: &Removal, id: &str) -> Result<Undone> {
        let Some(cluster) = self.cluster else { return Ok(Undone::Absent) };
        let ours = cluster.our_tokens().await?;
        let Some(token) = ours.iter().find(|token| token.id == id && token.owner == removal.owner) else {
            return Ok(Undone::Absent);
        };
        Ok(if cluster.delete_token_of(token).await? { Undone::Removed(format!("token {id}")) } else { Undone::Absent })
    }

    /// The Node with its lease and its requests, if it is the Node of this instance.
    async fn node(&self, removal: &Removal, name: &str) -> Result<Undone> {
        let Some(cluster) = self.cluster else { return Ok(Undone::Absent) };
        let node = cluster.node(name).await?;
        let ours = node.as_ref().filter(|node| node.is_of(&removal.owner.instance));
        let mut tokens: Vec<String> = ours.and_then(|node| node.token.clone()).into_iter().collect();
        tokens.extend(removal.things.iter().filter_map(|thing| match thing {
            Thing::Token { id } => Some(id.clone()),
            _ => None,
        }));
        let mut gone = Vec::new();
        if let Some(node) = ours
            && cluster.delete_node(node).await?
        {
            gone.push(format!("Node {name}"));
        }
        for request in cluster.requests_of(name, &tokens, ours.is_some()).await? {
            if cluster.delete_request(&request).await? {
                gone.push(format!("request {}", request.name));
            }
        }
        Ok(match (gone.is_empty(), node.is_some() && ours.is_none()) {
            (false, _) => Undone::Removed(gone.join(", ")),
            (true, true) => Undone::Foreign(format!("the Node {name} belongs to another machine")),
            (true, false) => Undone::Absent,
        })
    }
}

/// Where a join's own traces are.
#[async_trait::async_trait]
trait Guest: Sync {
    async fn leave(&self) -> Result<Undone>;
}

#[async_trait::async_trait]
impl<C: Candidate> Guest for C {
    async fn leave(&self) -> Result<Undone> {
        let script = self.templates().render("join/reset.sh", &serde_json::json!({"node": self.member()}))?;
        let session = self.session(SHORT).await.doing("logging in")?;
        session.output(&script, SHORT).await.doing("stopping the kubelet and clearing its identity")?;
        Ok(Undone::Removed("the kubelet's new identity".into()))
    }
}

async fn still_unused(host: &Host, removal: &Removal) -> Result<()> {
    let pool = removal.things.iter().find_map(|thing| match thing {
        Thing::Volume { pool, .. } => Some(pool.as_str()),
        _ => None,
    });
    let Some(pool) = pool else { return Ok(()) };
    let now = super::inventory::Inventory::take(host, None, &removal.owner.cluster, pool).await?;
    match now.node(&removal.owner.node).and_then(super::inventory::Existing::refusal) {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}
