//! Removing what is ours, thing by thing: what `down` found in the inventory, or what the journal says a failed run made.
//! Every thing is proven anew before it goes. A stop is honoured between things, never while a VM is frozen.
#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new thing does not compile until it is said here how it goes"
)]

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::candidate::Candidate;
use super::inventory::{Ask, Existing, Inventory};
use crate::core::error::{Context, Error, Result};
use crate::core::event::{Event, Failure, Outcome};
use crate::core::journal::{Place, Thing};
use crate::core::mark::{Mark, SeedState};
use crate::core::ownership::Owner;
use crate::core::stage_name::StageName;
use crate::pipeline::stage::{Events, Reporter};
use crate::rooms::cluster::{Cluster, node::Node};
use crate::rooms::libvirt::Host;

const SHORT: Duration = Duration::from_secs(30);
/// A look that is older is not trusted with a deletion.
const FRESH: Duration = Duration::from_secs(30);

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
    /// When it was seen that nobody else uses its files; `None` for what this very run made.
    pub looked: Option<Instant>,
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

/// With what things of a cluster are removed.
pub struct Remover<'a> {
    /// The cluster's name.
    of: &'a str,
    host: Option<&'a Host>,
    cluster: Option<&'a Cluster>,
    events: Events,
    stop: CancellationToken,
    /// The latest look into the host: it serves all whose own is old.
    again: tokio::sync::Mutex<Option<(Instant, Arc<Inventory>)>>,
}

impl Thing {
    /// Its row in a display.
    pub fn stage(&self) -> StageName {
        match self {
            Self::Domain { .. } => StageName::Domain,
            Self::Volume { .. } => StageName::Volume,
            Self::Running => StageName::Power,
            Self::Token { .. } => StageName::Token,
            Self::Membership => StageName::Kubelet,
            Self::Node { .. } => StageName::Node,
            Self::Binding { .. } => StageName::Binding,
        }
    }
}

impl Removal {
    /// The rows of a display.
    pub fn rows(&self) -> Vec<StageName> {
        let drain = self.drain.iter().map(|_| StageName::Drain);
        drain.chain(self.things.iter().map(Thing::stage)).collect()
    }

    fn powers_off(&self) -> bool {
        self.things.contains(&Thing::Running)
    }
}

impl<'a> Remover<'a> {
    pub fn new(
        of: &'a str,
        host: Option<&'a Host>,
        cluster: Option<&'a Cluster>,
        events: Events,
        stop: CancellationToken,
    ) -> Self {
        Self {
            of,
            host,
            cluster,
            events,
            stop,
            again: tokio::sync::Mutex::default(),
        }
    }

    /// Walks a removal to its end, to the first thing that must stay, or to a stop.
    pub async fn remove(&self, removal: &Removal) -> Removed {
        let mut ended = Removed::default();
        if self.stop.is_cancelled() {
            return Removed {
                stopped: true,
                ..ended
            };
        }
        let mut cordoned = None;
        if let Some((node, limit)) = &removal.drain {
            if !self.drain(removal, node, *limit, &mut ended).await {
                return ended;
            }
            cordoned = Some(node).filter(|node| !node.unschedulable);
        }
        if let Err(error) = self.still_unused(removal).await {
            ended.left.push(error);
        } else {
            self.walk(removal, &mut ended, &mut cordoned).await;
        }
        // A Node that stays takes pods again.
        if let (Some(cluster), Some(node)) = (self.cluster, cordoned)
            && let Err(error) = cluster.cordon(node, false).await
        {
            ended.left.push(error.with_help(format!(
                "it is still cordoned: kubectl uncordon {}",
                node.name
            )));
        }
        ended
    }

    async fn walk(&self, removal: &Removal, ended: &mut Removed, cordoned: &mut Option<&Node>) {
        // A kubelet that lives would register its Node again, and renew its lease.
        let freeze = removal.powers_off()
            && removal
                .things
                .iter()
                .any(|thing| matches!(thing, Thing::Node { .. }));
        let mut frozen = false;
        for thing in &removal.things {
            if self.stop.is_cancelled() && !frozen {
                ended.stopped = true;
                return;
            }
            if freeze && !frozen && matches!(thing, Thing::Node { .. }) {
                frozen = match self.freeze(removal).await {
                    Ok(did) => did,
                    // A VM that cannot be frozen any more can still be powered off, here a little early.
                    Err(_) => match self
                        .tell(
                            removal,
                            Thing::Running.stage(),
                            self.undo(removal, &Thing::Running, None),
                        )
                        .await
                    {
                        Ok(_) => false,
                        Err(error) => {
                            ended.left.push(error);
                            return;
                        }
                    },
                };
            }
            match self
                .tell(removal, thing.stage(), self.undo(removal, thing, None))
                .await
            {
                Ok(undone) => ended.any |= matches!(undone, Undone::Removed(_)),
                Err(error) => {
                    ended.left.push(error);
                    // What comes after would cut it off, or lose the claim that tells of it.
                    if frozen {
                        self.thaw(removal, ended).await;
                    }
                    return;
                }
            }
            if matches!(thing, Thing::Node { .. }) {
                *cordoned = None;
            }
            frozen &= *thing != Thing::Running;
        }
    }

    /// Removes what a journal tells of, newest first. Where something of it is left in the cluster or in the guest the VM stays
    /// too, whole, so that the next `up` or `down` finds it.
    pub async fn undo_all<C: Candidate>(&self, removal: &Removal, on: &C) -> Removed {
        let mut ended = Removed::default();
        // Where the VM goes as a whole, what was done inside it does, too.
        let vm_goes = removal
            .things
            .iter()
            .any(|thing| matches!(thing, Thing::Domain { .. }));
        let inside = |thing: &&Thing| !(vm_goes && thing.place() == Place::Guest);
        let frozen = vm_goes && self.freeze(removal).await.unwrap_or(false);
        for thing in removal.things.iter().filter(inside) {
            if !ended.left.is_empty() && thing.place() == Place::Host {
                break;
            }
            // The claim stays, and must not say that its disk and its seed are whole.
            let unsealed = if !vm_goes && matches!(thing, Thing::Volume { .. }) {
                self.unseal(removal).await
            } else {
                Ok(())
            };
            let undone = match unsealed {
                Ok(()) => {
                    self.tell(removal, thing.stage(), self.undo(removal, thing, Some(on)))
                        .await
                }
                Err(error) => Err(error),
            };
            match undone {
                Ok(undone) => ended.any |= matches!(undone, Undone::Removed(_)),
                Err(error) => ended.left.push(error),
            }
        }
        if frozen && !ended.left.is_empty() {
            self.thaw(removal, &mut ended).await;
        }
        ended
    }

    async fn unseal(&self, removal: &Removal) -> Result<()> {
        let (host, uuid) = self.machine(removal)?;
        let mark = host
            .domain(uuid)
            .await?
            .and_then(|domain| domain.proven_mark().cloned());
        match mark.filter(|mark| mark.seed != SeedState::Unwritten) {
            Some(mark) => {
                host.set_mark(
                    uuid,
                    &Mark {
                        seed: SeedState::Unwritten,
                        host_key: String::new(),
                        ..mark
                    },
                )
                .await
            }
            None => Ok(()),
        }
    }

    /// False if the removal ends here.
    async fn drain(
        &self,
        removal: &Removal,
        node: &Node,
        limit: Duration,
        ended: &mut Removed,
    ) -> bool {
        let Some(cluster) = self.cluster else {
            return true;
        };
        let report = Reporter::new(
            self.events.clone(),
            Some(removal.owner.node.clone()),
            StageName::Drain,
        );
        let evicted = self.tell(removal, StageName::Drain, async {
            let evicted = cluster
                .drain(node, limit, &self.stop, |what| report.progress(what))
                .await?;
            Ok(if evicted == 0 {
                Undone::Absent
            } else {
                Undone::Removed(format!("{evicted} pods evicted"))
            })
        });
        if let Err(error) = evicted.await {
            if error.is_interruption() {
                ended.stopped = true;
            } else {
                ended.left.push(error);
            }
            return false;
        }
        true
    }

    /// A prompt, a queue or a drain may have taken minutes, in which somebody may have begun to use the node's files.
    async fn still_unused(&self, removal: &Removal) -> Result<()> {
        let (Some(host), Some(looked)) = (
            self.host,
            removal.looked.filter(|looked| looked.elapsed() > FRESH),
        ) else {
            return Ok(());
        };
        let mut again = self.again.lock().await;
        let fresh = match again
            .as_ref()
            .filter(|(at, _)| *at > looked && at.elapsed() < FRESH)
        {
            Some((_, inventory)) => Arc::clone(inventory),
            None => {
                let inventory = Arc::new(Inventory::take(host, None, self.of, Ask::Nodes).await?);
                *again = Some((Instant::now(), Arc::clone(&inventory)));
                inventory
            }
        };
        match fresh.node(&removal.owner.node).and_then(Existing::refusal) {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    }

    async fn freeze(&self, removal: &Removal) -> Result<bool> {
        match (self.host, &removal.uuid) {
            (Some(host), Some(uuid)) => host
                .suspend(uuid)
                .await
                .doing(format!("freezing the VM of {}", removal.owner.node)),
            _ => Ok(false),
        }
    }

    /// Lets it run again, if it still does.
    async fn thaw(&self, removal: &Removal, ended: &mut Removed) {
        let (Some(host), Some(uuid)) = (self.host, &removal.uuid) else {
            return;
        };
        let thawed = match host.domain(uuid).await {
            Ok(Some(domain)) if domain.paused => host.resume(uuid).await,
            other => other.map(drop),
        };
        if let Err(error) = thawed {
            ended.left.push(error.with_help(format!(
                "it may be paused still: virsh -c '{}' resume {uuid}",
                host.uri()
            )));
        }
    }

    /// Tells the display of one thing.
    async fn tell(
        &self,
        removal: &Removal,
        stage: StageName,
        work: impl Future<Output = Result<Undone>>,
    ) -> Result<Undone> {
        let (begun, node) = (Instant::now(), Some(removal.owner.node.clone()));
        self.events.send(Event::StageStarted {
            node: node.clone(),
            stage,
        });
        let done = work.await;
        let seconds = begun.elapsed().as_secs_f64();
        match &done {
            Ok(undone) => {
                let (outcome, detail) = match undone {
                    Undone::Removed(what) => (Outcome::Removed, what.clone()),
                    Undone::Absent => (Outcome::Absent, String::new()),
                    Undone::Foreign(why) => (Outcome::Kept, why.clone()),
                };
                self.events.send(Event::StageFinished {
                    node,
                    stage,
                    outcome,
                    detail,
                    seconds,
                });
            }
            Err(error) if error.is_interruption() => {}
            Err(error) => self.events.send(Event::StageFailed {
                node,
                stage,
                failure: Failure::from(error),
                seconds,
            }),
        }
        done
    }

    /// One thing. An error means that it is left.
    async fn undo(
        &self,
        removal: &Removal,
        thing: &Thing,
        on: Option<&dyn Guest>,
    ) -> Result<Undone> {
        match thing {
            Thing::Node { name } => self.node(removal, name).await,
            Thing::Token { id } => self.token(removal, id).await,
            Thing::Membership => match on {
                Some(on) => on.leave().await,
                None => Ok(Undone::Absent),
            },
            Thing::Running => {
                let (host, uuid) = self.machine(removal)?;
                Ok(if host.power_off(uuid).await? {
                    Undone::Removed("powered off".into())
                } else {
                    Undone::Absent
                })
            }
            Thing::Volume { pool, name } => self.volume(pool, name).await,
            Thing::Domain { name, .. } => {
                let (host, uuid) = self.machine(removal)?;
                if !removal.powers_off() {
                    host.power_off(uuid).await?;
                }
                Ok(if host.undefine(uuid).await? {
                    Undone::Removed(name.clone())
                } else {
                    Undone::Absent
                })
            }
            // Shared by the nodes of a cluster: it is released once, after all of them.
            Thing::Binding { .. } => Ok(Undone::Absent),
        }
    }

    fn machine<'r>(&self, removal: &'r Removal) -> Result<(&Host, &'r str)> {
        self.host
            .zip(removal.uuid.as_deref())
            .ok_or_else(|| Error::bug("there is no VM of ours to remove"))
    }

    async fn volume(&self, pool: &str, name: &str) -> Result<Undone> {
        let host = self
            .host
            .ok_or_else(|| Error::bug("there is no host to remove it from"))?;
        match host.delete_volume(pool, name).await {
            Ok(true) => Ok(Undone::Removed(name.to_owned())),
            Ok(false) => Ok(Undone::Absent),
            Err(error) if error.help().is_some() => Err(error),
            Err(error) => Err(error.with_help(format!(
                "is the pool active (virsh -c '{}' pool-start {pool}), and no copy under way? then run the same command again",
                host.uri()
            ))),
        }
    }

    async fn token(&self, removal: &Removal, id: &str) -> Result<Undone> {
        let Some(cluster) = self.cluster else {
            return Ok(Undone::Absent);
        };
        let ours = cluster.our_tokens().await?;
        let Some(token) = ours
            .iter()
            .find(|token| token.id == id && token.owner == removal.owner)
        else {
            return Ok(Undone::Absent);
        };
        Ok(if cluster.delete_token_of(token).await? {
            Undone::Removed(format!("token {id}"))
        } else {
            Undone::Absent
        })
    }

    /// The Node with its lease and its requests, if it is the Node of this instance.
    async fn node(&self, removal: &Removal, name: &str) -> Result<Undone> {
        let Some(cluster) = self.cluster else {
            return Ok(Undone::Absent);
        };
        let node = cluster.node(name).await?;
        let ours = node.as_ref().filter(|node| node.is_of(&removal.owner));
        let mut tokens: Vec<String> = ours
            .and_then(|node| node.token.clone())
            .into_iter()
            .collect();
        for thing in &removal.things {
            if let Thing::Token { id } = thing {
                tokens.push(id.clone());
            }
        }
        // The requests first: once the Node is gone nobody can prove that those in its name were ours.
        let requests = cluster
            .delete_requests_of(name, &tokens, ours.is_some())
            .await?;
        let mut gone: Vec<String> = requests
            .into_iter()
            .map(|request| format!("request {request}"))
            .collect();
        if let Some(node) = ours
            && cluster.delete_node(node).await?
        {
            gone.insert(0, format!("Node {name}"));
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
        let script = self
            .templates()
            .render("join/reset.sh", &serde_json::json!({"node": self.member()}))?;
        let session = self.session(SHORT).await.doing("logging in")?;
        session
            .output(&script, SHORT)
            .await
            .doing("stopping the kubelet and clearing its identity")?;
        Ok(Undone::Removed("the kubelet's new identity".into()))
    }
}
