//! Bad worlds that are refused before anything is made: each with its remedy, each leaving nothing behind.

use std::fs;
use std::net::TcpListener;

use super::{Limited, NEW, World, kubernetes, must, virsh};

const NODE: &str = "{name: refused, address: 192.168.3.120/24}";

/// `up` is refused with this exit code and these words, and nothing is left.
fn refused(name: &str, code: i32, words: &[&str], change: impl Fn(String) -> String) {
    let world = World::new(name, NEW, &[NODE], change);
    let up = world.run(&["up"]);
    assert_eq!(up.code, code, "{}", up.stderr);
    for word in words {
        assert!(
            up.stderr.contains(word),
            "`{word}` is not in:\n{}",
            up.stderr
        );
    }
    let marked = virsh(&["list", "--all", "--name"])
        .lines()
        .any(|line| line.trim() == "refused");
    assert!(!marked, "a domain is left");
    assert!(!virsh(&["vol-list", "kvmimage"]).contains(&format!("nodegraft.{name}.")));
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_missing_template_volume() {
    refused(
        "notemplate",
        4,
        &["no template volume absent.qcow2", "debian13.qcow2"],
        |spec| spec.replace("debian13.qcow2", "absent.qcow2"),
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_template_larger_than_the_disk() {
    refused(
        "smalldisk",
        4,
        &["larger than the disk", "disk: 3GiB"],
        |spec| spec.replace("disk: 8GiB", "disk: 2GiB"),
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_missing_bridge() {
    refused(
        "nobridge",
        4,
        &["no bridge br7", "ip link show type bridge"],
        |spec| spec.replace("bridge: br0", "bridge: br7"),
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_missing_network() {
    refused(
        "nonetwork",
        4,
        &["no network wan", "virsh net-list"],
        |spec| spec.replace("bridge: br0", "network: wan"),
    );
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_missing_and_an_inactive_pool() {
    refused("nopool", 4, &["no pool absent", "kvmimage"], |spec| {
        spec.replace("pool: kvmimage", "pool: absent")
    });
    virsh(&["pool-define-as", "sleeping", "dir", "--target", "/tmp"]);
    refused(
        "sleepingpool",
        4,
        &["the pool sleeping is not active", "pool-start sleeping"],
        |spec| spec.replace("pool: kvmimage", "pool: sleeping"),
    );
    virsh(&["pool-undefine", "sleeping"]);
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_name_taken_by_a_domain_that_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let xml = dir.path().join("theirs.xml");
    fs::write(
        &xml,
        "<domain type='qemu'><name>refused-theirs</name><memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os></domain>",
    )
    .unwrap();
    virsh(&["define", xml.to_str().unwrap()]);
    let before = virsh(&["dumpxml", "refused-theirs"]);
    let rename = |spec: String| spec.replace("name: refused,", "name: refused-theirs,");
    refused(
        "taken",
        4,
        &["taken by a domain that is not ours", "another name"],
        rename,
    );
    // `down` keeps its hands off it too.
    let world = World::new(
        "taken",
        NEW,
        &["{name: refused-theirs, address: 192.168.3.120/24}"],
        |spec| spec,
    );
    let down = world.run(&["down"]);
    assert_eq!(down.code, 0, "{}", down.stderr);
    assert_eq!(virsh(&["dumpxml", "refused-theirs"]), before);
    virsh(&["undefine", "refused-theirs"]);
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_node_name_taken_by_another_machine() {
    let manifest = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"refused-node"}}"#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.json");
    fs::write(&file, manifest).unwrap();
    super::kubectl(NEW, &["create", "-f", file.to_str().unwrap()]);
    refused(
        "nodetaken",
        4,
        &[
            "already has a Node refused-node",
            "kubectl delete node refused-node",
        ],
        |spec| spec.replace("name: refused,", "name: refused-node,"),
    );
    super::kubectl(NEW, &["delete", "node", "refused-node"]);
}

#[test]
#[ignore = "needs the lab: make test"]
fn an_address_that_already_answers() {
    must("ip", &["address", "add", "192.168.3.121/24", "dev", "br0"]);
    let listener = TcpListener::bind("192.168.3.121:22").unwrap();
    refused(
        "answers",
        4,
        &["already answers at 192.168.3.121", "free address"],
        |spec| spec.replace("192.168.3.120/24", "192.168.3.121/24"),
    );
    drop(listener);
    must("ip", &["address", "del", "192.168.3.121/24", "dev", "br0"]);
}

#[test]
#[ignore = "needs the lab: make test"]
fn kubeconfigs_that_do_not_work() {
    let real = fs::read_to_string(kubernetes(NEW).join("admin.conf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = kubernetes(NEW).join("admin.conf").display().to_string();
    let with = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let (from, to) = (at.clone(), path.display().to_string());
        move |spec: String| spec.replace(&from, &to)
    };
    refused(
        "kcabsent",
        4,
        &[
            "reading the kubeconfig /nowhere/config",
            "cluster.kubeconfig",
        ],
        |spec| spec.replace(&at, "/nowhere/config"),
    );
    refused(
        "kcgarbage",
        4,
        &["reading the kubeconfig", "kubectl"],
        with("garbage", "{not: [a kubeconfig".into()),
    );
    refused(
        "apidown",
        4,
        &["cannot be used", "is the API server up"],
        with("down", real.replace(":6443", ":6499")),
    );
    // The other cluster's CA: the server's certificate is real, and not signed by it.
    let ca = |version: &str| {
        let kubeconfig = fs::read_to_string(kubernetes(version).join("admin.conf")).unwrap();
        kubeconfig
            .split("certificate-authority-data: ")
            .nth(1)
            .unwrap()
            .split('}')
            .next()
            .unwrap()
            .to_owned()
    };
    refused(
        "wrongca",
        4,
        &["cannot be used", "not signed by the CA"],
        with("wrongca", real.replace(&ca(NEW), &ca(super::OLD))),
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
    let at = kubernetes(NEW).join("admin.conf").display().to_string();
    refused(
        "limited",
        4,
        &[
            "may not ask for certificates",
            "kubectl create clusterrolebinding",
            "system:bootstrappers:nodegraft:limited",
        ],
        |spec| spec.replace(&at, &limited.kubeconfig()),
    );
    refused("required", 4, &["may not ask for certificates"], |spec| {
        spec.replace(
            "  name: required\n",
            "  name: required\n  access: require\n",
        )
    });
}

#[test]
#[ignore = "needs the lab: make test"]
fn the_doctor_finds_what_is_wrong_and_what_is_right() {
    let world = World::new("doctor", NEW, &[NODE], |spec| spec);
    let well = world.run(&["doctor", "-f", "cluster.yaml"]);
    assert_eq!(well.code, 0, "{}", well.stdout);
    for word in [
        "the pool kvmimage is active",
        "the bridge br0 exists",
        "is v1.35.4",
        "certificates.k8s.io/v1",
    ] {
        assert!(
            well.stdout.contains(word),
            "`{word}` is not in:\n{}",
            well.stdout
        );
    }
    world.edit(|spec| {
        spec.replace("bridge: br0", "bridge: br7")
            .replace("pool: kvmimage", "pool: absent")
    });
    let ill = world.run(&["doctor", "-f", "cluster.yaml", "--output", "json"]);
    assert_eq!(ill.code, 4);
    let findings: serde_json::Value = serde_json::from_str(&ill.stdout).unwrap();
    let bad: Vec<_> = findings
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["state"] == "bad")
        .collect();
    assert_eq!(bad.len(), 2, "{}", ill.stdout);
    assert!(
        bad.iter()
            .all(|finding| !finding["help"].as_str().unwrap().is_empty())
    );
}

/// Two runs on one cluster would undo each other: the second is told who holds it.
#[test]
#[ignore = "needs the lab: make test"]
fn two_runs_on_one_cluster() {
    let world = World::new("locked", NEW, &[NODE], |spec| spec);
    let dir = world.dir.path().join("state/locked");
    fs::create_dir_all(&dir).unwrap();
    let lock = fs::File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let up = world.run(&["up"]);
    assert_eq!(up.code, 4);
    assert!(up.stderr.contains("another nodegraft"), "{}", up.stderr);
}
