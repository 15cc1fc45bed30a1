//! Bad worlds that are refused before anything is made: each with its remedy, each leaving nothing behind.

use std::fs;
use std::net::TcpListener;

use super::kubernetes::{Limited, admin, create, manifest};
use super::libvirt::has_domain;
use super::{NEW, OLD, World, must, virsh};
use crate::fixture::{Exit, rewritten};

/// One Debian node that could be made.
fn world(name: &str) -> World {
    World::on(NEW, name).node("refused", 120)
}

/// `up` is refused with these words, and nothing is left.
#[track_caller]
fn refused(world: World, words: &[&str]) {
    world.run(&["up"]).exits(Exit::Unfit).says_all(words);
    assert_eq!(world.machines_left(), [] as [String; 0]);
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_missing_template_volume() {
    refused(
        world("notemplate").set("defaults.template", "absent.qcow2"),
        &["no template volume absent.qcow2", "debian13.qcow2"],
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_template_larger_than_the_disk() {
    refused(
        world("smalldisk").set("defaults.disk", "2GiB"),
        &["larger than the disk", "disk: 3GiB"],
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_missing_bridge() {
    refused(
        world("nobridge").set("host.network.bridge", "br7"),
        &["no bridge br7", "ip link show type bridge"],
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_missing_network() {
    refused(
        world("nonetwork")
            .remove("host.network.bridge")
            .add("host.network.network", "wan"),
        &["no network wan", "virsh net-list"],
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_missing_and_an_inactive_pool() {
    refused(
        world("nopool").set("host.pool", "absent"),
        &["no pool absent", "kvmimage"],
    );
    virsh(&["pool-define-as", "sleeping", "dir", "--target", "/tmp"]);
    refused(
        world("sleepingpool").set("host.pool", "sleeping"),
        &["the pool sleeping is not active", "pool-start sleeping"],
    );
    virsh(&["pool-undefine", "sleeping"]);
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_name_taken_by_a_domain_that_is_not_ours() {
    let theirs = "refused-theirs";
    let xml = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        xml.path(),
        format!("<domain type='qemu'><name>{theirs}</name><memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os></domain>"),
    )
    .unwrap();
    virsh(&["define", &xml.path().display().to_string()]);
    let before = virsh(&["dumpxml", theirs]);
    let world = world("taken").set("nodes.0.name", theirs);
    world
        .run(&["up"])
        .exits(Exit::Unfit)
        .says_all(&["taken by a domain that is not ours", "another name"]);
    // `down` keeps its hands off it too.
    world.run(&["down"]).exits(Exit::Done);
    assert_eq!(virsh(&["dumpxml", theirs]), before);
    virsh(&["undefine", theirs]);
    world.down();
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_node_name_taken_by_another_machine() {
    create(NEW, &manifest("refused-node").to_string());
    refused(
        world("nodetaken").set("nodes.0.name", "refused-node"),
        &[
            "already has a Node refused-node",
            "kubectl delete node refused-node",
        ],
    );
    super::kubernetes::kubectl(NEW, &["delete", "node", "refused-node"]);
}

#[test]
#[ignore = "needs the lab: make test"]
fn an_address_that_already_answers() {
    must("ip", &["address", "add", "192.168.3.121/24", "dev", "br0"]);
    let listener = TcpListener::bind("192.168.3.121:22").unwrap();
    refused(
        world("answers").set("nodes.0.address", "192.168.3.121/24"),
        &["already answers at 192.168.3.121", "free address"],
    );
    drop(listener);
    must("ip", &["address", "del", "192.168.3.121/24", "dev", "br0"]);
}

#[test]
#[ignore = "needs the lab: make test"]
fn kubeconfigs_that_do_not_work() {
    let real = fs::read_to_string(admin(NEW)).unwrap();
    refused(
        world("kcabsent").set("cluster.kubeconfig", "/nowhere/config"),
        &[
            "reading the kubeconfig /nowhere/config",
            "cluster.kubeconfig",
        ],
    );
    let with = |name: &str, kubeconfig: &str| {
        let world = world(name);
        let path = world.file("kubeconfig");
        fs::write(&path, kubeconfig).unwrap();
        world.set("cluster.kubeconfig", path)
    };
    refused(
        with("kcgarbage", "{not: [a kubeconfig"),
        &["reading the kubeconfig", "kubectl"],
    );
    refused(
        with("apidown", &rewritten(&real, ":6443", ":6499")),
        &["cannot be used", "is the API server up"],
    );
    // The other cluster's CA: the server's certificate is real, and not signed by it.
    let ca = |version: &str| {
        let kubeconfig = fs::read_to_string(admin(version)).unwrap();
        let rest = kubeconfig
            .split_once("certificate-authority-data: ")
            .unwrap()
            .1;
        rest.split_once('}').unwrap().0.to_owned()
    };
    refused(
        with("wrongca", &rewritten(&real, &ca(NEW), &ca(OLD))),
        &["cannot be used", "not signed by the CA"],
    );
}

/// A kubeconfig that may do everything but bind roles.
#[test]
#[ignore = "needs the lab: make test"]
fn access_missing_and_not_permitted_to_create_it() {
    let limited = Limited::new(
        "limited",
        "- {apiGroups: [''], resources: [secrets, nodes], verbs: ['*']}\n\
         - {apiGroups: [certificates.k8s.io], resources: ['*'], verbs: ['*']}\n\
         - {apiGroups: [authorization.k8s.io], resources: ['*'], verbs: [create]}\n",
    );
    refused(
        world("limited").set("cluster.kubeconfig", limited.kubeconfig()),
        &[
            "may not ask for certificates",
            "kubectl create clusterrolebinding",
            "system:bootstrappers:nodegraft:limited",
        ],
    );
    refused(
        world("required").add("cluster.access", "require"),
        &["may not ask for certificates"],
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn the_doctor_finds_what_is_wrong_and_what_is_right() {
    let world = world("doctor");
    world
        .run(&["doctor", "-f", "cluster.yaml"])
        .exits(Exit::Done)
        .prints_all(&[
            "the pool kvmimage is active",
            "the bridge br0 exists",
            "is v1.35.4",
            "certificates.k8s.io/v1",
        ]);
    let world = world
        .set("host.network.bridge", "br7")
        .set("host.pool", "absent");
    let ill = world.run(&["doctor", "-f", "cluster.yaml", "--output", "json"]);
    let findings = ill.exits(Exit::Unfit).json();
    let mut bad = findings.as_array().unwrap().clone();
    bad.retain(|finding| finding["state"] == "bad");
    assert_eq!(bad.len(), 2, "{ill}");
    let has_help = |finding: &serde_json::Value| {
        finding["help"]
            .as_str()
            .is_some_and(|help| !help.is_empty())
    };
    assert!(bad.iter().all(has_help), "{ill}");
}

/// Two runs on one cluster would undo each other: the second is told who holds it.
#[test]
#[ignore = "needs the lab: make test"]
fn two_runs_on_one_cluster() {
    let world = world("locked");
    let dir = world.state("locked");
    fs::create_dir_all(&dir).unwrap();
    let lock = fs::File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    world
        .run(&["up"])
        .exits(Exit::Unfit)
        .says("another nodegraft");
    assert!(!has_domain("refused"));
}

/// What stands in the way of a join before anything is changed: no login, no kubelet.
#[test]
#[ignore = "needs the lab: make test"]
fn machines_that_cannot_join() {
    let world = World::tiny("nojoin");
    let admin = admin(NEW);
    world
        .run(&["join", "192.168.3.163", "--kubeconfig", &admin])
        .exits(Exit::Unfit)
        .says_all(&["logging in to 192.168.3.163", "without a password"]);
    // The lab's control plane has a login and no kubelet.
    let ssh = world.path(".ssh");
    fs::create_dir(&ssh).unwrap();
    for file in ["id_ed25519", "known_hosts"] {
        fs::copy(super::state().join("ssh/client").join(file), ssh.join(file)).unwrap();
    }
    let bare = ["join", "root@192.168.3.101", "--kubeconfig", &admin];
    world.run(&bare).exits(Exit::Unfit);
    fs::write(ssh.join("known_hosts"), "").unwrap();
    world.run(&bare).exits(Exit::Unfit).says("none is recorded");
}
