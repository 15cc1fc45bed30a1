//! What nodegraft costs libvirt, in round trips: flat a node, however many there are.

use std::fs;

use nodegraft::core::mark::{Claimed, Mark, SeedState};
use nodegraft::core::ownership::Owner;

use serde_json::json;

use super::bed::Bed;
use super::preload::calls;
use crate::fixture::{Draft, Home};
use crate::in_lab::libvirt::virsh_on;

const UP: usize = 60;
const UP_AGAIN: usize = 12;
const DOWN: usize = 20;
/// Those of tests that run beside this one.
const DOMAINS_OF_TESTS: usize = 4;

/// A host of libvirt's test driver that has a cluster of `count` nodes, and a home with a spec of them.
fn cluster_of(count: usize) -> Home {
    let mut spec = Draft::parse(
        "version: 1\ncluster: {name: cost, join: false}\nhost: {uri: '', pool: kvmimage}\n\
         defaults: {template: debian13.qcow2, gateway: 10.9.255.254}\nnodes: []\n",
    );
    let mut host = String::from("<node>");
    let mut volumes = volume("debian13.qcow2");
    for number in 0..count {
        let owner = Owner::new("cost", &format!("n{number}")).unwrap();
        let claimed = |name: String| Claimed {
            pool: "kvmimage".into(),
            name,
        };
        let mark = Mark {
            seed: SeedState::Blank,
            ..Mark::new(
                owner.clone(),
                "10.9.0.1/16",
                vec![claimed(owner.disk()), claimed(owner.seed())],
            )
        };
        host.push_str(&format!(
            "<domain type='test'><name>{}</name><uuid>{}</uuid><metadata>{}</metadata><memory>262144</memory><vcpu>1</vcpu><os><type>hvm</type></os>\
             <devices><disk type='file'><source file='/kvmimage/{}'/><target dev='vda'/></disk></devices></domain>",
            owner.node,
            owner.uuid(),
            mark.element(),
            owner.disk()
        ));
        volumes.push_str(&volume(&owner.disk()));
        volumes.push_str(&volume(&owner.seed()));
        let address = format!("10.9.{}.{}/16", number / 200 + 1, number % 200 + 1);
        spec = spec.push("nodes", json!({"name": owner.node, "address": address}));
    }
    host.push_str(&format!("<pool type='dir'><name>kvmimage</name><target><path>/kvmimage</path></target>{volumes}</pool></node>"));
    let home = Home::of(&spec.text());
    fs::write(home.path("host.xml"), host).unwrap();
    home.edit(|spec| spec.set("host.uri", format!("test://{}", home.file("host.xml"))));
    home
}

fn volume(name: &str) -> String {
    format!(
        "<volume type='file'><name>{name}</name><capacity unit='GiB'>1</capacity><allocation>0</allocation>\
         <target><path>/kvmimage/{name}</path><format type='qcow2'/></target></volume>"
    )
}

/// Round trips of `down` for a cluster of so many nodes.
fn down(count: usize) -> usize {
    let home = cluster_of(count);
    calls(&mut home.command(&["down", "--yes"])).len()
}

#[test]
fn down_costs_the_same_for_each_node() {
    let counts = [1, 4, 16, 64];
    let trips = counts.map(down);
    assert!(trips[0] <= DOWN, "one node takes {} round trips", trips[0]);
    let each = (trips[1] - trips[0]) / 3;
    let base = trips[0] - each;
    for (count, trips) in counts.iter().zip(trips) {
        assert_eq!(trips, base + each * count, "{count} nodes");
    }
    eprintln!("round trips of `down`: {counts:?} nodes {trips:?}");
}

/// A node from nothing, again, and gone; then how much each of three more adds.
#[test]
#[ignore = "needs the lab: make faults"]
fn a_node_costs_few_round_trips() {
    let bed = Bed::new("fcost", "192.168.3.229");
    let count = |args: &[&str]| calls(&mut bed.command(args)).len();
    let one = [count(&["up"]), count(&["up"]), count(&["down"])];
    bed.edit(|spec| {
        (1..4).fold(spec, |spec, number| {
            let address = format!("192.168.3.{}/24", 229 + number);
            spec.push(
                "nodes",
                json!({"name": format!("fcost-x{number}"), "address": address}),
            )
        })
    });
    let four = [
        count(&["up", "--parallel", "2"]),
        count(&["up"]),
        count(&["down"]),
    ];
    eprintln!("round trips of up, up again, down: one node {one:?}, four nodes {four:?}");
    // The host has others: each of their domains is looked at once, and `down` asks each volume whether it stands on one of ours.
    let lines = |args: &[&str]| {
        virsh_on(&bed.uri, args)
            .lines()
            .filter(|line| !line.trim().is_empty())
            .count()
    };
    let domains = DOMAINS_OF_TESTS.max(lines(&["list", "--all", "--name"]));
    let others = lines(&["vol-list", "kvmimage"]) + lines(&["vol-list", "fullpool"]) + 2 * domains;
    for (what, trips, limit) in [
        ("up", one[0], UP + domains),
        ("up again", one[1], UP_AGAIN + domains),
        ("down", one[2], DOWN + others),
    ] {
        assert!(
            trips <= limit,
            "{what} takes {trips} round trips, not {limit}"
        );
    }
    for (what, one, four, limit) in [
        ("up", one[0], four[0], UP),
        ("up again", one[1], four[1], UP_AGAIN),
        ("down", one[2], four[2], DOWN),
    ] {
        assert!(
            (four - one) / 3 <= limit,
            "{what}: each further node takes {} round trips",
            (four - one) / 3
        );
    }
}
