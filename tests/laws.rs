//! The libvirt room on libvirt's own test driver: an in-memory host of its own for each connection.
//! Uploads, consoles and guests are the lab's.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, OnceLock};

use nodegraft::cluster::Cluster;
use nodegraft::journal::Journal;
use nodegraft::libvirt::storage::Volume;
use nodegraft::libvirt::{Host, NetworkState};
use nodegraft::pipeline::stage::{Check, Events, Reporter, Stage, Undone};
use nodegraft::plan::{MARK_NAMESPACE, Mark, Plan, SeedState};
use nodegraft::spec::Spec;
use nodegraft::stages::{NodeRun, Run, node_stages};
use nodegraft::state::StateDir;
use nodegraft::template::Templates;

const POOL: &str = "default-pool";
const GIB: u64 = 1 << 30;

async fn host() -> Host {
    Host::open("test:///default").await.unwrap()
}

fn mark(node: &str) -> Mark {
    Mark {
        namespace: MARK_NAMESPACE,
        cluster: "homelab".into(),
        node: node.into(),
        address: "192.168.3.104/24".into(),
        plan: "digest".into(),
        host_key: "ssh-ed25519 AAAA".into(),
        seed: SeedState::Full,
    }
}

fn domain_xml(name: &str) -> String {
    format!("<domain type='test'><name>{name}</name><memory unit='bytes'>{GIB}</memory><vcpu>2</vcpu><os><type>hvm</type></os></domain>")
}

#[tokio::test]
async fn absence_is_an_answer_and_not_an_error() {
    let host = host().await;
    assert_eq!(host.domain("nobody").await.unwrap(), None);
    assert_eq!(host.pool("nowhere").await.unwrap(), None);
    assert_eq!(host.volume(POOL, "nothing").await.unwrap(), None);
    assert_eq!(host.network("nowhere").await.unwrap(), NetworkState::Absent);
    assert!(!host.delete_volume(POOL, "nothing").await.unwrap());
    assert!(!host.undefine("nobody").await.unwrap());
    assert!(!host.power_off("nobody").await.unwrap());
    assert!(!host.suspend("nobody").await.unwrap());
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
    let again = host.create_overlay(POOL, "node.qcow2", &base, 4 * GIB).await;
    assert!(again.unwrap_err().to_string().contains("making the overlay"), "a volume is never replaced silently");
    assert!(host.delete_volume(POOL, "node.qcow2").await.unwrap());
    assert!(!host.delete_volume(POOL, "node.qcow2").await.unwrap(), "deleting twice is harmless");
}

#[tokio::test]
async fn only_marked_domains_are_ours() {
    let host = host().await;
    // The driver comes with a domain called `test`, which is somebody else's.
    assert_eq!(host.domain("test").await.unwrap().unwrap().mark, None);
    assert!(host.marked_domains().await.unwrap().is_empty());
    host.define_domain("ours", domain_xml("ours")).await.unwrap();
    host.set_mark("ours", &mark("ours")).await.unwrap();
    let ours = host.domain("ours").await.unwrap().unwrap();
    assert_eq!(ours.mark.as_ref(), Some(&mark("ours")));
    assert_eq!((ours.cpus, ours.memory, ours.running), (2, GIB, false));
    assert_eq!(host.marked_domains().await.unwrap(), [ours]);
    let blank = Mark { seed: SeedState::Blank, ..mark("ours") };
    host.set_mark("ours", &blank).await.unwrap();
    assert_eq!(host.domain("ours").await.unwrap().unwrap().mark, Some(blank));
}

#[tokio::test]
async fn a_domain_pauses_resumes_and_goes_without_a_trace() {
    let host = host().await;
    // The driver's own domain runs from the start; it cannot start one paused.
    assert!(host.suspend("test").await.unwrap());
    let paused = host.domain("test").await.unwrap().unwrap();
    assert!(paused.running && paused.paused);
    host.resume("test").await.unwrap();
    assert!(!host.domain("test").await.unwrap().unwrap().paused);
    assert!(host.power_off("test").await.unwrap());
    assert!(!host.power_off("test").await.unwrap(), "powering off twice is harmless");
    assert!(!host.suspend("test").await.unwrap());
    assert!(host.undefine("test").await.unwrap());
    assert_eq!(host.domain("test").await.unwrap(), None);
}

#[tokio::test]
async fn an_inactive_network_is_told_from_an_absent_one() {
    assert_eq!(host().await.network("default").await.unwrap(), NetworkState::Active);
}

#[tokio::test]
async fn an_error_says_what_was_being_done() {
    let error = host().await.resume("nobody").await.unwrap_err();
    assert_eq!(error.to_string(), "resuming the domain nobody");
    assert!(!error.causes().is_empty());
}

// -- the laws of the stages that the test driver can carry: Volume and Domain whole; of Seed, which uploads, and Boot,
// which needs a guest, what they find and how they undo. Inject, Login, Steps, Join and Ready need a guest --

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
const HOST: &str = "<node><pool type='dir'><name>kvmimage</name><target><path>/kvmimage</path></target>\
    <volume type='file'><name>debian13.qcow2</name><capacity unit='GiB'>3</capacity><allocation>0</allocation>\
    <target><path>/kvmimage/debian13.qcow2</path><format type='qcow2'/></target></volume></pool></node>";

/// A domain as that driver takes it, with our mark.
const DOMAIN: &str = "<domain type='test'><name>{{ node.name }}</name><metadata><nodegraft:node xmlns:nodegraft='{{ mark.namespace }}' \
    cluster='{{ mark.cluster }}' node='{{ mark.node }}' address='{{ mark.address }}' plan='{{ mark.plan }}' host_key='{{ mark.host_key }}' \
    seed='{{ mark.seed }}'/></metadata><memory unit='bytes'>{{ node.memory }}</memory><vcpu>{{ node.cpus }}</vcpu><os><type>hvm</type></os></domain>";

async fn node_run(dir: &std::path::Path) -> NodeRun {
    std::fs::write(dir.join("host.xml"), HOST).unwrap();
    let spec = Spec::parse(crate::spec::GOOD, "cluster.yaml").unwrap();
    let plan = Plan::new(&spec, Templates::with([("domain.xml".to_owned(), DOMAIN.to_owned())].into()).unwrap(), &[]).unwrap();
    let node = plan.nodes[0].clone();
    let state = StateDir::open("laws").unwrap();
    let own = dir.join("key");
    std::fs::write(&own, nodegraft::keys::generate("laws").unwrap().private.unwrap()).unwrap();
    let run = Run {
        host: Host::open(&format!("test://{}/host.xml", dir.display())).await.unwrap(),
        cluster: Some(Cluster::from_text(&api_server(), "the test", None).await.unwrap()),
        key: state.login_key(own.to_str()).unwrap(),
        state,
        plan,
        authorized_keys: Vec::new(),
        virt_type: OnceLock::new(),
        drain: nodegraft::stages::Drain::No,
        steps: nodegraft::stages::steps::Shared::new().unwrap(),
    };
    NodeRun::new(Arc::new(run), node)
}

fn stage(name: &str, on: &NodeRun) -> Box<dyn Stage<NodeRun>> {
    node_stages(&on.node, true).into_iter().find(|stage| stage.name() == name).unwrap()
}

fn reporter(name: &str) -> Reporter {
    Reporter::new(Events::new(tokio::sync::mpsc::unbounded_channel().0), None, name)
}

/// What Volume and Seed leave for Domain, as far as the driver goes.
async fn with_disks(on: &NodeRun) {
    stage("Volume", on).apply(on, &reporter("Volume"), &Journal::default()).await.unwrap();
    let base = on.run.host.volume("kvmimage", "debian13.qcow2").await.unwrap().unwrap();
    on.run.host.create_overlay("kvmimage", &on.node.seed, &base, base.capacity).await.unwrap();
    *on.host_key.lock().unwrap() = Some(nodegraft::keys::generate("laws").unwrap());
}

#[tokio::test]
async fn domain_keeps_the_laws_of_a_stage() {
    let dir = tempfile::tempdir().unwrap();
    let on = node_run(dir.path()).await;
    let (domain, report) = (stage("Domain", &on), reporter("Domain"));
    with_disks(&on).await;
    assert!(matches!(domain.check(&on, &report).await.unwrap(), Check::Needed(_)));
    assert_eq!(domain.undo(&on, &report).await.unwrap(), Undone::Absent);
    assert_eq!(on.run.host.domain(&on.node.name).await.unwrap(), None, "check and undo change nothing");
    for _ in 0..2 {
        domain.apply(&on, &report, &Journal::default()).await.unwrap();
        assert!(matches!(domain.check(&on, &report).await.unwrap(), Check::Done(_)));
    }
    let mark = on.run.host.domain(&on.node.name).await.unwrap().unwrap().mark.unwrap();
    assert_eq!((mark.node.as_str(), mark.address.as_str()), (on.node.name.as_str(), on.node.address.as_str()));
    assert!(matches!(domain.undo(&on, &report).await.unwrap(), Undone::Removed(_)));
    assert_eq!(domain.undo(&on, &report).await.unwrap(), Undone::Absent);
}

#[tokio::test]
async fn what_bears_no_mark_of_ours_is_never_changed() {
    let dir = tempfile::tempdir().unwrap();
    let on = node_run(dir.path()).await;
    with_disks(&on).await;
    let name = &on.node.name;
    on.run.host.define_domain(name, domain_xml(name)).await.unwrap();
    assert!(matches!(stage("Domain", &on).check(&on, &reporter("Domain")).await.unwrap(), Check::Conflict(_)));
    for kept in ["Domain", "Boot", "Seed", "Volume"] {
        let undone = stage(kept, &on).undo(&on, &reporter(kept)).await.unwrap();
        assert!(matches!(undone, Undone::Kept(_)), "{kept}: {undone:?}");
    }
    assert_eq!(on.run.host.domain(name).await.unwrap().unwrap().mark, None);
    assert!(on.run.host.volume("kvmimage", &on.node.volume).await.unwrap().is_some());
}

#[tokio::test]
async fn seed_and_boot_find_and_undo_by_the_laws() {
    let dir = tempfile::tempdir().unwrap();
    let on = node_run(dir.path()).await;
    let (seed, boot, domain) = (stage("Seed", &on), stage("Boot", &on), stage("Domain", &on));
    let report = reporter("laws");
    assert!(matches!(seed.check(&on, &report).await.unwrap(), Check::Needed(_)));
    assert!(matches!(boot.check(&on, &report).await.unwrap(), Check::Needed(_)));
    assert_eq!(seed.undo(&on, &report).await.unwrap(), Undone::Absent);
    assert_eq!(boot.undo(&on, &report).await.unwrap(), Undone::Absent);
    with_disks(&on).await;
    domain.apply(&on, &report, &Journal::default()).await.unwrap();
    assert!(matches!(seed.check(&on, &report).await.unwrap(), Check::Done(_)));
    assert!(matches!(seed.undo(&on, &report).await.unwrap(), Undone::Kept(_)), "the domain still uses it");
    // The driver cannot start a domain paused, as Boot does.
    assert!(matches!(boot.check(&on, &report).await.unwrap(), Check::Needed(_)), "it is defined, not running");
    assert_eq!(boot.undo(&on, &report).await.unwrap(), Undone::Absent);
    domain.undo(&on, &report).await.unwrap();
    assert!(matches!(seed.undo(&on, &report).await.unwrap(), Undone::Removed(_)));
    assert_eq!(seed.undo(&on, &report).await.unwrap(), Undone::Absent);
}

#[tokio::test]
async fn volume_keeps_the_laws_of_a_stage() {
    // A full copy needs a resize, which the driver lacks.
    let dir = tempfile::tempdir().unwrap();
    let on = node_run(dir.path()).await;
    let stage = &node_stages(&on.node, true)[0];
    let report = Reporter::new(Events::new(tokio::sync::mpsc::unbounded_channel().0), None, stage.name());
    let volumes = async || on.run.host.volume_names("kvmimage").await.unwrap();
    // Check changes nothing and says Needed; undo of nothing is Absent.
    assert!(matches!(stage.check(&on, &report).await.unwrap(), Check::Needed(_)));
    assert_eq!(stage.undo(&on, &report).await.unwrap(), Undone::Absent);
    assert_eq!(volumes().await, ["debian13.qcow2"]);
    // After apply it is Done; applying twice is harmless.
    for _ in 0..2 {
        stage.apply(&on, &report, &Journal::default()).await.unwrap();
        assert!(matches!(stage.check(&on, &report).await.unwrap(), Check::Done(_)));
    }
    assert_eq!(on.run.host.volume("kvmimage", &on.node.volume).await.unwrap().unwrap().capacity, 40 * GIB);
    // Undo removes it and only it, and can be repeated.
    assert!(matches!(stage.undo(&on, &report).await.unwrap(), Undone::Removed(_)));
    assert_eq!(stage.undo(&on, &report).await.unwrap(), Undone::Absent);
    assert_eq!(volumes().await, ["debian13.qcow2"]);
}

#[tokio::test]
async fn a_volume_with_overlays_on_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let on = node_run(dir.path()).await;
    let stage = &node_stages(&on.node, true)[0];
    let report = Reporter::new(Events::new(tokio::sync::mpsc::unbounded_channel().0), None, stage.name());
    stage.apply(&on, &report, &Journal::default()).await.unwrap();
    let base = on.run.host.volume("kvmimage", &on.node.volume).await.unwrap().unwrap();
    on.run.host.create_overlay("kvmimage", "theirs.qcow2", &base, base.capacity).await.unwrap();
    assert!(matches!(stage.undo(&on, &report).await.unwrap(), Undone::Kept(why) if why.contains("theirs.qcow2")));
    assert!(on.run.host.volume("kvmimage", &on.node.volume).await.unwrap().is_some());
}
