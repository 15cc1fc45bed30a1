//! The libvirt room on libvirt's own test driver: an in-memory host of its own for each connection.
//! Uploads, consoles and guests are the lab's.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, OnceLock};

use nodegraft::cluster::Cluster;
use nodegraft::journal::{Journal, Thing};
use nodegraft::libvirt::storage::Volume;
use nodegraft::libvirt::{Host, NetworkState};
use nodegraft::mark::{Claimed, Mark, SeedState};
use nodegraft::ownership::Owner;
use nodegraft::pipeline::stage::{Check, Events, Reporter, Stage};
use nodegraft::plan::Plan;
use nodegraft::spec::{Network, Spec};
use nodegraft::stages::inventory::{Existing, Inventory};
use nodegraft::stages::removal::{Drain, Removed, Remover};
use nodegraft::stages::{NodeRun, Run, Sight, node_stages, run_stages};
use nodegraft::state::StateDir;
use nodegraft::template::Templates;

const POOL: &str = "default-pool";
const GIB: u64 = 1 << 30;

async fn host() -> Host {
    Host::open("test:///default").await.unwrap()
}

fn domain_xml(name: &str, uuid: &str, more: &str) -> String {
    format!(
        "<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>{more}<memory unit='bytes'>{GIB}</memory><vcpu>2</vcpu><os><type>hvm</type></os></domain>"
    )
}

const THEIRS: &str = "11111111-2222-4333-8444-555555555555";

#[tokio::test]
async fn absence_is_an_answer_and_not_an_error() {
    let host = host().await;
    assert_eq!(host.domain(THEIRS).await.unwrap(), None);
    assert_eq!(host.uuid_of("nobody").await.unwrap(), None);
    assert_eq!(host.pool("nowhere", |_| true).await.unwrap(), None);
    assert_eq!(host.volume(POOL, "nothing").await.unwrap(), None);
    assert_eq!(host.network("nowhere").await.unwrap(), NetworkState::Absent);
    assert!(!host.delete_volume(POOL, "nothing").await.unwrap());
    assert!(!host.undefine(THEIRS).await.unwrap());
    assert!(!host.power_off(THEIRS).await.unwrap());
    assert!(!host.suspend(THEIRS).await.unwrap());
}

#[tokio::test]
async fn an_overlay_has_its_own_capacity_and_knows_its_base() {
    let host = host().await;
    let base = Volume {
        name: "template".into(),
        path: "/default-pool/template".into(),
        format: "qcow2".into(),
        capacity: GIB,
        allocation: 0,
        backing: None,
    };
    host.create_overlay(POOL, "node.qcow2", &base, 4 * GIB).await.unwrap();
    let overlay = host.volume(POOL, "node.qcow2").await.unwrap().unwrap();
    assert_eq!(overlay.capacity, 4 * GIB);
    assert_eq!(overlay.backing.as_deref(), Some(base.path.as_str()));
    let pool = host.pool(POOL, |name| name == "node.qcow2").await.unwrap().unwrap();
    assert_eq!((pool.volume("node.qcow2"), pool.path_of("node.qcow2")), (Some(&overlay), overlay.path.clone()));
    let again = host.create_overlay(POOL, "node.qcow2", &base, 4 * GIB).await;
    assert!(again.unwrap_err().to_string().contains("making the overlay"), "a volume is never replaced silently");
    assert!(host.delete_volume(POOL, "node.qcow2").await.unwrap());
    assert!(!host.delete_volume(POOL, "node.qcow2").await.unwrap(), "deleting twice is harmless");
}

#[tokio::test]
async fn a_domain_is_ours_by_a_mark_that_names_its_own_uuid() {
    let host = host().await;
    // The driver comes with a domain called `test`, which is somebody else's.
    assert!(host.domains().await.unwrap().iter().all(|domain| domain.owner().is_none()));
    let mark =
        Mark { host_key: "ssh-ed25519 AAAA".into(), ..Mark::new(Owner::new("homelab", "n1").unwrap(), "192.168.3.104/24", Vec::new()) };
    let uuid = mark.owner.uuid();
    host.define_domain("ours", domain_xml("ours", &uuid, &format!("<metadata>{}</metadata>", mark.element()))).await.unwrap();
    let ours = host.domain(&uuid).await.unwrap().unwrap();
    assert_eq!((ours.mark.as_ref(), ours.owner()), (Some(&mark), Some(&mark.owner)));
    assert_eq!((ours.cpus, ours.memory, ours.running), (2, GIB, false));
    let blank = Mark { seed: SeedState::Blank, ..mark.clone() };
    host.set_mark(&uuid, &blank).await.unwrap();
    assert_eq!(host.domain(&uuid).await.unwrap().unwrap().mark, Some(blank));
    // A clone carries the whole metadata with it, and another UUID.
    host.define_domain("clone", domain_xml("clone", THEIRS, &format!("<metadata>{}</metadata>", mark.element()))).await.unwrap();
    let clone = host.domain(THEIRS).await.unwrap().unwrap();
    assert_eq!((clone.mark.is_some(), clone.owner()), (true, None));
}

#[tokio::test]
async fn a_name_is_defined_once() {
    let host = host().await;
    host.define_domain("n1", domain_xml("n1", THEIRS, "")).await.unwrap();
    let other = Owner::new("homelab", "n1").unwrap().uuid();
    let refused = host.define_domain("n1", domain_xml("n1", &other, "")).await.unwrap_err();
    assert!(refused.causes().join(" ").contains("already exists"), "{:?}", refused.causes());
    host.define_domain("n1", domain_xml("n1", THEIRS, "")).await.unwrap();
}

#[tokio::test]
async fn a_domain_pauses_resumes_and_goes_without_a_trace() {
    let host = host().await;
    // The driver's own domain runs from the start; it cannot start one paused.
    let uuid = host.uuid_of("test").await.unwrap().unwrap();
    assert!(host.suspend(&uuid).await.unwrap());
    let paused = host.domain(&uuid).await.unwrap().unwrap();
    assert!(paused.running && paused.paused);
    assert!(host.domains().await.unwrap().iter().any(|domain| domain.uuid == uuid && domain.paused));
    host.resume(&uuid).await.unwrap();
    assert!(!host.domain(&uuid).await.unwrap().unwrap().paused);
    assert!(host.power_off(&uuid).await.unwrap());
    assert!(!host.power_off(&uuid).await.unwrap(), "powering off twice is harmless");
    assert!(!host.suspend(&uuid).await.unwrap());
    assert!(host.undefine(&uuid).await.unwrap());
    assert_eq!(host.domain(&uuid).await.unwrap(), None);
}

#[tokio::test]
async fn an_inactive_network_is_told_from_an_absent_one() {
    assert_eq!(host().await.network("default").await.unwrap(), NetworkState::Active);
}

#[tokio::test]
async fn an_error_says_what_was_being_done() {
    let error = host().await.resume(THEIRS).await.unwrap_err();
    assert_eq!(error.to_string(), "resuming the domain");
    assert!(!error.causes().is_empty());
}

// -- the laws of the stages that the test driver can carry: Claim and Volume whole; of Seed, which uploads, and Boot, which
// needs a guest, what they find. Inject, Login, Steps, Join and Ready need a guest --

/// An API server that knows its version and its groups: all that a run asks for at its start.
fn api_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).unwrap_or(0);
            let body = if String::from_utf8_lossy(&buffer[..read]).starts_with("GET /version") {
                r#"{"major":"1","minor":"35","gitVersion":"v1.35.4","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#
            } else {
                r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"certificates.k8s.io","versions":[{"groupVersion":"certificates.k8s.io/v1","version":"v1"}]}]}"#
            };
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    // The certificate is never used over plain HTTP, but a kubeconfig without one is refused.
    let ca = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=ca"])
        .output()
        .unwrap();
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca.stdout);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: 'http://{address}', certificate-authority-data: {ca}}}\n\
         users:\n- name: u\n  user: {{}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n"
    )
}

/// A host with one pool and one template in it, as the test driver reads it from a file.
const HOST: &str = "<node><network><name>default</name><bridge name='virbr0'/></network><pool type='dir'><name>kvmimage</name><target><path>/kvmimage</path></target>\
    <volume type='file'><name>debian13.qcow2</name><capacity unit='GiB'>3</capacity><allocation>0</allocation>\
    <target><path>/kvmimage/debian13.qcow2</path><format type='qcow2'/></target></volume></pool></node>";

/// A domain as that driver takes it, with our mark.
const DOMAIN: &str = "<domain type='test'><name>{{ node.name }}</name><uuid>{{ uuid }}</uuid><metadata>{{ mark | safe }}</metadata>\
    <memory unit='bytes'>{{ node.memory }}</memory><vcpu>{{ node.cpus }}</vcpu><os><type>hvm</type></os><devices>\
    <disk type='file' device='disk'><source file='{{ disk_path }}'/><target dev='vda' bus='virtio'/></disk>\
    <disk type='file' device='disk'><source file='{{ seed_path }}'/><target dev='vdb' bus='virtio'/></disk></devices></domain>";

/// A host of a test's own, and a run on it.
struct World {
    _dir: tempfile::TempDir,
    run: Arc<Run>,
    events: Events,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("host.xml"), HOST).unwrap();
        let spec = Spec::parse(crate::spec::GOOD, "cluster.yaml").unwrap();
        let plan = Plan::new(&spec, Templates::with([("domain.xml".to_owned(), DOMAIN.to_owned())].into()).unwrap(), &[]).unwrap();
        let state = StateDir::open("laws").unwrap();
        let own = dir.path().join("key");
        std::fs::write(&own, nodegraft::keys::generate("laws").unwrap().private.unwrap()).unwrap();
        let run = Run {
            host: Host::open(&format!("test://{}/host.xml", dir.path().display())).await.unwrap(),
            cluster: Some(Cluster::from_text(&api_server(), "the test", None).await.unwrap()),
            key: state.login_key(own.to_str()).unwrap(),
            state,
            plan,
            authorized_keys: Vec::new(),
            recreate: Vec::new(),
            virt_type: OnceLock::new(),
            sight: OnceLock::new(),
            steps: nodegraft::stages::steps::Shared::new().unwrap(),
        };
        let world = Self { _dir: dir, run: Arc::new(run), events: Events::new(tokio::sync::mpsc::unbounded_channel().0) };
        world.run.sight.set(world.sight().await).unwrap();
        world
    }

    async fn sight(&self) -> Sight {
        let host = &self.run.host;
        Sight { domains: host.domains().await.unwrap(), pool: host.pool("kvmimage", |_| true).await.unwrap().unwrap() }
    }

    fn node(&self) -> NodeRun {
        NodeRun::new(Arc::clone(&self.run), self.run.plan.nodes[0].clone())
    }

    /// The node as another run finds it: it begins with what is there by now.
    async fn later(&self) -> NodeRun {
        let run = Run {
            host: self.run.host.clone(),
            cluster: self.run.cluster.clone(),
            key: self.run.key.clone(),
            state: self.run.state.clone(),
            plan: self.run.plan.clone(),
            authorized_keys: Vec::new(),
            recreate: Vec::new(),
            virt_type: OnceLock::new(),
            sight: OnceLock::from(self.sight().await),
            steps: nodegraft::stages::steps::Shared::new().unwrap(),
        };
        NodeRun::new(Arc::new(run), self.run.plan.nodes[0].clone())
    }

    async fn volumes(&self) -> Vec<String> {
        self.run.host.pool("kvmimage", |_| false).await.unwrap().unwrap().names
    }

    async fn names(&self) -> Vec<String> {
        self.run.host.domains().await.unwrap().into_iter().map(|domain| domain.name).collect()
    }

    async fn inventory(&self) -> Inventory {
        Inventory::take(&self.run.host, None, &self.run.plan.cluster.name, "kvmimage").await.unwrap()
    }

    async fn remove(&self, existing: &Existing) -> Removed {
        self.remover(tokio_util::sync::CancellationToken::new()).remove(&existing.removal(Drain::No)).await
    }

    fn remover(&self, stop: tokio_util::sync::CancellationToken) -> Remover<'_> {
        Remover { host: Some(&self.run.host), cluster: None, events: self.events.clone(), stop }
    }

    /// An overlay that nodegraft did not make.
    async fn overlay(&self, name: &str, base: &str) {
        let host = &self.run.host;
        let base = host.volume("kvmimage", base).await.unwrap().unwrap();
        host.create_overlay("kvmimage", name, &base, base.capacity).await.unwrap();
    }

    /// A claim and its disk, as far as the driver goes; then the mark says that the seed is written, and its volume is there.
    async fn sealed(&self) -> Owner {
        let on = self.node();
        apply("Claim", &on).await;
        apply("Volume", &on).await;
        let mut mark = on.claim().unwrap().mark.unwrap();
        self.overlay(&mark.owner.seed(), "debian13.qcow2").await;
        mark.seed = SeedState::Full;
        self.run.host.set_mark(&mark.owner.uuid(), &mark).await.unwrap();
        mark.owner
    }
}

fn stage(name: &str, on: &NodeRun) -> Box<dyn Stage<NodeRun>> {
    node_stages(&on.node, true).into_iter().find(|stage| stage.name() == name).unwrap()
}

fn reporter(name: &str) -> Reporter {
    Reporter::new(Events::new(tokio::sync::mpsc::unbounded_channel().0), None, name)
}

async fn check(name: &str, on: &NodeRun) -> Check {
    stage(name, on).check(on, &reporter(name)).await.unwrap()
}

async fn apply(name: &str, on: &NodeRun) -> Journal {
    let journal = Journal::default();
    stage(name, on).apply(on, &reporter(name), &journal).await.unwrap();
    journal
}

#[tokio::test]
async fn claim_keeps_the_laws_of_a_stage() {
    let world = World::new().await;
    let on = world.node();
    assert!(matches!(check("Claim", &on).await, Check::Needed(_)));
    assert!(world.names().await.is_empty(), "check changes nothing");
    let made = apply("Claim", &on).await;
    assert!(matches!(made.backward()[..], [Thing::Domain { .. }]));
    assert!(matches!(check("Claim", &on).await, Check::Done(_)));
    assert!(apply("Claim", &on).await.backward().is_empty(), "applying twice makes nothing");
    let mark = on.claim().unwrap().mark.unwrap();
    assert_eq!(
        (mark.owner.node.as_str(), mark.address.as_str(), mark.seed),
        (on.node.name.as_str(), on.node.address.as_str(), SeedState::Unwritten)
    );
    // Listed before they exist.
    assert_eq!(mark.volumes, [mark.owner.disk(), mark.owner.seed()].map(|name| Claimed { pool: "kvmimage".into(), name }));
    assert_eq!(world.volumes().await, ["debian13.qcow2"]);
    // Another run finds it, whatever it is called by then.
    assert!(matches!(check("Claim", &world.later().await).await, Check::Done(_)));
}

#[tokio::test]
async fn of_two_runs_that_claim_one_name_one_wins() {
    let world = World::new().await;
    let (first, second) = (world.node(), world.node());
    apply("Claim", &first).await;
    let lost = stage("Claim", &second).apply(&second, &reporter("Claim"), &Journal::default()).await;
    // It is the same cluster's node: the second goes on with the first one's claim, or is refused; it never replaces it.
    assert_eq!(world.names().await.len(), 1);
    assert_eq!(world.run.host.domains().await.unwrap()[0].uuid, first.claim().unwrap().uuid);
    assert!(lost.is_err());
}

#[tokio::test]
async fn a_domain_of_others_with_the_nodes_name_is_never_changed() {
    let world = World::new().await;
    let name = world.run.plan.nodes[0].name.clone();
    world.run.host.define_domain(&name, domain_xml(&name, THEIRS, "")).await.unwrap();
    let before = world.run.host.domain(THEIRS).await.unwrap();
    let on = world.later().await;
    assert!(matches!(check("Claim", &on).await, Check::Conflict(_)));
    assert!(world.inventory().await.nodes.is_empty());
    // Nor where it came between the look and the claim.
    let late = world.node();
    assert!(stage("Claim", &late).apply(&late, &reporter("Claim"), &Journal::default()).await.is_err());
    assert_eq!(world.run.host.domain(THEIRS).await.unwrap(), before);
}

/// Whether Preflight lets a run begin, where the plan's one node is at `ip`.
async fn preflight(world: &World, ip: &str, recreate: &[&str]) -> Result<(), String> {
    let mut plan = world.run.plan.clone();
    plan.nodes.truncate(1);
    (plan.nodes[0].ip, plan.nodes[0].address) = (ip.parse().unwrap(), format!("{ip}/24"));
    plan.host.network = Network::Network("default".into());
    let run = Run {
        host: world.run.host.clone(),
        cluster: None,
        key: world.run.key.clone(),
        state: world.run.state.clone(),
        plan,
        authorized_keys: Vec::new(),
        recreate: recreate.iter().map(|name| (*name).to_owned()).collect(),
        virt_type: OnceLock::new(),
        sight: OnceLock::new(),
        steps: nodegraft::stages::steps::Shared::new().unwrap(),
    };
    match run_stages(false)[0].check(&run, &reporter("Preflight")).await.unwrap() {
        Check::Done(_) => Ok(()),
        Check::Conflict(error) => Err(format!("{error}: {:?}", error.detail())),
        Check::Needed(why) => panic!("{why}"),
    }
}

#[tokio::test]
async fn a_node_that_is_made_anew_elsewhere_needs_a_free_address() {
    let world = World::new().await;
    let owner = world.sealed().await;
    let name = owner.node.as_str();
    // Something is at this address, as the test itself is.
    assert_eq!(preflight(&world, "127.0.0.1", &[]).await, Ok(()), "it stays where it is");
    assert!(preflight(&world, "127.0.0.1", &[name]).await.unwrap_err().contains("something already answers at 127.0.0.1"));
    // It is itself what answers there.
    let mut mark = world.later().await.claim().unwrap().mark.unwrap();
    mark.address = "127.0.0.1/24".into();
    world.run.host.set_mark(&owner.uuid(), &mark).await.unwrap();
    assert_eq!(preflight(&world, "127.0.0.1", &[name]).await, Ok(()));
    // Another node of ours has the address that it is to move to.
    let other = Mark::new(Owner::new("other", "n9").unwrap(), "127.0.0.2/24", Vec::new());
    let xml = domain_xml("n9", &other.owner.uuid(), &format!("<metadata>{}</metadata>", other.element()));
    world.run.host.define_domain("n9", xml).await.unwrap();
    let refused = preflight(&world, "127.0.0.2", &[name]).await.unwrap_err();
    assert!(refused.contains("the address 127.0.0.2") && refused.contains("is that of the domain n9"), "{refused}");
}

#[tokio::test]
async fn volume_keeps_the_laws_of_a_stage() {
    // A full copy needs a resize, which the driver lacks.
    let world = World::new().await;
    let on = world.node();
    apply("Claim", &on).await;
    assert!(matches!(check("Volume", &on).await, Check::Needed(_)));
    assert_eq!(world.volumes().await, ["debian13.qcow2"], "check changes nothing");
    for _ in 0..2 {
        apply("Volume", &on).await;
        assert!(matches!(check("Volume", &on).await, Check::Done(_)));
    }
    let disk = on.claim().unwrap().mark.unwrap().owner.disk();
    assert_eq!(world.run.host.volume("kvmimage", &disk).await.unwrap().unwrap().capacity, 40 * GIB);
}

#[tokio::test]
async fn a_disk_counts_when_the_seed_is_written() {
    let world = World::new().await;
    let on = world.node();
    apply("Claim", &on).await;
    apply("Volume", &on).await;
    // A run that was killed here may have left half a copy.
    assert!(matches!(check("Volume", &world.later().await).await, Check::Needed(why) if why.contains("interrupted")));
    let on = world.later().await;
    apply("Volume", &on).await;
    assert!(matches!(check("Volume", &on).await, Check::Done(_)));

    let world = World::new().await;
    let owner = world.sealed().await;
    let on = world.later().await;
    for done in ["Claim", "Volume", "Seed"] {
        assert!(matches!(check(done, &on).await, Check::Done(_)), "{done}");
    }
    assert!(matches!(check("Boot", &on).await, Check::Needed(_)), "it is defined, not running");
    // A VM that may have run gets no new disk under it.
    world.run.host.delete_volume("kvmimage", &owner.disk()).await.unwrap();
    assert!(matches!(check("Volume", &world.later().await).await, Check::Conflict(error) if error.help().unwrap().contains("--recreate")));
}

// -- the laws of a removal: exactly what a claim proves, the claim last --

#[tokio::test]
async fn a_removal_leaves_nothing_of_ours_and_everything_of_others() {
    let world = World::new().await;
    let owner = world.sealed().await;
    let mut neighbours = [format!("nodegraft.{}.{}.qcow2", owner.cluster, owner.node), format!("{}.bak", owner.disk())];
    neighbours.sort();
    for name in &neighbours {
        world.overlay(name, "debian13.qcow2").await;
    }
    world.run.host.define_domain("other", domain_xml("other", THEIRS, "")).await.unwrap();
    let inventory = world.inventory().await;
    let mut unclaimed: Vec<&str> = inventory.unclaimed.iter().map(|volume| volume.name.as_str()).collect();
    unclaimed.sort_unstable();
    assert_eq!(unclaimed, neighbours.each_ref().map(String::as_str), "what cannot be proven is told of");
    let removed = world.remove(inventory.node(&owner.node).unwrap()).await;
    assert!(removed.left.is_empty() && removed.any && !removed.stopped);
    assert_eq!(world.names().await, ["other"]);
    let mut left = world.volumes().await;
    left.sort();
    assert_eq!(left, ["debian13.qcow2", neighbours[0].as_str(), neighbours[1].as_str()]);
    assert!(world.inventory().await.nodes.is_empty());
}

#[tokio::test]
async fn an_interrupted_removal_is_found_again() {
    let world = World::new().await;
    let owner = world.sealed().await;
    // Killed after the first volume.
    world.run.host.delete_volume("kvmimage", &owner.disk()).await.unwrap();
    let inventory = world.inventory().await;
    let removed = world.remove(inventory.node(&owner.node).unwrap()).await;
    assert!(removed.left.is_empty());
    assert_eq!((world.names().await.len(), world.volumes().await), (0, vec!["debian13.qcow2".to_owned()]));
}

#[tokio::test]
async fn files_that_somebody_uses_are_refused_with_everything_above_them() {
    // A snapshot or a clone: an overlay on the disk.
    let world = World::new().await;
    let owner = world.sealed().await;
    world.overlay("theirs.qcow2", &owner.disk()).await;
    let inventory = world.inventory().await;
    let existing = inventory.node(&owner.node).unwrap();
    assert!(existing.in_use.as_ref().unwrap().contains("theirs.qcow2"));
    assert!(existing.refusal().unwrap().help().unwrap().contains("domblklist"));
    // Another domain that has it as its disk.
    let world = World::new().await;
    let owner = world.sealed().await;
    let disk = format!("<devices><disk type='file'><source file='/kvmimage/{}'/><target dev='vda'/></disk></devices>", owner.disk());
    let xml = domain_xml("rescue", THEIRS, "").replace("</domain>", &format!("{disk}</domain>"));
    world.run.host.define_domain("rescue", xml).await.unwrap();
    assert!(world.inventory().await.node(&owner.node).unwrap().in_use.as_ref().unwrap().contains("rescue"));
}

#[tokio::test]
async fn a_stop_begins_nothing() {
    let world = World::new().await;
    let owner = world.sealed().await;
    let inventory = world.inventory().await;
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    let removed = world.remover(stop).remove(&inventory.node(&owner.node).unwrap().removal(Drain::No)).await;
    assert!(removed.stopped && !removed.any && removed.left.is_empty());
    assert_eq!((world.names().await.len(), world.volumes().await.len()), (1, 3));
}
