//! Guests without cloud-init: our first-boot unit in real ones that keep their network in three ways. The fourth, ifupdown, goes
//! on to Ready in `docker.rs`.

use std::collections::BTreeSet;
use std::process::Command;

use crate::faults::preload::fault;
use crate::fixture::Exit;
use crate::in_lab::libvirt::{POOL, domains, mac, uri, volumes};
use crate::in_lab::{OLD, World, text, virsh};

const PREPARED: &str = "debian12-networkd.firstboot.qcow2";

/// netplan and NetworkManager by `first_boot: inject`, networkd from a template that `image prepare` made.
#[test]
#[ignore = "needs the lab: make test"]
fn each_network_system_takes_its_own_file() {
    let world = World::on(OLD, "networks")
        .remove("defaults.kubelet")
        .remove("defaults.profile")
        .add("cluster.join", false)
        .node("by-netplan", 155)
        .add("nodes.0.template", "debian12-netplan.qcow2")
        .add("nodes.0.mtu", 1400)
        .node("by-nm", 156)
        .add("nodes.1.template", "debian12-networkmanager.qcow2")
        .add("nodes.1.search", vec!["lab.test"])
        .node("by-networkd", 157)
        .add("nodes.2.template", PREPARED)
        .add("nodes.2.first_boot", "image");
    prepare(&world);
    // In software emulation several at once take longer than one after the other.
    world.run(&["up", "--parallel", "1"]).exits(Exit::Done);
    let ids = BTreeSet::from([
        looks(
            &world,
            "by-netplan",
            155,
            "/etc/netplan/60-nodegraft.yaml",
            "mtu 1400",
        ),
        looks(
            &world,
            "by-nm",
            156,
            "/etc/NetworkManager/system-connections/nodegraft.nmconnection",
            "search lab.test",
        ),
        looks(
            &world,
            "by-networkd",
            157,
            "/etc/systemd/network/05-nodegraft.network",
            "mtu 1500",
        ),
    ]);
    assert_eq!(ids.len(), 3, "clones share a machine-id");
    world.down();
    virsh(&["vol-delete", "--pool", POOL, PREPARED]);
}

/// `image prepare`, after one that was killed with its working volume made: the next one takes over what its claim lists.
fn prepare(world: &World) {
    let template = virsh(&["vol-path", "--pool", POOL, "debian12-networkd.qcow2"]);
    let digest = || {
        let sum = Command::new("sha256sum").arg(template.trim()).output();
        text(&sum.unwrap())
    };
    let before = digest();
    let uri = uri();
    let working = || {
        let mut volumes = volumes(POOL);
        volumes.retain(|name| name.starts_with("nodegraft.image.prepare."));
        volumes
    };
    let image = ["image", "prepare", "debian12-networkd.qcow2"];
    let prepare = [&image[..], &["--uri", &uri, "--pool", POOL]].concat();
    world
        .run_with(&prepare, &fault("kill@virStorageVolLookupByName:3"))
        .is_killed();
    assert_eq!(working().len(), 1, "it was killed too soon");
    let prepared = world.run(&prepare);
    prepared.exits(Exit::Done);
    assert_eq!(prepared.stdout, format!("{PREPARED}\n"));
    assert_eq!(digest(), before, "the template was changed");
    assert_eq!(working(), [] as [String; 0], "the working volume is left");
    let mut claims = domains(&uri);
    claims.retain(|name| name.starts_with("nodegraft-prepare-"));
    assert_eq!(claims, [] as [String; 0], "its claim is left");
    world
        .run(&prepare)
        .exits(Exit::Unfit)
        .says(&format!("has a volume {PREPARED} already"));
}

/// What is true in a guest: its name, its network by one file, its keys, its disk. Returns its machine-id.
fn looks(world: &World, node: &str, byte: u8, file: &str, more: &str) -> String {
    let ip = format!("192.168.3.{byte}");
    let xml = virsh(&["dumpxml", node]);
    // All in one: each login costs seconds in software emulation. A second start is the next boot.
    let look = format!(
        "hostname; command -v cloud-init; cat /etc/machine-id; \
         nic=$(grep -l {} /sys/class/net/*/address | cut -d/ -f5); ip -o -4 addr show dev $nic; ip -o link show dev $nic; ip route show default; \
         cat /etc/resolv.conf /etc/hosts; ls /etc/netplan/60-* /etc/NetworkManager/system-connections/nodegraft* /etc/systemd/network/05-* 2>/dev/null; \
         cat /etc/ssh/ssh_host_*_key.pub; echo root $(df -B1 --output=size / | tail -n 1); \
         systemctl restart nodegraft-firstboot; journalctl -u nodegraft-firstboot -o cat | grep 'first boot' | tail -n 1",
        mac(&xml)
    );
    let found = world.guest(&ip, &look);
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(
        (lines[0], lines[1].len()),
        (node, 32),
        "name, no cloud-init, machine-id: {found}"
    );
    for words in [
        &format!("inet {ip}/24"),
        "default via 192.168.3.1",
        "nameserver 192.168.3.1",
        "127.0.0.1 localhost",
        more,
    ] {
        assert!(
            found.contains(words),
            "{node}: `{words}` is not in:\n{found}"
        );
    }
    let ours = lines
        .iter()
        .filter(|line| line.contains("nodegraft") && line.starts_with("/etc/"));
    assert_eq!(ours.collect::<Vec<_>>(), [&file], "{node}: {found}");
    let keys: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("ssh-"))
        .collect();
    assert!(
        keys.len() == 1 && xml.contains(keys[0].split_whitespace().nth(1).unwrap()),
        "{node}: {found}"
    );
    let root = lines.iter().find_map(|line| line.strip_prefix("root "));
    let root: u64 = root.unwrap().trim().parse().unwrap();
    assert!(
        root > 7 << 30,
        "{node}: the root file system has {root} bytes of an 8 GiB disk"
    );
    assert!(
        found.trim().ends_with("done at an earlier boot"),
        "{node}: {found}"
    );
    lines[1].to_owned()
}
