//! The libvirt room on libvirt's own test driver: an in-memory host of its own for each connection.
//! Uploads, consoles and guests are the lab's.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use nodegraft::core::difference::{Machine, of_machine, sentence};
use nodegraft::core::event::Event;
use nodegraft::core::journal::{Journal, Thing};
use nodegraft::core::mark::{Claimed, Mark, SeedState};
use nodegraft::core::ownership::Owner;
use nodegraft::core::plan::Plan;
use nodegraft::core::spec::{Network, Spec};
use nodegraft::core::stage_name::StageName;
use nodegraft::core::template::Templates;
use nodegraft::pipeline::stage::{Check, Events, Reporter, Stage};
use nodegraft::rooms::cluster::Cluster;
use nodegraft::rooms::libvirt::storage::Volume;
use nodegraft::rooms::libvirt::{Host, NetworkState};
use nodegraft::rooms::state::StateDir;
use nodegraft::stages::inventory::{Ask, Existing, Inventory};
use nodegraft::stages::removal::{Drain, Removal, Removed, Remover};
use nodegraft::stages::{NodeRun, Opened, Run, Sight, node_stages, run_stages};

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
    // A pool that is gone may come back with all its volumes.
    let gone = host.delete_volume("nowhere", "nothing").await.unwrap_err();
    assert!(
        gone.causes().join(" ").contains("no pool nowhere")
            && gone.help().unwrap().contains("pool-list --all"),
        "{gone}"
    );
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
    host.create_overlay(POOL, "node.qcow2", &base, 4 * GIB)
        .await
        .unwrap();
    let overlay = host.volume(POOL, "node.qcow2").await.unwrap().unwrap();
    assert_eq!(overlay.capacity, 4 * GIB);
    assert_eq!(overlay.backing.as_deref(), Some(base.path.as_str()));
    let pool = host
        .pool(POOL, |name| name == "node.qcow2")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (pool.volume("node.qcow2"), pool.path_of("node.qcow2")),
        (Some(&overlay), overlay.path.clone())
    );
    let again = host
        .create_overlay(POOL, "node.qcow2", &base, 4 * GIB)
        .await;
    assert!(
        again
            .unwrap_err()
            .to_string()
            .contains("making the overlay"),
        "a volume is never replaced silently"
    );
    assert!(host.delete_volume(POOL, "node.qcow2").await.unwrap());
    assert!(
        !host.delete_volume(POOL, "node.qcow2").await.unwrap(),
        "deleting twice is harmless"
    );
}

#[tokio::test]
async fn a_domain_is_ours_by_a_mark_that_names_its_own_uuid() {
    let host = host().await;
    // The driver comes with a domain called `test`, which is somebody else's.
    assert!(
        host.domains()
            .await
            .unwrap()
            .iter()
            .all(|domain| domain.owner().is_none())
    );
    let mark = Mark {
        host_key: "ssh-ed25519 AAAA".into(),
        ..Mark::new(
            Owner::new("homelab", "n1").unwrap(),
            "192.168.3.104/24",
            Vec::new(),
        )
    };
    let uuid = mark.owner.uuid();
    host.define_domain(
        "ours",
        domain_xml(
            "ours",
            &uuid,
            &format!("<metadata>{}</metadata>", mark.element()),
        ),
    )
    .await
    .unwrap();
    let ours = host.domain(&uuid).await.unwrap().unwrap();
    assert_eq!(
        (ours.mark.as_ref(), ours.owner()),
        (Some(&mark), Some(&mark.owner))
    );
    assert_eq!((ours.cpus, ours.memory, ours.running), (2, GIB, false));
    let blank = Mark {
        seed: SeedState::Blank,
        ..mark.clone()
    };
    host.set_mark(&uuid, &blank).await.unwrap();
    assert_eq!(host.domain(&uuid).await.unwrap().unwrap().mark, Some(blank));
    // A clone carries the whole metadata with it, and another UUID.
    host.define_domain(
        "clone",
        domain_xml(
            "clone",
            THEIRS,
            &format!("<metadata>{}</metadata>", mark.element()),
        ),
    )
    .await
    .unwrap();
    let clone = host.domain(THEIRS).await.unwrap().unwrap();
    assert_eq!((clone.mark.is_some(), clone.owner()), (true, None));
}

#[tokio::test]
async fn a_name_is_defined_once() {
    let host = host().await;
    host.define_domain("n1", domain_xml("n1", THEIRS, ""))
        .await
        .unwrap();
    let other = Owner::new("homelab", "n1").unwrap().uuid();
    let refused = host
        .define_domain("n1", domain_xml("n1", &other, ""))
        .await
        .unwrap_err();
    assert!(
        refused.causes().join(" ").contains("already exists"),
        "{:?}",
        refused.causes()
    );
    host.define_domain("n1", domain_xml("n1", THEIRS, ""))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_domain_pauses_resumes_and_goes_without_a_trace() {
    let host = host().await;
    // The driver's own domain runs from the start; it cannot start one paused.
    let uuid = host.uuid_of("test").await.unwrap().unwrap();
    assert!(host.suspend(&uuid).await.unwrap());
    let paused = host.domain(&uuid).await.unwrap().unwrap();
    assert!(paused.running && paused.paused);
    assert!(
        host.domains()
            .await
            .unwrap()
            .iter()
            .any(|domain| domain.uuid == uuid && domain.paused)
    );
    host.resume(&uuid).await.unwrap();
    assert!(!host.domain(&uuid).await.unwrap().unwrap().paused);
    host.resume(&uuid)
        .await
        .expect("resuming twice is harmless");
    host.start_paused(&uuid)
        .await
        .expect("one that runs is left so");
    assert!(!host.domain(&uuid).await.unwrap().unwrap().paused);
    assert!(host.power_off(&uuid).await.unwrap());
    assert!(
        !host.power_off(&uuid).await.unwrap(),
        "powering off twice is harmless"
    );
    assert!(!host.suspend(&uuid).await.unwrap());
    assert!(host.undefine(&uuid).await.unwrap());
    assert_eq!(host.domain(&uuid).await.unwrap(), None);
}

#[tokio::test]
async fn an_inactive_network_is_told_from_an_absent_one() {
    assert_eq!(
        host().await.network("default").await.unwrap(),
        NetworkState::Active
    );
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
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "/dev/null",
            "-subj",
            "/CN=ca",
        ])
        .output()
        .unwrap();
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca.stdout);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: 'http://{address}', certificate-authority-data: {ca}}}\n\
         users:\n- name: u\n  user: {{}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n"
    )
}

/// A host with two pools and a template in each, as the test driver reads it from a file.
const HOST: &str = "<node><network><name>default</name><bridge name='virbr0'/></network><pool type='dir'><name>kvmimage</name><target><path>/kvmimage</path></target>\
    <volume type='file'><name>debian13.qcow2</name><capacity unit='GiB'>3</capacity><allocation>0</allocation>\
    <target><path>/kvmimage/debian13.qcow2</path><format type='qcow2'/></target></volume></pool>\
    <pool type='dir'><name>faster</name><target><path>/faster</path></target>\
    <volume type='file'><name>debian13.qcow2</name><capacity unit='GiB'>3</capacity><allocation>0</allocation>\
    <target><path>/faster/debian13.qcow2</path><format type='qcow2'/></target></volume></pool></node>";

/// A domain as that driver takes it, with our mark.
const DOMAIN: &str = "<domain type='test'><name>{{ node.name }}</name><uuid>{{ uuid }}</uuid><metadata>{{ mark | safe }}</metadata>\
    <memory unit='bytes'>{{ node.memory }}</memory><vcpu>{{ node.cpus }}</vcpu><os><type>hvm</type></os><devices>\
    <disk type='file' device='disk'><source file='{{ disk_path }}'/><target dev='vda' bus='virtio'/></disk>\
    <disk type='file' device='disk'><source file='{{ seed_path }}'/><target dev='vdb' bus='virtio'/></disk></devices></domain>";

async fn sight(host: &Host, pool: &str) -> Sight {
    Sight {
        domains: host.domains().await.unwrap(),
        pool: host.pool(pool, |_| true).await.unwrap().unwrap(),
        virt_type: "qemu".into(),
    }
}

/// A host of a test's own, and a run on it.
struct World {
    _dir: tempfile::TempDir,
    run: Arc<Run>,
    events: Events,
}

impl World {
    async fn new() -> Self {
        Self::of(HOST).await
    }

    async fn of(host: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("host.xml"), host).unwrap();
        let spec = Spec::parse(crate::spec::GOOD, "cluster.yaml").unwrap();
        let plan = Plan::new(
            &spec,
            Templates::with([("domain.xml".to_owned(), DOMAIN.to_owned())].into()).unwrap(),
            &[],
        )
        .unwrap();
        let state = StateDir::open("laws").unwrap();
        let own = dir.path().join("key");
        std::fs::write(
            &own,
            nodegraft::rooms::keys::generate("laws")
                .unwrap()
                .private
                .unwrap(),
        )
        .unwrap();
        let host = Host::open(&format!("test://{}/host.xml", dir.path().display()))
            .await
            .unwrap();
        let run = Run {
            sight: sight(&host, "kvmimage").await,
            host,
            cluster: Some(
                Cluster::from_text(&api_server(), "the test", None)
                    .await
                    .unwrap(),
            ),
            key: state.login_key(own.to_str()).unwrap(),
            state,
            plan,
            authorized_keys: Vec::new(),
            recreate: Vec::new(),
            steps: nodegraft::stages::steps::Shared::new().unwrap(),
        };
        Self {
            _dir: dir,
            run: Arc::new(run),
            events: Events::new(tokio::sync::mpsc::unbounded_channel().0),
        }
    }

    fn node(&self) -> NodeRun {
        NodeRun::new(Arc::clone(&self.run), self.run.plan.nodes[0].clone())
    }

    /// The node as another run finds it: it begins with what is there by now.
    async fn later(&self) -> NodeRun {
        self.corrected(|_| ()).await
    }

    /// The same with another spec.
    async fn corrected(&self, change: impl FnOnce(&mut nodegraft::core::plan::Node)) -> NodeRun {
        self.changed(change, |_| ()).await
    }

    /// The same after a look at the host that was wrong, or is no longer true.
    async fn changed(
        &self,
        change: impl FnOnce(&mut nodegraft::core::plan::Node),
        blur: impl FnOnce(&mut Sight),
    ) -> NodeRun {
        let mut plan = self.run.plan.clone();
        change(&mut plan.nodes[0]);
        let mut sight = sight(&self.run.host, &plan.nodes[0].pool).await;
        blur(&mut sight);
        let run = Run {
            host: self.run.host.clone(),
            cluster: self.run.cluster.clone(),
            key: self.run.key.clone(),
            state: self.run.state.clone(),
            sight,
            plan,
            authorized_keys: Vec::new(),
            recreate: Vec::new(),
            steps: nodegraft::stages::steps::Shared::new().unwrap(),
        };
        let node = run.plan.nodes[0].clone();
        NodeRun::new(Arc::new(run), node)
    }

    async fn volumes(&self) -> Vec<String> {
        self.run
            .host
            .pool("kvmimage", |_| false)
            .await
            .unwrap()
            .unwrap()
            .names
    }

    async fn names(&self) -> Vec<String> {
        self.run
            .host
            .domains()
            .await
            .unwrap()
            .into_iter()
            .map(|domain| domain.name)
            .collect()
    }

    async fn inventory(&self) -> Inventory {
        Inventory::take(
            &self.run.host,
            None,
            &self.run.plan.cluster.name,
            Ask::Everything,
        )
        .await
        .unwrap()
    }

    async fn remove(&self, existing: &Existing) -> Removed {
        self.remover(tokio_util::sync::CancellationToken::new())
            .remove(&existing.removal(Drain::No))
            .await
    }

    fn remover(&self, stop: tokio_util::sync::CancellationToken) -> Remover<'_> {
        Remover::new(
            &self.run.plan.cluster.name,
            Some(&self.run.host),
            None,
            self.events.clone(),
            stop,
        )
    }

    /// An overlay that nodegraft did not make.
    async fn overlay(&self, name: &str, base: &str) {
        let host = &self.run.host;
        let base = host.volume("kvmimage", base).await.unwrap().unwrap();
        host.create_overlay("kvmimage", name, &base, base.capacity)
            .await
            .unwrap();
    }

    /// A claim and its disk, as far as the driver goes; then the mark says that the seed is written, and its volume is there.
    async fn sealed(&self) -> Owner {
        let mut on = self.node();
        apply(StageName::Claim, &mut on).await;
        apply(StageName::Volume, &mut on).await;
        let mut mark = on.claim().unwrap().mark.unwrap();
        self.overlay(&mark.owner.seed(), "debian13.qcow2").await;
        mark.seed = SeedState::Full;
        self.run
            .host
            .set_mark(&mark.owner.uuid(), &mark)
            .await
            .unwrap();
        mark.owner
    }
}

fn stage(name: StageName, on: &NodeRun) -> Box<dyn Stage<NodeRun>> {
    node_stages(&on.node, true)
        .into_iter()
        .find(|stage| stage.name() == name)
        .unwrap()
}

fn reporter(name: StageName) -> Reporter {
    Reporter::new(
        Events::new(tokio::sync::mpsc::unbounded_channel().0),
        None,
        name,
    )
}

async fn check(name: StageName, on: &mut NodeRun) -> Check {
    stage(name, on).check(on, &reporter(name)).await.unwrap()
}

async fn apply(name: StageName, on: &mut NodeRun) -> Journal {
    let journal = Journal::default();
    stage(name, on)
        .apply(on, &reporter(name), &journal)
        .await
        .unwrap();
    journal
}

#[tokio::test]
async fn claim_keeps_the_laws_of_a_stage() {
    let world = World::new().await;
    let mut on = world.node();
    assert!(matches!(
        check(StageName::Claim, &mut on).await,
        Check::Needed(_)
    ));
    assert!(world.names().await.is_empty(), "check changes nothing");
    let made = apply(StageName::Claim, &mut on).await;
    assert!(matches!(made.backward()[..], [Thing::Domain { .. }]));
    assert!(matches!(
        check(StageName::Claim, &mut on).await,
        Check::Done(_)
    ));
    assert!(
        apply(StageName::Claim, &mut on).await.backward().is_empty(),
        "applying twice makes nothing"
    );
    let mark = on.claim().unwrap().mark.unwrap();
    assert_eq!(
        (mark.owner.node.as_str(), mark.address.as_str(), mark.seed),
        (
            on.node.name.as_str(),
            on.node.address.as_str(),
            SeedState::Unwritten
        )
    );
    // Listed before they exist.
    assert_eq!(
        mark.volumes,
        [mark.owner.disk(), mark.owner.seed()].map(|name| Claimed {
            pool: "kvmimage".into(),
            name
        })
    );
    assert_eq!(world.volumes().await, ["debian13.qcow2"]);
    // Another run finds it, whatever it is called by then.
    assert!(matches!(
        check(StageName::Claim, &mut world.later().await).await,
        Check::Done(_)
    ));
}

#[tokio::test]
async fn of_two_runs_that_claim_one_name_one_wins() {
    let world = World::new().await;
    let (mut first, mut second) = (world.node(), world.node());
    apply(StageName::Claim, &mut first).await;
    let lost = stage(StageName::Claim, &second)
        .apply(
            &mut second,
            &reporter(StageName::Claim),
            &Journal::default(),
        )
        .await;
    // It is the same cluster's node: the second goes on with the first one's claim, or is refused; it never replaces it.
    assert_eq!(world.names().await.len(), 1);
    assert_eq!(
        world.run.host.domains().await.unwrap()[0].uuid,
        first.claim().unwrap().uuid
    );
    assert!(lost.is_err());
}

#[tokio::test]
async fn a_domain_of_others_with_the_nodes_name_is_never_changed() {
    let world = World::new().await;
    let name = world.run.plan.nodes[0].name.clone();
    world
        .run
        .host
        .define_domain(&name, domain_xml(&name, THEIRS, ""))
        .await
        .unwrap();
    let before = world.run.host.domain(THEIRS).await.unwrap();
    let mut on = world.later().await;
    assert!(matches!(
        check(StageName::Claim, &mut on).await,
        Check::Conflict(_)
    ));
    assert!(world.inventory().await.nodes.is_empty());
    // Nor where it came between the look and the claim.
    let mut late = world.node();
    assert!(
        stage(StageName::Claim, &late)
            .apply(&mut late, &reporter(StageName::Claim), &Journal::default())
            .await
            .is_err()
    );
    assert_eq!(world.run.host.domain(THEIRS).await.unwrap(), before);
}

/// Whether Preflight lets a run begin, where the plan's one node is at `ip`.
async fn preflight(world: &World, ip: &str, recreate: &[&str]) -> Result<(), String> {
    let mut plan = world.run.plan.clone();
    plan.nodes.truncate(1);
    (plan.nodes[0].ip, plan.nodes[0].address) = (ip.parse().unwrap(), format!("{ip}/24"));
    plan.host.network = Network::Network("default".into());
    let mut run = Opened {
        host: world.run.host.clone(),
        cluster: None,
        key: world.run.key.clone(),
        state: world.run.state.clone(),
        plan,
        authorized_keys: Vec::new(),
        recreate: recreate.iter().map(|name| (*name).to_owned()).collect(),
        sight: None,
        steps: nodegraft::stages::steps::Shared::new().unwrap(),
    };
    match run_stages(false)[0]
        .check(&mut run, &reporter(StageName::Preflight))
        .await
        .unwrap()
    {
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
    assert_eq!(
        preflight(&world, "127.0.0.1", &[]).await,
        Ok(()),
        "it stays where it is"
    );
    assert!(
        preflight(&world, "127.0.0.1", &[name])
            .await
            .unwrap_err()
            .contains("something already answers at 127.0.0.1")
    );
    // It is itself what answers there.
    let mut mark = world.later().await.claim().unwrap().mark.unwrap();
    mark.address = "127.0.0.1/24".into();
    world.run.host.set_mark(&owner.uuid(), &mark).await.unwrap();
    assert_eq!(preflight(&world, "127.0.0.1", &[name]).await, Ok(()));
    // Another node of ours has the address that it is to move to.
    let other = Mark::new(
        Owner::new("other", "n9").unwrap(),
        "127.0.0.2/24",
        Vec::new(),
    );
    let xml = domain_xml(
        "n9",
        &other.owner.uuid(),
        &format!("<metadata>{}</metadata>", other.element()),
    );
    world.run.host.define_domain("n9", xml).await.unwrap();
    let refused = preflight(&world, "127.0.0.2", &[name]).await.unwrap_err();
    assert!(
        refused.contains("the address 127.0.0.2") && refused.contains("is that of the domain n9"),
        "{refused}"
    );
}

#[tokio::test]
async fn volume_keeps_the_laws_of_a_stage() {
    // A full copy needs a resize, which the driver lacks.
    let world = World::new().await;
    let mut on = world.node();
    apply(StageName::Claim, &mut on).await;
    assert!(matches!(
        check(StageName::Volume, &mut on).await,
        Check::Needed(_)
    ));
    assert_eq!(
        world.volumes().await,
        ["debian13.qcow2"],
        "check changes nothing"
    );
    for _ in 0..2 {
        apply(StageName::Volume, &mut on).await;
        assert!(matches!(
            check(StageName::Volume, &mut on).await,
            Check::Done(_)
        ));
    }
    let disk = on.claim().unwrap().mark.unwrap().owner.disk();
    assert_eq!(
        world
            .run
            .host
            .volume("kvmimage", &disk)
            .await
            .unwrap()
            .unwrap()
            .capacity,
        40 * GIB
    );
}

#[tokio::test]
async fn a_disk_counts_when_the_seed_is_written() {
    let world = World::new().await;
    let mut on = world.node();
    apply(StageName::Claim, &mut on).await;
    apply(StageName::Volume, &mut on).await;
    // A run that was killed here may have left half a copy.
    assert!(
        matches!(check(StageName::Volume, &mut world.later().await).await, Check::Needed(why) if why.contains("interrupted"))
    );
    let mut on = world.later().await;
    apply(StageName::Volume, &mut on).await;
    assert!(matches!(
        check(StageName::Volume, &mut on).await,
        Check::Done(_)
    ));

    let world = World::new().await;
    let owner = world.sealed().await;
    let mut on = world.later().await;
    for done in [StageName::Claim, StageName::Volume, StageName::Seed] {
        assert!(
            matches!(check(done, &mut on).await, Check::Done(_)),
            "{done}"
        );
    }
    assert!(
        matches!(check(StageName::Boot, &mut on).await, Check::Needed(_)),
        "it is defined, not running"
    );
    // A VM that may have run gets no new disk under it.
    world
        .run
        .host
        .delete_volume("kvmimage", &owner.disk())
        .await
        .unwrap();
    assert!(
        matches!(check(StageName::Volume, &mut world.later().await).await, Check::Conflict(error) if error.help().unwrap().contains("--recreate"))
    );
}

#[tokio::test]
async fn a_claim_that_never_ran_is_defined_as_the_spec_says_by_now() {
    let world = World::new().await;
    let mut on = world.node();
    apply(StageName::Claim, &mut on).await;
    apply(StageName::Volume, &mut on).await;
    let before = on.claim().unwrap();
    let correct = |node: &mut nodegraft::core::plan::Node| {
        node.cpus = 3;
        node.memory = 3 * GIB;
        node.mac = "52:54:00:00:00:01".into();
        node.address = "192.168.3.99/24".into();
        node.pool = "faster".into();
    };
    let mut on = world.corrected(correct).await;
    let Check::Needed(why) = check(StageName::Claim, &mut on).await else {
        panic!("the claim is outdated")
    };
    for said in [
        "cpus is 2, the spec says 3",
        "memory is 4GiB",
        "mac is",
        "address is",
        "pool is kvmimage, the spec says faster",
    ] {
        assert!(why.contains(said), "{said}: {why}");
    }
    assert_eq!(on.claim().unwrap(), before, "check changes nothing");
    for _ in 0..2 {
        assert!(
            apply(StageName::Claim, &mut on).await.backward().is_empty(),
            "it stays the claim that it was"
        );
        assert!(matches!(
            check(StageName::Claim, &mut on).await,
            Check::Done(_)
        ));
    }
    let now = world.run.host.domain(&before.uuid).await.unwrap().unwrap();
    let mark = now.mark.as_ref().unwrap();
    assert_eq!(
        (now.cpus, now.memory, &mark.owner),
        (3, 3 * GIB, now.owner().unwrap())
    );
    assert_eq!(
        (mark.made_with["mac"].as_str(), mark.address.as_str()),
        ("52:54:00:00:00:01", "192.168.3.99/24")
    );
    assert_eq!(
        mark.volumes,
        [mark.owner.disk(), mark.owner.seed()].map(|name| Claimed {
            pool: "faster".into(),
            name
        })
    );
    assert!(
        now.disks.iter().all(|disk| disk.starts_with("/faster/")),
        "{:?}",
        now.disks
    );
    assert_eq!(
        world.volumes().await,
        ["debian13.qcow2"],
        "what the old mark listed is gone with it"
    );
    apply(StageName::Volume, &mut on).await;
    assert!(
        world
            .run
            .host
            .volume("faster", &mark.owner.disk())
            .await
            .unwrap()
            .is_some()
    );

    // One that may have run is left as it is.
    let world = World::new().await;
    let owner = world.sealed().await;
    let before = world.run.host.domain(&owner.uuid()).await.unwrap();
    assert!(
        matches!(check(StageName::Claim, &mut world.corrected(correct).await).await, Check::Conflict(error) if error.to_string().contains("address"))
    );
    let mut on = world.corrected(|node| node.cpus = 3).await;
    assert!(matches!(
        check(StageName::Claim, &mut on).await,
        Check::Done(_)
    ));
    apply(StageName::Claim, &mut on).await;
    assert_eq!(world.run.host.domain(&owner.uuid()).await.unwrap(), before);
}

#[tokio::test]
async fn a_claim_that_was_renamed_is_defined_anew_under_its_name() {
    let world = World::new().await;
    let mut on = world.node();
    apply(StageName::Claim, &mut on).await;
    let mark = on.claim().unwrap().mark.unwrap();
    let uuid = mark.owner.uuid();
    world.run.host.undefine(&uuid).await.unwrap();
    world
        .run
        .host
        .define_domain(
            "renamed",
            domain_xml(
                "renamed",
                &uuid,
                &format!("<metadata>{}</metadata>", mark.element()),
            ),
        )
        .await
        .unwrap();
    let mut on = world.corrected(|node| node.cpus = 3).await;
    apply(StageName::Claim, &mut on).await;
    assert!(matches!(
        check(StageName::Claim, &mut on).await,
        Check::Done(_)
    ));
    let now = on.claim().unwrap();
    assert_eq!(
        (now.name.as_str(), now.uuid, now.cpus),
        ("renamed", uuid, 3)
    );
}

#[tokio::test]
async fn the_volumes_of_a_claim_are_where_its_mark_says() {
    let world = World::new().await;
    let owner = world.sealed().await;
    let moved = |node: &mut nodegraft::core::plan::Node| node.pool = "faster".into();
    let mut on = world.corrected(moved).await;
    for done in [StageName::Claim, StageName::Volume, StageName::Seed] {
        assert!(
            matches!(check(done, &mut on).await, Check::Done(_)),
            "{done}"
        );
    }
    assert_eq!(on.disk_capacity(), Some(40 * GIB));
    let claim = on.claim().unwrap();
    let machine = Machine {
        mark: claim.mark.as_ref().unwrap(),
        cpus: claim.cpus,
        memory: claim.memory,
        disk: on.disk_capacity(),
    };
    let differences = sentence(&of_machine(&on.node, &machine));
    assert_eq!(differences, "pool is kvmimage, the spec says faster");
    // A disk that is gone there is not made here.
    world
        .run
        .host
        .delete_volume("kvmimage", &owner.disk())
        .await
        .unwrap();
    let mut on = world.corrected(moved).await;
    let Check::Conflict(error) = check(StageName::Volume, &mut on).await else {
        panic!("its disk is gone")
    };
    assert!(
        error
            .to_string()
            .ends_with("is gone from the pool kvmimage"),
        "{error}"
    );
}

#[tokio::test]
async fn a_disk_is_deleted_only_while_nobody_else_has_gone_on_with_it() {
    // Sealed from elsewhere between our look and our work.
    let seal = |mark: &mut Mark| mark.seed = SeedState::Full;
    let take = |mark: &mut Mark| mark.by = Some("elsewhere.example 1 1".into());
    for (change, why) in [
        (&seal as &dyn Fn(&mut Mark), "finished its seed"),
        (&take, "elsewhere.example"),
    ] {
        let world = World::new().await;
        let mut first = world.node();
        apply(StageName::Claim, &mut first).await;
        apply(StageName::Volume, &mut first).await;
        let mut mark = first.claim().unwrap().mark.unwrap();
        let mut on = world.later().await;
        assert!(matches!(
            check(StageName::Volume, &mut on).await,
            Check::Needed(_)
        ));
        change(&mut mark);
        world
            .run
            .host
            .set_mark(&mark.owner.uuid(), &mark)
            .await
            .unwrap();
        let before = world
            .run
            .host
            .volume("kvmimage", &mark.owner.disk())
            .await
            .unwrap();
        let refused = stage(StageName::Volume, &on)
            .apply(&mut on, &reporter(StageName::Volume), &Journal::default())
            .await
            .unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
        assert!(before.is_some());
        assert_eq!(
            world
                .run
                .host
                .volume("kvmimage", &mark.owner.disk())
                .await
                .unwrap(),
            before
        );
    }
    // Started by somebody: the driver starts what its file has.
    let owner = Owner::new("homelab", "192.168.3.104").unwrap();
    let volumes = [owner.disk(), owner.seed()]
        .map(|name| Claimed {
            pool: "kvmimage".into(),
            name,
        })
        .to_vec();
    let mark = Mark {
        by: Some(nodegraft::rooms::process::this()),
        ..Mark::new(owner.clone(), "192.168.3.104/24", volumes)
    };
    let domain = domain_xml(
        &owner.node,
        &owner.uuid(),
        &format!("<metadata>{}</metadata>", mark.element()),
    );
    let world = World::of(&HOST.replace("</node>", &format!("{domain}</node>"))).await;
    world.overlay(&owner.disk(), "debian13.qcow2").await;
    let mut on = world.later().await;
    assert!(on.claim().unwrap().running);
    assert!(
        matches!(check(StageName::Claim, &mut on).await, Check::Conflict(error) if error.to_string().contains("somebody else started it"))
    );
    let refused = stage(StageName::Volume, &on)
        .apply(&mut on, &reporter(StageName::Volume), &Journal::default())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("its VM runs"), "{refused}");
    assert!(
        world
            .run
            .host
            .volume("kvmimage", &owner.disk())
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_claim_says_which_process_works_on_it() {
    let world = World::new().await;
    let mut on = world.node();
    apply(StageName::Claim, &mut on).await;
    let mark = on.claim().unwrap().mark.unwrap();
    assert_eq!(mark.by, Some(nodegraft::rooms::process::this()));
    let by = |by: String| async {
        let mark = Mark {
            by: Some(by),
            ..mark.clone()
        };
        world
            .run
            .host
            .set_mark(&mark.owner.uuid(), &mark)
            .await
            .unwrap();
        world.later().await
    };
    // It lives: our own parent.
    let living = nodegraft::rooms::process::named(std::os::unix::process::parent_id());
    let mut on = by(living.clone()).await;
    assert!(
        matches!(check(StageName::Claim, &mut on).await, Check::Conflict(error) if error.to_string().contains(&living))
    );
    // It is dead, or nobody here knows.
    let dead = format!("{} 1", living.rsplit_once(' ').unwrap().0);
    for (left, warned) in [(dead, false), ("elsewhere.example 1 1".to_owned(), true)] {
        let mut on = by(left.clone()).await;
        assert!(
            matches!(check(StageName::Claim, &mut on).await, Check::Needed(why) if why.contains("interrupted")),
            "{left}"
        );
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        let report = Reporter::new(Events::new(sender), None, StageName::Claim);
        stage(StageName::Claim, &on)
            .apply(&mut on, &report, &Journal::default())
            .await
            .unwrap();
        assert!(matches!(
            check(StageName::Claim, &mut on).await,
            Check::Done(_)
        ));
        assert_eq!(on.claim().unwrap().mark.unwrap(), mark);
        let told = std::iter::from_fn(|| events.try_recv().ok()).any(
            |event| matches!(event, Event::Warning { message, .. } if message.contains(&left)),
        );
        assert_eq!(told, warned, "{left}");
    }
}

#[tokio::test]
async fn a_vm_that_somebody_started_meanwhile_is_not_this_runs_to_stop() {
    let owner = Owner::new("homelab", "192.168.3.104").unwrap();
    let mark = Mark {
        seed: SeedState::Full,
        ..Mark::new(owner.clone(), "192.168.3.104/24", Vec::new())
    };
    let domain = domain_xml(
        &owner.node,
        &owner.uuid(),
        &format!("<metadata>{}</metadata>", mark.element()),
    );
    let world = World::of(&HOST.replace("</node>", &format!("{domain}</node>"))).await;
    let mut on = world
        .changed(
            |node| {
                // Nobody answers there.
                node.ip = "127.0.0.99".parse().unwrap();
                node.deadlines.boot = std::time::Duration::from_millis(100);
            },
            // As Preflight saw it: off.
            |sight| sight.domains[0].running = false,
        )
        .await;
    assert!(!on.claim().unwrap().running);
    let journal = Journal::default();
    let booted = stage(StageName::Boot, &on)
        .apply(&mut on, &reporter(StageName::Boot), &journal)
        .await;
    assert!(
        booted
            .unwrap_err()
            .to_string()
            .contains("no SSH at 127.0.0.99")
    );
    assert_eq!(journal.backward(), []);
}

// -- the laws of a removal: exactly what a claim proves, the claim last --

#[tokio::test]
async fn a_removal_leaves_nothing_of_ours_and_everything_of_others() {
    let world = World::new().await;
    let owner = world.sealed().await;
    let mut neighbours = [
        format!("nodegraft.homelab.{}.qcow2", owner.node),
        format!("{}.bak", owner.disk()),
    ];
    neighbours.sort();
    for name in &neighbours {
        world.overlay(name, "debian13.qcow2").await;
    }
    world
        .run
        .host
        .define_domain("other", domain_xml("other", THEIRS, ""))
        .await
        .unwrap();
    let inventory = world.inventory().await;
    let mut unclaimed: Vec<&str> = inventory
        .unclaimed
        .iter()
        .map(|volume| volume.name.as_str())
        .collect();
    unclaimed.sort_unstable();
    assert_eq!(
        unclaimed,
        neighbours.each_ref().map(String::as_str),
        "what cannot be proven is told of"
    );
    let removed = world.remove(inventory.node(&owner.node).unwrap()).await;
    assert!(removed.left.is_empty() && removed.any && !removed.stopped);
    assert_eq!(world.names().await, ["other"]);
    let mut left = world.volumes().await;
    left.sort();
    assert_eq!(
        left,
        [
            "debian13.qcow2",
            neighbours[0].as_str(),
            neighbours[1].as_str()
        ]
    );
    assert!(world.inventory().await.nodes.is_empty());
}

#[tokio::test]
async fn an_interrupted_removal_is_found_again() {
    let world = World::new().await;
    let owner = world.sealed().await;
    // Killed after the first volume.
    world
        .run
        .host
        .delete_volume("kvmimage", &owner.disk())
        .await
        .unwrap();
    let inventory = world.inventory().await;
    let removed = world.remove(inventory.node(&owner.node).unwrap()).await;
    assert!(removed.left.is_empty());
    assert_eq!(
        (world.names().await.len(), world.volumes().await),
        (0, vec!["debian13.qcow2".to_owned()])
    );
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
    assert!(
        existing
            .refusal()
            .unwrap()
            .help()
            .unwrap()
            .contains("domblklist")
    );
    // Another domain that has it as its disk.
    let world = World::new().await;
    let owner = world.sealed().await;
    let disk = format!(
        "<devices><disk type='file'><source file='/kvmimage/{}'/><target dev='vda'/></disk></devices>",
        owner.disk()
    );
    let xml = domain_xml("rescue", THEIRS, "").replace("</domain>", &format!("{disk}</domain>"));
    world.run.host.define_domain("rescue", xml).await.unwrap();
    assert!(
        world
            .inventory()
            .await
            .node(&owner.node)
            .unwrap()
            .in_use
            .as_ref()
            .unwrap()
            .contains("rescue")
    );
}

#[tokio::test]
async fn a_stop_begins_nothing() {
    let world = World::new().await;
    let owner = world.sealed().await;
    let inventory = world.inventory().await;
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    let removed = world
        .remover(stop)
        .remove(&inventory.node(&owner.node).unwrap().removal(Drain::No))
        .await;
    assert!(removed.stopped && !removed.any && removed.left.is_empty());
    assert_eq!(
        (world.names().await.len(), world.volumes().await.len()),
        (1, 3)
    );
}

#[tokio::test]
async fn a_snapshot_is_seen_where_libvirt_does_not_tell_what_it_stands_on() {
    // Of a VM that is off, and a file outside the pool.
    let world = World::new().await;
    let owner = world.sealed().await;
    let claim = world.run.host.domain(&owner.uuid()).await.unwrap().unwrap();
    let disks = "<devices><disk type='file'><source file='/elsewhere/snap'/><target dev='vda'/></disk></devices>";
    let metadata = format!("<metadata>{}</metadata>", claim.mark.unwrap().element());
    let xml = domain_xml(&owner.node, &owner.uuid(), &metadata)
        .replace("</domain>", &format!("{disks}</domain>"));
    world
        .run
        .host
        .define_domain(&owner.node, xml)
        .await
        .unwrap();
    assert!(
        world
            .inventory()
            .await
            .node(&owner.node)
            .unwrap()
            .in_use
            .as_ref()
            .unwrap()
            .contains("/elsewhere/snap")
    );
}

#[tokio::test]
async fn a_disk_given_as_a_volume_is_used_too() {
    let world = World::new().await;
    let owner = world.sealed().await;
    let disk = format!(
        "<devices><disk type='volume'><source pool='kvmimage' volume='{}'/><target dev='vda'/></disk></devices>",
        owner.disk()
    );
    let xml = domain_xml("rescue", THEIRS, "").replace("</domain>", &format!("{disk}</domain>"));
    world.run.host.define_domain("rescue", xml).await.unwrap();
    assert!(
        world
            .inventory()
            .await
            .node(&owner.node)
            .unwrap()
            .in_use
            .as_ref()
            .unwrap()
            .contains("rescue")
    );
}

/// An earlier run claimed the node, this one made its volumes and failed: they go, and the claim no longer says that they are
/// there.
#[tokio::test]
async fn undo_of_a_later_run_leaves_the_earlier_ones_claim_as_it_was() {
    let world = World::new().await;
    let owner = world.sealed().await;
    let things = [owner.disk(), owner.seed()]
        .map(|name| Thing::Volume {
            pool: "kvmimage".into(),
            name,
        })
        .to_vec();
    let removal = Removal {
        owner: owner.clone(),
        uuid: Some(owner.uuid()),
        things,
        drain: None,
        looked: None,
    };
    let on = world.later().await;
    let removed = world
        .remover(tokio_util::sync::CancellationToken::new())
        .undo_all(&removal, &on)
        .await;
    assert!(removed.left.is_empty() && removed.any);
    assert_eq!(world.volumes().await, ["debian13.qcow2"]);
    let mut again = world.later().await;
    assert!(
        matches!(check(StageName::Volume, &mut again).await, Check::Needed(_)),
        "the next run makes them anew"
    );
}

#[tokio::test]
async fn a_claim_stays_as_long_as_its_volumes_may_come_back() {
    // A transient pool is gone after a restart of the host; its files are not.
    let world = World::new().await;
    let owner = world.sealed().await;
    let mut mark = world.later().await.claim().unwrap().mark.unwrap();
    mark.volumes
        .iter_mut()
        .for_each(|volume| volume.pool = "transient".into());
    world.run.host.set_mark(&owner.uuid(), &mark).await.unwrap();
    let removed = world
        .remove(world.inventory().await.node(&owner.node).unwrap())
        .await;
    assert_eq!(removed.left.len(), 1);
    assert!(
        removed.left[0]
            .causes()
            .join(" ")
            .contains("no pool transient"),
        "{:?}",
        removed.left[0].causes()
    );
    assert_eq!(
        world.names().await,
        [owner.node],
        "it tells of what may be left"
    );
}
