//! Real Debian guests, which take a minute to boot in software emulation: each is booted once, for many scenes. Their names come
//! first, so these begin first and the short ones fill up the rest of the time.

mod containerd;
mod docker;
mod effect;
mod machines;
mod pair;
mod renderers;

use std::fs;
use std::process::Command;

use crate::fixture::Exit;
use crate::in_lab::kubernetes::{requests, tokens_of};
use crate::in_lab::libvirt::{mac, runs, virsh};
use crate::in_lab::{World, text};

/// What must be true of a node that is up, whatever its profile.
fn assert_up(world: &World, node: &str, ip: &str, hostname: &str) {
    assert!(
        world.ready(node),
        "the API server does not call {node} Ready"
    );
    assert!(runs(node));
    let xml = virsh(&["dumpxml", node]);
    assert!(
        xml.contains("urn:nodegraft:domain:1") && xml.contains("seed='blank'")
            || xml.contains("seed=\"blank\""),
        "the mark says otherwise: {xml}"
    );
    // The guest: name, address on the NIC of our MAC, gateway, DNS, root file system, machine-id. All in one: each login costs
    // seconds in software emulation.
    let look = format!(
        "echo name $(hostname); ip -o -4 addr show; ip route show default; \
         echo nics $(ip -o link | grep -c {}); resolvectl dns 2>/dev/null || cat /etc/resolv.conf; \
         echo root $(df -B1 --output=size / | tail -n 1); cat /etc/ssh/ssh_host_ed25519_key.pub; \
         cat /etc/kubernetes/kubelet.conf; [ ! -e /etc/kubernetes/bootstrap-kubelet.conf ] || echo the token is there",
        mac(&xml)
    );
    let found = world.guest(ip, &look);
    for words in [
        &format!("name {hostname}\n"),
        &format!("inet {ip}/24"),
        "default via 192.168.3.1",
        "nics 1\n",
        // An identity of the node's own.
        "kubelet-client",
    ] {
        assert!(found.contains(words), "`{words}` is not in:\n{found}");
    }
    assert!(found.matches("192.168.3.1\n").count() + found.matches("192.168.3.1 ").count() >= 2);
    assert!(!found.contains("the token is there"), "{found}");
    let line = |start: &str| {
        let mut lines = found.lines().filter_map(|line| line.strip_prefix(start));
        lines
            .next()
            .unwrap_or_else(|| panic!("no {start}: {found}"))
    };
    let root: u64 = line("root ").trim().parse().unwrap();
    assert!(
        root > 7 << 30,
        "the root file system has {root} bytes of an 8 GiB disk"
    );
    let shown = line("ssh-ed25519 ").split_whitespace().next().unwrap();
    assert!(
        xml.contains(shown),
        "the guest's host key is not the one in the mark"
    );
    // The seed volume no longer holds a private key.
    let seed = xml
        .split("<source file='")
        .skip(1)
        .filter_map(|rest| rest.split('\'').next())
        .find(|path| path.ends_with(".seed.img"));
    let seed = fs::read(seed.expect("the domain has a seed volume")).unwrap();
    assert!(
        !String::from_utf8_lossy(&seed).contains("PRIVATE KEY"),
        "the seed still holds the host key"
    );
    // The join: no token left, and exactly one request, approved by us, with the identity that Kubernetes demands.
    let tokens = tokens_of(world.version, &world.name);
    assert!(tokens.is_empty(), "the token was not deleted: {tokens:?}");
    let mut ours = requests(world.version);
    ours.retain(|csr| {
        csr["status"]["conditions"][0]["message"]
            .as_str()
            .is_some_and(|m| m.contains(&format!("node {node} of cluster {}", world.name)))
    });
    assert_eq!(ours.len(), 1, "{ours:?}");
    let by = ours[0]["spec"]["username"].as_str().unwrap();
    assert!(by.starts_with("system:bootstrap:"), "{by}");
}

/// A second `up` finds nothing to do, and does nothing.
fn assert_unchanged(world: &World) {
    let before = world.instances();
    world.is_unchanged();
    assert_eq!(world.instances(), before);
}

/// The end; and a second `down` is as good.
fn assert_down(world: World) {
    world.run(&["down"]).exits(Exit::Done);
    world
        .run(&["down"])
        .exits(Exit::Done)
        .says("nothing to remove");
    world.down();
}

/// The certificate that a kubelet serves with: its issuer and its names.
fn serving_certificate(world: &World, ip: &str) -> String {
    let file = world.file("serving.pem");
    let pem = world.guest(ip, "cat /var/lib/kubelet/pki/kubelet-server-current.pem");
    fs::write(&file, pem).unwrap();
    let show = "x509 -noout -issuer -ext subjectAltName -in";
    let output = Command::new("openssl")
        .args(show.split(' '))
        .arg(&file)
        .output();
    text(&output.unwrap())
}
